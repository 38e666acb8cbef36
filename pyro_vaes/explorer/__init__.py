"""A page to look into a model: latent space, reconstructions, traversals, scores."""
