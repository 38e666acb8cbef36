"""A page of the report: errors in the reference notebooks, and their effects.

Every number on it is computed when the page is made, by
:mod:`pyro_vaes.course.report.demonstrations`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vaes.course.report.demonstrations import (
    CORNER,
    STEPS,
    WIDE,
    Figures,
    PerDimension,
    bound_defect,
    flow_defect,
    mixture_defect,
    scale_defect,
    two_corners,
)
from pyro_vaes.experiments.page import markdown_table
from pyro_vaes.plotting import style

__all__ = ["DefectsPage", "defects_page"]


@dataclasses.dataclass(frozen=True)
class DefectsPage:
    """The page: Markdown, and its figures by file name."""

    markdown: str
    figures: dict[str, Figure]


def defects_page() -> DefectsPage:
    """Computes the page, the same each time, in a few seconds.

    Returns:
        Markdown with one first-level heading, and the figures that it refers to.
    """
    with torch.random.fork_rng(devices=[]):
        mixture, scales, models = mixture_defect(), scale_defect(), bound_defect()
        fits, samples = flow_defect()
    overview = [
        (defect, asked, *_numbers(found, should, says))
        for defect, asked, found, should, says in (
            (
                "mixture prior: log-sum-exp for each dimension",
                "log density at (3, -3)",
                mixture,
                "joint",
                "per_dimension",
            ),
            (
                "flow prior: log-determinant once per dimension",
                f"NLL of codes, D = {WIDE}",
                fits[1],
                "right_nll",
                "reported_nll",
            ),
            (
                "mixture sampler: exp(log-variance) as scale",
                "spread of a component",
                scales[0],
                "density",
                "sampler",
            ),
            (
                "one-sample ELBO reported as nll",
                "-log p(x) of a model",
                models[0],
                "exact",
                "one_draw",
            ),
        )
    ]
    text = [
        "# What the reference notebooks get wrong, and what it changes",
        "Four formulas in the notebooks that come with the assignment are wrong. None of the four "
        "stops a run, so they stay unnoticed. Each is shown here next to the right formula, "
        "and both are run, in nats.",
        markdown_table(("defect", "asked for", "should be", "notebook's formula"), *overview),
        _mixture_text(mixture),
        _flow_text(fits),
        _scale_text(scales),
        _bound_text(models),
    ]
    figures = {"defects_mixture.png": _mixture_figure(), "defects_flow.png": _flow_figure(samples)}
    return DefectsPage("\n\n".join(text) + "\n", figures)


# --- a mixture that is not joint ------------------------------------------------------------------


def _mixture_text(found: Figures) -> str:
    rows = [
        (name, *_numbers(found, *(f"{key}_{kind}" for kind in ("exact", "joint", "per_dimension"))))
        for name, key in (("drawn from the model", "likely"), ("around (3, -3)", "ghost"))
    ]
    return rf"""## A mixture that is not joint

In a mixture $p(z) = \sum_k w_k \prod_d \mathcal{{N}}(z_d; \mu_{{kd}}, \sigma_{{kd}}^2)$ one
component is chosen for all dimensions. A log-sum-exp over components that is taken before the sum
over dimensions scores $\prod_d \sum_k w_k \mathcal{{N}}(z_d; \mu_{{kd}}, \sigma_{{kd}}^2)$ instead,
where each dimension chooses for itself. With $K$ components in $D$ dimensions that density has up
to $K^D$ modes, and the sampler, which is joint, visits $K$ of them.

Take two components of unit scale at (3, 3) and (-3, -3), and $z$ = (3, -3), which lies near
neither. The joint log density there is {found["joint"]:.2f}; the product of mixtures says
{found["per_dimension"]:.2f}.

![The log density of two components, joint (left) and for each dimension apart (right), with samples
of the mixture. Two of the four modes on the right are ghosts that no sample
visits.](defects_mixture.png)

With this prior, a model $x = z$ + noise of standard deviation {found["noise"]:.1f} has these
bounds:

{markdown_table(("data", "-log p(x)", "-ELBO, joint", "-ELBO, per dimension"), *rows)}

Draws of the prior get too low a density, and points that it never generates get too high a one. The
mean loss on the prior's own draws is the total correlation of the mixture, the information that the
dimensions have of each other: {found["correlation_2"]:.2f} nats here, and
{found[f"correlation_{WIDE}"]:.2f} nats for the same corners in {WIDE} dimensions (15 log 2 =
{15 * math.log(2):.2f}). A prior scored so cannot learn which values of the dimensions go together.
"""


def _mixture_figure() -> Figure:
    side = torch.linspace(-6, 6, 121, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1)
    colors = sns.color_palette("colorblind")
    with style(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        joint = two_corners(2)
        draws = joint().sample((300,))
        figure = Figure(figsize=(6, 2.8), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, prior in zip(panels, (joint, PerDimension(joint)), strict=True):
            values = prior().log_prob(z).clamp(min=-30)
            shown = axes.contourf(side, side, values, levels=range(-30, 1, 3), cmap="Blues")
            axes.scatter(*draws.T, s=2, color=colors[1], linewidths=0)
            axes.plot(CORNER, -CORNER, "x", color=colors[3])
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
            at = CORNER, -CORNER - 0.6
            axes.text(*at, "(3, -3)", ha="center", va="top", fontsize=9, bbox=box)
            axes.set(aspect="equal", xlabel="$z_1$", xlim=(-6, 6), ylim=(-6, 6))
        panels[0].set_ylabel("$z_2$")
        figure.colorbar(shown, ax=panels, label="log density (nats)")
    return figure


# --- a log-determinant counted D times ------------------------------------------------------------


def _flow_text(fits: Sequence[Figures]) -> str:
    rows = [
        (name, *(_number(fit[key]) for fit in fits))
        for name, key in (
            ("entropy of the codes, the least possible NLL", "entropy"),
            ("NLL, counted once", "right_nll"),
            ("NLL as reported, counted D times", "reported_nll"),
            ("NLL in truth, counted D times", "wrong_nll"),
            ("spread of samples over that of codes, counted once", "right_spread"),
            ("spread of samples over that of codes, counted D times", "wrong_spread"),
        )
    ]
    small, wide = fits
    return rf"""## A log-determinant counted D times

A flow prior maps $z$ to $u = f(z)$, and $\log p(z) = \log \mathcal{{N}}(u; 0, I) + \log |\det
\partial f / \partial z|$. With the first term kept as $D$ numbers, the second added to each, and
their sum taken, the determinant counts $D$ times. What is scored then is no density: it does not
integrate to one. Writing $H$ for entropy, training maximises $\mathbb{{E}}[\log \mathcal{{N}}(u)] +
D H(u) - D H(z)$, whose maximum lies at a density of $u$ proportional to
$\mathcal{{N}}(u)^{{1/D}}$: whatever the codes, they are mapped to $\mathcal{{N}}(0, D I)$ instead
of $\mathcal{{N}}(0, I)$. Samples are pushed back from $\mathcal{{N}}(0, I)$, and so come from the
middle of the codes only, with $1 / \sqrt{{D}}$ of their spread where the flow is linear.

Two priors trained for {STEPS} steps by either count, a RealNVP on a bent normal (D = 2) and one
scale for each dimension on a standard normal (D = {WIDE}):

{markdown_table(("", "D = 2", f"D = {WIDE}"), *rows)}

Counted twice, the trained "density" over two dimensions integrates to {small["mass"]:.1f}. Counted
{WIDE} times, the prior reports an NLL {wide["right_nll"] - wide["reported_nll"]:.0f} nats lower
than the right one has, and is {wide["wrong_nll"] - wide["right_nll"]:.0f} nats worse.

![Codes (left), and samples of a RealNVP prior trained on them with its log-determinant counted once
(middle) and once per dimension (right).](defects_flow.png)
"""


def _flow_figure(samples: Sequence[Tensor]) -> Figure:
    colors = sns.color_palette("colorblind")
    with style():
        figure = Figure(figsize=(6, 2.3), layout="constrained")
        panels = figure.subplots(1, 3, sharex=True, sharey=True)
        for i, name in enumerate(("codes", "counted once", "counted twice")):
            axes = panels[i]
            axes.scatter(*samples[i][:1500].T, s=2, color=colors[i], linewidths=0)
            axes.text(0.5, 1.0, name, transform=axes.transAxes, ha="center", va="top", fontsize=9)
            axes.set_xlabel("$z_1$")
        panels[0].set(ylabel="$z_2$", xlim=(-4, 4), ylim=(-2.5, 7))
    return figure


# --- a variance used as standard deviation --------------------------------------------------------


def _scale_text(cases: Sequence[Figures]) -> str:
    head = (
        "component",
        "spread, right sampler",
        "spread, wrong sampler",
        "KL per dimension",
        f"KL, D = {WIDE}",
    )
    rows = [
        (
            f"standard deviation {case['scale']:.1f}",
            *_numbers(case, "density", "sampler", "kl"),
            _number(WIDE * case["kl"]),
        )
        for case in cases
    ]
    return rf"""## A variance used as standard deviation

The density reads a mixture's parameters as log-variances $v = \log \sigma^2$. The sampler
multiplies noise by $\exp(v)$, the variance, where it needs $\exp(v / 2)$: components narrower than
one are drawn too narrow, wider ones too wide.

{markdown_table(head, *rows)}

KL is that of what is drawn to what is scored. Pictures of samples then show another model than the
one that was trained, and less varied where its components are narrow.
"""


# --- one draw of the bound, reported as nll -------------------------------------------------------


def _bound_text(models: Sequence[Figures]) -> str:
    true, wrong = models
    rows = [
        (
            name,
            *_numbers(m, "exact", "weighted", "bound", "one_draw"),
            f"{_number(m['lowest'])} to {_number(m['highest'])}",
        )
        for name, m in (
            ("true model, poor posterior", true),
            ("wrong noise, exact posterior", wrong),
        )
    ]
    head = ("", "-log p(x)", "1000 draws, weighted", "-ELBO", '"nll"', '"nll", 10 seeds')
    worst = max(abs(m["weighted"] - m["exact"]) for m in models)
    return f"""## One draw of the ELBO, reported as nll

One draw of the negative ELBO for each datum is printed under the name nll. On average it lies above
-log p(x), by the distance of the posterior to the true one, and each time by another amount: a
model is judged by its encoder. Here are two linear-Gaussian models, whose -log p(x) is known
exactly, on {true["num"]:.0f} data drawn from the first. Its posterior has the right means and
variances and lacks the correlation.

{markdown_table(head, *rows)}

By likelihood the true model is better by {wrong["exact"] - true["exact"]:.2f} nats; by "nll" it is
worse by {true["one_draw"] - wrong["one_draw"]:.2f}. The importance-weighted estimate is right to
{worst:.3f} nats for both.
"""


# --- Markdown -------------------------------------------------------------------------------------


def _number(value: float) -> str:
    text = f"{value:.2f}"
    return text.lstrip("-") if float(text) == 0 else text


def _numbers(found: Figures, *keys: str) -> tuple[str, ...]:
    return tuple(_number(found[key]) for key in keys)
