"""Evaluates any VAE."""

from pyro_vaes.evaluation.evaluator import evaluate, log_marginal
from pyro_vaes.evaluation.results import Evaluation, Unavailable

__all__ = ["Evaluation", "Unavailable", "evaluate", "log_marginal"]
