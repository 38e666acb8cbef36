"""Variational autoencoders as plain Pyro models and guides."""

from pyro_vaes import flows
from pyro_vaes.likelihoods import BernoulliLikelihood, CategoricalLikelihood, NormalLikelihood
from pyro_vaes.networks import MLP
from pyro_vaes.objectives import ELBO, BetaELBO
from pyro_vaes.posteriors import FlowPosterior, NormalPosterior
from pyro_vaes.priors import FlowPrior, MixturePrior, NormalPrior, VampPrior
from pyro_vaes.vae import VAE

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "MLP",
    "VAE",
    "BernoulliLikelihood",
    "BetaELBO",
    "CategoricalLikelihood",
    "DataSet",
    "FlowPosterior",
    "FlowPrior",
    "MixturePrior",
    "NormalLikelihood",
    "NormalPosterior",
    "NormalPrior",
    "Split",
    "VampPrior",
    "flows",
    "load_data",
    "pseudo_inputs",
]
