"""Values that options may take, other than names of parts.

One table for the options, which must not import torch, and for the code that uses them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Literal

__all__ = [
    "ACTIVATIONS",
    "FREEZABLE",
    "GRADIENTS",
    "KERNELS",
    "MODES",
    "OPTIMIZERS",
    "PRECISIONS",
    "PROPOSALS",
    "SCHEDULES",
    "Mode",
]

#: Activations, from name to class in ``torch.nn``.
ACTIVATIONS: Mapping[str, str] = {
    "elu": "ELU",
    "gelu": "GELU",
    "leaky_relu": "LeakyReLU",
    "relu": "ReLU",
    "silu": "SiLU",
    "softplus": "Softplus",
    "tanh": "Tanh",
}
#: Optimisers, from name to class in ``torch.optim``.
OPTIMIZERS: Mapping[str, str] = {"adam": "Adam", "adamw": "AdamW", "adamax": "Adamax"}
#: Schedules of the learning rate, from name to the factor at a fraction of training.
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda fraction: 1.0,
    "cosine": lambda fraction: 0.5 * (1 + math.cos(math.pi * fraction)),
    "linear": lambda fraction: 1.0 - fraction,
}
_PARTS = ("prior", "posterior", "likelihood")
#: What ``--freeze`` may hold: no part, or one or two of the three.
FREEZABLE = ("none", *_PARTS, *(",".join(pair) for pair in itertools.combinations(_PARTS, 2)))
#: Gradients of an objective, all of it or without the score of q(z | x).
GRADIENTS = ("total", "path")
#: Kernels of the MMD.
KERNELS = ("imq", "rbf")
#: Where the draws behind log p(x) come from.
PROPOSALS = ("auto", "encoder", "refined", "annealed")
#: Number formats of training.
PRECISIONS = ("float32", "tf32", "bf16")

Mode = Literal["auto", "eager", "traced", "compiled", "cuda_graph"]
#: How training steps are run.
MODES: tuple[Mode, ...] = ("auto", "eager", "traced", "compiled", "cuda_graph")
#: Where to compute.
DEVICES = ("auto", "cpu", "cuda", "mps")
