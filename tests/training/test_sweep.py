"""Models trained together take the steps that they take alone."""

import math

import pytest
import torch

import pyro_vaes as pv
from pyro_vaes.training import sweep
from pyro_vaes.training.sweep import fit_many
from pyro_vaes.training.validation import _is_alike, check_together

ROWS = torch.randint(0, 4, (70, 6), generator=torch.Generator().manual_seed(1)).double()
TRAIN, VAL = ROWS[:50], ROWS[50:]


def make_vae(seed, prior="standard", posterior="normal"):
    torch.manual_seed(seed)
    base = pv.NormalPosterior(pv.MLP(6, [12]), 2)
    priors = {
        "standard": lambda: pv.NormalPrior(2),
        "mixture": lambda: pv.MixturePrior(2, 3),
        "vamp": lambda: pv.VampPrior(base, torch.rand(3, 6)),
        "flow": lambda: pv.FlowPrior(2, pv.flows.realnvp(2, 2)),
        "inverse": lambda: pv.FlowPrior(2, pv.flows.iaf(2, 2)),
    }
    flows = {"iaf": pv.flows.iaf(2, 2), "planar": pv.flows.planar(2, 2)}
    if posterior.startswith("chain"):
        p, q = levels(priors["mixture"]() if prior == "standard" else priors[prior](), posterior)
    else:
        p = priors[prior]()
        q = base if posterior == "normal" else pv.FlowPosterior(base, flows[posterior])
    likelihood = pv.CategoricalLikelihood(pv.MLP(p.latent_dim, [12]), (6,), 4)
    return pv.VAE(p, q, likelihood).double()


def levels(top, kind):
    """Three levels of sizes 2, 1 and 3 from the top, drawn from either end."""
    prior = pv.ChainPrior(
        top, *(pv.NormalPosterior(pv.MLP(a, [8]), b) for a, b in [(2, 1), (3, 3)])
    )
    sizes = [3, 1, 2] if kind == "chain_upward" else [2, 1, 3]
    first = getattr(top, "posterior", pv.NormalPosterior(pv.MLP(6, [12]), sizes[0]))
    links = [
        pv.NormalPosterior(pv.MLP(12 + sum(sizes[:i]), [8]), sizes[i], (12 + sum(sizes[:i]),))
        for i in (1, 2)
    ]
    options = {"chain_upward": {"upward": True}, "chain_given_prior": {"prior": prior}}
    return prior, pv.ChainPosterior(first, *links, **options.get(kind, {}))


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [
        ("standard", "normal"),
        ("mixture", "normal"),
        ("vamp", "normal"),
        pytest.param("flow", "iaf", marks=pytest.mark.slow),
        ("inverse", "normal"),
        pytest.param("standard", "planar", marks=pytest.mark.slow),
        pytest.param("vamp", "chain", marks=pytest.mark.slow),
        pytest.param("standard", "chain_upward", marks=pytest.mark.slow),
        ("flow", "chain_given_prior"),
    ],
)
def test_each_model_takes_its_own_steps(prior, posterior):
    """Twenty steps, in float64: seeds, betas, learning rates and data orders all differ."""
    seeds, betas, rates = [0, 1, 5], [1.0, 0.0, 4.0], [1e-3, 1e-2, 3e-3]
    options = dict(epochs=5, batch_size=13, warmup_epochs=2, patience=4)
    together = [make_vae(seed, prior, posterior) for seed in seeds]
    histories = fit_many(
        together,
        TRAIN,
        VAL,
        objectives=[pv.BetaELBO(beta) for beta in betas],
        learning_rates=rates,
        seeds=seeds,
        **options,
    )
    for index, seed in enumerate(seeds):
        alone = make_vae(seed, prior, posterior)
        history = pv.fit(
            alone,
            TRAIN,
            VAL,
            objective=pv.BetaELBO(betas[index]),
            learning_rate=rates[index],
            seed=seed,
            progress=False,
            **options,
        )
        for ours, theirs in zip(histories[index].records, history.records, strict=True):
            for key in set(theirs) - {"seconds"}:
                assert ours[key] == pytest.approx(theirs[key], abs=1e-6, rel=1e-6), key
        assert histories[index].best_epoch == history.best_epoch
        for a, b in zip(together[index].parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamax", "schedule": "cosine"},
        {"optimizer": "adamw", "weight_decay": 0.1, "clip_norm": 0.5},
        {"ema_decay": 0.9},
    ],
)
def test_options_mean_the_same(options):
    together = [make_vae(seed) for seed in (0, 1)]
    fit_many(together, TRAIN, VAL, epochs=4, batch_size=16, **options)
    for seed, vae in enumerate(together):
        alone = make_vae(seed)
        pv.fit(alone, TRAIN, VAL, epochs=4, batch_size=16, seed=seed, progress=False, **options)
        for a, b in zip(vae.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_each_model_stops_by_itself():
    vaes = [make_vae(seed) for seed in (0, 1, 2)]
    histories = fit_many(
        vaes, TRAIN, VAL, epochs=300, patience=3, learning_rates=[0.1, 0.01, 0.03], batch_size=16
    )
    assert all(history.stopped == "patience" for history in histories)
    assert len({history.epochs for history in histories}) > 1
    assert all(history.epochs - history.best_epoch == 3 for history in histories)
    assert all(math.isfinite(history.best_val_loss) for history in histories)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"ema_decay": 0.5, "optimizer": "adamax"}, {"mode": "compiled"}]
)
def test_those_that_go_on_do_not_notice_that_others_have_stopped(options, monkeypatch):
    dropped = []
    drop = sweep._Sweep._drop
    monkeypatch.setattr(
        sweep._Sweep, "_drop", lambda self, rows: (dropped.append(len(rows)), drop(self, rows))
    )
    rates = [0.2, 0.01, 0.1, 0.003, 0.15]
    options = {"epochs": 60, "patience": 3, "batch_size": 16, **options}
    together = [make_vae(seed) for seed in range(5)]
    histories = fit_many(together, TRAIN, VAL, learning_rates=rates, **options)
    assert dropped
    for seed, vae in enumerate(together):
        alone = make_vae(seed)
        history = pv.fit(
            alone, TRAIN, VAL, learning_rate=rates[seed], seed=seed, progress=False, **options
        )
        for what in ("stopped", "epochs", "best_epoch"):
            assert getattr(histories[seed], what) == getattr(history, what)
        for a, b in zip(vae.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_labels():
    def conditional(seed):
        torch.manual_seed(seed)
        posterior = pv.NormalPosterior(pv.MLP(9, [8]), 2, num_labels=3)
        likelihood = pv.CategoricalLikelihood(pv.MLP(5, [8]), (6,), 4, num_labels=3)
        return pv.VAE(pv.NormalPrior(2, 3), posterior, likelihood).double()

    labels = torch.arange(50) % 3
    vaes = [conditional(seed) for seed in (0, 1)]
    fit_many(vaes, (TRAIN, labels), epochs=3, batch_size=16)
    alone = conditional(1)
    pv.fit(alone, (TRAIN, labels), epochs=3, batch_size=16, seed=1, progress=False)
    for a, b in zip(vaes[1].parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_bad_input():
    with pytest.raises(ValueError, match="one architecture"):
        fit_many([make_vae(0), make_vae(0, "mixture")], TRAIN)
    with pytest.raises(ValueError, match="seeds for each of 2"):
        fit_many([make_vae(0), make_vae(1)], TRAIN, seeds=[0])
    with pytest.raises(ValueError, match="mode"):
        fit_many([make_vae(0)], TRAIN, mode="eager")


class Doubled(pv.ELBO):
    """A loss of one's own."""

    def trace_loss(self, model_trace, guide_trace):
        return 2 * super().trace_loss(model_trace, guide_trace)


class Observed(pv.VAE):
    """A model of one's own."""

    def model(self, x, y=None):
        return super().model(x, y)


def of_activation(name):
    posterior = pv.NormalPosterior(pv.MLP(6, [12], name), 2)
    likelihood = pv.CategoricalLikelihood(pv.MLP(2, [12]), (6,), 4)
    return pv.VAE(pv.NormalPrior(2), posterior, likelihood).double()


def test_what_would_be_ignored_is_refused():
    """Each would have been trained as something else, without a word."""
    vaes = [make_vae(0), make_vae(1)]
    for objective in (Doubled(), pv.ELBO(num_particles=3, vectorize_particles=True)):
        with pytest.raises(ValueError, match="several particles or a loss of their own"):
            fit_many(vaes, TRAIN, objectives=[pv.ELBO(), objective])
    with pytest.raises(ValueError, match="without weights"):
        fit_many(vaes, TRAIN, pv.Split(VAL, weights=torch.ones(len(VAL))))
    with pytest.raises(ValueError, match="one architecture"):
        fit_many([of_activation("relu"), of_activation("tanh")], TRAIN)
    first = vaes[0]
    with pytest.raises(ValueError, match="model and guide of VAE"):
        fit_many([Observed(first.prior, first.posterior, first.likelihood)], TRAIN)
    usual = [pv.InfoELBO(0.5, 0.5), pv.BetaELBO(0.5)]
    same = fit_many([make_vae(0), make_vae(0)], TRAIN, objectives=usual, seeds=[0, 0], epochs=1)
    assert same[0].records[0]["train_loss"] == same[1].records[0]["train_loss"]


def test_frozen_parameters_stay():
    vaes = [make_vae(0), make_vae(1)]
    for vae in vaes:
        vae.likelihood.requires_grad_(False)
    before = [p.clone() for p in vaes[1].likelihood.parameters()]
    start = [p.clone() for p in vaes[1].posterior.parameters()]
    fit_many(vaes, TRAIN, epochs=1)
    assert all(map(torch.equal, before, vaes[1].likelihood.parameters()))
    assert not all(map(torch.equal, start, vaes[1].posterior.parameters()))
    with pytest.raises(ValueError, match="one architecture"):
        fit_many([vaes[0], make_vae(1)], TRAIN)


class WithLayer(torch.nn.Module):
    """A posterior of one's own, with a layer that differs in training."""

    def __init__(self, layer):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 4), layer, torch.nn.Linear(4, 2))

    def forward(self, x):
        return torch.distributions.Independent(torch.distributions.Normal(self.net(x), 1.0), 1)


@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)])
def test_layers_that_differ_in_training_are_refused(layer):
    first = make_vae(0)
    own = pv.VAE(first.prior, WithLayer(layer), first.likelihood).double().eval()
    with pytest.raises(ValueError, match=f"by itself.*got {type(layer).__name__}"):
        fit_many([own], TRAIN)


def test_what_fit_refuses_is_refused():
    vae = make_vae(0)
    with pytest.raises(ValueError, match="the likelihood's levels"):
        fit_many([vae], 50 + TRAIN)
    for rate in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="learning_rate above 0"):
            fit_many([vae], TRAIN, learning_rates=[rate])
    with pytest.raises(ValueError, match="ELBO or BetaELBO"):
        fit_many([vae], TRAIN, objectives=[pv.ManySamples(3)])
    for others in ([vae, vae], [vae, pv.VAE(make_vae(1).prior, vae.posterior, vae.likelihood)]):
        with pytest.raises(ValueError, match="share no parts"):
            fit_many(others, TRAIN)
    with pytest.raises(ValueError, match="one architecture"):
        fit_many([vae, make_vae(1).float()], TRAIN)


class OwnPosterior(torch.nn.Module):
    """A posterior of one's own, whose description is its code alone."""

    def __init__(self, scale, activation):
        super().__init__()
        self.net, self.scale, self.activation = torch.nn.Linear(6, 2), scale, activation

    def forward(self, x):
        loc = self.activation(self.net(x))
        return torch.distributions.Independent(torch.distributions.Normal(loc, self.scale), 1)


def test_own_parts_that_differ_in_code_or_plain_attributes_are_refused():
    first = make_vae(0)

    def own(scale, activation):
        return pv.VAE(first.prior, OwnPosterior(scale, activation), make_vae(0).likelihood).double()

    same = [own(0.5, torch.tanh), own(0.5, torch.tanh)]
    assert _is_alike(*same)
    hidden = own(0.5, torch.tanh)
    hidden.posterior.shift = torch.ones(2)  # No buffer: the first model's would serve both.
    same[0].posterior.shift = torch.zeros(2)
    for other in (own(0.9, torch.tanh), own(0.5, torch.sin), hidden, make_vae(0)):
        assert not _is_alike(other, same[0])
        with pytest.raises(ValueError, match="one architecture; got number 1"):
            check_together([same[0], other], [pv.ELBO()] * 2)


def test_a_default_that_is_spelled_out_makes_no_other_model():
    def described(*options):
        posterior = pv.NormalPosterior(pv.MLP(6, [4], *options), 2)
        return pv.VAE(pv.NormalPrior(2), posterior, pv.BernoulliLikelihood(pv.MLP(2, [4]), (6,)))

    assert _is_alike(described(), described("leaky_relu"))
    assert not _is_alike(described(), described("tanh"))
