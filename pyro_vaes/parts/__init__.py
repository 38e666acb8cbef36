"""Priors, posteriors and likelihoods: modules that return Pyro distributions."""
