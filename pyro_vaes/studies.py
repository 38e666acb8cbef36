"""The studies of the assignment: which runs, what is asked of them, what is drawn, what was found.

A :class:`Study` is a declaration. To add one, add an entry to :data:`STUDIES`: a grid of options
over :data:`BASE`, what to measure beside :func:`pyro_vaes.evaluate`, and functions that draw
figures and word findings from an :class:`~pyro_vaes.outcomes.Outcome`. Everything else (running,
resuming, tables, writing) is common to all and stands in :mod:`pyro_vaes.study_report`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro_vaes import study_figures as draw
from pyro_vaes import study_findings as find
from pyro_vaes import study_prior_figures as draw_prior
from pyro_vaes.data import DataSet
from pyro_vaes.outcomes import Outcome
from pyro_vaes.recipes import check, resolve
from pyro_vaes.study_panels import Figures

__all__ = ["BASE", "STUDIES", "Cell", "Study", "configuration"]

# The course's model, but Adam with a moving average of its weights: in half the time the bound on
# the validation rows is that of the recipe's Adamax (the plain VAE) or better (by 0.6 nats on
# average over the cells at beta = 1), and so smooth that less patience will do. And an end for runs
# that would crawl on.
BASE: Mapping[str, Any] = {
    "epochs": 200,
    "patience": 10,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "ema_decay": 0.99,
}
_REHEARSAL: Mapping[str, Any] = {"epochs": 4, "patience": 4}
_STRONG: Mapping[str, Any] = {"likelihood": "autoregressive"}
_LEVELS = ("categorical", "ordinal", "beta_binomial", "discretized_logistic")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One place in a grid.

    Attributes:
        label: what tables and figures call it.
        options: over the study's base, by flat name.
        factors: what varies, a column each in the table.
    """

    label: str
    options: Mapping[str, Any]
    factors: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of runs and what it is for.

    Attributes:
        title: a heading.
        question: what it must show, a sentence or two.
        grid: the cells, given the data; the second argument asks for a small one.
        draw: the figures.
        findings: sentences, each claim of which exceeds its error.
        columns: of the table in Markdown, beside NLL, ELBO and KL: key to heading.
        measures: names in :data:`~pyro_vaes.measures.MEASURES`.
        reference: the cell that others are compared with; the first if empty.
        needs: what the data must have: ``labels``, ``levels`` or ``images``.
    """

    title: str
    question: str
    grid: Callable[[DataSet, bool], list[Cell]]
    draw: Callable[[Outcome], Figures]
    findings: Callable[[Outcome], list[str]]
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    measures: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    reference: str = ""


def configuration(cell: Cell, data: str, root: str, kind: str, seed: int, quick: bool) -> Any:
    """The options of a cell's run on a data set of some kind of values."""
    likelihood = {} if kind == "levels" else {"likelihood": "auto"}
    values = {**BASE, "data": data, "data_root": root, "seed": seed, **likelihood, **cell.options}
    if quick:
        values |= _REHEARSAL
    config, _ = resolve("course", None, values)
    return check(config)[0]


def _few(values: Sequence[Any], quick: bool, chosen: Sequence[Any]) -> Sequence[Any]:
    return chosen if quick else values


def _plain(data: DataSet, quick: bool) -> list[Cell]:
    return [Cell("VAE", {})]


def _beta(data: DataSet, quick: bool) -> list[Cell]:
    betas = _few((0, 0.1, 0.25, 0.5, 1, 2, 4, 10), quick, (0, 0.5, 1, 10))
    return [Cell(f"beta = {beta:g}", {"beta": float(beta)}, {"beta": beta}) for beta in betas]


def _conditional(data: DataSet, quick: bool) -> list[Cell]:
    return [
        Cell("p(x)", {}),
        Cell("p(x|y)", {"conditional": True}),
        Cell("p(x|y), prior p(z|y)", {"conditional": True, "conditional_prior": True}),
    ]


_PRIORS: Mapping[str, Mapping[str, Any]] = {
    "standard": {},
    "mixture": {"prior": "mixture", "prior_components": 50},
    "VampPrior": {"prior": "vamp", "prior_components": 50},
    "RealNVP": {"prior": "realnvp"},
    "MAF": {"prior": "maf"},
    "spline": {"prior": "spline"},
}


def _priors(data: DataSet, quick: bool) -> list[Cell]:
    sizes = (16, 2)
    names = _few(list(_PRIORS), quick, ("standard", "VampPrior", "RealNVP"))
    return [
        Cell(
            f"{name}, {size}-D",
            {**_PRIORS[name], "latent_dim": size},
            {"prior": name, "latent_dim": size},
        )
        for size in sizes
        for name in names
    ]


def _likelihoods(data: DataSet, quick: bool) -> list[Cell]:
    names = _few(_LEVELS, quick, ("categorical", "ordinal"))
    networks: dict[str, dict[str, Any]] = {"MLP": {}}
    if data.image_shape is not None and min(data.image_shape[1:]) >= 8:
        # Twice the channels validate no better.
        networks["convolutions"] = {
            "network": "conv",
            "hidden_dims": (256,),
            "channels": (16, 32),
        }
    cells = [
        Cell(
            f"{name.replace('_', '-')}, {network}",
            {"likelihood": name, **options},
            {"likelihood": name, "network": network, "prior": "standard"},
        )
        for network, options in networks.items()
        for name in names
    ]
    if len(networks) > 1:
        # Thresholds from the data start where z is of no use yet: the KL may win before it is.
        cells.append(
            Cell(
                "ordinal, convolutions, KL warm-up",
                {"likelihood": "ordinal", **networks["convolutions"], "warmup_epochs": 20},
                {"likelihood": "ordinal", "network": "convolutions", "prior": "standard"},
            )
        )
    for prior in ("mixture", "VampPrior"):
        factors = {"likelihood": "categorical", "network": "MLP", "prior": prior}
        cells.append(Cell(f"categorical, MLP, {prior}", _PRIORS[prior], factors))
    return cells


def _components(data: DataSet, quick: bool) -> list[Cell]:
    counts = _few((1, 2, 5, 10, 20, 50, 100, 200, 500), quick, (1, 10, 50))
    cells = [
        Cell(
            f"{name}, K = {count}",
            {"prior": prior, "prior_components": count},
            {"prior": name, "K": count, "pseudo_inputs": "data"},
        )
        for name, prior in (("mixture", "mixture"), ("VampPrior", "vamp"))
        for count in counts
    ]
    return cells + [
        Cell(
            f"VampPrior, K = 50, {init}",
            {"prior": "vamp", "prior_components": 50, "pseudo_inputs": init},
            {"prior": "VampPrior", "K": 50, "pseudo_inputs": init},
        )
        for init in ("mean", "random")
    ]


def _flow_priors(data: DataSet, quick: bool) -> list[Cell]:
    depths = _few((1, 2, 4), quick, (1, 2))
    return [Cell("standard", {}, {"flow": "standard", "depth": 0})] + [
        Cell(
            f"{name}, {depth} layer{'s' * (depth > 1)}",
            {"prior": prior, "prior_flows": depth},
            {"flow": name, "depth": depth},
        )
        for name, prior in (("RealNVP", "realnvp"), ("MAF", "maf"), ("spline", "spline"))
        for depth in depths
    ]


def _posteriors(data: DataSet, quick: bool) -> list[Cell]:
    cells = [
        Cell("diagonal", {}, {"family": "diagonal", "depth": 0}),
        Cell("full covariance", {"posterior": "full_normal"}, {"family": "full", "depth": 0}),
    ]
    depths = {"planar": (1, 2, 4, 8, 16), "iaf": (1, 2, 3, 4), "sylvester": (4,)}
    shown = {"planar": "planar", "iaf": "IAF", "sylvester": "Sylvester"}
    return cells + [
        Cell(
            f"{shown[name]}, {depth}",
            {"posterior": name, "posterior_flows": depth},
            {"family": shown[name], "depth": depth},
        )
        for name, all_depths in depths.items()
        for depth in _few(all_depths, quick, all_depths[-1:])
    ]


def _info(data: DataSet, quick: bool) -> list[Cell]:
    grid: tuple[tuple[str, dict[str, Any]], ...] = (
        ("ELBO, plain decoder", {}),
        ("ELBO", dict(_STRONG)),
        ("beta = 0.25", {**_STRONG, "beta": 0.25}),
        ("alpha = 0.5, lambda = 10, MMD", _info_of(0.5, 10, "mmd")),
        ("alpha = 1, lambda = 10, MMD", _info_of(1, 10, "mmd")),
        ("alpha = 1, lambda = 100, MMD", _info_of(1, 100, "mmd")),
        ("alpha = 0.5, lambda = 2, adversarial", _info_of(0.5, 2, "adversarial")),
        ("alpha = 1, lambda = 2, adversarial", _info_of(1, 2, "adversarial")),
    )
    keys = ("alpha", "lambda", "divergence", "beta")
    cells = [Cell(label, o, {k: o.get(k) for k in keys}) for label, o in grid]
    return [cells[i] for i in (1, 4, 7)] if quick else cells


def _info_of(alpha: float, lambda_: float, divergence: str) -> dict[str, Any]:
    return {**_STRONG, "alpha": alpha, "lambda": lambda_, "divergence": divergence}


_KL_SPLIT = {"mutual_information": "I(x; z)", "marginal_kl": "marginal KL"}
_ALIVE = {"active_units": "active units"}
_TIME = {"seconds": "seconds"}

STUDIES: Mapping[str, Study] = {
    "vae": Study(
        "The plain VAE",
        "What does the course's VAE reach on these data, and what do its samples and its "
        "reconstructions look like?",
        _plain,
        draw.plain,
        find.plain,
        {**_KL_SPLIT, **_ALIVE, "epochs": "epochs", **_TIME},
    ),
    "beta": Study(
        "The weight of the KL",
        "What does beta trade, which dimensions of z die, and why does beta = 0 generate rubbish "
        "well as it reconstructs?",
        _beta,
        draw.beta,
        find.beta,
        {"reconstruction": "E log p(x given z)", **_KL_SPLIT, **_ALIVE},
        reference="beta = 1",
    ),
    "conditional": Study(
        "A conditional generator",
        "With the labels in posterior, likelihood and perhaps prior: does the generator obey the "
        "label, and what does knowing it save? (The labels are the digits 0 to 9; the assignment's "
        "0 to 16 are pixel levels.)",
        _conditional,
        draw.conditional,
        find.conditional,
        {"generated_accuracy": "class accuracy", **_KL_SPLIT, **_ALIVE},
        ("generated_classes",),
        ("labels",),
    ),
    "priors": Study(
        "Learned priors",
        "Does a prior that learns come closer to the aggregated posterior, and does that pay?",
        _priors,
        draw_prior.priors,
        find.priors,
        {"marginal_kl": "marginal KL", "mutual_information": "I(x; z)", **_ALIVE, **_TIME},
    ),
    "likelihoods": Study(
        "The likelihood",
        "Levels carry an order. What is it worth to know it, beside what a learned prior is worth?",
        _likelihoods,
        draw.likelihoods,
        find.likelihoods,
        {"calibration_error": "calibration error", **_ALIVE, **_TIME},
        ("calibration",),
        ("levels",),
    ),
    "components": Study(
        "How many components",
        "How do the figures, the cost and the fit to training data change with the number K of "
        "Gaussian components or pseudo-inputs? K is chosen by validation alone.",
        _components,
        draw_prior.components,
        find.components,
        {
            "nll_train": "training NLL",
            "val_elbo": "validation -ELBO",
            "components_used": "components used",
            "seconds_per_epoch": "s per epoch",
        },
        ("components_used", "training_rows"),
    ),
    "flow_priors": Study(
        "Flow priors",
        "Which flow, and how deep?",
        _flow_priors,
        draw_prior.flow_priors,
        find.flow_priors,
        {
            "marginal_kl": "marginal KL",
            "seconds_per_epoch": "s per epoch",
            "draw_ms": "ms for 1000 draws",
        },
        ("drawing_time",),
    ),
    "posteriors": Study(
        "Richer posteriors",
        "How far below log p(x) does the ELBO lie, and which posterior closes the gap at what "
        "price?",
        _posteriors,
        draw.posteriors,
        find.posteriors,
        {"gap": "gap", "pareto_k_median": "median k-hat", "seconds_per_epoch": "s per epoch"},
    ),
    "info": Study(
        "Posterior collapse and InfoVAE",
        "An autoregressive decoder can model the data without z. Does the ELBO then let z die, and "
        "do alpha, lambda and a divergence between q(z) and p(z) bring it back?",
        _info,
        draw.info,
        find.info,
        {**_KL_SPLIT, **_ALIVE, "mmd2": "MMD²"},
        needs=("levels",),
        reference="ELBO",
    ),
}
