"""Callbacks: the caller's functions that watch training and may end it.

They look at the model and change nothing: a run with callbacks takes the steps of one without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyro_vaes.training.distributed import Processes
from pyro_vaes.vae import VAE, evaluating

__all__ = ["Callback", "Callbacks"]


Callback = Callable[[dict[str, Any], VAE], bool | None]
"""Takes a record and the VAE; True ends training."""


class Callbacks:
    """The callbacks of a run, called in its first process only.

    Args:
        on_epoch: called after each epoch.
        on_step: called after each step.
        processes: those that share the run; all learn what the first one's callbacks answer.

    Attributes:
        enough: whether a callback has asked to end.
        steps: whether there is one for steps.
    """

    def __init__(
        self, on_epoch: Callback | None, on_step: Callback | None, processes: Processes
    ) -> None:
        self._functions = {"on_epoch": on_epoch, "on_step": on_step}
        for name, function in self._functions.items():
            if function is not None and not callable(function):
                raise ValueError(
                    f"Expected {name} to be a function of a record and the VAE; got {function!r}."
                )
        self._processes = processes
        self.enough = False

    def begin(self) -> None:
        """Agrees with the other processes on which callbacks there are."""
        there = [function is not None for function in self._functions.values()]
        self._epochs, self.steps = self._processes.agree(there)

    def epoch(self, record: dict[str, Any], vae: VAE) -> None:
        """Shows the record of an epoch."""
        if self._epochs:
            self._show("on_epoch", record, vae)

    def step(self, record: dict[str, Any], vae: VAE) -> None:
        """Shows the record of a step."""
        if self.steps:
            self._show("on_step", record, vae)

    def _show(self, name: str, record: dict[str, Any], vae: VAE) -> None:
        function, answer = self._functions[name], None
        with self._processes.together():
            if function is not None and not self._processes.rank:
                # Draws of the callback must not change those of training.
                with evaluating(vae):
                    answer = function(dict(record), vae)
                if not isinstance(answer, (bool, np.bool_, type(None))):
                    raise ValueError(
                        f"Expected {name} to return None, or True to end training; got {answer!r}."
                    )
        self.enough = bool(self._processes.agree(self.enough or bool(answer)))
