"""Early stopping: the best epoch, and the end of patience."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pyro_vaes.training.history import History

__all__ = ["EarlyStopping"]


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Early stopping by the validation loss; the epochs of a KL warm-up do not count.

    Attributes:
        patience: epochs without a better validation after which training stops; None for no limit.
        warmup_steps: steps over which the KL weight rises, during which losses are not comparable.
        steps_per_epoch: steps in an epoch.
    """

    patience: int | None
    warmup_steps: int
    steps_per_epoch: int

    def improved(self, history: History, record: Mapping[str, Any]) -> bool:
        """Whether an epoch validates best so far; if so, the history records it."""
        if record["epoch"] * self.steps_per_epoch < self.warmup_steps:
            return False
        if not record["val_loss"] < history.best_val_loss:
            return False
        history.best_epoch, history.best_val_loss = record["epoch"], record["val_loss"]
        return True

    def out_of_patience(self, history: History) -> bool:
        """Whether the last improvement was ``patience`` epochs ago."""
        if self.patience is None:
            return False
        warmed_up = math.ceil(self.warmup_steps / self.steps_per_epoch)
        return history.epochs - max(history.best_epoch or 0, warmed_up) >= self.patience
