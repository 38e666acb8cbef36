"""What the studies of the course share: the base configuration and small grids."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from pyro_vaes.experiments.study import Study

__all__ = ["ALIVE", "BASE", "KL_SPLIT", "course_study", "few"]

# The course's model, but Adam with a moving average of its weights: in half the time the bound on
# the validation rows is that of the recipe's Adamax (the plain VAE) or better (by 0.6 nats on
# average over the cells at beta = 1), and so smooth that less patience will do. And an end for runs
# that would crawl on.
BASE: Mapping[str, Any] = {
    "epochs": 200,
    "patience": 10,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "ema_decay": 0.99,
}

#: A :class:`~pyro_vaes.experiments.study.Study` of the course's model.
course_study = functools.partial(Study, recipe="course", base=BASE)

# Columns that several tables have.
KL_SPLIT = {"mutual_information": "I(x; z)", "marginal_kl": "marginal KL"}
ALIVE = {"active_units": "active units"}


def few(values: Sequence[Any], quick: bool, chosen: Sequence[Any]) -> Sequence[Any]:
    """All values of a factor, or those of a rehearsal."""
    return chosen if quick else values
