"""The gallery of the pages: a section and a picture for each part that a flag names.

python benchmarks/gallery.py             # all: docs/gallery.md and docs/gallery/*.png
python benchmarks/gallery.py prior/vamp  # the picture of one
python benchmarks/gallery.py --text      # the page alone, from the registry and the docstrings

Priors and posteriors are shown in two latent dimensions, likelihoods and networks by what a model
with 16 draws. The pictures show what a part does; they measure nothing.
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
}
EPOCHS = 60


def shown() -> Iterator[tuple[str, str, Row]]:
    """Flag, value and row of each part in the gallery."""
    for flag in FLAGS:
        for value, row in REGISTRY[flag].items():
            yield flag, value, row


def has_picture(flag: str, row: Row) -> bool:
    """Whether the digits, which are levels, are data for a part."""
    return flag != "likelihood" or "levels" in row.kinds


# --- the page -------------------------------------------------------------------------------------


def page() -> str:
    """The page, from the registry and the docstrings."""
    lines = [
        "# Gallery of parts",
        "Every part that a flag of `pyro-vaes train` names, with its paper. Which to take: "
        "[choosing a prior](choosing-a-prior.md), [which posterior when](which-posterior.md), "
        "[your own data](your-own-data.md). All are classes with examples: "
        f"[reference](reference/parts.rst). The pictures are of the digits after {EPOCHS} epochs: "
        "they show what a part does, and measure nothing. Made by `python benchmarks/gallery.py`.",
    ]
    for flag, (title, caption) in FLAGS.items():
        lines += [f"## {title}", caption]
        for value, row in REGISTRY[flag].items():
            lines += section(flag, value, row)
    return "\n\n".join(lines) + "\n"


def section(flag: str, value: str, row: Row) -> Iterator[str]:
    """The section of a part."""
    yield f"### {value}: `{row.path.rpartition('.')[2]}`"
    yield f"{summary(row)} ({row.source}.)"
    if has_picture(flag, row):
        yield f"![{value}](gallery/{flag}_{value}.png)"
    else:
        yield f"For {' and '.join(row.kinds)} data, which the digits are not."
    flags = "".join(f" --{name.replace('_', '-')} ..." for name in row.options)
    also = f", with an effect here: `{flags.strip()}`" if flags else ""
    yield f"`pyro-vaes train --{flag} {value}`{also}"


def summary(row: Row) -> str:
    """The text of a class's docstring before its example and arguments, as Markdown."""
    module, _, name = row.path.rpartition(".")
    found = inspect.getdoc(getattr(importlib.import_module(f"pyro_vaes.{module}"), name)) or ""
    text = re.split(r"\n\s*(?:>>>|Args:|Attributes:|Raises:|Returns:)", found)[0]
    # The first paragraph, then the second if it is no formula.
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n") if not p.startswith(" ")]
    words = " ".join(paragraphs[:2]).removesuffix("::").rstrip(":")
    words = re.sub(r":\w+:`~?\.?(?:[\w.]*\.)?(\w+)`", r"`\1`", words).replace("``", "`")
    return words if words.endswith(".") else f"{words}."


# --- the pictures ---------------------------------------------------------------------------------


def picture(flag: str, value: str) -> Figure:
    """Trains a model with a part and draws it."""
    flat = flag in ("prior", "posterior")
    options: dict[str, Any] = {flag: value, "epochs": EPOCHS, "warmup_epochs": 20.0}
    options |= {"latent_dim": 2 if flat else 16, "prior_components": 49, "hidden_dims": (128,)}
    if flag == "posterior":
        options["prior"] = "standard"
    if flag == "likelihood" and "counts" in REGISTRY[flag][value].kinds:
        # In the unit of a pixel that is 0 in nearly all rows, a moved image is huge.
        options["augment"] = 0.0
    config, _ = resolve("default", None, options)
    config, _ = check_combination(config)
    data = load_data("digits")
    torch.manual_seed(0)
    vae, _ = build(config, data)
    train(vae, data, config, progress=False)
    torch.manual_seed(0)
    if flag == "prior":
        return plotting.latent_space(vae, data.test)
    if flag == "posterior":
        return draws(vae, data.test.x[:8])
    return plotting.image_grid(
        vae.sample(40).clamp(0, 16), data.image_shape or (1, 8, 8), columns=10, value_range=(0, 16)
    )


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
            print(plotting.save_figure(figure, options.docs / "gallery" / f"{flag}_{value}.png"))


if __name__ == "__main__":
    main()
