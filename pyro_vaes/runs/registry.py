"""Names of parts and what they stand for."""

from __future__ import annotations

import importlib
import re
from typing import Any

__all__ = [
    "CATALOGUE",
    "COMPONENT_PRIORS",
    "DIVERGENCES",
    "FLOW_POSTERIORS",
    "FLOW_PRIORS",
    "LEVEL_LIKELIHOODS",
    "LIKELIHOODS",
    "NETWORKS",
    "POSTERIORS",
    "PRIORS",
    "catalogue",
    "class_at",
]

_KINGMA = "Kingma and Welling 2014"
_VAMP = "Tomczak and Welling 2018"

# By option: value, its class within pyro_vaes (whose docstring describes it), and the source. As
# text, so that help and mistyped flags do not wait for torch.
CATALOGUE: dict[str, dict[str, tuple[str, str]]] = {
    "prior": {
        "standard": ("parts.priors.NormalPrior", _KINGMA),
        "mixture": ("parts.priors.MixturePrior", "Dilokthanakul et al. 2016"),
        "vamp": ("parts.priors.VampPrior", _VAMP),
        "gtm": ("parts.gtm.GTMPrior", "Bishop et al. 1998"),
        "realnvp": ("flows.coupling.RealNVPLayer", "Dinh et al. 2017"),
        "maf": ("flows.autoregressive.MAFLayer", "Papamakarios et al. 2017"),
        "spline": ("flows.splines.SplineLayer", "Durkan et al. 2019"),
    },
    "posterior": {
        "normal": ("parts.posteriors.NormalPosterior", _KINGMA),
        "full_normal": ("parts.posteriors.FullNormalPosterior", "Rezende et al. 2014"),
        "planar": ("flows.residual.PlanarLayer", "Rezende and Mohamed 2015"),
        "iaf": ("flows.autoregressive.IAFLayer", "Kingma et al. 2016"),
        "sylvester": ("flows.residual.SylvesterLayer", "van den Berg et al. 2018"),
        "spline": ("flows.splines.SplineLayer", "Durkan et al. 2019"),
    },
    "likelihood": {
        "bernoulli": ("parts.likelihoods.BernoulliLikelihood", _KINGMA),
        "categorical": ("parts.likelihoods.CategoricalLikelihood", "van den Oord et al. 2016"),
        "ordinal": ("parts.likelihoods.OrdinalLikelihood", "McCullagh 1980"),
        "beta_binomial": ("parts.likelihoods.BetaBinomialLikelihood", "Skellam 1948"),
        "discretized_logistic": (
            "parts.likelihoods.DiscretizedLogisticLikelihood",
            "Salimans et al. 2017",
        ),
        "poisson": ("parts.counts.PoissonLikelihood", "Lambert 1992"),
        "negative_binomial": ("parts.counts.NegativeBinomialLikelihood", "Lopez et al. 2018"),
        "zero_inflated_poisson": ("parts.counts.PoissonLikelihood", "Lambert 1992"),
        "zero_inflated_negative_binomial": (
            "parts.counts.NegativeBinomialLikelihood",
            "Lopez et al. 2018",
        ),
        "autoregressive": ("parts.likelihoods.AutoregressiveLikelihood", "Germain et al. 2015"),
        "normal": ("parts.likelihoods.NormalLikelihood", _KINGMA),
    },
    "network": {
        "mlp": ("networks.mlp.MLP", "Rosenblatt 1958"),
        "gated": ("networks.mlp.GatedMLP", "Dauphin et al. 2017"),
        "conv": ("networks.convolutions.ConvEncoder", "LeCun et al. 1989"),
    },
    "divergence": {
        "mmd": ("inference.divergences.MMD", "Zhao et al. 2019"),
        "adversarial": ("inference.divergences.Adversarial", "Makhzani et al. 2016"),
    },
    "objective": {
        "--beta": ("inference.elbo.BetaELBO", "Higgins et al. 2017"),
        "--alpha, --lambda": ("inference.info.InfoELBO", "Zhao et al. 2019"),
    },
}


def catalogue() -> str:
    """The catalogue as text: option, value, one line, source."""
    lines = []
    for option, entries in CATALOGUE.items():
        lines.append(option if option == "objective" else f"--{option}")
        for value, (path, source) in entries.items():
            first = (class_at(path).__doc__ or "").strip().splitlines()[0].rstrip(".:")
            first = re.sub(r":\w+:`~?[\w.]*?(\w+)`", r"\1", first).replace("`", "")
            lines.append(f"  {value:<22}{first} [{source}]")
    return "\n".join(lines)


def class_at(path: str) -> Any:
    """The class at a dotted path within ``pyro_vaes``."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"pyro_vaes.{module}"), name)


def _within(option: str, *folders: str) -> tuple[str, ...]:
    rows = CATALOGUE[option].items()
    return tuple(value for value, (path, _) in rows if path.startswith(folders))


COMPONENT_PRIORS = ("mixture", "vamp")
FLOW_PRIORS = _within("prior", "flows.")
PRIORS = tuple(CATALOGUE["prior"])
FLOW_POSTERIORS = _within("posterior", "flows.")
POSTERIORS = tuple(CATALOGUE["posterior"])
LIKELIHOODS = ("auto", *CATALOGUE["likelihood"])
_OF_LEVELS = _within("likelihood", "parts.likelihoods.")
LEVEL_LIKELIHOODS = tuple(v for v in _OF_LEVELS if v not in ("bernoulli", "normal"))
NETWORKS = tuple(CATALOGUE["network"])
DIVERGENCES = ("none", *CATALOGUE["divergence"])
