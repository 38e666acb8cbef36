"""The record of a training run."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from pyro_vaes.core.errors import RunError

__all__ = ["History", "NonFiniteError"]


class NonFiniteError(RunError):
    """A loss in training was not finite; the message names the site."""


@dataclasses.dataclass
class History:
    """The record of a training run.

    >>> history = pv.fit(vae, torch.randn(100, 4), epochs=2, progress=False)
    >>> history.epochs, history.stopped
    (2, 'epochs')

    Attributes:
        records: one dictionary an epoch: ``epoch``, ``train_loss`` (the objective, nats per datum),
            ``val_loss`` (the objective at its full weights), ``val_elbo``, ``val_reconstruction``
            and ``val_kl`` (at beta = 1 and without free bits), ``kl_weight``, ``learning_rate``,
            ``seconds``.
        best_epoch: the epoch whose weights were kept, 0 for those before the first; None without
            validation data.
        best_val_loss: its ``val_loss``.
        stopped: why training ended: ``epochs``, ``patience``, ``time``, ``callback`` or
            ``interrupted``.
        mode: how steps were run, see :class:`~pyro_vaes.inference.svi.FastSVI`.
        device: where they were run.
        threads: CPU threads used; a resumed run takes as many.
        precision_shift: effect of the precision of training on the bound: the validation ELBO in it
            minus that in float32, nats per datum, same weights and noise; None for float32.
    """

    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best_epoch: int | None = None
    best_val_loss: float = math.inf
    stopped: str = ""
    mode: str = ""
    device: str = ""
    threads: int = 0
    precision_shift: float | None = None

    @property
    def epochs(self) -> int:
        """Epochs trained, including those before a resumption."""
        return len(self.records)

    @property
    def seconds(self) -> float:
        """Seconds spent in epochs, including validation."""
        return sum(record["seconds"] for record in self.records)


def metrics_line(record: Mapping[str, Any]) -> str:
    """One line of ``metrics.jsonl``."""
    return json.dumps(record, sort_keys=True) + "\n"
