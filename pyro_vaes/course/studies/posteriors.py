"""Richer posteriors, on the digits and on a posterior bent like a banana."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
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
from pyro_vaes.experiments.outcomes import Outcome, in_words, joined
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
    "A true posterior that is bent (contours, by quadrature) and what each family makes of it: "
    "draws, and the gap KL(q || p(z|x)) in nats."
)


def _banana(quick: bool) -> Figure:
    with style():
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        panels = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
        for ax, name in zip(panels, families(), strict=True):
            found = fitted_banana(name, steps=100 if quick else 2000)
            ax.plot(*found.draws.mT, ".", ms=1.5, alpha=0.4, color=COLORS[0])
            levels = [share * found.density.max().item() for share in (0.05, 0.2, 0.5, 0.8)]
            ax.contour(*found.grid, found.density, levels=levels, colors="0.2", linewidths=0.8)
            ax.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5))
            ax.set_title(f"{name}: gap {found.gap:.2f}")
        for ax in panels[3:]:
            ax.set_xlabel("z₁")
        for ax in panels[::3]:
            ax.set_ylabel("z₂")
    return figure


def findings(o: Outcome) -> list[str]:
    """Which posterior closes the gap, and why a closed gap may not pay."""
    base, cell = "diagonal", o.cell
    richer = [k for k in o.labels if k != base]
    closer = [k for k in richer if o.differs(k, base, "gap").mean < 0]
    found = []
    if closer:
        near = o.lowest(closer, "gap")
        found.append(
            f"{in_words(len(closer)).capitalize()} of {in_words(len(richer))} richer families have "
            f"a smaller gap than the diagonal normal ({cell(base, 'gap')} nats); the smallest is "
            f"{cell(near, 'gap')}, with {near}."
        )
    else:
        found.append("No posterior here has a smaller gap than the diagonal normal.")
    worse = [k for k in closer if o.paired(k, base).mean > 0]
    if worse:
        shown = joined([f"{k} ({cell(k, 'NLL')})" for k in worse[:4]])
        count = "all" if worse == closer else in_words(len(worse))
        found.append(
            f"A smaller gap does not make a better model: {count} of these have a "
            f"higher NLL than the diagonal normal's {cell(base, 'NLL')}, such as {shown}."
        )
    return found + _split(o)


_ROWS = 64  # test images whose gap is split


def _split(o: Outcome) -> list[str]:
    """The gap in two parts, for the diagonal normal and the closest of the richer ones."""
    labels = ["diagonal", "full covariance", *_deepest(o)]
    found, x = [], o.data.test.frozen().x[:_ROWS]
    for label in labels:
        if label in o.labels:
            r = evaluate(o.vae(label), x, num_samples=200, diagnostics=False, gaps=True)
            if r.approximation_gap is not None and r.amortisation_gap is not None:
                found.append((label, r.approximation_gap, r.amortisation_gap))
    if len(found) < 2:
        return []
    shown = [
        f"{label}: family {o.note(f'approximation gap, {label}', f'{a:.2f}')}, encoder "
        f"{o.note(f'amortisation gap, {label}', f'{b:.2f}')}"
        for label, a, b in found
    ]
    trained = _training(o, labels[:2])
    return [
        f"Where the gap comes from (first seed, {len(x)} test images; {'; '.join(shown)}): the "
        "family is what q misses at its best for each image, the encoder what it misses by "
        f"predicting q for an image it has not seen. {_moral(*(parts for _, *parts in found))}",
        *trained,
    ]


def _training(o: Outcome, labels: list[str]) -> list[str]:
    """Whether the model with a richer posterior is over-fitted, or fitted less."""
    if not {*labels} <= {*o.labels}:
        return []
    x = o.data.train.frozen().x[:_ROWS]
    plain, richer = (
        evaluate(o.vae(label), x, num_samples=200, diagnostics=False).nll for label in labels
    )
    shown = [
        o.note(f"NLL of {len(x)} training images, {label}, first seed", f"{nll:.2f}")
        for label, nll in zip(labels, (plain, richer), strict=True)
    ]
    kls = [o.cell(label, "KL") for label in labels]
    why = (
        f"is not over-fitted but fitted less, with a KL of {kls[1]} nats against {kls[0]}: in "
        "training, posterior and model move together, and a tighter bound is one of several ways "
        "to raise it"
        if richer > plain
        else "fits those better and new images worse: it is over-fitted"
    )
    return [
        f"On training images the NLL is {shown[1]} with {labels[1]}, {shown[0]} with {labels[0]} "
        f"(first seed): the model with the richer posterior {why}."
    ]


def _moral(diagonal: Sequence[float], *richer: Sequence[float]) -> str:
    """What the two parts of the gap, of the family and of the encoder, say of richer families."""
    most = all(encoder > family for family, encoder in (diagonal, *richer))
    text = "In each, most of it is the encoder's. " if most else ""
    if all(encoder < diagonal[1] for _, encoder in richer):
        return text + (
            "And that part is what the richer families lower: each was trained with a model of its "
            "own, and one whose z says less leaves less to predict."
        )
    return text + (
        "A richer family has more to predict, and on new images it predicts worse. In training the "
        "decoder is fitted to a bound that is tight on training images only, so model and guide "
        "over-fit together; with the decoder fixed, as in the second part of the assignment, the "
        "richer families win."
    )


def _deepest(o: Outcome) -> list[str]:
    """The deepest IAF, whose q can be fitted to each image."""
    return [k for k in o.labels if k.startswith("IAF")][-1:]


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
