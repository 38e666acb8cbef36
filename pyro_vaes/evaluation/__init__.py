"""Evaluates any VAE."""

from pyro_vaes.evaluation.evaluator import evaluate, log_marginal
from pyro_vaes.evaluation.imputation import Imputation, impute
from pyro_vaes.evaluation.results import Evaluation, Unavailable
from pyro_vaes.evaluation.scores import Scores, nearest_rows, score

__all__ = [
    "Evaluation",
    "Imputation",
    "Scores",
    "Unavailable",
    "evaluate",
    "impute",
    "log_marginal",
    "nearest_rows",
    "score",
]
