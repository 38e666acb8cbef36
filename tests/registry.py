"""Every part by name: the table over which the laws run. To add a part, add one row.

A row builds a small part for a latent size, the shape of a datum and a number of labels (0: none).
Flows need a row in :data:`FLOWS` only: flow priors and posteriors follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import Tensor, nn

from pyro_vaes import flows
from pyro_vaes.inference.divergences import MMD, Adversarial
from pyro_vaes.inference.elbo import ELBO, BetaELBO
from pyro_vaes.inference.info import InfoELBO
from pyro_vaes.networks.mlp import MLP, SkipMLP
from pyro_vaes.parts.chains import ChainPosterior, ChainPrior
from pyro_vaes.parts.columns import TableLikelihood
from pyro_vaes.parts.correlated import (
    AutoregressiveNormalLikelihood,
    LowRankNormalLikelihood,
    StudentTLikelihood,
)
from pyro_vaes.parts.counts import NegativeBinomialLikelihood, PoissonLikelihood
from pyro_vaes.parts.gtm import GTMPrior, GTMPseudoInputs
from pyro_vaes.parts.likelihoods import (
    AutoregressiveLikelihood,
    BernoulliLikelihood,
    BetaBinomialLikelihood,
    CategoricalLikelihood,
    DiscretizedLogisticLikelihood,
    NormalLikelihood,
    OrdinalLikelihood,
)
from pyro_vaes.parts.posteriors import FlowPosterior, FullNormalPosterior, NormalPosterior
from pyro_vaes.parts.powers import PowerLikelihood, PowerPosterior, YeoJohnson
from pyro_vaes.parts.priors import FlowPrior, MixturePrior, NormalPrior, VampPrior
from pyro_vaes.vae import VAE

NUM_LEVELS = 4
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One row of a table.

    Attributes:
        build: makes the part from ``(latent_dim, event_shape, num_labels)``; a flow's recipe from
            ``(dim, depth)``; a prior that mixes posteriors also takes ``posterior=``.
        conditional: whether the part can take labels; one that cannot is built without.
        scores: whether its distribution scores any value, not only its own draws.
        min_latent_dim: the smallest latent size that makes sense.
        own: whether the part is made of the library's modules alone, and so can be rebuilt.
        mixes: for priors: whether it is given a posterior.
        tells_mean: for likelihoods: whether its distribution has its mean in closed form.
        codes: for likelihoods: whether elements are numbers of categories, which have no mean.
        rows: for likelihoods: whether a datum is a row ``(D,)`` and nothing else.
        takes_gaps: for likelihoods: whether NaN is left out of its log-probability.
        independent: for likelihoods: whether elements are independent given z.
        support: for likelihoods: "binary", "levels" (0..NUM_LEVELS - 1), "counts", "mixed" (columns
            of several kinds) or "real".
    """

    build: Callable[..., Any]
    conditional: bool = True
    scores: bool = True
    min_latent_dim: int = 1
    own: bool = True
    mixes: bool = False
    tells_mean: bool = True
    takes_gaps: bool = True
    independent: bool = True
    rows: bool = False
    codes: bool = False
    support: str = "real"

    def make(
        self,
        latent_dim: int = 2,
        event_shape: Shape = (4,),
        num_labels: int = 0,
        scale: float | None = 1.0,
        **options: Any,
    ) -> Any:
        """Builds the part, with parameters of size ``scale`` (None: as they are initialised)."""
        labels = num_labels if self.conditional else 0
        part = self.build(latent_dim, event_shape, labels, **options)
        return part if scale is None else scramble(part, scale)


def scramble(module: nn.Module, scale: float = 1.0) -> nn.Module:
    """Redraws every parameter from N(0, scale^2), weights over the root of their fan-in.

    Outputs of networks are then of size ``scale`` too: no law is tested near initialisation only.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
            parameter.normal_(0.0, scale / math.sqrt(fan_in))
        for part in module.modules():
            # Logs of scales and the like are PACE times larger.
            for key, parameter in part.named_parameters(recurse=False):
                if key.startswith("log_") and (hasattr(part, "PACE") or hasattr(part, "columns")):
                    parameter.div_(NormalLikelihood.PACE)
    return module


def cases(table: dict[str, Case], *, labels: tuple[int, ...] = (0, 3), **flags: Any) -> list[Any]:
    """Parameters ``(name, num_labels)`` for pytest, of the rows whose attributes are ``flags``."""
    return [
        pytest.param(name, count, id=f"{name}-y" if count else name)
        for name, case in table.items()
        if all(getattr(case, flag) == value for flag, value in flags.items())
        for count in labels
        if case.conditional or not count
    ]


# --- parts of a user's own: the call of a part, and not one attribute of ours -------------------


class OwnPrior(nn.Module):
    """A correlated normal."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.factor = nn.Parameter(torch.zeros(latent_dim, latent_dim))

    def forward(self) -> Any:
        scale_tril = self.factor.tril(-1) + torch.eye(len(self.loc)).to(self.factor)
        return dist.MultivariateNormal(self.loc, scale_tril=scale_tril)


class OwnPosterior(nn.Module):
    """A Student's t, which has heavy tails and its mean."""

    def __init__(self, latent_dim: int, event_shape: Shape) -> None:
        super().__init__()
        self.dims = len(event_shape)
        self.linear = nn.Linear(math.prod(event_shape), 2 * latent_dim)

    def forward(self, x: Tensor) -> Any:
        rows = x.reshape(*x.shape[: x.dim() - self.dims], -1)
        loc, log_scale = self.linear(rows).chunk(2, -1)
        return dist.StudentT(8.0, loc, log_scale.exp()).to_event(1)


class OwnLikelihood(nn.Module):
    """A Laplace with unit scale that takes labels under the name ``y``."""

    def __init__(self, latent_dim: int, event_shape: Shape, num_labels: int) -> None:
        super().__init__()
        self.event_shape_of_mine = event_shape
        self.linear = nn.Linear(latent_dim, math.prod(event_shape))
        self.offsets = nn.Parameter(torch.zeros(max(num_labels, 1)))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Any:
        rows = self.linear(z) + (0.0 if y is None else self.offsets[y].unsqueeze(-1))
        loc = rows.reshape(*rows.shape[:-1], *self.event_shape_of_mine)
        return dist.Laplace(loc, 1.0).to_event(len(self.event_shape_of_mine))


# --- the tables ---------------------------------------------------------------------------------


def _encoder(event_shape: Shape, labels: int) -> MLP:
    return MLP(math.prod(event_shape) + labels, [8])


def _decoder(latent_dim: int, labels: int) -> MLP:
    return MLP(latent_dim + labels, [8])


def _normal(latent_dim: int, event_shape: Shape, labels: int) -> NormalPosterior:
    return NormalPosterior(_encoder(event_shape, labels), latent_dim, event_shape, labels)


def _vamp(
    latent_dim: int,
    event_shape: Shape,
    labels: int,
    posterior: nn.Module | None = None,
    **options: Any,
) -> VampPrior:
    posterior = _normal(latent_dim, event_shape, labels) if posterior is None else posterior
    u = torch.randint(0, NUM_LEVELS, (5, *event_shape)).to(torch.get_default_dtype())
    of_label = torch.arange(5) % labels if labels and getattr(posterior, "num_labels", 0) else None
    return VampPrior(posterior, u, labels=of_label, **options)


def _vamp_of_grid(
    latent_dim: int, event_shape: Shape, labels: int, posterior: nn.Module | None = None
) -> VampPrior:
    posterior = _normal(latent_dim, event_shape, labels) if posterior is None else posterior
    labels = getattr(posterior, "num_labels", 0)
    bounds = (0, NUM_LEVELS - 1)
    grid = GTMPseudoInputs(MLP(2 + labels, [8]), event_shape, 2, bounds, labels)
    return VampPrior(posterior, grid)


def _masked_normal(latent_dim: int, event_shape: Shape, labels: int) -> NormalPosterior:
    network = MLP(2 * math.prod(event_shape) + labels, [8])
    return NormalPosterior(network, latent_dim, event_shape, labels, mask=True)


def _full_normal(latent_dim: int, event_shape: Shape, labels: int) -> FullNormalPosterior:
    return FullNormalPosterior(_encoder(event_shape, labels), latent_dim, event_shape, labels)


def _vamp_of_full_normal(latent_dim: int, event_shape: Shape, labels: int) -> VampPrior:
    return _vamp(latent_dim, event_shape, labels, _full_normal(latent_dim, event_shape, labels))


def _vamp_of_flow(latent_dim: int, event_shape: Shape, labels: int) -> VampPrior:
    base = _normal(latent_dim, event_shape, labels)
    return _vamp(
        latent_dim, event_shape, labels, FlowPosterior(base, flows.iaf(latent_dim, 1, [8]))
    )


def _powers(event_shape: Shape) -> YeoJohnson:
    """Exponents below and above 1, on values in another unit."""
    powers, size = YeoJohnson(event_shape), math.prod(event_shape)
    powers.exponent.copy_(torch.linspace(0.7, 1.3, size).reshape(event_shape))
    powers.spread.fill_(1.5)
    return powers


def _on_powers(base: Callable[..., nn.Module]) -> Callable[..., PowerLikelihood]:
    return lambda d, shape, labels: PowerLikelihood(
        base(_decoder(d, labels), shape, labels), _powers(shape)
    )


def _chain_prior(latent_dim: int, event_shape: Shape, labels: int, top: Any = None) -> ChainPrior:
    top = NormalPrior(1, labels) if top is None else top
    return ChainPrior(top, NormalPosterior(MLP(1 + labels, [8]), latent_dim - 1, (1,), labels))


def _chain_of_vamp(latent_dim: int, event_shape: Shape, labels: int) -> ChainPrior:
    base = FullNormalPosterior(MLP(1, [8]), latent_dim - 1)
    return ChainPrior(
        _vamp(1, event_shape, labels), FlowPosterior(base, flows.maf(latent_dim - 1, 1, [8]))
    )


def _chain_posterior(
    latent_dim: int,
    event_shape: Shape,
    labels: int,
    link: Callable[[NormalPosterior], nn.Module] = lambda base: base,
    relative: bool = False,
    upward: bool = False,
) -> ChainPosterior:
    first = _normal(1, event_shape, labels)
    base = NormalPosterior(MLP(8 + 1 + labels, [8]), latent_dim - 1, (9,), labels)
    prior = _chain_prior(latent_dim, event_shape, labels) if relative else None
    return ChainPosterior(first, link(base), upward=upward, prior=prior)


def _levels(
    likelihood: type, tells_mean: bool = True, takes_gaps: bool = True, **options: Any
) -> Case:
    return Case(
        lambda d, shape, labels: likelihood(
            _decoder(d, labels), shape, NUM_LEVELS, labels, **options
        ),
        tells_mean=tells_mean,
        takes_gaps=takes_gaps,
        support="levels",
    )


def _correlated(likelihood: type, **options: Any) -> Case:
    return Case(
        lambda d, shape, labels: likelihood(_decoder(d, labels), shape, labels, **options),
        independent=False,
    )


def _table(*kinds: Any, **flags: Any) -> Case:
    """Columns of these kinds in turn; data of other shapes than a row's are flat ones."""

    def build(latent_dim: int, event_shape: Shape, labels: int) -> nn.Module:
        chosen = [kinds[i % len(kinds)] for i in range(math.prod(event_shape))]
        columns = [(f"c{i}", *kind) for i, kind in enumerate(chosen)]
        return TableLikelihood(_decoder(latent_dim, labels), columns, labels)

    return Case(build, rows=True, **flags)


def _counts(likelihood: type, **options: Any) -> Case:
    return Case(
        lambda d, shape, labels: likelihood(_decoder(d, labels), shape, labels, **options),
        support="counts",
    )


FLOWS: dict[str, Case] = {
    "iaf": Case(lambda d, depth: flows.iaf(d, depth, [8])),
    "maf": Case(lambda d, depth: flows.maf(d, depth, [8])),
    "planar": Case(lambda d, depth: flows.planar(d, depth), scores=False),
    "realnvp": Case(lambda d, depth: flows.realnvp(d, depth, [8]), min_latent_dim=2),
    "spline": Case(lambda d, depth: flows.spline(d, depth, [8], count_bins=2), min_latent_dim=2),
    "sylvester": Case(lambda d, depth: flows.sylvester(d, depth), scores=False),
}

PRIORS: dict[str, Case] = {
    "normal": Case(lambda d, shape, labels: NormalPrior(d, labels)),
    "mixture": Case(lambda d, shape, labels: MixturePrior(d, 3, labels)),
    "vamp": Case(_vamp, mixes=True),
    "vamp_weighted": Case(
        lambda *args, **kwargs: _vamp(*args, **kwargs, learn_weights=True), mixes=True
    ),
    "vamp_bounded": Case(
        lambda *args, **kwargs: _vamp(*args, **kwargs, bounds=(0, NUM_LEVELS - 1)), mixes=True
    ),
    "vamp_of_grid": Case(_vamp_of_grid, mixes=True),
    "vamp_of_flow": Case(_vamp_of_flow),
    "vamp_of_full_normal": Case(_vamp_of_full_normal),
    "chain": Case(_chain_prior, min_latent_dim=2),
    "chain_of_mixture": Case(
        lambda d, shape, labels: _chain_prior(d, shape, labels, MixturePrior(1, 3, labels)),
        min_latent_dim=2,
    ),
    "chain_of_vamp": Case(_chain_of_vamp, min_latent_dim=2),
    "chain_under_one_top": Case(  # Only its link takes labels.
        lambda d, shape, labels: _chain_prior(d, shape, labels, NormalPrior(1)), min_latent_dim=2
    ),
    "realnvp_normalised": Case(
        lambda d, shape, labels: FlowPrior(d, flows.realnvp(d, 2, [8], normalise=True), labels),
        min_latent_dim=2,
    ),
    "gtm": Case(lambda d, shape, labels: GTMPrior(_decoder(2, labels), d, 3, labels)),
    "own": Case(lambda d, shape, labels: OwnPrior(d), conditional=False, own=False),
}

POSTERIORS: dict[str, Case] = {
    "normal": Case(_normal),
    "full_normal": Case(_full_normal),
    "masked_normal": Case(_masked_normal),
    "normal_of_skip": Case(
        lambda d, shape, labels: NormalPosterior(
            SkipMLP(math.prod(shape) + labels, [8]), d, shape, labels
        )
    ),
    "power_normal": Case(
        lambda d, shape, labels: PowerPosterior(_normal(d, shape, labels), _powers(shape))
    ),
    "chain": Case(_chain_posterior, min_latent_dim=2),
    "chain_upward": Case(lambda *args: _chain_posterior(*args, upward=True), min_latent_dim=2),
    "chain_given_prior": Case(
        lambda *args: _chain_posterior(*args, relative=True), min_latent_dim=2
    ),
    "chain_of_full_given_prior": Case(
        lambda d, *args: _chain_posterior(
            d, *args, lambda base: FullNormalPosterior(base.network, d - 1, (9,), args[-1]), True
        ),
        min_latent_dim=2,
    ),
    "chain_of_planar": Case(
        lambda d, *args: _chain_posterior(
            d, *args, link=lambda base: FlowPosterior(base, flows.planar(d - 1, 1))
        ),
        scores=False,
        min_latent_dim=2,
    ),
    "own": Case(lambda d, shape, labels: OwnPosterior(d, shape), conditional=False, own=False),
    "flow_of_own": Case(
        lambda d, shape, labels: FlowPosterior(OwnPosterior(d, shape), flows.iaf(d, 1, [8]), shape),
        conditional=False,
        own=False,
    ),
    "flow_of_flow": Case(
        lambda d, shape, labels: FlowPosterior(
            FlowPosterior(_normal(d, shape, labels), flows.iaf(d, 1, [8])), flows.planar(d, 1)
        ),
        scores=False,
    ),
}

LIKELIHOODS: dict[str, Case] = {
    "bernoulli": Case(
        lambda d, shape, labels: BernoulliLikelihood(_decoder(d, labels), shape, labels),
        support="binary",
    ),
    "categorical": _levels(CategoricalLikelihood),
    "ordinal": _levels(OrdinalLikelihood),
    "ordinal_sharp": _levels(OrdinalLikelihood, sharpness=True),
    "beta_binomial": _levels(BetaBinomialLikelihood),
    "discretized_logistic": _levels(DiscretizedLogisticLikelihood),
    "autoregressive": _levels(
        AutoregressiveLikelihood, tells_mean=False, takes_gaps=False, hidden_dims=[8]
    ),
    "autoregressive_binary": Case(
        lambda d, shape, labels: AutoregressiveLikelihood(
            _decoder(d, labels), shape, 2, labels, hidden_dims=[8, 9]
        ),
        tells_mean=False,
        takes_gaps=False,
        support="binary",
    ),
    "normal": Case(lambda d, shape, labels: NormalLikelihood(_decoder(d, labels), shape, labels)),
    "normal_of_skip": Case(
        lambda d, shape, labels: NormalLikelihood(SkipMLP(d + labels, [8]), shape, labels)
    ),
    "power_normal": Case(_on_powers(NormalLikelihood), tells_mean=False),
    "power_low_rank_normal": Case(
        _on_powers(LowRankNormalLikelihood), tells_mean=False, independent=False
    ),
    "poisson": _counts(PoissonLikelihood),
    "poisson_inflated": _counts(PoissonLikelihood, zero_inflated=True),
    "negative_binomial": _counts(NegativeBinomialLikelihood),
    "negative_binomial_inflated": _counts(NegativeBinomialLikelihood, zero_inflated=True),
    "student_t": _correlated(StudentTLikelihood),
    "student_t_diagonal": _correlated(StudentTLikelihood, full=False),
    "low_rank_normal": _correlated(LowRankNormalLikelihood, rank=1),
    "full_normal": _correlated(LowRankNormalLikelihood, rank=None),
    "autoregressive_normal": Case(
        lambda d, shape, labels: AutoregressiveNormalLikelihood(
            _decoder(d, labels), shape, labels, order=min(2, shape[-1] - 1)
        ),
        independent=False,
    ),
    "table_real": _table(("real",)),
    "table_count": _table(("count",), support="counts"),
    "table_binary": _table(("binary",), support="binary"),
    "table_category": _table(("category", NUM_LEVELS), support="levels", codes=True),
    "table_ordinal": _table(("ordinal", NUM_LEVELS), support="levels"),
    "table": _table(
        ("positive",),
        ("category", NUM_LEVELS),
        ("hurdle",),
        ("count",),
        support="mixed",
        codes=True,
    ),
    "own": Case(OwnLikelihood, own=False, takes_gaps=False),
}

OBJECTIVES: dict[str, Callable[[], Any]] = {
    "trace_elbo": Trace_ELBO,
    "elbo": ELBO,
    "beta_0": lambda: BetaELBO(0.0),
    "beta_4": lambda: BetaELBO(4.0),
    "free_bits": lambda: ELBO(free_bits=0.5),
    "capacity": lambda: BetaELBO(4.0, capacity=1.0),
    "info_mmd": lambda: InfoELBO(0.5, 3.0, MMD()),
    "info_adversarial": lambda: InfoELBO(1.0, 2.0, Adversarial(2, [8])),
    "particles": lambda: ELBO(num_particles=3, vectorize_particles=True),
    "renyi": lambda: RenyiELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1),
}


def _flow_prior(flow: Case) -> Case:
    return Case(
        lambda d, shape, labels: FlowPrior(d, flow.build(d, 2), labels),
        min_latent_dim=flow.min_latent_dim,
    )


def _flow_posterior(flow: Case) -> Case:
    return Case(
        lambda d, shape, labels: FlowPosterior(_normal(d, shape, labels), flow.build(d, 2)),
        scores=flow.scores,
        min_latent_dim=flow.min_latent_dim,
    )


PRIORS |= {name: _flow_prior(flow) for name, flow in FLOWS.items() if flow.scores}
POSTERIORS |= {name: _flow_posterior(flow) for name, flow in FLOWS.items()}


def make_vae(
    prior: str = "normal",
    posterior: str = "normal",
    likelihood: str = "categorical",
    *,
    latent_dim: int = 2,
    event_shape: Shape = (4,),
    num_labels: int = 0,
    scale: float | None = None,
) -> VAE:
    """A VAE of three rows; a prior that mixes posteriors shares the VAE's own (or its base)."""
    q = POSTERIORS[posterior].make(latent_dim, event_shape, num_labels, scale=None)
    options = {}
    if PRIORS[prior].mixes:
        options["posterior"] = q
        while not getattr(options["posterior"], "scores", True):
            fallback = _normal(latent_dim, event_shape, num_labels)
            options["posterior"] = getattr(options["posterior"], "base", fallback)
    p = PRIORS[prior].make(latent_dim, event_shape, num_labels, scale=None, **options)
    x = LIKELIHOODS[likelihood].make(latent_dim, event_shape, num_labels, scale=None)
    vae = VAE(p, q, x)
    return vae if scale is None else scramble(vae, scale)  # type: ignore[return-value]


def data(likelihood: str, *shape: int) -> Tensor:
    """Data that a likelihood supports, in the default dtype."""
    support = LIKELIHOODS[likelihood].support
    if support == "real":
        return torch.randn(*shape)
    if support == "mixed":
        kinds = torch.arange(shape[-1]) % 4
        made = [
            torch.rand(shape),
            data("categorical", *shape),
            torch.randn(shape),
            data("poisson", *shape),
        ]
        made[2] = torch.where(torch.rand(shape) < 0.3, 0.0, made[2])
        return torch.stack(made, -1).gather(-1, kinds.expand(shape).unsqueeze(-1))[..., 0]
    if support == "counts":
        return torch.poisson(torch.full(shape, 3.0))
    levels = 2 if support == "binary" else NUM_LEVELS
    return torch.randint(0, levels, shape).to(torch.get_default_dtype())
