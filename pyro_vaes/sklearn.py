"""A VAE as an estimator of scikit-learn: for its pipelines, grid searches and data frames.

The only module that needs scikit-learn; it is imported at first use, as ``pv.sklearn``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    DensityMixin,
    TransformerMixin,
)
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from pyro_vaes.data.dataset import DataSet, load_data
from pyro_vaes.data.splits import Split
from pyro_vaes.evaluation.imputation import impute
from pyro_vaes.evaluation.reliability import UNRELIABLE
from pyro_vaes.evaluation.scores import Scores, score, score_alone
from pyro_vaes.runs.build import build
from pyro_vaes.runs.run import train
from pyro_vaes.runs.schema import RunConfig, from_values

__all__ = ["VAEEstimator"]


_SEEDS = 2**31 - 1
# Parameters that are options of a run, by the same names.
_OPTIONS = [
    *("latent_dim", "start", "prior", "prior_components", "posterior", "likelihood", "beta"),
    *("epochs", "patience", "batch_size", "learning_rate", "device"),
]
# Rows that a training needs at least: some to learn from, one to choose by.
_FEWEST = 3


class VAEEstimator(  # type: ignore[misc]
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator
):
    """A VAE of rows of numbers, which may have gaps (NaN).

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(5, 2, (60, 3))
    >>> model = pv.sklearn.VAEEstimator(latent_dim=2, epochs=2, random_state=0).fit(X)
    >>> model.transform(X).shape, model.sample(4).shape
    ((60, 2), (4, 3))

    Each column is learned in its own units, so that a ``StandardScaler`` is not needed. Parameters
    are checked by ``fit``. ``prior``, ``posterior`` and ``likelihood`` are names that
    ``pyro-vaes parts`` lists.

    Args:
        latent_dim: size of the code.
        hidden_dims: hidden layers of the encoder; reversed in the decoder.
        start: ``random`` weights, or ``factors``: those of a factor analysis, which few rows want
            (with ``likelihood="student_t"`` and ``prior="mixture"`` the recipe ``table``), or
            ``student_t``: those of a multivariate t, which signals want.
        prior: p(z).
        prior_components: of a mixture, or pseudo-inputs of a VampPrior.
        posterior: q(z given x).
        likelihood: p(x given z); ``auto`` looks at the values.
        beta: weight of the KL.
        epochs: most passes over the training rows.
        patience: stop after this many epochs without a better validation.
        batch_size: rows in a step.
        learning_rate: of the optimiser.
        validation_fraction: share of the rows to choose by.
        num_samples: draws per row behind ``score_samples``.
        proposal: what these are drawn from: ``encoder`` (quick, and each row's score is the same
            whatever rows stand next to it; but one that its draws miss may go unnoticed), or
            another of :func:`.evaluate`.
        device: where to train; ``auto`` is CUDA if there is one.
        random_state: a seed, or a generator of NumPy's.
        verbose: whether to show a bar of progress.

    Attributes:
        vae_: the trained :class:`~pyro_vaes.vae.VAE`, on the CPU and in float64.
        history_: its :class:`~pyro_vaes.training.history.History`.
        n_features_in_: columns of the rows.
        feature_names_in_: their names, if all are strings.
    """

    def __init__(
        self,
        latent_dim: int = 2,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        start: str = "random",
        prior: str = "standard",
        prior_components: int = 10,
        posterior: str = "normal",
        likelihood: str = "normal",
        beta: float = 1.0,
        epochs: int = 500,
        patience: int = 50,
        batch_size: int = 64,
        learning_rate: float = 5e-3,
        validation_fraction: float = 0.2,
        num_samples: int = 200,
        proposal: str = "encoder",
        device: str = "auto",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.latent_dim = latent_dim
        self.hidden_dims = hidden_dims
        self.start = start
        self.prior = prior
        self.prior_components = prior_components
        self.posterior = posterior
        self.likelihood = likelihood
        self.beta = beta
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.num_samples = num_samples
        self.proposal = proposal
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> VAEEstimator:
        """Trains on rows ``(n, d)``; ``y`` is there for pipelines, and not used.

        Args:
            X: the rows.
            y: not used.
            sample_weight: how much each row counts, ``(n,)``, 0 or more. Whole numbers are numbers
                of rows: 3 is the row three times, in training and validation. Others are shares: an
                epoch draws as many rows as there are, by their weights, see :class:`.Split`.

        Raises:
            ValueError: for rows that are none, fewer than three that count, weights that are none,
                or parameters that make no sense.
        """
        rows = self._rows(X, reset=True, ensure_min_samples=_FEWEST)
        random = check_random_state(self.random_state)
        data = self._split(*_counted(rows, sample_weight), random)
        config = self._config(random.randint(_SEEDS))
        with torch.random.fork_rng():
            torch.manual_seed(config.training.seed)
            vae, _ = build(config, data)
            self.history_ = train(vae, data, config, progress=self.verbose)
        # In double precision a row's figures do not depend on what is computed next to it.
        self.vae_ = vae.cpu().double().eval()
        self._seed = config.training.seed
        return self

    def _split(self, rows: Any, weights: Any, random: Any) -> DataSet:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"Expected validation_fraction above 0 and below 1; got {self.validation_fraction}."
            )
        order = random.permutation(len(rows))
        count = min(max(1, round(self.validation_fraction * len(rows))), len(rows) - 2)
        val, some = rows[order[:count]], rows[order[count:]]
        # A test split is not used here, but a data set has one.
        real = self.start != "random" or self.likelihood == "normal"
        kind: Any = "real" if real else None
        data = load_data({"train_x": some, "val_x": val, "test_x": val}, kind=kind)
        if weights is None:
            return data
        chosen = {"val": weights[order[:count]], "train": weights[order[count:]]}
        parts = {k: replace(getattr(data, k), weights=w) for k, w in chosen.items()}
        return replace(data, **parts)

    def _config(self, seed: int) -> RunConfig:
        given = {name: _plain(getattr(self, name)) for name in _OPTIONS}
        sizes = tuple(map(_plain, self.hidden_dims))
        rest = {"hidden_dims": sizes, "seed": seed, "warmup_epochs": 0}
        network = "skip" if self.start != "random" else "mlp"
        return from_values({**given, **rest, "network": network, "ema_decay": 0.0})

    def transform(self, X: Any) -> Any:
        """Posterior means ``(n, latent_dim)``."""
        check_is_fitted(self)
        rows = self._rows(X)
        return self.vae_.encode(rows).numpy().astype(rows.dtype)

    def inverse_transform(self, X: Any) -> Any:
        """Means of rows ``(n, d)`` at codes ``(n, latent_dim)``, in the units of the data."""
        check_is_fitted(self)
        codes = check_array(X, dtype=[np.float64, np.float32], estimator=self)
        return self.vae_.decode(codes).numpy().astype(codes.dtype)

    def score_samples(self, X: Any) -> Any:
        """The estimate of log p(x) of each row, ``(n,)``, in nats.

        Warns where more than one row in twenty is not to be trusted.
        """
        check_is_fitted(self)
        scores = self._scores(torch.tensor(self._rows(X), dtype=torch.float64))
        if scores.unreliable is not None:
            _warn(scores.unreliable, "log p(x)")
        return scores.log_p.numpy()

    def _scores(self, rows: Tensor) -> Scores:
        if self.proposal == "encoder":
            return score_alone(self.vae_, rows, num_samples=self.num_samples, seed=self._seed)
        return score(
            self.vae_,
            rows,
            num_samples=self.num_samples,
            proposal=self.proposal,
            seed=self._seed,
        )

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of ``score_samples``, by which a grid search chooses."""
        return float(self.score_samples(X).mean())

    def impute(self, X: Any) -> Any:
        """Rows with their gaps (NaN) filled by means of p(x_unseen | x_seen), see :func:`.impute`.

        Draws are from fits to each row, whatever ``proposal``: an encoder may have seen no gaps.
        Warns as ``score_samples`` does.
        """
        check_is_fitted(self)
        rows = self._rows(X)
        gaps = torch.tensor(rows, dtype=torch.float64)
        found = impute(self.vae_, gaps, self.num_samples, seed=self._seed)
        _warn(found.unreliable, "What was filled in")
        return np.where(np.isnan(rows), found.x.numpy(), rows).astype(rows.dtype)

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draws rows ``(n_samples, d)`` from the model, in the units of the data."""
        check_is_fitted(self)
        with torch.random.fork_rng():
            torch.manual_seed(check_random_state(random_state).randint(_SEEDS))
            return self.vae_.sample(n_samples).numpy()

    @property
    def _n_features_out(self) -> int:
        return self.latent_dim

    def _rows(self, X: Any, reset: bool = False, **checks: Any) -> Any:
        """Rows as scikit-learn checks them; NaN is a value that was not seen."""
        kinds = [np.float64, np.float32]
        return validate_data(
            self, X, reset=reset, dtype=kinds, ensure_all_finite="allow-nan", **checks
        )


def _warn(unreliable: Tensor, what: str) -> None:
    share = float(unreliable.double().mean())
    if share > UNRELIABLE:
        warnings.warn(
            f"{what} is not to be trusted for {share:.0%} of {len(unreliable)} rows (Pareto "
            "k-hat). Take more num_samples, or proposal='auto'.",
            stacklevel=3,
        )


def _counted(rows: Any, sample_weight: Any) -> tuple[Any, Any]:
    """Rows that count, in an order of their values, and their weights if these are no numbers.

    So rows with whole weights are the same as rows that are there so often, in any order.
    """
    weights = None
    if sample_weight is not None:
        split = Split(torch.tensor(rows), weights=sample_weight)
        weights = cast(Tensor, split.weights).numpy()
        whole = bool((weights == weights.round()).all())
        times = weights.astype(int) if whole else (weights > 0).astype(int)
        rows = rows.repeat(times, axis=0)
        weights = None if whole else weights.repeat(times)
    if len(rows) < _FEWEST:
        raise ValueError(f"Expected at least {_FEWEST} rows that count; got {len(rows)}.")
    order = np.lexsort(rows.T)
    return rows[order], None if weights is None else weights[order]


def _plain(value: Any) -> Any:
    """A number of NumPy's, as a grid search gives, as one of Python's."""
    return value.item() if isinstance(value, np.generic) else value
