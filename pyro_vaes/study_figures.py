"""The figures of the studies, in the library's one style; each answers a question.

Those on priors are in :mod:`pyro_vaes.study_prior_figures`.
"""

from __future__ import annotations

import numpy as np
import seaborn as sns
import torch
from matplotlib.figure import Figure

from pyro_vaes.banana import families, fitted_banana
from pyro_vaes.evaluation import untouched
from pyro_vaes.outcomes import Outcome
from pyro_vaes.plotting import image_grid, reconstructions, style
from pyro_vaes.study_panels import (
    COLORS,
    NLL,
    WIDTH,
    Figures,
    axes_of,
    bar,
    dots,
    drawn,
    examples,
    name_ends,
)

__all__ = [
    "beta",
    "conditional",
    "info",
    "likelihoods",
    "plain",
    "posteriors",
]


def plain(o: Outcome) -> Figures:
    """Figures on the plain VAE."""
    label = o.labels[0]
    with style():
        curves, (ax,) = axes_of(3.2)
        for records in o.history(label):
            epochs = [r["epoch"] for r in records]
            for key, color in (("train_loss", COLORS[0]), ("val_loss", COLORS[1])):
                ax.plot(epochs, [r[key] for r in records], color=color, lw=1, alpha=0.8)
        last = max((records[-1] for records in o.history(label)), key=lambda r: r["epoch"])
        for key, name, color in (
            ("train_loss", "training", COLORS[0]),
            ("val_loss", "validation", COLORS[1]),
        ):
            ax.annotate(
                name, (last["epoch"], last[key]), (4, 0), textcoords="offset points", color=color
            )
        values = [r["val_loss"] for records in o.history(label) for r in records]
        low = min(r["train_loss"] for records in o.history(label) for r in records)
        ax.set_ylim(low - 3, float(np.quantile(values, 0.9)) + 6)
        ax.set_xlabel("epoch")
        ax.set_ylabel("-ELBO (nats per datum)")
    rebuilt = None
    if o.data.image_shape is not None:
        rebuilt = reconstructions(o.vae(label), o.data.test, o.data.image_shape)
    return drawn(
        [
            ("curves", curves, "Learning curves, one line a seed, up to early stopping."),
            (
                "samples",
                _plain_samples(o, label),
                "Test data, draws from the model, and the means p(x|z) behind those draws.",
            ),
            ("reconstructions", rebuilt, "Test data and the means of p(x|z) at the mean of z."),
        ]
    )


def _plain_samples(o: Outcome, label: str) -> Figure | None:
    if o.data.image_shape is None:
        return None
    vae = o.vae(label)
    with untouched(vae):
        rows = [o.data.test.frozen().x[:10]]
        for mean in (False, True):
            torch.manual_seed(0)
            rows.append(vae.sample(10, mean=mean))
    return image_grid(
        torch.cat([row.flatten(1) for row in rows]),
        o.data.image_shape,
        columns=10,
        row_labels=["data", "draws", "means"],
    )


def beta(o: Outcome) -> Figures:
    """Figures on the weight of the KL."""
    with style():
        curve, (ax,) = axes_of(3.4)
        points = [
            (o.mean(k, "kl")[0], -o.mean(k, "reconstruction")[0], k.split(" = ")[1])
            for k in o.labels
        ]
        shown = [point for point in points if point[2] != "0"] or points
        ax.plot(*zip(*((rate, cost) for rate, cost, _ in shown), strict=True), "o-", ms=4)
        names: dict[tuple[int, int], list[str]] = {}
        for rate, cost, name in shown:  # Dead models lie on one point: one name for all.
            names.setdefault((round(10 * rate), round(10 * cost)), []).append(name)
        for (rate, cost), alike in names.items():
            text, place = f"β = {', '.join(alike)}", (rate / 10, cost / 10)
            ax.annotate(text, place, (5, 4), textcoords="offset points", fontsize=9)
        ax.set_xlabel("rate: KL(q(z|x) || p(z)) (nats per datum)")
        ax.set_ylabel("distortion: -E log p(x|z) (nats)")
        for rate, cost, name in points:
            if name == "0" and len(points) > 1:
                text = (
                    f"β = 0 lies outside, at a rate of {rate:.0f}\nand a distortion of {cost:.1f}"
                )
                ax.text(0.98, 0.95, text, transform=ax.transAxes, ha="right", va="top", color="0.4")
        units, axes = axes_of(2.6, 2)
        places = range(len(o.labels))
        for ax, key, title in zip(
            axes,
            ("active_units", "mutual_information"),
            ("active units", "I(x; z) (nats)"),
            strict=True,
        ):
            means, errors = zip(*(o.mean(k, key) for k in o.labels), strict=True)
            ax.errorbar(places, means, yerr=[bar(e) for e in errors], fmt="o-", ms=4)
            ax.set_xticks(list(places), [k.split(" = ")[1] for k in o.labels])
            ax.set_xlabel("β")
            ax.set_ylabel(title)
            ax.set_ylim(bottom=0)
        dying, (ax,) = axes_of(3.0)
        shades = sns.color_palette("viridis", len(o.labels))
        ax.set_yscale("log")
        ends = []
        for shade, label in zip(shades, o.labels, strict=True):
            variances = _unit_variances(o, label)
            ax.plot(range(1, len(variances) + 1), variances, "o-", ms=3, lw=1, color=shade)
            ends.append((len(variances), variances[-1], f"β = {label.split(' = ')[1]}", shade))
        name_ends(ax, ends, 8)
        ax.axhline(0.01, color="0.5", lw=0.8, ls=":")
        ax.text(1, 0.0115, "active above", color="0.4", fontsize=8)
        ax.set_xlabel("latent unit, by rank")
        ax.set_ylabel("variance of its posterior mean")
    return drawn(
        [
            ("rate_distortion", curve, "What beta trades: rate against distortion on test data."),
            ("units", units, "Active units and information in z against beta."),
            ("dying_units", dying, "Which dimensions die: units sorted by activity, first seed."),
            examples(o, o.labels),
        ]
    )


def _unit_variances(o: Outcome, label: str) -> list[float]:
    return sorted(o.table.loc[o.table["label"] == label, "unit_variances"].iloc[0], reverse=True)


def conditional(o: Outcome) -> Figures:
    """Figures on the conditional generator."""
    label, count = o.labels[1], o.data.num_labels or 1
    grid = style_fixed = None
    if o.data.image_shape is not None:
        vae = o.vae(label)
        with untouched(vae):
            torch.manual_seed(0)
            labels = torch.arange(count)
            draws = vae.sample(10 * count, labels.repeat(10))
            z = vae.p_z(labels[:1]).sample(() if vae.prior_is_conditional else (10,))
            same = vae.decode(z.repeat_interleave(count, 0), labels.repeat(len(z)))
        grid = image_grid(draws, o.data.image_shape, columns=count)
        style_fixed = image_grid(same, o.data.image_shape, columns=count)
    with style():
        accuracy, (ax,) = axes_of(2.8)
        for shift, name in zip((-0.15, 0.15), o.labels[1:], strict=False):
            by_class = np.array(
                [row for row in o.table.loc[o.table["label"] == name, "by_class"] if row]
            )
            mean = 100 * by_class.mean(0)
            color = COLORS[0 if shift < 0 else 1]
            ax.plot(np.arange(len(mean)) + shift, mean, "o", ms=5, color=color)
            height = 0.1 if shift < 0 else 0.02
            ax.text(0.99, height, name, color=color, ha="right", transform=ax.transAxes)
        real = 100 * o.values(label, "class_accuracy_real").mean()
        ax.axhline(real, color="0.5", lw=0.8, ls=":")
        ax.text(-0.4, real + 0.3, "real test data", color="0.4", fontsize=8)
        ax.set_xticks(range(count))
        ax.set_xlabel("label asked for")
        ax.set_ylabel("classifier agrees (%)")
    return drawn(
        [
            ("grid", grid, "Draws from p(x|y): a column for each label."),
            (
                "style",
                style_fixed,
                "Style held fixed: a row shares one z, the columns are the labels; means.",
            ),
            (
                "accuracy",
                accuracy,
                "How often a classifier trained on real data gives generated data (a thousand a "
                "class) the label asked for.",
            ),
        ]
    )


def likelihoods(o: Outcome) -> Figures:
    """Figures on the likelihoods."""
    mlp = [k for k in o.labels if k.endswith(", MLP")]
    with style():
        calibrated, (ax,) = axes_of(3.6)
        ax.plot([0, 1], [0, 1], color="0.6", lw=0.8, ls=":")
        for color, label in zip(COLORS, mlp, strict=False):
            row = o.table.loc[o.table["label"] == label].iloc[0]
            ax.plot(row["expected"], row["observed"], "o-", ms=3, lw=1, color=color)
        for place, (color, label) in enumerate(zip(COLORS, mlp, strict=False)):
            error = 100 * o.mean(label, "calibration_error")[0]
            text = f"{label.removesuffix(', MLP')}: off by {error:.1f}%"
            ax.text(0.03, 0.95 - 0.07 * place, text, color=color, transform=ax.transAxes)
        ax.set_xlabel("probability that p(x|z) gives to a pixel in the upper half of the levels")
        ax.set_ylabel("share of pixels that are")
    panels = {"nll": NLL, "calibration_error": "calibration error"}
    return drawn(
        [
            (
                "nll",
                dots(o, panels),
                "Knowing the order of the levels against learning the prior; grey: seeds.",
            ),
            (
                "calibration",
                calibrated,
                "Calibration of single pixels of test images at a posterior draw of z.",
            ),
            examples(o, [k for k in o.labels if ", " in k and not k.endswith("VampPrior")]),
        ]
    )


def posteriors(o: Outcome) -> Figures:
    """Figures on richer posteriors."""
    panels = {"nll": NLL, "gap": "gap to the ELBO (nats)", "seconds_per_epoch": "s per epoch"}
    return drawn(
        [
            ("gap", dots(o, panels), "NLL, what the ELBO misses of it, and cost; grey: seeds."),
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


def info(o: Outcome) -> Figures:
    """Figures on InfoVAE."""
    panels = {
        "active_units": "active units",
        "mutual_information": "I(x; z) (nats)",
        "nll": NLL,
    }
    return drawn(
        [
            (
                "cure",
                dots(o, panels),
                "Collapse with a strong decoder, and its cures.",
            ),
            examples(o, o.labels),
        ]
    )
