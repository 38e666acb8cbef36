"""What ``test_distributed`` runs, in one process or under ``torchrun``: cases by name.

``torchrun distributed_worker.py FOLDER`` runs all; the first process writes what came out.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import RenyiELBO

import pyro_vaes as pv
from pyro_vaes.storage.tensors import copied, named_tensors, write_tensors
from pyro_vaes.training.checkpoint import read_checkpoint
from pyro_vaes.training.distributed import _disconnect, join_processes
from pyro_vaes.training.signals import watched
from pyro_vaes.training.validation import arguments

# 51 rows: batches of 16 leave 3 for the last, of 50 a single one for two processes.
FITS: dict[str, dict[str, Any]] = {
    "traced": {"mode": "traced", "epochs": 2},
    "eager, flow": {
        "posterior": "flow",
        "clip_norm": 0.5,
        "ema_decay": 0.9,
        "optimizer": "adamax",
    },
    "a row for one": {"batch_size": 50, "labels": True, "patience": 2, "learning_rate": 0.1},
    "importance weighted, traced": {
        "mode": "traced",
        "objective": lambda: RenyiELBO(
            alpha=0.5, num_particles=2, vectorize_particles=True, max_plate_nesting=1
        ),
    },
    "importance weighted": {
        "objective": lambda: RenyiELBO(
            alpha=0, num_particles=3, vectorize_particles=True, max_plate_nesting=1
        )
    },
    "ended by a callback": {"epochs": 4, "on_epoch": lambda record, vae: record["epoch"] == 2},
    "ended by a callback within an epoch": {"on_step": lambda record, vae: record["step"] == 6},
    "free bits": {"objective": lambda: pv.ELBO(free_bits=1.0, num_particles=2)},
    "free bits, traced": {
        "objective": lambda: pv.ELBO(free_bits=1.0),
        "mode": "traced",
        "epochs": 1,
        "batch_size": 17,
    },
}
SLOW_FITS: dict[str, dict[str, Any]] = {
    "compiled": {"mode": "compiled", "objective": lambda: pv.ELBO(free_bits=1.0)},
}
OPTIONS: dict[str, Any] = {
    "batch_size": 16,
    "learning_rate": 0.01,
    "mode": "eager",  # Recording takes its time.
    "progress": False,
}


def build(posterior: str = "normal", labels: bool = False, seed: int = 0) -> pv.VAE:
    torch.manual_seed(seed)
    num = 3 if labels else 0
    base = pv.NormalPosterior(pv.MLP(6 + num, [16]), 2, (6,), num)
    prior = pv.VampPrior(base, torch.rand(4, 6), labels=torch.arange(4) % 3 if labels else None)
    top = base if posterior == "normal" else pv.FlowPosterior(base, pv.flows.iaf(2, 2))
    return pv.VAE(prior, top, pv.CategoricalLikelihood(pv.MLP(2 + num, [16]), (6,), 4, num))


def moved(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return (x + (torch.rand(x.shape, generator=generator) < 0.1)).clamp(0, 3)


def split(n: int, seed: int) -> pv.Split:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=generator)
    x = y[:, None] + torch.randint(0, 2, (n, 6), generator=generator)
    return pv.Split(x.to(torch.get_default_dtype()), y, moved)


def fit(
    posterior: str = "normal", labels: bool = False, epochs: int = 3, **options: Any
) -> tuple[pv.VAE, pv.History]:
    # Weights are the first process's, whatever the others begin with.
    vae = build(posterior, labels, seed=join_processes().rank)
    objective = options.pop("objective", None)
    if objective is not None:
        options["objective"] = objective()
    train, val = split(51, 1), split(31, 2)
    history = pv.fit(vae, train, val, epochs=epochs, **{**OPTIONS, **options})
    return vae, history


def gradients(mode: Any, size: int) -> dict[str, torch.Tensor]:
    """What two steps of plain gradient descent change: the gradients, their scale included."""
    processes = join_processes()
    vae, rows = build(), split(size, 3)
    model, guide = processes.sharing(vae.model, vae.guide)
    svi = pv.FastSVI(
        model,
        guide,
        lambda groups: torch.optim.SGD(groups, lr=1e-3),
        mode=mode,
        combine=processes.combine if processes.size > 1 else None,
    )
    torch.manual_seed(4)
    batch = processes.part(arguments(vae, rows.x, rows.y))
    losses = [svi.step(*batch) for _ in range(3)]
    return {**copied(named_tensors(vae)), "losses": torch.tensor(losses)}


def refusals() -> dict[str, str]:
    """The line that each of these gets."""
    processes = join_processes()
    train = split(51, 1)

    def dropout() -> None:
        vae = build()
        vae.likelihood.network = torch.nn.Sequential(vae.likelihood.network, torch.nn.Dropout())
        pv.fit(vae, train, epochs=1, **OPTIONS)

    def one_fails() -> None:
        with processes.together():
            if processes.rank == 1:
                raise ValueError("no such file")

    def fit_with(data: Any = train, **options: Any) -> Callable[[], Any]:
        return lambda: pv.fit(build(), data, epochs=1, **{**OPTIONS, **options})

    cases = {
        "mmd": fit_with(objective=pv.InfoELBO(0.5, 2.0, pv.MMD())),
        "batch": fit_with(batch_size=1),
        "dropout": dropout,
        "data": fit_with(split(51, processes.rank)),
        "seed": fit_with(seed=processes.rank),
        "fails": one_fails,
    }
    told = {}
    for name, case in cases.items():
        try:
            case()
        except (ValueError, RuntimeError) as error:
            told[name] = f"{type(error).__name__}: {error}"
    return told


def compute(folder: Path, fits: dict[str, dict[str, Any]]) -> None:
    """Runs the cases; the first process writes their outcomes to the folder."""
    rank = join_processes().rank
    for name, options in fits.items():
        vae, history = fit(**options)
        if rank == 0:
            records = [
                {key: value for key, value in record.items() if key != "seconds"}
                for record in history.records
            ]
            told = {"records": records, "mode": history.mode, "stopped": history.stopped}
            write_tensors(folder / f"{name}.safetensors", named_tensors(vae), told)
    for mode in ("eager", "traced"):
        for size in (1, 7):
            tensors = gradients(mode, size)
            if rank == 0:
                write_tensors(folder / f"gradients {mode} {size}.safetensors", tensors, {})


def main(folder: Path) -> None:
    """The cases, and what only several processes can do."""
    compute(folder, FITS)
    # A run that one process began, if there is one, and one of these for it to resume.
    fit(epochs=4, out=folder / "one", resume=True)
    fit(epochs=2, out=folder / "many", resume=True)
    stopped = stopped_at_a_step(folder / "stopped")
    told = refusals()
    rank = join_processes().rank
    _disconnect()
    if rank == 0:
        (folder / "refusals.json").write_text(json.dumps(told))
        (folder / "stopped.json").write_text(json.dumps(stopped))
        (folder / "threads.json").write_text(json.dumps(threads()))


def stopped_at_a_step(out: Path) -> dict[str, Any]:
    """A signal to one process within the second epoch, and the run that is then resumed."""
    whole, _ = fit(epochs=3)
    rank, update, steps = join_processes().rank, pv.FastSVI.update, 0

    def counted(self: Any, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 6 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, *args)

    pv.FastSVI.update = counted  # type: ignore[method-assign]
    with watched():
        _, history = fit(epochs=3, out=out, resume=True)
    pv.FastSVI.update = update  # type: ignore[method-assign]
    join_processes().agree(0)  # Until the first process has written it.
    saved = read_checkpoint(out)
    again, _ = fit(epochs=3, out=out, resume=True)
    expected = named_tensors(whole)
    return {
        "stopped": history.stopped,
        "epochs": history.epochs,
        "within": saved and saved[1]["within"]["steps"],
        "equal": all(torch.equal(expected[n], t) for n, t in named_tensors(again).items()),
    }


def threads() -> list[str]:
    """The names of this process's threads, those of C++ included; none where there is no /proc."""
    return [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    pyro.enable_validation(True)
    if "--slow" in sys.argv:
        compute(Path(sys.argv[1]), SLOW_FITS)
    else:
        main(Path(sys.argv[1]))
