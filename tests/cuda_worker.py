"""What ``test_cuda`` runs under ``torchrun``: steps and a short training on a GPU.

``torchrun cuda_worker.py FILE BACKEND``: the first process writes what came out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import pyro_vaes as pv
from pyro_vaes.training.distributed import Processes, join_processes
from pyro_vaes.training.validation import arguments


def told(processes: Processes) -> dict[str, Any]:
    """Losses of steps whose gradients are added up, and of a training."""
    x = torch.randint(0, 4, (33, 6), generator=torch.Generator().manual_seed(1)).float()
    vae = _vae().cuda()
    objective = pv.ELBO(free_bits=0.5)
    objective.to(torch.device("cuda"))
    objective.total = processes.total if dist.is_initialized() else None
    model, guide = processes.sharing(vae.model, vae.guide)
    svi = pv.FastSVI(
        model,
        guide,
        lambda groups: torch.optim.Adam(groups, lr=0.01),
        loss=objective,
        mode="traced",
        combine=processes.combine if dist.is_initialized() else None,
    )
    torch.manual_seed(4)
    batch = processes.part(arguments(vae, x.cuda(), None))
    steps = [svi.step(*batch) for _ in range(5)]
    trained = pv.fit(
        _vae(), x, x, epochs=3, batch_size=10, device="cuda", mode="traced", progress=False
    )
    return {
        "mode": svi.mode,
        "device": trained.device,
        "steps": steps,
        "train_loss": [record["train_loss"] for record in trained.records],
        "val_loss": [record["val_loss"] for record in trained.records],
    }


def _vae() -> pv.VAE:
    torch.manual_seed(0)
    posterior = pv.NormalPosterior(pv.MLP(6, [16]), 2)
    return pv.VAE(
        pv.MixturePrior(2, 3), posterior, pv.CategoricalLikelihood(pv.MLP(2, [16]), (6,), 4)
    )


def main(out: Path, backend: str) -> None:
    if backend == "nccl":  # Left alone, one process connects to nobody.
        torch.cuda.set_device(0)
        dist.init_process_group("cpu:gloo,cuda:nccl")
    processes = join_processes()
    found = {"backend": dist.get_backend_config(), **told(processes)}
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found))
    if backend == "nccl":
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
