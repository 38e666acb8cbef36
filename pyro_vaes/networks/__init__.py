"""Networks that return features."""

from pyro_vaes.networks.convolutions import ConvDecoder, ConvEncoder
from pyro_vaes.networks.masked import AutoregressiveNetwork
from pyro_vaes.networks.mlp import MLP, GatedMLP, Network, SkipMLP
from pyro_vaes.networks.residual import ResDecoder, ResEncoder, ResMLP

__all__ = [
    "MLP",
    "AutoregressiveNetwork",
    "ConvDecoder",
    "ConvEncoder",
    "GatedMLP",
    "Network",
    "ResDecoder",
    "ResEncoder",
    "ResMLP",
    "SkipMLP",
]
