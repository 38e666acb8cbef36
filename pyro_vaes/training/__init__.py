"""Trains any VAE."""

from pyro_vaes.training.history import History, NonFiniteError
from pyro_vaes.training.sweep import fit_many
from pyro_vaes.training.trainer import fit

__all__ = ["History", "NonFiniteError", "fit", "fit_many"]
