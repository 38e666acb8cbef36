"""Proposals for log p(x): fitted to each datum, or annealed."""
