"""The values of flags: one row for each, with its class, paper and builder."""

from __future__ import annotations

import importlib
import re
from typing import Any, NamedTuple

__all__ = ["REGISTRY", "Row", "builder_of", "catalogue", "values_with"]


class Row(NamedTuple):
    """A value of a flag. All fields are text, so that help and mistyped flags need no torch.

    Attributes:
        path: its class within ``pyro_vaes``, whose docstring describes it.
        source: the paper.
        builder: the function in :mod:`pyro_vaes.runs.builders` that makes it.
        options: options that have an effect only with this value and others that name them.
        kinds: the kinds of data that a likelihood is for.
    """

    path: str
    source: str
    builder: str = ""
    options: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("binary", "levels")


_KINGMA = "Kingma and Welling 2014"
_DURKAN = "Durkan et al. 2019"
_COUNTS = ("binary", "levels", "counts")
_COMPONENTS = ("prior_components", "prior_weights")

REGISTRY: dict[str, dict[str, Row]] = {
    "prior": {
        "standard": Row("parts.priors.NormalPrior", _KINGMA, "standard_prior"),
        "mixture": Row(
            "parts.priors.MixturePrior", "Dilokthanakul et al. 2016", "mixture_prior", _COMPONENTS
        ),
        "vamp": Row(
            "parts.priors.VampPrior",
            "Tomczak and Welling 2018",
            "vamp_prior",
            (*_COMPONENTS, "pseudo_inputs", "pseudo_input_bounds"),
        ),
        "gtm": Row("parts.gtm.GTMPrior", "Bishop et al. 1998", "gtm_prior", _COMPONENTS),
        "realnvp": Row(
            "flows.coupling.RealNVPLayer",
            "Dinh et al. 2017",
            "coupling_prior",
            ("prior_flows", "prior_normalise"),
        ),
        "maf": Row(
            "flows.autoregressive.MAFLayer",
            "Papamakarios et al. 2017",
            "flow_prior",
            ("prior_flows",),
        ),
        "spline": Row(
            "flows.splines.SplineLayer",
            _DURKAN,
            "coupling_prior",
            ("prior_flows", "prior_normalise"),
        ),
    },
    "posterior": {
        "normal": Row("parts.posteriors.NormalPosterior", _KINGMA, "base_posterior"),
        "full_normal": Row(
            "parts.posteriors.FullNormalPosterior", "Rezende et al. 2014", "base_posterior"
        ),
        "planar": Row(
            "flows.residual.PlanarLayer",
            "Rezende and Mohamed 2015",
            "flow_posterior",
            ("posterior_flows",),
        ),
        "iaf": Row(
            "flows.autoregressive.IAFLayer",
            "Kingma et al. 2016",
            "flow_posterior",
            ("posterior_flows",),
        ),
        "sylvester": Row(
            "flows.residual.SylvesterLayer",
            "van den Berg et al. 2018",
            "flow_posterior",
            ("posterior_flows",),
        ),
        "spline": Row("flows.splines.SplineLayer", _DURKAN, "flow_posterior", ("posterior_flows",)),
    },
    "likelihood": {
        "bernoulli": Row(
            "parts.likelihoods.BernoulliLikelihood", _KINGMA, "binary_likelihood", (), ("binary",)
        ),
        "categorical": Row(
            "parts.likelihoods.CategoricalLikelihood",
            "van den Oord et al. 2016",
            "level_likelihood",
        ),
        "ordinal": Row(
            "parts.likelihoods.OrdinalLikelihood",
            "McCullagh 1980",
            "ordinal_likelihood",
            ("sharpness",),
        ),
        "beta_binomial": Row(
            "parts.likelihoods.BetaBinomialLikelihood", "Skellam 1948", "level_likelihood"
        ),
        "discretized_logistic": Row(
            "parts.likelihoods.DiscretizedLogisticLikelihood",
            "Salimans et al. 2017",
            "level_likelihood",
        ),
        "autoregressive": Row(
            "parts.likelihoods.AutoregressiveLikelihood", "Germain et al. 2015", "level_likelihood"
        ),
        "normal": Row(
            "parts.likelihoods.NormalLikelihood",
            _KINGMA,
            "real_likelihood",
            (),
            ("binary", "levels", "counts", "real"),
        ),
        "student_t": Row(
            "parts.correlated.StudentTLikelihood",
            "Lange et al. 1989",
            "row_likelihood",
            (),
            ("counts", "real"),
        ),
        "low_rank_normal": Row(
            "parts.correlated.LowRankNormalLikelihood",
            "Spearman 1904",
            "real_likelihood",
            (),
            ("counts", "real"),
        ),
        "autoregressive_normal": Row(
            "parts.correlated.AutoregressiveNormalLikelihood",
            "Barndorff-Nielsen and Schou 1973",
            "signal_likelihood",
            ("noise_order",),
            ("counts", "real"),
        ),
        "poisson": Row(
            "parts.counts.PoissonLikelihood",
            "Lambert 1992",
            "count_likelihood",
            ("exposure",),
            _COUNTS,
        ),
        "negative_binomial": Row(
            "parts.counts.NegativeBinomialLikelihood",
            "Lopez et al. 2018",
            "count_likelihood",
            ("exposure",),
            _COUNTS,
        ),
        "zero_inflated_poisson": Row(
            "parts.counts.PoissonLikelihood",
            "Lambert 1992",
            "inflated_likelihood",
            ("exposure",),
            _COUNTS,
        ),
        "zero_inflated_negative_binomial": Row(
            "parts.counts.NegativeBinomialLikelihood",
            "Lopez et al. 2018",
            "inflated_likelihood",
            ("exposure",),
            _COUNTS,
        ),
        "table": Row(
            "parts.columns.TableLikelihood",
            "Nazabal et al. 2020",
            "table_likelihood",
            (),
            ("table",),
        ),
    },
    "network": {
        "mlp": Row("networks.mlp.MLP", "Rosenblatt 1958", "mlp", ("activation",)),
        "gated": Row("networks.mlp.GatedMLP", "Dauphin et al. 2017", "gated_mlp"),
        "skip": Row("networks.mlp.SkipMLP", "Bishop 2006", "mlp", ("activation",)),
        "conv": Row(
            "networks.convolutions.ConvEncoder",
            "LeCun et al. 1989",
            "convolutions",
            ("activation", "channels"),
        ),
        "residual": Row("networks.residual.ResMLP", "He et al. 2016", "mlp", ("activation",)),
        "residual_conv": Row(
            "networks.residual.ResEncoder",
            "He et al. 2016",
            "residual_convolutions",
            ("activation", "channels", "blocks"),
        ),
    },
    "divergence": {
        "mmd": Row("inference.divergences.MMD", "Zhao et al. 2019", "mmd", ("divergence_kernel",)),
        "adversarial": Row(
            "inference.divergences.Adversarial", "Makhzani et al. 2016", "adversarial"
        ),
    },
    # Made by a flag's number or by several flags together, not by a value of one.
    "objective": {
        "--free-bits": Row("inference.elbo.ELBO", "Kingma et al. 2016"),
        "--beta": Row("inference.elbo.BetaELBO", "Higgins et al. 2017"),
        "--train-samples": Row("inference.many_samples.ManySamples", "Burda et al. 2016"),
        "--alpha, --lambda": Row("inference.info.InfoELBO", "Zhao et al. 2019"),
        "--tc-weight": Row("inference.info.BetaTCELBO", "Chen et al. 2018"),
        "--capacity": Row("inference.elbo.CapacityRamp", "Burgess et al. 2018"),
        "--cycle-epochs": Row("inference.elbo.CyclicalWeight", "Fu et al. 2019"),
    },
}


def values_with(flag: str, option: str) -> tuple[str, ...]:
    """The values of a flag with which another option has an effect."""
    return tuple(value for value, row in REGISTRY[flag].items() if option in row.options)


def builder_of(flag: str, value: str) -> tuple[Any, Any]:
    """The builder of a value of a flag, and its class."""
    row = REGISTRY[flag][value]
    return _at(f"runs.builders.{row.builder}"), _at(row.path)


def catalogue() -> str:
    """The registry as text: flag, value, one line, source."""
    lines = []
    for flag, rows in REGISTRY.items():
        lines.append(flag if flag == "objective" else f"--{flag}")
        for value, row in rows.items():
            first = (_at(row.path).__doc__ or "").strip().splitlines()[0].rstrip(".:")
            first = re.sub(r":\w+:`~?[\w.]*?(\w+)`", r"\1", first).replace("`", "")
            lines.append(f"  {value:<22}{first} [{row.source}]")
    return "\n".join(lines)


def _at(path: str) -> Any:
    """The object at a dotted path within ``pyro_vaes``."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"pyro_vaes.{module}"), name)
