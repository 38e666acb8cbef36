"""The work in NumPyro (standard normal prior only): each step jitted, or a whole epoch scanned."""

from __future__ import annotations

from typing import Any

import jax
import numpyro
import numpyro.distributions as dist
from harness import Run
from jax import numpy as jnp
from jax.example_libraries import stax
from numpyro.infer import SVI, Trace_ELBO
from works import LEARNING_RATE, Work


def _mlp(hidden: tuple[int, ...], outputs: int) -> Any:
    layers: list[Any] = []
    for size in hidden:
        layers += [stax.Dense(size), stax.LeakyRelu]
    return stax.serial(*layers, stax.Dense(outputs))


def _svi(work: Work) -> SVI:
    encoder = _mlp(work.hidden, 2 * work.latent)
    decoder = _mlp(work.hidden[::-1], work.outputs)

    def model(x: Any) -> None:
        decode = numpyro.module("decoder", decoder, (len(x), work.latent))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([work.latent]).to_event(1))
            logits = decode(z)
            if work.levels == 2:
                likelihood: Any = dist.Bernoulli(logits=logits)
            else:
                likelihood = dist.Categorical(logits=logits.reshape(len(x), -1, work.levels))
            numpyro.sample("x", likelihood.to_event(1), obs=x)

    def guide(x: Any) -> None:
        encode = numpyro.module("encoder", encoder, (len(x), work.features))
        with numpyro.plate("data", len(x)):
            mean, log_var = jnp.split(encode(work.scaled(x)), 2, axis=-1)
            numpyro.sample("z", dist.Normal(mean, jnp.exp(0.5 * log_var)).to_event(1))

    return SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), Trace_ELBO())


def _start(work: Work) -> tuple[SVI, Any, Any]:
    svi = _svi(work)
    batches = jnp.asarray(work.data().numpy())
    if work.levels > 2:
        batches = batches.astype(jnp.int32)
    return svi, svi.init(jax.random.PRNGKey(0), batches[0]), batches


def jitted(work: Work) -> Run:
    """One compiled call a step."""
    svi, state, batches = _start(work)
    update = jax.jit(svi.update)
    batches = list(batches)
    done = 0

    def run(steps: int) -> None:
        nonlocal state, done
        for _ in range(steps):
            state, _ = update(state, batches[done % len(batches)])
            done += 1
        jax.block_until_ready(state)

    return run


def scanned(work: Work) -> Run:
    """One compiled call an epoch; runs whole epochs only."""
    svi, state, batches = _start(work)

    @jax.jit
    def epoch(state: Any) -> Any:
        return jax.lax.scan(svi.update, state, batches)

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps // len(batches)):
            state, _ = epoch(state)
        jax.block_until_ready(state)

    return run
