"""Evaluates any VAE."""

from pyro_vaes.evaluation.evaluator import evaluate, log_marginal
from pyro_vaes.evaluation.imputation import Imputation, impute
from pyro_vaes.evaluation.results import Evaluation, Unavailable

__all__ = ["Evaluation", "Imputation", "Unavailable", "evaluate", "impute", "log_marginal"]
