"""The picture at the top of README, from a finished run.

pyro-vaes train --recipe digits-conv --out runs/conv
python benchmarks/readme_figure.py runs/conv figures/digits.png

Draws from the model's prior, and the test rows' posterior means over the prior's density.
"""

import argparse
from pathlib import Path

import matplotlib.image
import torch
from matplotlib.figure import Figure

import pyro_vaes as pv
from pyro_vaes import plotting


def main() -> None:
    """Draws both halves with the library's own functions and puts them side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    vae, data = pv.load(options.run), pv.load_data("digits")
    torch.manual_seed(0)
    halves = {
        "drawn from the model": plotting.image_grid(vae.sample(90).detach(), (1, 8, 8), columns=10),
        "test digits in its latent space, over the prior": plotting.latent_space(vae, data.test),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with plotting.style():
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        for axes, (title, half) in zip(figure.subplots(1, 2), halves.items(), strict=True):
            part = plotting.save_figure(half, options.out.with_suffix(".part.png"))
            axes.imshow(matplotlib.image.imread(part), interpolation="lanczos")
            axes.set_title(title)
            axes.set_axis_off()
            part.unlink()
    plotting.save_figure(figure, options.out)


if __name__ == "__main__":
    main()
