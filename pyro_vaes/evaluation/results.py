"""Results of an evaluation: figures with their errors, as a table, JSON or a pandas row."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vaes.data.tables import num_gaps
from pyro_vaes.distributions.counts import Exposed
from pyro_vaes.evaluation.reliability import is_trusted, k_hat_lines
from pyro_vaes.vae import VAE

__all__ = ["Evaluation", "Unavailable", "bound_lines", "level_lines", "shared", "why_no_bits"]


_NO_ERROR = "one datum has no standard error"
_NOT_ASKED = "diagnostics were not asked for"


# Figures without diagnostics.
_BASIC = {"nll", "nll_bpd", "elbo", "elbo_bpd", "reconstruction", "kl"}
_BASIC |= {f"{name}_se" for name in _BASIC}
_BASIC |= {"num_data", "num_samples", "num_dimensions", "num_gaps", "given_label", "warnings"}
_BASIC |= {"proposal", "proposal_notes", "decoder_evaluations", "cost"}

# Figures of each datum, which are not in the flat object.
_FOR_EACH = {"log_marginal", "pareto_k", "effective_sample_size", "unreliable"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of a VAE on a data set, in nats per datum unless stated otherwise.

    ``NAME_se`` is the standard error of ``NAME`` over the data. A missing figure is None, and
    ``reasons`` says why. In a conditional model all is given the label: p(x) reads p(x | y), q(z)
    reads q(z | y), and so on.

    >>> report = pv.evaluate(vae, torch.randn(1, 4), proposal="encoder")
    >>> report.to_dict()["nll_se_reason"]
    'one datum has no standard error'

    Attributes:
        num_data: number of data.
        num_samples: S, posterior draws per datum.
        num_dimensions: elements of a datum, for bits per dimension.
        num_gaps: values that were not seen (NaN), left out of log p(x).
        given_label: whether all is given the label.
        nll: minus the importance-weighted estimate of log p(x).
        nll_bpd: the same in bits per dimension, where all elements are discrete.
        elbo: the evidence lower bound, E_q[log p(x, z) - log q(z | x)]: form (1).
        elbo_bpd: the same in bits per dimension, likewise.
        reconstruction: E_q[log p(x | z)].
        kl: E_q[log q(z | x) - log p(z)].
        elbo_2: form (2), E_q[log p(x | z) + log p(z)] + H(q), the entropy in closed form.
        elbo_3: form (3), E_q[log p(x | z)] - KL, the KL in closed form.
        entropy: H(q(z | x)), in closed form if there is one, else E_q[-log q(z | x)].
        log_prior: E_q[log p(z)], minus the cross entropy of aggregated posterior and prior.
        bound_samples: 1, 2, 4, ... up to S: points of the curve of the importance-weighted bound.
        bound: the bound at these points.
        proposal: the distribution of z to estimate log p(x) with: ``encoder``, ``refined`` (fits
            per datum), ``mixed`` (half of each) or ``annealed``.
        proposal_notes: on the proposal, such as why it is not the one that was asked for.
        decoder_evaluations: the total cost; a gradient counts as three.
        cost: the same, relative to S evaluations per datum.
        approximation_gap: log p(x) - ELBO of the best member of the encoder's family per datum, on
            at most 64 rows.
        amortisation_gap: that ELBO minus the encoder's, on the same rows.
        annealing_gap: by how many nats forward and reverse annealing differ on simulated data.
        nll_low: smallest value of nll, if they differ by more than 0.1 and nll is not a number.
        nll_high: largest value of nll then.
        encoder_nll: minus the estimate of log p(x) from the encoder's draws alone.
        ess_median: median over the data of the effective sample size, (sum w)^2 / sum w^2.
        ess_min: the smallest.
        pareto_k_median: median over the data of the Pareto k-hat.
        pareto_k_max: the largest.
        pareto_k_limit: the k-hat over which an estimate from S draws is not to be trusted, the
            smaller of 1 - 1 / log10 S and 0.7.
        num_unreliable: for how many data k-hat exceeds it, modes may have been missed, a draw's
            weight is not a number, or the encoder, if it is the proposal, cannot reach all z that
            the prior can.
        share_unreliable: the same as a share of the data.
        num_unexplored: for how many data modes may have been missed: a mode was found only once.
        encoder_pareto_k_median: as above, of the encoder's draws.
        encoder_pareto_k_max: as above, of the encoder's draws.
        encoder_num_unreliable: as above, of the encoder's draws.
        mutual_information: I_q(x; z).
        mutual_information_max: its largest possible value, the log of the number of data.
        marginal_kl: KL(q(z) || p(z)) = kl - mutual_information.
        total_correlation: KL(q(z) || prod_d q(z_d)).
        dimension_kl: sum over d of KL(q(z_d) || p(z_d)).
        dimension_kls: its terms.
        active_units: number of units whose posterior mean varies by more than 0.01 over the data.
        active: their indices, from 0.
        unit_variances: these variances.
        level_kls: ``E KL(q(z_l | x, z_>l) || p(z_l | z_>l))`` of each level of a chain, top first.
        level_active_units: the active units of each; one that only follows the levels above it,
            at no KL of its own, is active too.
        mmd2: unbiased squared maximum mean discrepancy between q(z) and p(z); without unit.
        class_accuracy: share of generated data x ~ p(x | y) to which a classifier trained on the
            real training data gives the label y.
        class_accuracy_real: its accuracy on the real data, for comparison.
        verdict: on posterior collapse, in words.
        warnings: on figures that are not to be trusted, with remedies.
        reasons: why a figure is missing.
        log_marginal: the estimate of log p(x) of each datum, ``(num_data,)``.
        pareto_k: k-hat of each datum.
        effective_sample_size: of each datum.
        unreliable: whether the estimate of log p(x) of a datum is not to be trusted.
    """

    num_data: int
    num_samples: int
    num_dimensions: int
    num_gaps: int
    given_label: bool
    proposal: str
    proposal_notes: list[str]
    decoder_evaluations: int
    cost: float
    nll: float
    nll_se: float | None
    nll_bpd: float
    nll_bpd_se: float | None
    elbo: float
    elbo_se: float | None
    elbo_bpd: float
    elbo_bpd_se: float | None
    reconstruction: float
    reconstruction_se: float | None
    kl: float
    kl_se: float | None
    elbo_2: float | None = None
    elbo_2_se: float | None = None
    elbo_3: float | None = None
    elbo_3_se: float | None = None
    entropy: float | None = None
    entropy_se: float | None = None
    log_prior: float | None = None
    log_prior_se: float | None = None
    approximation_gap: float | None = None
    approximation_gap_se: float | None = None
    amortisation_gap: float | None = None
    amortisation_gap_se: float | None = None
    annealing_gap: float | None = None
    nll_low: float | None = None
    nll_high: float | None = None
    encoder_nll: float | None = None
    encoder_nll_se: float | None = None
    bound_samples: list[int] | None = None
    bound: list[float] | None = None
    bound_se: list[float] | None = None
    ess_median: float | None = None
    ess_min: float | None = None
    pareto_k_median: float | None = None
    pareto_k_max: float | None = None
    pareto_k_limit: float | None = None
    num_unreliable: int | None = None
    share_unreliable: float | None = None
    num_unexplored: int | None = None
    encoder_pareto_k_median: float | None = None
    encoder_pareto_k_max: float | None = None
    encoder_num_unreliable: int | None = None
    mutual_information: float | None = None
    mutual_information_se: float | None = None
    mutual_information_max: float | None = None
    marginal_kl: float | None = None
    marginal_kl_se: float | None = None
    total_correlation: float | None = None
    total_correlation_se: float | None = None
    dimension_kl: float | None = None
    dimension_kl_se: float | None = None
    dimension_kls: list[float] | None = None
    active_units: int | None = None
    active: list[int] | None = None
    unit_variances: list[float] | None = None
    level_kls: list[float] | None = None
    level_active_units: list[int] | None = None
    mmd2: float | None = None
    mmd2_se: float | None = None
    class_accuracy: float | None = None
    class_accuracy_se: float | None = None
    class_accuracy_real: float | None = None
    verdict: str | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    log_marginal: Tensor | None = dataclasses.field(default=None, repr=False, compare=False)
    pareto_k: Tensor | None = dataclasses.field(default=None, repr=False, compare=False)
    effective_sample_size: Tensor | None = dataclasses.field(
        default=None, repr=False, compare=False
    )
    unreliable: Tensor | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def trusted(self) -> bool | None:
        """Whether nll is reliable for all but at most 5 % of the data; None if unknown."""
        return is_trusted(vars(self))

    @property
    def diagnosed(self) -> bool:
        """Whether there are diagnostics, more than the bounds."""
        return self.verdict is not None

    def to_dict(self) -> dict[str, Any]:
        """A flat object, ready for JSON: a missing figure is None, ``NAME_reason`` says why."""
        figures: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if name == "reasons" or name in _FOR_EACH or not (self.diagnosed or name in _BASIC):
                continue
            figures[name] = value if _finite(value) else None
            if figures[name] is None:
                figures[f"{name}_reason"] = self._reason(name, value)
        return figures

    def _reason(self, name: str, value: Any) -> str:
        base = name.removesuffix("_se")
        if base.startswith("encoder_") and self.proposal == "encoder":
            return "the proposal is the encoder"
        if base == "annealing_gap":
            return "the proposal is not annealed"
        if base in ("nll_low", "nll_high"):
            return "nll is a number, no interval"
        if name in self.reasons or base in self.reasons:
            return self.reasons.get(name) or self.reasons[base]
        if value is not None or (base != name and not _finite(getattr(self, base))):
            return f"not a finite number ({value})"
        return _NO_ERROR if base != name else _NOT_ASKED

    def to_series(self) -> Any:
        """The flat object as a ``pandas.Series``: a row of a table.

        Raises:
            ImportError: without pandas.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("Expected pandas; got none. Install it, or use to_dict().") from error
        return pd.Series(self.to_dict(), dtype=object)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        given = "; all given the label: p(x|y), q(z|y), ..." if self.given_label else ""
        yield f"{self.num_data} data, {self.num_samples} samples each; nats per datum{given}"
        if self.num_gaps:
            total = self.num_data * self.num_dimensions
            yield f"{self.num_gaps} of {total} values were not seen: log p(x) is of the others"
        yield from bound_lines(vars(self), lambda name: self._reason(name, None))
        if self.diagnosed:
            yield from self._diagnostics()
        yield from (f"Warning: {warning}" for warning in self.warnings)

    def _diagnostics(self) -> Iterator[str]:
        yield self._row("-ELBO (2), entropy in closed form", "elbo_2", -1)
        yield self._row("-ELBO (3), KL in closed form", "elbo_3", -1)
        yield self._row("entropy of q(z|x)", "entropy")
        yield self._row("cross entropy, -E[log p(z)]", "log_prior", -1)
        if self.approximation_gap is not None:
            yield self._row("approximation gap of the family", "approximation_gap")
            yield self._row("amortisation gap of the network", "amortisation_gap")
        yield from level_lines(vars(self))
        yield "The KL, split"
        most = self.mutual_information_max
        yield self._row("  mutual information I_q(x; z)", "mutual_information") + (
            "" if most is None else f"  (at most {most:.2f} with these data)"
        )
        yield self._row("  marginal KL(q(z) || p(z))", "marginal_kl")
        yield self._row("  total correlation", "total_correlation")
        yield self._row("  dimension-wise KL", "dimension_kl")
        yield self._row("MMD^2(q(z), p(z))", "mmd2", digits=4)
        yield self._row("class accuracy, generated data", "class_accuracy", digits=3)
        if self.class_accuracy_real is not None:
            yield self._row("class accuracy, real data", "class_accuracy_real", digits=3)
        if self.bound is not None and self.bound_samples is not None:
            yield "-bound over the number of samples"
            points = (f"{s}: {-b:.2f}" for s, b in zip(self.bound_samples, self.bound, strict=True))
            yield f"  {', '.join(points)}"
        yield f"effective sample size: median {self.ess_median:.1f}, least {self.ess_min:.1f}"
        yield f"proposal: {self.proposal}, {self.cost:.1f} S decoder evaluations per datum"
        yield from (f"  {note}" for note in self.proposal_notes)
        yield str(self.verdict)

    def _row(self, title: str, name: str, sign: int = 1, digits: int = 2) -> str:
        return _row(vars(self), lambda name: self._reason(name, None), title, name, sign, digits)


def level_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """The KL and the active units of each level, in words; none for one level."""
    kls, units = figures.get("level_kls"), figures.get("level_active_units")
    if kls is not None:
        yield f"KL of each level, top first: {', '.join(f'{kl:.2f}' for kl in kls)}"
    elif units is not None:
        why = figures.get("level_kls_reason") or figures["reasons"]["level_kls"]
        yield f"KL of each level: unknown, since {why}"
    if units is not None:
        yield f"active units of each level: {', '.join(map(str, units))}"


def bound_lines(figures: Mapping[str, Any], reason: Callable[[str], str]) -> Iterator[str]:
    """-log p(x), the ELBO, its terms and k-hat in words.

    Args:
        figures: those of an evaluation, by name, also from a file of an earlier version.
        reason: why a figure is missing, by its name.
    """
    known = "share_unreliable" in figures
    mark = "  NOT TO BE TRUSTED" if known and is_trusted(figures) is False else ""
    row = functools.partial(_row, figures, reason)
    yield row("-log p(x), importance weighted", "nll") + _bits(figures, "nll") + mark
    if figures.get("encoder_nll") is not None:
        yield row("  from the encoder's draws alone", "encoder_nll")
    yield row("-ELBO", "elbo", -1) + _bits(figures, "elbo", -1)
    yield row("  reconstruction, -E[log p(x|z)]", "reconstruction", -1)
    yield row("  KL(q(z|x) || p(z))", "kl")
    if known:
        yield from k_hat_lines(figures, reason("num_unreliable"))


def _row(
    figures: Mapping[str, Any],
    reason: Callable[[str], str],
    title: str,
    name: str,
    sign: int = 1,
    digits: int = 2,
) -> str:
    value, error = figures[name], figures.get(f"{name}_se")
    if value is None or math.isnan(value):
        return f"{title:<34}      n/a ({reason(name)})"
    text = f"{title:<34}{sign * value:>9.{digits}f}"
    return text if error is None else f"{text} +- {error:.{digits}f}"


def _bits(figures: Mapping[str, Any], name: str, sign: int = 1) -> str:
    value, error = figures.get(f"{name}_bpd"), figures.get(f"{name}_bpd_se")
    if value is None or math.isnan(value):
        return ""
    return f"  ({sign * value:.4f}" + ("" if error is None else f" +- {error:.4f}") + " bits/dim)"


def _finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(_finite(item) for item in value)
    return value is not None and (not isinstance(value, float) or math.isfinite(value))


def why_no_bits(vae: VAE, x: Tensor, y: Tensor | None) -> str:
    """Why log p(x) has no bits per dimension; empty if it has.

    Those of a density depend on the unit of each element: only probabilities have them.

    Args:
        vae: the model.
        x: data.
        y: their labels, if all is given these.
    """
    gaps = num_gaps(x)
    if gaps:  # Data differ in how many dimensions were seen of them.
        return f"{gaps} values were not seen"
    some = None if y is None else y[:1]
    z = torch.zeros(1, *vae.p_z(some).event_shape, dtype=vae.dtype, device=vae.device)
    likelihood = vae.p_x(z, some)
    if isinstance(likelihood, Exposed):
        return "one element is an exposure, which is given"
    try:
        discrete = getattr(likelihood, "all_discrete", None)
        discrete = likelihood.support.is_discrete if discrete is None else discrete
    except (AttributeError, NotImplementedError):
        return "the likelihood says not whether it is a probability or a density"
    return "" if discrete else "log p(x) is a density, which depends on the units of x"


class Unavailable(Exception):
    """A quantity that is not available, with the reason."""


def shared(labels: Any) -> Any:
    """Labels, which many data share.

    Raises:
        Unavailable: for a matrix of conditions, which may differ in each datum.
    """
    if labels is not None and labels.dim() > 1:
        raise Unavailable("y is a matrix of conditions, which data need not share")
    return labels
