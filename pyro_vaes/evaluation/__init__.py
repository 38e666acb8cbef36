"""Evaluates any VAE."""

from pyro_vaes.evaluation.evaluator import evaluate, log_marginal
from pyro_vaes.evaluation.results import Evaluation, Unavailable
from pyro_vaes.evaluation.scores import Scores, nearest_rows, score

__all__ = [
    "Evaluation",
    "Scores",
    "Unavailable",
    "evaluate",
    "log_marginal",
    "nearest_rows",
    "score",
]
