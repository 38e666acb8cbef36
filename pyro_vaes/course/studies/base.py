"""The base configuration and small grids that the studies of the course share."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from pyro_vaes.data.dataset import DataSet
from pyro_vaes.experiments.study import Study

__all__ = ["ALIVE", "BASE", "KL_SPLIT", "REGULARIZED", "course_study", "few", "regularized"]

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

# A second set-up for learned priors. The course's model over-fits by ten nats, which hides what a
# prior changes. Here the likelihood knows the order of the levels, the KL is warmed up so that no
# unit dies early, and the training images are moved a little, as in the default recipe.
REGULARIZED: Mapping[str, Any] = {
    "likelihood": "ordinal",
    "warmup_epochs": 100,
    "augment": 1.0,
    "epochs": 350,
    "patience": 50,
}

#: A :class:`~pyro_vaes.experiments.study.Study` of the course's model.
course_study = functools.partial(Study, recipe="course", base=BASE)

# Columns that several tables have.
KL_SPLIT = {"mutual_information": "I(x; z)", "marginal_kl": "marginal KL"}
ALIVE = {"active_units": "active units"}


def few(values: Sequence[Any], quick: bool, chosen: Sequence[Any]) -> Sequence[Any]:
    """All values of a factor, or those of a rehearsal."""
    return chosen if quick else values


def regularized(data: DataSet) -> Mapping[str, Mapping[str, Any]]:
    """The second set-up by its name, for images whose levels have an order; none for other data."""
    fits = data.kind == "levels" and data.image_shape is not None
    return {"regularized": REGULARIZED} if fits else {}
