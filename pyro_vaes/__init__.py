"""Variational autoencoders as plain Pyro models and guides."""

from pyro_vaes import flows
from pyro_vaes._version import __version__
from pyro_vaes.checkpoints import load, save
from pyro_vaes.convolutions import ConvDecoder, ConvEncoder
from pyro_vaes.data import DataSet, Split, load_data, pseudo_inputs
from pyro_vaes.divergences import MMD, Adversarial
from pyro_vaes.evaluation import Evaluation, evaluate, log_marginal
from pyro_vaes.inference import FastSVI
from pyro_vaes.likelihoods import (
    AutoregressiveLikelihood,
    BernoulliLikelihood,
    BetaBinomialLikelihood,
    CategoricalLikelihood,
    DiscretizedLogisticLikelihood,
    NormalLikelihood,
    OrdinalLikelihood,
)
from pyro_vaes.networks import MLP, GatedMLP
from pyro_vaes.objectives import ELBO, BetaELBO, InfoELBO
from pyro_vaes.posteriors import FlowPosterior, FullNormalPosterior, NormalPosterior
from pyro_vaes.priors import FlowPrior, GTMPrior, MixturePrior, NormalPrior, VampPrior
from pyro_vaes.sweep import fit_many
from pyro_vaes.topographic import GTMPseudoInputs
from pyro_vaes.training import History, fit
from pyro_vaes.vae import VAE

__all__ = [
    "ELBO",
    "MLP",
    "MMD",
    "VAE",
    "Adversarial",
    "AutoregressiveLikelihood",
    "BernoulliLikelihood",
    "BetaBinomialLikelihood",
    "BetaELBO",
    "CategoricalLikelihood",
    "ConvDecoder",
    "ConvEncoder",
    "DataSet",
    "DiscretizedLogisticLikelihood",
    "Evaluation",
    "FastSVI",
    "FlowPosterior",
    "FlowPrior",
    "FullNormalPosterior",
    "GTMPrior",
    "GTMPseudoInputs",
    "GatedMLP",
    "History",
    "InfoELBO",
    "MixturePrior",
    "NormalLikelihood",
    "NormalPosterior",
    "NormalPrior",
    "OrdinalLikelihood",
    "Split",
    "VampPrior",
    "__version__",
    "evaluate",
    "fit",
    "fit_many",
    "flows",
    "load",
    "load_data",
    "log_marginal",
    "pseudo_inputs",
    "save",
]
