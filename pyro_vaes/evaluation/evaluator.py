"""How good a VAE is on data it has not seen: bounds, likelihoods, and whether its code is alive.

S posterior draws per datum give the ELBO and its terms: with the log weight
log w = log p(x | z) + log p(z) - log q(z | x), the mean of log w is the ELBO, and the log of the
mean of w is the importance-weighted estimate of log p(x) (Burda et al. 2016), on average above the
ELBO and below log p(x). Where the encoder is poor this estimate is the failure of the sampler, not
the model's figure: so log p(x) is estimated by another proposal, unless ``proposal="encoder"``; see
:mod:`pyro_vaes.evaluation.proposals.fitted`.

Evaluation changes nothing: not the parameters, not the state of any generator.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_vaes.core.checks import positive
from pyro_vaes.data.splits import as_split
from pyro_vaes.data.tables import num_gaps
from pyro_vaes.evaluation import aggregate
from pyro_vaes.evaluation import diagnostics as diag
from pyro_vaes.evaluation.draws import chunk_of
from pyro_vaes.evaluation.passes import Found, Pass, best_elbos
from pyro_vaes.evaluation.proposals.annealed import TOLERANCE
from pyro_vaes.evaluation.proposals.fitted import check_proposal
from pyro_vaes.evaluation.reliability import reliability
from pyro_vaes.evaluation.results import Evaluation, Unavailable
from pyro_vaes.vae import VAE, check_labels, evaluating

__all__ = ["evaluate", "log_marginal"]


# Burda et al. (2016), section 5.2.
_ACTIVE = 0.01

_TERMS = ("log_likelihood", "log_prior", "log_posterior", "log_marginal")

# How far log p(x | z) may vary over the draws, relative to its size, for rounding alone.
_ROUNDING = 1e-5


def evaluate(
    vae: VAE,
    data: Any,
    *,
    num_samples: int = 1000,
    proposal: str = "auto",
    start: str = "refined",
    seed: int = 0,
    chunk_size: int | None = None,
    diagnostics: bool = True,
    gaps: bool = False,
    train: Any = None,
) -> Evaluation:
    """Evaluates a VAE.

    Args:
        vae: the model.
        data: a split, tensor, array, ``Dataset`` or ``DataLoader``. NaN is a value that was not
            seen: all figures are then of what was seen, log p(x_seen).
        num_samples: S, draws per datum: of the posterior for the ELBO and what belongs to it, and
            of the proposal for log p(x).
        proposal: what z is drawn from to estimate log p(x). ``"encoder"``: the posterior.
            ``"refined"``: a Student's t fitted to each datum. ``"auto"``: half of each where the
            posterior scores foreign draws cheaply, else ``"refined"``; the encoder, with a note,
            where nothing can be fitted. ``"annealed"``: annealed importance sampling by 16 chains,
            whatever S: dear, an audit of the others. See
            :mod:`pyro_vaes.evaluation.proposals.fitted`.
        start: where annealing starts: ``"refined"``, or ``"prior"``, which is dearer and is not
            blind to what the refined proposal misses.
        seed: seed of the draws.
        chunk_size: decoder evaluations at once; bounds the memory, whatever S, and changes no
            figure. None for 1024 on a CPU and 8192 elsewhere.
        diagnostics: False leaves all but the bounds and their terms.
        gaps: whether to split log p(x) - ELBO into approximation and amortisation gap
            (:mod:`pyro_vaes.evaluation.gaps`), on at most 64 rows; some 2400 decoder evaluations
            for each.
        train: labelled training data, from which a classifier learns to judge what a conditional
            VAE generates.

    Returns:
        The figures, in nats.

    Raises:
        TypeError: for a model that is no ``VAE``.
        ValueError: for data that the parts cannot take, or a proposal that cannot be had with it.
    """
    chunk_size = _checked(vae, num_samples, chunk_size, proposal, start)
    x, y = _on_device(vae, data)
    y = check_labels(vae, x, y)
    with evaluating(vae):
        labels = y if vae.conditional else None
        way = Pass(vae, num_samples, seed, chunk_size, proposal, True, diagnostics, start)
        found = way.run(x, y)
        values = found.values
        figures = _Figures(values)
        gaps_in_x = num_gaps(x)
        figures.bounds(math.prod(x.shape[1:]), gaps_in_x)
        figures.proposed(found, num_samples)
        if diagnostics:
            figures.curve(num_samples)
            figures.activity(labels, num_samples)
            figures.aggregate(vae, found.posteriors, labels, num_samples, seed, chunk_size)
            figures.generated(vae, x, labels, train, seed)
        figures.gaps(best_elbos(way, x, y) if gaps else "gaps=True was not asked for")
    return Evaluation(
        num_data=len(x),
        num_samples=num_samples,
        num_dimensions=math.prod(x.shape[1:]),
        num_gaps=gaps_in_x,
        given_label=labels is not None,
        warnings=figures.warnings,
        reasons=figures.reasons,
        log_marginal=values["log_marginal"],
        pareto_k=values.get("pareto_k"),
        effective_sample_size=values.get("effective_sample_size"),
        **figures.found,
    )


def log_marginal(
    vae: VAE,
    x: Any,
    num_samples: int = 1000,
    *,
    y: Any = None,
    proposal: str = "auto",
    start: str = "refined",
    seed: int = 0,
    chunk_size: int | None = None,
) -> Tensor:
    """The importance-weighted estimate of log p(x), or of log p(x | y), for each datum.

    Burda et al., "Importance weighted autoencoders" (2016), equation 8.

    Args:
        vae: the model.
        x: data, as for :func:`evaluate`.
        num_samples: draws S per datum.
        y: labels ``(n,)``, or one for all, if ``x`` does not bring them.
        proposal: what z is drawn from, as for :func:`evaluate`. That nothing could be fitted, or
            annealing did not settle, is a warning.
        start: where annealing starts, as for :func:`evaluate`.
        seed: seed of the draws.
        chunk_size: decoder evaluations at once; changes no figure. None: see :func:`evaluate`.

    Returns:
        ``(n,)`` in nats, float64.

    Raises:
        TypeError: for a model that is no ``VAE``.
        ValueError: for data that the parts cannot take, or a proposal that cannot be had with it.
    """
    chunk_size = _checked(vae, num_samples, chunk_size, proposal, start)
    x, labels = _on_device(vae, x)
    labels = check_labels(vae, x, labels if y is None else y)
    with evaluating(vae):
        way = Pass(vae, num_samples, seed, chunk_size, proposal, False, False, start)
        found = way.run(x, labels)
    for warning in found.warnings:
        warnings.warn(f"{warning[0].upper()}{warning[1:]}.", stacklevel=2)
    return found.values["log_marginal"]


def _checked(vae: Any, num_samples: int, chunk_size: int | None, proposal: str, start: str) -> int:
    """The chunk size, once the arguments are known to make sense."""
    if not isinstance(vae, VAE):
        raise TypeError(
            f"Expected a pyro_vaes.VAE; got {type(vae).__name__}. Join a prior p(z), a posterior "
            "q(z | x) and a likelihood p(x | z) by VAE(prior, posterior, likelihood); a hierarchy "
            "of latents is one prior over them all. For any other model and guide see "
            "pyro.infer.Trace_ELBO and pyro.infer.importance."
        )
    chunk_size = chunk_of(vae.device, chunk_size)
    positive(num_samples=num_samples, chunk_size=chunk_size)
    check_proposal(proposal, start)
    return chunk_size


def _on_device(vae: VAE, data: Any) -> tuple[Tensor, Tensor | None]:
    # A split that is drawn anew for each training batch is judged at one fixed draw.
    split = as_split(data).frozen()
    x = split.x.to(vae.device)
    if x.is_floating_point():
        x = x.to(vae.dtype)
    return x, None if split.y is None else split.y.to(vae.device)


class _Figures:
    """Gathers the figures of an :class:`Evaluation` from those of each datum."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        self.values = values
        self.found: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}
        self.warnings: list[str] = []

    def put(self, name: str, values: Tensor) -> None:
        """The mean over the data and its standard error, which one datum has not."""
        self.found[name] = values.mean().item()
        error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
        self.found[f"{name}_se"] = error

    @contextmanager
    def unless_unavailable(self, *names: str) -> Iterator[None]:
        """Notes why figures cannot be had."""
        try:
            yield
        except Unavailable as reason:
            self.reasons.update(dict.fromkeys(names, str(reason)))

    def bounds(self, num_dimensions: int, num_gaps: int) -> None:
        """The bounds and their terms; the three forms of the ELBO where they are known."""
        v = self.values
        kl = v["log_posterior"] - v["log_prior"]
        elbo = v["log_likelihood"] - kl
        self.put("nll", -v["log_marginal"])
        self.put("elbo", elbo)
        for name, value in (("nll_bpd", -v["log_marginal"]), ("elbo_bpd", elbo)):
            self.put(name, value / (num_dimensions * math.log(2)))
            if num_gaps:  # Data differ in how many dimensions were seen of them.
                self.found[name] = self.found[f"{name}_se"] = math.nan
                self.reasons[name] = f"{num_gaps} values were not seen"
        self.put("reconstruction", v["log_likelihood"])
        self.put("kl", kl)
        if "bound" not in v:
            return
        self.put("log_prior", v["log_prior"])
        self.put("entropy", v.get("closed_entropy", -v["log_posterior"]))
        if "closed_entropy" in v:
            self.put("elbo_2", v["log_likelihood"] + v["log_prior"] + v["closed_entropy"])
        else:
            self.reasons["elbo_2"] = "the entropy of this posterior has no closed form"
        if "closed_kl" in v:
            self.put("elbo_3", v["log_likelihood"] - v["closed_kl"])
        else:
            self.reasons["elbo_3"] = "the KL of this posterior to this prior has no closed form"

    def proposed(self, found: Found, num_samples: int) -> None:
        """How log p(x) was estimated, at what cost, and whether it is to be trusted."""
        size = len(self.values["log_marginal"])
        self.found["proposal"] = found.proposal
        self.found["proposal_notes"] = found.notes
        self.found["decoder_evaluations"] = found.evaluations
        self.found["cost"] = found.evaluations / (num_samples * size)
        self.warnings += [f"{text[0].upper()}{text[1:]}." for text in found.warnings]
        if "encoder_log_marginal" in self.values:
            self.put("encoder_nll", -self.values["encoder_log_marginal"])
        if found.gap is not None:
            self.annealed(found.gap)
        elif "effective_sample_size" in self.values:
            figures, reasons, remarks = reliability(self.values, found.proposal, num_samples)
            self.found |= figures
            self.reasons |= reasons
            self.warnings += remarks

    def annealed(self, gap: float) -> None:
        """What annealing found; an interval where forward and reverse runs do not agree."""
        size = self.values["effective_sample_size"]
        self.found["ess_median"], self.found["ess_min"] = size.median().item(), size.min().item()
        self.found["annealing_gap"] = gap
        reason = "annealing is judged by forward and reverse runs on simulated data"
        for name in ("pareto_k_median", "pareto_k_max", "pareto_k_limit", "num_unreliable"):
            self.reasons[name] = self.reasons[f"encoder_{name}"] = reason
        self.reasons |= {"share_unreliable": reason, "num_unexplored": reason}
        if gap < TOLERANCE:
            return
        high = self.found["nll"]
        self.found["nll_low"], self.found["nll_high"] = high - gap, high
        reason = (
            f"forward and reverse annealing differ by {gap:.2f} nats on simulated data, so that "
            f"-log p(x) is about {high - gap:.2f} to {high:.2f}"
        )
        for name in ("nll", "nll_se", "nll_bpd", "nll_bpd_se"):
            self.found[name], self.reasons[name] = math.nan, reason

    def gaps(self, best: tuple[Tensor, Tensor] | str) -> None:
        """Approximation and amortisation gap, given the ELBOs of the best q of some rows."""
        if isinstance(best, str):
            self.reasons |= dict.fromkeys(("approximation_gap", "amortisation_gap"), best)
            return
        rows, elbo = best
        v = {name: value[rows] for name, value in self.values.items() if name in _TERMS}
        own = v["log_likelihood"] + v["log_prior"] - v["log_posterior"]
        self.put("approximation_gap", v["log_marginal"] - elbo)
        self.put("amortisation_gap", elbo - own)

    def curve(self, num_samples: int) -> None:
        """The curve of the bound over the number of the encoder's draws."""
        v = self.values
        curve = v["bound"]
        points = [2**level for level in range(curve.shape[-1])]
        if points[-1] != num_samples:
            points.append(num_samples)
            last = v.get("encoder_log_marginal", v["log_marginal"])
            curve = torch.cat([curve, last.unsqueeze(-1)], dim=-1)
        self.found["bound_samples"] = points
        self.found["bound"] = curve.mean(0).tolist()
        if len(curve) > 1:
            self.found["bound_se"] = (curve.std(0) / math.sqrt(len(curve))).tolist()
        else:
            self.reasons["bound_se"] = "one datum has no standard error"

    def activity(self, labels: Tensor | None, num_samples: int) -> None:
        """Active units, and the verdict on posterior collapse."""
        v = self.values
        exact = v.get("closed_mean")
        with self.unless_unavailable("active_units", "active", "unit_variances"):
            variance = diag.unit_variances(
                v["z_mean"] if exact is None else exact,
                v["z_variance"] / num_samples if exact is None else None,
                labels,
            )
            active = (variance > _ACTIVE).nonzero()[:, 0].tolist()
            self.found |= {
                "active_units": len(active),
                "active": active,
                "unit_variances": variance.tolist(),
            }
        size = v["log_likelihood"].abs() + 1
        ignored = num_samples > 1 and bool((v["likelihood_range"] <= _ROUNDING * size).all())
        self.found["verdict"] = _verdict(self.found.get("active"), v["z_mean"].shape[-1], ignored)

    def aggregate(
        self,
        vae: VAE,
        posteriors: list[Any],
        labels: Tensor | None,
        num_samples: int,
        seed: int,
        chunk_size: int,
    ) -> None:
        """The aggregated posterior: split of the KL, marginals, distance to the prior."""
        v = self.values
        with self.unless_unavailable("mmd2"):
            self.found["mmd2"], self.found["mmd2_se"] = diag.latent_mmd2(
                vae, v["z"][:, 0], labels, seed
            )
        names = ("mutual_information", "marginal_kl", "total_correlation", "dimension_kl")
        with self.unless_unavailable(*names, "mutual_information_max", "dimension_kls"):
            if not getattr(vae.posterior, "scores", True):
                raise Unavailable(aggregate.OWN_DRAWS_ONLY)
            _, rows = aggregate.aggregate_plan(posteriors[0], len(v["z"]), num_samples, seed)
            rows = rows.to(v["z"].device)
            some = v["z"][rows]
            z = some.flatten(0, 1)
            y = None if labels is None else labels[rows].repeat_interleave(some.shape[1])
            aggregated = aggregate.AggregatedPosterior(posteriors, labels, chunk_size)

            def for_each(values: Tensor) -> Tensor:
                """Means over the draws of each datum."""
                return values.unflatten(0, some.shape[:2]).mean(1)

            joint = aggregated.log_prob(z, y)
            information = v["log_q"][rows].mean(-1) - for_each(joint)
            drawn_kl = (v["log_q"] - v["log_p"])[rows].mean(-1)
            self._split(information, drawn_kl, rows)
            self.found["mutual_information_max"] = aggregate.log_sizes(labels, len(v["z"]))
            marginals = aggregated.marginals(z, y)
            self.put("total_correlation", for_each(joint - marginals.sum(-1)))
            terms = for_each(marginals - aggregate.prior_marginals(vae, z, y, chunk_size))
            self.put("dimension_kl", terms.sum(-1))
            self.found["dimension_kls"] = terms.mean(0).tolist()
        self.reasons = {
            name: reason
            for name, reason in self.reasons.items()
            if name not in self.found or _nan(self.found[name])
        }

    def _split(self, information: Tensor, drawn_kl: Tensor, rows: Tensor) -> None:
        """Splits the KL, so that its parts add up, by information from fewer draws and data.

        How the KL of these draws differs from that of all tells how they fell: control variates.
        """
        all_kl = self.values["log_posterior"] - self.values["log_prior"]
        kl = all_kl[rows]
        noise = drawn_kl - kl
        information = information - diag.slope(information, noise) * noise
        if len(rows) == len(all_kl):
            self.put("mutual_information", information)
            self.put("marginal_kl", kl - information)
            return
        shift = kl - all_kl.mean()
        share = diag.slope(information, shift)
        information = information - share * shift
        self.put("mutual_information", information)
        self.put("marginal_kl", all_kl.mean() - information)
        for name, part in (("mutual_information", share), ("marginal_kl", 1 - share)):
            error = math.hypot(self.found[f"{name}_se"], part * self.found["kl_se"])
            self.found[f"{name}_se"] = error

    def generated(self, vae: VAE, x: Tensor, labels: Tensor | None, train: Any, seed: int) -> None:
        """The accuracy of a classifier of real data on generated ones."""
        with self.unless_unavailable("class_accuracy", "class_accuracy_real"):
            if labels is None:
                raise Unavailable("the model is not conditional: what it generates has no label")
            if train is None:
                raise Unavailable("a classifier needs labelled training data: pass train=")
            split = as_split(train).frozen()
            if split.y is None:
                raise Unavailable("a classifier needs labelled training data; these have none")
            judge = diag.classifier(split.x, split.y)
            self.found["class_accuracy_real"], _ = diag.class_accuracy(judge, x, labels)
            made = diag.generate(vae, labels, seed)
            self.found["class_accuracy"], self.found["class_accuracy_se"] = diag.class_accuracy(
                judge, made, labels[: len(made)]
            )


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _verdict(active: list[int] | None, latent_dim: int, ignored: bool) -> str:
    """On posterior collapse, in words."""
    if active is None:
        count = "active units unknown"
    else:
        names = f" ({', '.join(map(str, active))})" if 0 < len(active) < latent_dim else ""
        count = f"{len(active)} of {latent_dim} latent units are active{names}"
    if ignored:
        return f"Posterior collapse: the decoder ignores z, log p(x|z) never changes; {count}."
    if active is None:
        return f"Posterior collapse: cannot tell, {count}."
    if not active:
        return f"Posterior collapse: {count}, z tells nothing of x."
    if len(active) < latent_dim:
        return f"Partial posterior collapse: {count}, the others tell nothing of x."
    return f"No posterior collapse: {count}."
