"""What the studies of the course share: the base configuration, small grids, a probe of z."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pyro_vaes.data.dataset import DataSet
from pyro_vaes.evaluation.diagnostics import class_accuracy, classifier
from pyro_vaes.experiments.outcomes import Difference, Outcome
from pyro_vaes.experiments.study import Study
from pyro_vaes.storage.weights import load
from pyro_vaes.vae import evaluating

__all__ = [
    "ALIVE",
    "BASE",
    "KL_SPLIT",
    "REGULARIZED",
    "class_in_code",
    "course_study",
    "few",
    "regularized",
]

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


def class_in_code(o: Outcome, label: str, drawn: bool = False) -> Difference | None:
    """The percentage of test images whose class a classifier reads from z.

    The classifier is fitted to the training rows' codes, one for each seed's model; None without
    models, and for data without at least two labels.

    Args:
        o: the outcome.
        label: of the cell.
        drawn: from one draw of z ~ q(z | x) for each image, in place of the mean.
    """
    train, test = o.data.train.frozen(), o.data.test.frozen()
    folders = [path for (name, _), path in o.folders.items() if name == label]
    if train.y is None or test.y is None or not folders:
        return None
    if train.y.dim() > 1 or len(train.y.unique()) < 2:
        return None
    shares = []
    for folder in folders:
        vae = load(folder)
        with evaluating(vae), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            a, b = (
                vae.encode(x, num_samples=1)[0] if drawn else vae.encode(x)
                for x in (train.x, test.x)
            )
        shares.append(100 * class_accuracy(classifier(a, train.y), b, test.y)[0])
    return Difference.of(np.array(shares))
