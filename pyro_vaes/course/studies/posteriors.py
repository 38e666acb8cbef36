"""Richer posteriors, on the digits and on a posterior bent like a banana."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_vaes import flows
from pyro_vaes.course.studies.base import course_study, few
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.evaluation.evaluator import evaluate
from pyro_vaes.exact.quadrature import Quadrature
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome, joined, mean_text
from pyro_vaes.experiments.panels import COLORS, NLL, WIDTH, Figures, dots, drawn
from pyro_vaes.experiments.study import Cell
from pyro_vaes.networks.mlp import MLP
from pyro_vaes.parts.posteriors import FlowPosterior, FullNormalPosterior, NormalPosterior
from pyro_vaes.parts.priors import NormalPrior
from pyro_vaes.plotting import style
from pyro_vaes.training.trainer import fit
from pyro_vaes.vae import VAE, evaluating

__all__ = ["STUDY"]


_SCALE, _BEND, _DATUM = 0.25, 1.0, 0.5


class Valley(nn.Module):
    """p(x | z) = N(z_2 + b z_1^2, s^2): given x, z lies along a parabola."""

    def forward(self, z: Tensor) -> Any:
        return dist.Normal(z[..., 1:] + _BEND * z[..., :1].square(), _SCALE).to_event(1)


@dataclasses.dataclass(frozen=True)
class Banana:
    """A posterior fitted to the bent one.

    Attributes:
        gap: KL(q(z | x) || p(z | x)), in nats.
        draws: from q(z | x), ``(n, 2)``.
        grid: coordinates of the points where the true posterior was scored.
        density: p(z | x) there.
    """

    gap: float
    draws: Tensor
    grid: tuple[Tensor, Tensor]
    density: Tensor


def _normal() -> NormalPosterior:
    return NormalPosterior(MLP(1, [16], "tanh"), 2, [1])


_FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "diagonal": _normal,
    "full covariance": lambda: FullNormalPosterior(MLP(1, [16], "tanh"), 2, [1]),
    "planar, 16": lambda: FlowPosterior(_normal(), flows.planar(2, 16)),
    "Sylvester, 4": lambda: FlowPosterior(_normal(), flows.sylvester(2, 4)),
    "IAF, 4": lambda: FlowPosterior(_normal(), flows.iaf(2, 4, [32])),
    "spline, 4": lambda: FlowPosterior(_normal(), flows.spline(2, 4, [32])),
}


def families() -> list[str]:
    """The posteriors that can be fitted."""
    return list(_FAMILIES)


def fitted_banana(family: str, steps: int = 2000, seed: int = 0) -> Banana:
    """Fits a posterior to the bent one; model and datum are fixed.

    Args:
        family: one of :func:`families`.
        steps: of training, with 64 draws each.
        seed: of weights and noise.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = VAE(NormalPrior(2), _FAMILIES[family](), Valley())
        x = torch.full((64, 1), _DATUM)
        options: dict[str, Any] = {"epochs": steps, "learning_rate": 5e-3, "schedule": "cosine"}
        fit(vae, x, seed=seed, mode="traced", progress=False, **options)
        exact = Quadrature(vae)
        evidence = exact.log_prob(x[:1]).item()
        elbo = evaluate(vae, x[:1], num_samples=20_000, proposal="encoder", diagnostics=False).elbo
        line = torch.linspace(-2.5, 2.5, 120, dtype=torch.float64)
        z = torch.cartesian_prod(line, line)
        with evaluating(vae):
            torch.manual_seed(seed)
            draws = vae.q_z(x[:1]).sample((1500,)).squeeze(1)
            density = exact.log_joint(z, x[:1]).exp().squeeze(-1) / math.exp(evidence)
        one, two = torch.meshgrid(line, line, indexing="ij")
    return Banana(evidence - elbo, draws, (one, two), density.reshape(one.shape))


_DEPTHS = {"planar": (1, 2, 4, 8, 16), "iaf": (1, 2, 3, 4), "sylvester": (4,)}
_SHOWN = {"planar": "planar", "iaf": "IAF", "sylvester": "Sylvester"}
_RICHER = (
    "full covariance",
    *(f"{_SHOWN[name]}, {depth}" for name, depths in _DEPTHS.items() for depth in depths),
)


def grid(data: DataSet, quick: bool) -> list[Cell]:
    cells = [
        Cell("diagonal", {}, {"family": "diagonal", "depth": 0}),
        Cell("full covariance", {"posterior": "full_normal"}, {"family": "full", "depth": 0}),
    ]
    return cells + [
        Cell(
            f"{_SHOWN[name]}, {depth}",
            {"posterior": name, "posterior_flows": depth},
            {"family": _SHOWN[name], "depth": depth},
        )
        for name, all_depths in _DEPTHS.items()
        for depth in few(all_depths, quick, all_depths[-1:])
    ]


def figures(o: Outcome) -> Figures:
    """Figures on richer posteriors."""
    panels = {"nll": NLL, "gap": "gap to the ELBO (nats)"}
    return drawn(
        [
            ("gap", dots(o, panels), "NLL, and what the ELBO misses of it; grey: seeds."),
            ("banana", _banana(o.quick), _BANANA),
        ]
    )


_BANANA = (
    "A true posterior that is bent (grey, by quadrature) and what each family makes of it: draws, "
    "and the gap KL(q || p(z|x)) in nats."
)


def _banana(quick: bool) -> Figure:
    with style():
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        panels = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
        for ax, name in zip(panels, families(), strict=True):
            found = fitted_banana(name, steps=100 if quick else 2000)
            ax.contourf(*found.grid, found.density, levels=7, cmap="Greys")
            ax.plot(*found.draws.mT, ".", ms=1.5, alpha=0.5, color=COLORS[0])
            ax.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5))
            ax.set_title(f"{name}: {found.gap:.2f}")
        for ax in panels[3:]:
            ax.set_xlabel("z₁")
        for ax in panels[::3]:
            ax.set_ylabel("z₂")
    return figure


def findings(o: Outcome) -> list[str]:
    """Sentences on richer posteriors."""
    found = o.ranked("diagonal", o.labels)
    gaps = {k: o.differs(k, "diagonal", "gap") for k in o.labels if k != "diagonal"}
    closer = [k for k, g in gaps.items() if g.mean < 0]
    if closer:
        shown = joined([f"{k} ({mean_text(o, k, 'gap')})" for k in closer])
        found.append(
            "The gap between the ELBO and log p(x), "
            f"{mean_text(o, 'diagonal', 'gap')} nats with a diagonal normal, is smaller with "
            f"{shown}."
        )
    else:
        found.append("No posterior here has a smaller gap than the diagonal normal.")
    return found


STUDY = course_study(
    "Richer posteriors",
    "How far below log p(x) does the ELBO lie, and which posterior closes the gap?",
    grid,
    figures,
    findings,
    {"gap": "gap", "encoder_pareto_k_median": "k-hat, encoder"},
    comparisons=(
        Comparison(_RICHER, "diagonal", "gap", "The gap"),
        Comparison(_RICHER, "diagonal"),
        Comparison("full covariance", "diagonal", "gap", "The gap"),
    ),
)
