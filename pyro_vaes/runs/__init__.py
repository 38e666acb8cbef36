"""A run from options: schema, recipes, registry of names, building, training."""
