"""Levels of latents: what depth brings, and which levels are used. Beyond the assignment."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vaes.course.studies.base import BASE, REGULARIZED, course_study, few
from pyro_vaes.data.dataset import DataSet
from pyro_vaes.distributions.chains import Chain
from pyro_vaes.experiments.claims import Comparison
from pyro_vaes.experiments.outcomes import Outcome, in_words, joined
from pyro_vaes.experiments.panels import COLORS, NLL, Figures, axes_of, bar, drawn, sheet
from pyro_vaes.experiments.study import Cell
from pyro_vaes.plotting import style
from pyro_vaes.vae import VAE

__all__ = ["STUDY"]

# Sizes of the levels, top first, 16 latents in all; and of the hidden layers, with which models of
# the digits have equal numbers of parameters to one per cent.
_DEPTHS = {1: ((16,), 256), 2: ((4, 12), 186), 3: ((4, 4, 8), 154), 4: ((4, 4, 4, 4), 134)}
_COLD = "no warm-up"
# A level with less than this is called unused, in nats.
_UNUSED = 0.1


def _name(depth: int, warm: bool = True) -> str:
    return f"{depth} level{'s' * (depth > 1)}" + ("" if warm else f", {_COLD}")


def grid(data: DataSet, quick: bool) -> list[Cell]:
    cells = []
    for depth in few(tuple(_DEPTHS), quick, (1, 2)):
        sizes, hidden = _DEPTHS[depth]
        options = {"latent_dim": sum(sizes), "hidden_dims": (hidden, hidden)}
        options |= {"levels": sizes} if depth > 1 else {}
        for warm in (True, False):
            if warm or depth > 1:
                epochs = REGULARIZED["warmup_epochs"] if warm else 0
                factors = {"levels": depth, "warm-up": epochs}
                cells.append(
                    Cell(_name(depth, warm), {**options, "warmup_epochs": epochs}, factors)
                )
    return cells


def findings(o: Outcome) -> list[str]:
    """Whether depth lowers the NLL, how the KL is spread over levels, and what warm-up does."""
    single, deep = o.labels[0], [label for label in o.labels[1:] if _COLD not in label]
    if not deep or _depth(o, single) != 1:
        return o.ranked(single, o.labels)
    chosen = o.chosen(deep) or deep[0]
    gain = o.paired(chosen, single).mean
    found = [
        f"Of the models with several levels validation chooses {chosen}. Its NLL is "
        f"{'lower' if gain < 0 else 'not lower'} than that of a single level with as many latents "
        f"and parameters ({o.cell(chosen, 'NLL')} against {o.cell(single, 'NLL')})."
    ]
    found.append(
        f"How the KL is spread: {'; '.join(_spread(o, label) for label in deep)}. What the "
        "lowest level holds is all that the decoder could not take from one level alone; a level "
        "above it is of use only as far as a normal given it fits better than one for all data."
    )
    unused = [label for label in deep if _top(o, label) < _UNUSED]
    limit = o.note("unused: a KL below, nats", f"{_UNUSED:g}")
    found.append(
        f"The top level is unused, below {limit} nats, in {in_words(len(unused))} of "
        f"{in_words(len(deep))} depths with warm-up" + (f": {joined(unused)}." if unused else ".")
    )
    return found + _warmup(o, deep)


def _warmup(o: Outcome, deep: Sequence[str]) -> list[str]:
    """What warm-up changes in the KL of the top level, and which levels go unused without it."""
    gaps, below = [], []
    for label in deep:
        cold, key = f"{label}, {_COLD}", f"kl_level_{_depth(o, label)}"
        if cold in o.labels:
            below += [o.mean(cold, f"kl_level_{i}")[0] for i in range(1, _depth(o, label))]
            gap = o.differs(label, cold, key)
            text = f"{gap.mean:+.2f}" + ("" if math.isnan(gap.error) else f" ± {gap.error:.2f}")
            gaps.append(
                f"{label}: {o.note(f'KL of the top level, {label}, warm-up minus none', text)}"
            )
    if not gaps:
        return []
    found = f"Warm-up changes the KL of the top level by ({'; '.join(gaps)}) nats."
    unused = sum(kl < _UNUSED for kl in below)
    found += (
        f" Without it {in_words(unused)} of {in_words(len(below))} levels below a top are unused"
    )
    # Relative to the prior's links, they start with no KL.
    why = ": their posterior starts at their prior, and a KL at its full cost keeps it there."
    return [found + (why if unused else ".")]


def _depth(o: Outcome, label: str) -> int:
    return int(o.table.loc[o.table["label"] == label, "levels"].iloc[0])


def _top(o: Outcome, label: str) -> float:
    return o.mean(label, f"kl_level_{_depth(o, label)}")[0]


def _spread(o: Outcome, label: str) -> str:
    shares = [o.cell(label, _HEADS[f"kl_level_{i}"]) for i in range(_depth(o, label), 0, -1)]
    return f"{label}, top first: {', '.join(shares)} nats"


def figures(o: Outcome) -> Figures:
    """Figures on levels."""
    deep = [label for label in o.labels if _depth(o, label) > 1 and _COLD not in label]
    return drawn(
        [
            (
                "levels",
                _by_level(o),
                "Test NLL, and the KL of each level, the lowest one first.",
            ),
            (
                "given_top",
                sheet(o, [label for label in deep for _ in range(3)], _given_top),
                "Ten means of p(x given z) in each row: one draw of the top level, ten draws of "
                "the levels below.",
            ),
        ]
    )


def _by_level(o: Outcome) -> Figure:
    places = np.arange(len(o.labels))[::-1]
    with style():
        figure, axes = axes_of(1.0 + 0.27 * len(o.labels), 2, sharey=True)
        left = np.zeros(len(o.labels))
        for level in range(1, max(_depth(o, label) for label in o.labels) + 1):
            values = np.array([o.mean(label, f"kl_level_{level}")[0] for label in o.labels])
            values = np.nan_to_num(values)
            axes[1].barh(places, values, 0.6, left, color=COLORS[level - 1], label=f"level {level}")
            left = left + values
        for place, label in zip(places, o.labels, strict=True):
            mean, error = o.mean(label, "nll")
            axes[0].plot(
                o.values(label, "nll"),
                [place] * len(o.values(label, "nll")),
                "o",
                ms=3,
                color="0.7",
            )
            axes[0].errorbar(mean, place, xerr=bar(error), fmt="o", ms=5, color=COLORS[0])
        axes[0].set_yticks(places, o.labels)
        axes[0].set_xlabel(NLL)
        axes[1].set_xlabel("KL (nats)")
        axes[1].legend(
            loc="upper center",
            bbox_to_anchor=(0.5, 1.18),
            ncols=4,
            fontsize=7,
            handlelength=1.0,
            columnspacing=1.0,
            frameon=False,
        )
    return figure


def _given_top(vae: VAE) -> Tensor:
    """Ten means of x that share a draw of the top level."""
    prior = vae.p_z()
    if not isinstance(prior, Chain):
        return vae.decode(prior.sample((10,)))
    noise, _ = prior.whiten(prior.sample((1,)))
    top = prior.sizes[0]
    below = torch.randn(10, noise.shape[-1] - top)
    z, _ = prior.colour(torch.cat([noise[:, :top].expand(10, top), below], -1))
    return vae.decode(z)


_HEADS = {f"kl_level_{level}": f"KL, level {level}" for level in range(max(_DEPTHS), 0, -1)}
_DEEP = tuple(_name(depth) for depth in _DEPTHS if depth > 1)

STUDY = course_study(
    "Levels of latents",
    "Beyond the assignment: do two, three or four levels of latents fit better than one with as "
    "many latents and parameters, which levels are used, and does a warm-up of the KL keep the "
    "upper ones from collapsing? (Level 1 is the lowest; the decoder sees all levels.)",
    grid,
    figures,
    findings,
    {**_HEADS, "active_units": "active units"},
    measures=("level_kls",),
    base={**BASE, **REGULARIZED},
    comparisons=(
        Comparison(_DEEP, _name(1)),
        *(
            Comparison(_name(d), _name(d, False), f"kl_level_{d}", "The KL of the top level")
            for d in (2, 4)
        ),
    ),
)
