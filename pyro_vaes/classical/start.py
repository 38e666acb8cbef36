"""Where the training of a table starts: at a factor analysis, whose posterior is exact, or at a t.

From random weights a decoder takes thousands of steps to find the linear part of a table, and the
encoder follows it. Factor analysis has both in closed form: x = m + W z + noise with diagonal noise
D, and z given x is normal with precision I + W' D^-1 W, which is diagonal for W rotated so (Rubin
and Thayer, "EM algorithms for ML factor analysis", 1982). What is left to learn is what a linear
model lacks.

A smooth signal wants another start: its neighbours share their noise, which factors with noise of
each element's own explain by variances near 0, and so badly in new data. One multivariate t with a
full scatter matrix has the correlations, and z shares its first principal components.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_vaes.classical.densities import Classical, best_density
from pyro_vaes.data.splits import as_split
from pyro_vaes.networks.mlp import SkipMLP
from pyro_vaes.vae import VAE

__all__ = ["Factors", "start_at_factors", "start_at_student_t"]


# Noise of less than a hundredth of a spread is not believed.
_FLOOR = 1e-4
# How much of their random start the networks' corrections keep.
_SMALL = 0.01
# How much of a principal component's variance z explains at the start; the noise has the rest.
_SHARE = 0.5
# Components of the mixture of scores, chosen among these by the validation rows.
_COMPONENTS = (1, 2, 3, 5, 8, 12)
_MOST_ROWS = 20_000


@dataclasses.dataclass(frozen=True)
class Factors:
    """A factor analysis x = m + W z + noise.

    Attributes:
        loadings: W, ``(D, L)``, rotated so that W' D^-1 W is diagonal.
        mean: m, ``(D,)``.
        noise: the variances D, ``(D,)``.
    """

    loadings: Tensor
    mean: Tensor
    noise: Tensor

    @classmethod
    def of(cls, rows: Tensor, count: int) -> Factors:
        """Fits ``count`` factors to rows ``(n, D)``."""
        from sklearn.decomposition import FactorAnalysis

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Not converged is good enough for a start.
            found = FactorAnalysis(count).fit(rows.numpy())
        loadings, mean, noise = (
            torch.as_tensor(t, dtype=torch.float64)
            for t in (found.components_.T, found.mean_, found.noise_variance_)
        )
        noise = noise.clamp(min=_FLOOR)
        _, turn = torch.linalg.eigh(loadings.mT @ (loadings / noise.unsqueeze(-1)))
        return cls(loadings @ turn, mean, noise)

    @property
    def variance(self) -> Tensor:
        """Of z given x, ``(L,)``."""
        return 1 / (1 + (self.loadings.square() / self.noise.unsqueeze(-1)).sum(0))

    @property
    def encoder(self) -> Tensor:
        """A, ``(L, D)``: the mean of z given x is A (x - m)."""
        return self.variance.unsqueeze(-1) * (self.loadings / self.noise.unsqueeze(-1)).mT

    def log_prob(self, rows: Tensor, mixture: Any) -> Tensor:
        """Log densities of rows ``(n, D)`` if z has a mixture of diagonal normals for a prior."""
        loc = self.mean + torch.as_tensor(mixture.means_) @ self.loadings.mT
        scores = torch.as_tensor(mixture.covariances_)
        wide = self.loadings * scores.unsqueeze(1) @ self.loadings.mT + self.noise.diag()
        parts = torch.distributions.MultivariateNormal(loc, wide)
        each = parts.log_prob(rows.unsqueeze(1)) + torch.as_tensor(mixture.weights_).log()
        return each.logsumexp(-1)


@dataclasses.dataclass(frozen=True)
class Components:
    """A multivariate t of which z explains a share: x = m + W z + noise, which is a t.

    Attributes:
        loadings: W, ``(D, L)``: principal components of the scatter, times the root of the share.
        mean: m, ``(D,)``.
        scatter: of the noise, ``(D, D)``: what W leaves of the t's.
        df: the t's degrees of freedom.
    """

    loadings: Tensor
    mean: Tensor
    scatter: Tensor
    df: float

    @classmethod
    def of(cls, found: Classical, count: int) -> Components:
        """Shares out a t that was fitted; z has at most ``count`` components."""
        scatter, mean = (torch.as_tensor(t[0]) for t in (found.model.scatters, found.model.locs))
        scatter = found.spread.unsqueeze(-1) * scatter * found.spread
        variances, turn = torch.linalg.eigh(scatter)
        loadings = (turn * (_SHARE * variances).sqrt())[:, -count:]
        mean = found.center + found.spread * mean
        return cls(loadings, mean, scatter - loadings @ loadings.mT, found.model.df)

    @property
    def variance(self) -> Tensor:
        """Of z given x if the noise were normal, ``(L,)``."""
        return torch.full_like(self.loadings[0], 1 - _SHARE)

    @property
    def encoder(self) -> Tensor:
        """A, ``(L, D)``: the mean of z given x is A (x - m)."""
        return _SHARE * self.loadings.mT / self.loadings.square().sum(0).unsqueeze(-1)


def start_at_factors(vae: VAE, train: Any, val: Any = None, seed: int = 0) -> None:
    """Sets a VAE of real elements to the factor analysis of its training data.

    The likelihood's mean, its noise and the posterior are those of the analysis, and a mixture
    prior is one fitted to draws of z given the training data, with as many components as validation
    data like best. The networks' own layers add a small random correction. Gaps count as the mean
    of their element.

    >>> x = torch.randn(200, 2) @ torch.randn(2, 5) + 0.1 * torch.randn(200, 5)
    >>> likelihood = pv.NormalLikelihood(pv.SkipMLP(2, [8]), (5,))
    >>> likelihood.initialize_from(x)
    >>> vae = pv.VAE(pv.NormalPrior(2), pv.NormalPosterior(pv.SkipMLP(5, [8]), 2), likelihood)
    >>> pv.start_at_factors(vae, x)
    >>> pv.evaluate(vae, x, num_samples=100, proposal="encoder").pareto_k_median < 0.7
    True

    Args:
        vae: its posterior is a ``NormalPosterior``; its likelihood is a ``NormalLikelihood``,
            ``StudentTLikelihood`` or ``LowRankNormalLikelihood`` that knows the units of the data;
            the networks of both are of :class:`.SkipMLP`. Or both are such parts on the scale of
            one power transform.
        train: training data, or a split.
        val: validation data, by which the mixture is chosen; by the training data's BIC if None.
        seed: of what is drawn.

    Raises:
        ValueError: for a VAE with other parts.
    """
    vae, train, val = _within(vae, train, val)
    likelihood, posterior, prior = _checked(vae)
    rows = _standardised(likelihood, train)[:_MOST_ROWS]
    found = Factors.of(rows, min(posterior.latent_dim, max(1, rows.shape[1] - 1)))
    with torch.no_grad():
        _start_mean(likelihood, found)
        _start_scale(likelihood, found.noise.sqrt())
        _start_posterior(posterior, likelihood, found)
        # A GTMPrior's locations are outputs of a network.
        if hasattr(prior, "logits") and isinstance(getattr(prior, "loc", None), nn.Parameter):
            other = None if val is None else _standardised(likelihood, val)
            _start_prior(prior, found, rows, other, seed)


def start_at_student_t(vae: VAE, train: Any, val: Any = None, seed: int = 0) -> None:
    """Sets a VAE of real elements to one multivariate t, fitted to its training data.

    The t's first principal components are shared out between z and the likelihood's noise, half of
    their variance each, so that z is in use; centre, scatter and degrees of freedom are the t's. It
    is the start for signals, whose elements share their noise. Gaps count as the mean of their
    element.

    >>> x = torch.randn(200, 8).cumsum(-1)
    >>> likelihood = pv.StudentTLikelihood(pv.SkipMLP(2, [8]), (8,))
    >>> likelihood.initialize_from(x)
    >>> vae = pv.VAE(pv.NormalPrior(2), pv.NormalPosterior(pv.SkipMLP(8, [8]), 2), likelihood)
    >>> pv.start_at_student_t(vae, x[:150], x[150:])
    >>> classical = pv.best_density(x[:150], x[150:], only="multivariate t").log_prob(x)
    >>> (pv.log_marginal(vae, x, num_samples=100) - classical).mean().abs() < 0.5
    tensor(True)

    Args:
        vae: as in :func:`start_at_factors`, with a ``StudentTLikelihood`` of full covariance. A
            standard normal prior is the one that the start is for.
        train: training data, or a split.
        val: validation data, by which the floor under the scatter is chosen; the training data if
            None.
        seed: of the rows that the fit looks at, if they are many.

    Raises:
        ValueError: for a VAE with other parts.
    """
    vae, train, val = _within(vae, train, val)
    likelihood, posterior, _ = _checked(vae)
    if getattr(likelihood, "below", None) is None or not hasattr(likelihood, "log_df"):
        raise ValueError(
            "Expected a StudentTLikelihood with full=True to start at a multivariate t; got "
            f"{type(likelihood).__name__}, or a diagonal one."
        )
    rows = _standardised(likelihood, train)
    other = rows if val is None else _standardised(likelihood, val)
    found = Components.of(best_density(rows, other, seed, "multivariate t"), posterior.latent_dim)
    with torch.no_grad():
        _start_mean(likelihood, found)
        _start_noise(likelihood, found)
        _start_posterior(posterior, likelihood, found)


def _within(vae: VAE, train: Any, val: Any) -> tuple[VAE, Any, Any]:
    """Parts that share a power transform as their bases, and the data on its scale."""
    shared = getattr(vae.likelihood, "powers", vae)
    if shared is not getattr(vae.posterior, "powers", None):
        return vae, train, val
    powers, bases = cast(Any, shared), (vae.posterior.base, vae.likelihood.base)
    other = None if val is None else powers.split(val)
    return VAE(vae.prior, *cast(Any, bases)), powers.split(train), other


def _checked(vae: VAE) -> tuple[Any, Any, Any]:
    """The likelihood, posterior and prior of a VAE that can start so."""
    likelihood, posterior = cast(Any, vae.likelihood), cast(Any, vae.posterior)
    real = hasattr(likelihood, "units") and hasattr(likelihood, "log_scale")
    if not real or not isinstance(getattr(posterior, "head", None), nn.Linear):
        raise ValueError(
            "Expected a likelihood of real elements and a NormalPosterior to start at a factor "
            f"analysis; got {type(likelihood).__name__} and {type(posterior).__name__}."
        )
    for part in (likelihood, posterior):
        if not isinstance(part.network, SkipMLP):
            raise ValueError(
                "Expected networks of SkipMLP, which pass on their inputs, to start at a factor "
                f"analysis; got {type(part.network).__name__}."
            )
    return likelihood, posterior, vae.prior


def _standardised(likelihood: Any, x: Any) -> Tensor:
    """Rows ``(n, D)`` in the units of the likelihood, float64, gaps at 0."""
    center, spread = (t.detach().cpu().double() for t in likelihood.units)
    rows = (as_split(x).x.detach().cpu().double() - center) / spread
    return rows.flatten(1).nan_to_num(0.0)


def _start_mean(likelihood: Any, found: Factors | Components) -> None:
    """The mean m + W z."""
    weight, size = likelihood.head.weight, found.loadings.shape[1]
    weight[:, : likelihood.network.in_features] = 0
    weight[:, likelihood.network.in_features :] *= _SMALL
    weight[:, :size] = found.loadings.to(weight)
    likelihood.head.bias.copy_(found.mean)


def _start_scale(likelihood: Any, scale: Tensor) -> None:
    scale = (scale - likelihood.min_scale).clamp(min=likelihood.min_scale)
    likelihood.log_scale.copy_((scale.log() / likelihood.PACE).view_as(likelihood.log_scale))


def _start_noise(likelihood: Any, found: Components) -> None:
    """The noise of a t, which the likelihood has by its covariance."""
    factor = torch.linalg.cholesky(found.scatter * found.df / (found.df - 2))
    _start_scale(likelihood, factor.diagonal())
    likelihood.below.copy_(factor.tril(-1))
    likelihood.log_df.fill_(math.log(found.df - 2) / likelihood.PACE)


def _start_posterior(posterior: Any, likelihood: Any, found: Factors | Components) -> None:
    """The linear model's posterior, exact for normal noise, in what the posterior sees of x."""
    center, spread = (t.detach().flatten().double().cpu() for t in likelihood.units)
    seen_center, seen_spread = (
        t.detach().double().cpu().expand(likelihood.event_shape).flatten()
        for t in (posterior.center, posterior.half_range)
    )
    weight, bias, inputs = posterior.head.weight, posterior.head.bias, posterior.network.in_features
    encoder, size = found.encoder, found.loadings.shape[1]
    weight[:, :inputs] = 0
    weight[:, inputs:] *= _SMALL
    bias.zero_()
    weight[:size, : len(center)] = (encoder * (seen_spread / spread)).to(weight)
    bias[:size] = (encoder @ ((seen_center - center) / spread - found.mean)).to(bias)
    bias[posterior.latent_dim :][:size] = found.variance.log().to(bias)


def _start_prior(prior: Any, found: Factors, rows: Tensor, val: Tensor | None, seed: int) -> None:
    """The mixture of the scores; its components are shared out among those of the prior."""
    mixture = _mixture(found, rows, val, prior.num_components, seed)
    size, count = found.loadings.shape[1], len(mixture.weights_)
    prior.loc.zero_()
    prior.log_scale.zero_()
    which = torch.arange(prior.num_components) % count
    means, variances, weights = (
        torch.as_tensor(t) for t in (mixture.means_, mixture.covariances_, mixture.weights_)
    )
    prior.loc[..., :size] = means[which].to(prior.loc)
    prior.log_scale[..., :size] = (0.5 * variances.log())[which].to(prior.loc)
    # Copies of a component share its weight: the density is that of the fewer.
    copies = torch.bincount(which, minlength=count)
    if isinstance(prior.logits, nn.Parameter):
        prior.logits.copy_((weights / copies).log()[which].to(prior.logits))


def _mixture(found: Factors, rows: Tensor, val: Tensor | None, most: int, seed: int) -> Any:
    """The mixture of diagonal normals for draws of z with which validation rows score best."""
    from sklearn.mixture import GaussianMixture

    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(rows), len(found.variance), generator=generator, dtype=torch.float64)
    z = (rows - found.mean) @ found.encoder.mT + found.variance.sqrt() * noise
    best, best_value = None, -math.inf
    for count in (k for k in _COMPONENTS if k <= min(most, max(1, len(z) // 10))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mixture = GaussianMixture(
                count, covariance_type="diag", reg_covar=1e-3, random_state=seed
            ).fit(z.numpy())
        value = (
            -mixture.bic(z.numpy()) if val is None else float(found.log_prob(val, mixture).mean())
        )
        if value > best_value:
            best, best_value = mixture, value
    return best
