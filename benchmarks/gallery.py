"""The gallery of the pages: a picture of each part that a flag names, and a link to its page.

python benchmarks/gallery.py             # all: docs/gallery.md and docs/gallery/*.png
python benchmarks/gallery.py prior/vamp  # the picture of one
python benchmarks/gallery.py --text      # the page alone, from the registry and the docstrings

Priors, posteriors and divergences are shown in two latent dimensions, likelihoods and networks by
what a model with 16 draws, objectives by the KL of its units. The pictures show what a part does;
they measure nothing. What a part's own page says stands in docs/parts.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_vaes import load_data, plotting
from pyro_vaes.runs.build import build
from pyro_vaes.runs.registry import REGISTRY, Row
from pyro_vaes.runs.resolve import check_combination, resolve
from pyro_vaes.runs.run import train
from pyro_vaes.vae import VAE

DOCS = Path(__file__).resolve().parents[1] / "docs"
FLAGS = {
    "prior": (
        "Priors",
        "Posterior means of the test digits in two latent dimensions, over the prior (grey).",
    ),
    "posterior": (
        "Posteriors",
        "Draws of z for eight test digits, a colour each, in two latent dimensions.",
    ),
    "likelihood": (
        "Likelihoods",
        "Draws of x from a model with 16 latent dimensions: draws, not means.",
    ),
    "network": ("Networks", "Draws of x from a model with these networks and ordinal levels."),
    "objective": (
        "Objectives",
        "KL of each of 16 latent units, sorted, and that under the ELBO as a line. Free bits: 20 "
        "nats; beta: 2; draws: 5; alpha 0.5 and lambda 10 with an MMD.",
    ),
    "divergence": (
        "Divergences",
        "Posterior means as above, with a divergence instead of the KL: alpha = 1.",
    ),
}
# What the pictures of objectives and divergences are trained with.
SETTINGS: dict[str, dict[str, Any]] = {
    "--free-bits": {"free_bits": 20.0},
    "--beta": {"beta": 2.0},
    "--train-samples": {"train_samples": 5, "warmup_epochs": 0.0},
    "--tc-weight": {"tc_weight": 4.0},
    "--capacity": {"capacity": 15.0, "capacity_epochs": 20.0, "beta": 4.0, "warmup_epochs": 0.0},
    "--cycle-epochs": {"cycle_epochs": 20.0, "warmup_epochs": 0.0},
    "--alpha, --lambda": {"alpha": 0.5, "lambda": 10.0, "divergence": "mmd"},
    "mmd": {"alpha": 1.0, "lambda": 100.0},
    "adversarial": {"alpha": 1.0, "lambda": 10.0},
}
EPOCHS = 60
COLUMNS = 3


def shown() -> Iterator[tuple[str, str, Row]]:
    """Flag, value and row of each part in the gallery."""
    for flag in FLAGS:
        for value, row in REGISTRY[flag].items():
            yield flag, value, row


def has_picture(flag: str, row: Row) -> bool:
    """Whether the digits, which are levels, are data for a part."""
    return flag != "likelihood" or "levels" in row.kinds


def stem(flag: str, value: str) -> str:
    """The name of a part's page and picture."""
    return f"{flag}_{re.sub(r'[^a-z0-9]+', '_', value).strip('_')}"


# --- the page -------------------------------------------------------------------------------------


def page() -> str:
    """The page, from the registry and the docstrings."""
    lines = [
        "# Gallery of parts",
        "Every part that a flag of `pyro-vaes train` names. Each has a page: its story, when to "
        "use it, its limits, its paper and ten lines that run. Which to take: "
        "[choosing a prior](choosing-a-prior.md), [which posterior when](which-posterior.md), "
        "[your own data](your-own-data.md). The pictures are of the digits after "
        f"{EPOCHS} epochs: they show what a part does, and measure nothing. Made by "
        "`python benchmarks/gallery.py`.",
    ]
    for flag, (title, caption) in FLAGS.items():
        rows = REGISTRY[flag]
        drawn = [value for value, row in rows.items() if has_picture(flag, row)]
        lines += [f"## {title}", caption, table(flag, drawn)]
        others = [f"- {entry(flag, value)}" for value in rows if value not in drawn]
        if others:
            lines += ["For other data than the digits:", "\n".join(others)]
        pages = "\n".join(f"parts/{stem(flag, value)}" for value in rows)
        lines.append(f"```{{toctree}}\n:hidden:\n\n{pages}\n```")
    return "\n\n".join(lines) + "\n"


def table(flag: str, values: list[str]) -> str:
    """Rows of pictures, each followed by a row of links and first lines."""
    lines = []
    for i in range(0, len(values), COLUMNS):
        some = values[i : i + COLUMNS]
        lines.append([f"![{value}](gallery/{stem(flag, value)}.png)" for value in some])
        lines.append([entry(flag, value) for value in some])
    lines.insert(1, ["---"] * COLUMNS)
    filled = (cells + [""] * (COLUMNS - len(cells)) for cells in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in filled)


def entry(flag: str, value: str) -> str:
    """A link to a part's page, and the first line of its class."""
    module, _, name = REGISTRY[flag][value].path.rpartition(".")
    found = inspect.getdoc(getattr(importlib.import_module(f"pyro_vaes.{module}"), name)) or ""
    first = " ".join(found.split("\n\n")[0].split()).replace("``", "`")
    first = re.sub(r":\w+:`~?\.?(?:[\w.]*\.)?(\w+)`", r"`\1`", first).replace("|", "\\|")
    shown = f"`{value}`" if value.startswith("-") else value  # Two hyphens are no dash.
    return f"[{shown}](parts/{stem(flag, value)}.md): {first}"


# --- the pictures ---------------------------------------------------------------------------------


def picture(flag: str, value: str) -> Figure:
    """Trains a model with a part and draws it."""
    if flag == "objective":
        options = SETTINGS[value]
        plain = {name: options[name] for name in options if name == "warmup_epochs"}
        return units_of(trained(options), trained(plain))
    data, vae = load_data("digits"), trained(settings(flag, value))
    torch.manual_seed(0)
    if flag in ("prior", "divergence"):
        return plotting.latent_space(vae, data.test)
    if flag == "posterior":
        return draws(vae, data.test.x[:8])
    return plotting.image_grid(
        vae.sample(40).clamp(0, 16), data.image_shape or (1, 8, 8), columns=10, value_range=(0, 16)
    )


def settings(flag: str, value: str) -> dict[str, Any]:
    """The options that show a value of a flag."""
    options: dict[str, Any] = {flag: value, "prior_components": 49}
    if flag in ("prior", "posterior", "divergence"):
        options["latent_dim"] = 2
    if flag in ("likelihood", "network"):
        options["prior"] = "mixture"
    if flag == "likelihood" and "counts" in REGISTRY[flag][value].kinds:
        # In the unit of a pixel that is 0 in nearly all rows, a moved image is huge.
        options["augment"] = 0.0
    return options | SETTINGS.get(value, {})


def trained(options: dict[str, Any]) -> VAE:
    """A model of the digits."""
    basic = {"epochs": EPOCHS, "warmup_epochs": 20.0, "hidden_dims": (128,), "prior": "standard"}
    config, _ = resolve("default", None, {**basic, "latent_dim": 16, **options})
    config, _ = check_combination(config)
    data = load_data("digits")
    torch.manual_seed(0)
    vae, _ = build(config, data)
    train(vae, data, config, progress=False)
    return vae


def units_of(vae: VAE, plain: VAE) -> Figure:
    """The KL of each latent unit of a model, and of one with the ELBO."""
    found, others = (unit_kls(each) for each in (vae, plain))
    with plotting.style():
        figure = Figure(figsize=(6, 4))
        axes = figure.add_subplot()
        places = np.arange(1, len(found) + 1)
        axes.bar(places, found, label=f"this objective, {found.sum():.1f} nats in all")
        axes.step(places, others, "k", where="mid", label=f"the ELBO, {others.sum():.1f} nats")
        axes.set_xticks(places[::3])
        axes.set_ylim(0, 1.35 * max(found.max(), others.max()))
        axes.set_xlabel("latent units, sorted")
        axes.set_ylabel("KL (nats)")
        axes.legend()
    return figure


@torch.no_grad()
def unit_kls(vae: VAE) -> Any:
    """The mean KL of each unit of a normal posterior to N(0, 1) over the test digits, sorted."""
    each = vae.q_z(load_data("digits").test.x).base_dist
    kls = torch.distributions.kl_divergence(each, type(each)(0.0, 1.0)).mean(0)
    return kls.sort(descending=True).values.numpy()


def draws(vae: VAE, x: torch.Tensor, count: int = 400) -> Figure:
    """Draws of the posteriors of some data."""
    z = vae.encode(x, num_samples=count).numpy()
    z = z if z.shape[0] == count else np.swapaxes(z, 0, 1)
    with plotting.style():
        figure = Figure(figsize=(6, 4))
        axes = figure.add_subplot()
        for one in np.swapaxes(z, 0, 1):
            axes.scatter(one[:, 0], one[:, 1], s=3, alpha=0.5, linewidths=0)
        axes.set_xlabel("first dimension of z")
        axes.set_ylabel("second dimension of z")
    return figure


def main() -> None:
    """Writes the page, and the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="FLAG/VALUE; all if none is given")
    parser.add_argument("--text", action="store_true", help="the page alone")
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args()
    (options.docs / "gallery").mkdir(parents=True, exist_ok=True)
    (options.docs / "gallery.md").write_text(page(), encoding="utf-8")
    for flag, value, row in () if options.text else shown():
        if has_picture(flag, row) and f"{flag}/{value}" in (options.parts or [f"{flag}/{value}"]):
            figure = picture(flag, value)
            figure.set_size_inches(4.2, 4.2 * figure.get_figheight() / figure.get_figwidth())
            path = options.docs / "gallery" / f"{stem(flag, value)}.png"
            print(plotting.save_figure(figure, path))


if __name__ == "__main__":
    main()
