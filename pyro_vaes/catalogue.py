"""Every part that a flag can name, in one line each, with the paper it comes from."""

from __future__ import annotations

import re

from pyro_vaes import (
    convolutions,
    divergences,
    flows,
    likelihoods,
    networks,
    objectives,
    posteriors,
    priors,
)

__all__ = ["CATALOGUE", "catalogue"]

_KINGMA = "Kingma and Welling 2014"
_VAMP = "Tomczak and Welling 2018"

# By option: value, where its one line stands (a docstring), and the source.
CATALOGUE: dict[str, dict[str, tuple[object, str]]] = {
    "prior": {
        "standard": (priors.NormalPrior, _KINGMA),
        "mixture": (priors.MixturePrior, "Dilokthanakul et al. 2016"),
        "vamp": (priors.VampPrior, _VAMP),
        "gtm": (priors.GTMPrior, "Bishop et al. 1998"),
        "realnvp": (flows.LAYERS["realnvp"], "Dinh et al. 2017"),
        "maf": (flows.LAYERS["maf"], "Papamakarios et al. 2017"),
        "spline": (flows.LAYERS["spline"], "Durkan et al. 2019"),
    },
    "posterior": {
        "normal": (posteriors.NormalPosterior, _KINGMA),
        "full_normal": (posteriors.FullNormalPosterior, "Rezende et al. 2014"),
        "planar": (flows.LAYERS["planar"], "Rezende and Mohamed 2015"),
        "iaf": (flows.LAYERS["iaf"], "Kingma et al. 2016"),
        "sylvester": (flows.LAYERS["sylvester"], "van den Berg et al. 2018"),
        "spline": (flows.LAYERS["spline"], "Durkan et al. 2019"),
    },
    "likelihood": {
        "bernoulli": (likelihoods.BernoulliLikelihood, _KINGMA),
        "categorical": (likelihoods.CategoricalLikelihood, "van den Oord et al. 2016"),
        "ordinal": (likelihoods.OrdinalLikelihood, "McCullagh 1980"),
        "beta_binomial": (likelihoods.BetaBinomialLikelihood, "Skellam 1948"),
        "discretized_logistic": (
            likelihoods.DiscretizedLogisticLikelihood,
            "Salimans et al. 2017",
        ),
        "autoregressive": (likelihoods.AutoregressiveLikelihood, "Germain et al. 2015"),
        "normal": (likelihoods.NormalLikelihood, _KINGMA),
    },
    "network": {
        "mlp": (networks.MLP, "Rosenblatt 1958"),
        "gated": (networks.GatedMLP, "Dauphin et al. 2017"),
        "conv": (convolutions.ConvEncoder, "LeCun et al. 1989"),
    },
    "divergence": {
        "mmd": (divergences.MMD, "Zhao et al. 2019"),
        "adversarial": (divergences.Adversarial, "Makhzani et al. 2016"),
    },
    "objective": {
        "--beta": (objectives.BetaELBO, "Higgins et al. 2017"),
        "--alpha, --lambda": (objectives.InfoELBO, "Zhao et al. 2019"),
    },
}


def catalogue() -> str:
    """The catalogue as text: option, value, one line, source."""
    lines = []
    for option, entries in CATALOGUE.items():
        lines.append(option if option == "objective" else f"--{option}")
        for value, (part, source) in entries.items():
            first = (part.__doc__ or "").strip().splitlines()[0].rstrip(".:")
            first = re.sub(r":\w+:`~?[\w.]*?(\w+)`", r"\1", first).replace("`", "")
            lines.append(f"  {value:<22}{first} [{source}]")
    return "\n".join(lines)
