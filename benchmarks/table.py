"""Renders what the benchmarks wrote as Markdown: ratios against the targets, and all medians.

python benchmarks/table.py                  # benchmarks/results
python benchmarks/table.py --out folder
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from harness import RESULTS, ratio, read, summary


@dataclasses.dataclass(frozen=True)
class Target:
    """A ratio to reach: ours / theirs at most ``most``."""

    title: str
    file: str
    work: str
    ours: str
    theirs: str
    most: float


COMPILED, EAGER = "pyro_vaes compiled", "pyro_vaes eager"
# With the draws that the loops make; by default a proposal is fitted to each image.
_JOB, PICTURES = "pyro_vaes train, encoder's draws", "course loop, pictures"
TEXTBOOK, BY_HAND = "textbook Pyro", "hand-written PyTorch"
TARGETS = (
    Target("digits step, compiled", "steps_digits", "digits", COMPILED, TEXTBOOK, 0.40),
    Target("digits step, compiled", "steps_digits", "digits", COMPILED, BY_HAND, 0.80),
    Target("digits step, compiled", "steps_digits", "digits", COMPILED, "NumPyro, scan", 1.0),
    Target("digits step, eager", "steps_digits", "digits", EAGER, TEXTBOOK, 0.65),
    Target("VampPrior step, compiled", "steps", "vamp", COMPILED, "pythae", 0.25),
    Target("VampPrior step, compiled", "steps", "vamp", COMPILED, TEXTBOOK, 0.22),
    Target("VampPrior step, compiled", "steps", "vamp", COMPILED, BY_HAND, 0.45),
    Target(
        "sixteen digits models together",
        "together",
        "16 models",
        "pyro_vaes together, compiled",
        "one after another, compiled",
        0.6,
    ),
    Target(
        "evaluation, per draw",
        "evaluate",
        "evaluate",
        "pyro_vaes log_marginal",
        "pythae, batches of 100",
        0.5,
    ),
    Target("course job", "course_job", "course job", _JOB, "course loop", 0.5),
    Target("course job, with pictures", "course_job", "course job", _JOB, PICTURES, 0.5),
    Target(
        "digits step on a GPU, CUDA graph",
        "steps_digits_cuda",
        "digits",
        "pyro_vaes cuda_graph",
        TEXTBOOK,
        0.2,
    ),
    Target(
        "64 digits models together on a GPU",
        "together_cuda",
        "64 models",
        "pyro_vaes together, compiled",
        "one after another, eager",
        0.05,
    ),
)


def _records(folder: Path, target: Target) -> list[dict[str, str]]:
    path = folder / f"{target.file}.csv"
    if not path.exists():
        return []
    return [record for record in read(path)[0] if record["work"] == target.work]


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def targets(folder: Path) -> str:
    """The table of targets: median ratio, quartiles, whether reached."""
    lines = [
        "| work | against | ratio | quartiles | at most | reached |",
        "|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        found = ratio(_records(folder, target), target.ours, target.theirs)
        if found is None:
            cells: list[Any] = ["not measured", "", f"{target.most:.2f}", ""]
        else:
            low, middle, high = found
            reached = "yes" if middle <= target.most else "no"
            cells = [
                _short(middle),
                f"{_short(low)} to {_short(high)}",
                _short(target.most),
                reached,
            ]
        lines.append(f"| {target.title} | {target.theirs} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def medians(folder: Path) -> str:
    """The medians of every file, with the command and the machine."""
    parts = []
    units = {"evaluate": "us", "course_job": "s"}
    for path in sorted(folder.glob("*.csv")):
        records, facts = read(path)
        if not records or "contender" not in records[0] or "work" not in records[0]:
            continue
        parts.append(f"### {path.stem}")
        for work in dict.fromkeys(record["work"] for record in records):
            mine = [record for record in records if record["work"] == work]
            parts.append(f"**{work}**\n\n{summary(mine, units.get(path.stem, 'ms'))}")
        parts.append("\n".join(f"- {key}: {value}" for key, value in facts.items()))
    return "\n\n".join(parts)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--all", action="store_true", help="the medians behind the ratios, too")
    given = parser.parse_args()
    print(targets(given.out))
    if given.all:
        print("\n" + medians(given.out))


if __name__ == "__main__":
    main()
