"""Values that were not seen, from those that were: averages and draws under p(x_unseen | x_seen).

p(x_unseen | x_seen) is the average of p(x_unseen | z, x_seen) over p(z | x_seen), by
self-normalised importance weights: Mattei and Frellsen, "MIWAE: deep generative modelling and
imputation of incomplete data sets" (2019), equations 11 to 13, where elements are independent given
z; correlated noise has its conditional distribution. Here z is drawn from the proposals of
:func:`~pyro_vaes.evaluation.evaluator.evaluate`, which are fitted to each datum: the encoder need
not know what to make of gaps.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from torch import Tensor

from pyro_vaes.core.checks import positive
from pyro_vaes.core.looking import mean_of
from pyro_vaes.data.splits import as_split
from pyro_vaes.evaluation.draws import chunk_of, generator_of, seed_of
from pyro_vaes.evaluation.pareto import MIN_SAMPLES, pareto_k, reliable_k, tail_size
from pyro_vaes.evaluation.passes import Pass, Weighted
from pyro_vaes.evaluation.proposals.reach import unreached
from pyro_vaes.vae import VAE, check_labels, evaluating

__all__ = ["Imputation", "impute"]


@dataclasses.dataclass(frozen=True)
class Imputation:
    """Data whose gaps are filled.

    >>> found = pv.impute(vae, torch.tensor([[1.0, 2.0, torch.nan, 0.0]]), num_draws=3)
    >>> found.x[0, :2].tolist(), found.draws.shape, found.unreliable.shape
    ([1.0, 2.0], torch.Size([3, 1, 4]), torch.Size([1]))

    Attributes:
        x: the data, ``(n, *event_shape)``; what was not seen has its mean given what was.
        draws: the data several times over, ``(num_draws, n, *event_shape)``, each with a draw of
            what was not seen: their spread is what is not known (Rubin, "Multiple imputation for
            nonresponse in surveys", 1987).
        pareto_k: k-hat of each datum's weights, ``(n,)``; NaN without gaps or from few draws.
        unreliable: of which data the averages are not to be trusted: k-hat is too high, modes of
            p(z | x_seen) may have been missed, or the encoder's draws do not reach them.
    """

    x: Tensor
    draws: Tensor
    pareto_k: Tensor
    unreliable: Tensor


def impute(
    vae: VAE,
    x: Any,
    num_samples: int = 1000,
    *,
    num_draws: int = 0,
    y: Any = None,
    proposal: str = "auto",
    seed: int = 0,
    chunk_size: int | None = None,
) -> Imputation:
    """Fills gaps (NaN) with their mean given what was seen of the same datum, and with draws.

    >>> x = torch.tensor([[1.0, 2.0, torch.nan, 0.0], [0.5, 2.0, 1.0, 1.0]])
    >>> found = pv.impute(vae, x, num_samples=100)
    >>> found.x.shape, bool(found.x.isnan().any()), torch.equal(found.x[1], x[1])
    (torch.Size([2, 4]), False, True)

    Args:
        vae: the model; its likelihood takes gaps.
        x: data, as for :func:`~pyro_vaes.evaluation.evaluator.evaluate`.
        num_samples: draws of z for each datum with gaps.
        num_draws: how many draws of the data to make as well.
        y: labels ``(n,)``, or one for all, if ``x`` does not bring them.
        proposal: what z is drawn from: ``"auto"``, ``"encoder"`` or ``"refined"``.
        seed: seed of the draws.
        chunk_size: decoder evaluations at once. None: see
            :func:`~pyro_vaes.evaluation.evaluator.evaluate`.

    Returns:
        The data with their gaps filled; levels, counts and the like have means between them,
        categories the most probable one, elements of a ``PowerLikelihood`` the value whose
        transform has the mean, and draws are values of theirs.

    Raises:
        ValueError: for data that the parts cannot take, gaps among them.
    """
    positive(num_samples=num_samples)
    if proposal not in ("auto", "encoder", "refined"):
        raise ValueError(f"Expected a proposal among auto, encoder, refined; got {proposal!r}.")
    split = as_split(x).frozen()
    rows = split.numbers(split.x).to(vae.device, vae.dtype)
    labels = check_labels(vae, rows, split.y if y is None else y)
    out = Imputation(
        rows.clone(),
        rows.expand(num_draws, *rows.shape).clone(),
        torch.full((len(rows),), torch.nan, dtype=torch.float64, device=rows.device),
        torch.zeros(len(rows), dtype=torch.bool, device=rows.device),
    )
    index = rows.isnan().flatten(1).any(1).nonzero()[:, 0]
    if not len(index):
        return out
    chunk = chunk_of(vae.device, chunk_size)
    with evaluating(vae):
        way = Pass(vae, num_samples, seed, chunk, proposal, False, False)
        for found in way.weighted(rows[index], None if labels is None else labels[index]):
            _fill(vae, found, index, out, chunk, seed)
    if found.fitted is None and proposal == "auto":
        warnings.warn(f"{'; '.join(found.notes).capitalize()}.", stacklevel=2)
    return out


def _fill(vae: VAE, found: Weighted, index: Tensor, out: Imputation, chunk: int, seed: int) -> None:
    """Fills the gaps of one block."""
    block, z, weight = found.block, found.draws.z, found.draws.log_weight
    place = index[block.first : block.first + len(block.x)]
    share = weight.softmax(0)
    mean: Any = 0.0
    step = max(1, chunk // len(block.x))
    for some, part in zip(share.split(step), z.split(step), strict=True):
        likelihood = _given(vae.p_x(part, block.y), block.x)
        # A mean of categories' numbers says nothing: one of their probabilities does.
        each = likelihood.averages if hasattr(likelihood, "averages") else mean_of(likelihood)
        mean = mean + torch.einsum("sn,sn...->n...", some.to(each), each)
    if hasattr(likelihood, "from_averages"):
        mean = likelihood.from_averages(mean)
    gaps = block.x.isnan()
    out.x[place] = torch.where(gaps, mean, block.x)
    if len(out.draws):
        generator = generator_of(block.x.device, seed, "imputed", block.first)
        chosen = torch.multinomial(share.mT, len(out.draws), True, generator=generator).mT
        torch.manual_seed(seed_of(seed, "imputed", block.first))
        latent = z.gather(0, chosen.unsqueeze(-1).expand(-1, -1, z.shape[-1]))
        draws = _given(vae.p_x(latent, block.y), block.x).sample().to(block.x)
        out.draws[:, place] = torch.where(gaps, draws, block.x)
    if len(z) >= MIN_SAMPLES:
        k = pareto_k(weight.topk(tail_size(len(z)) + 1, dim=0).values.mT)
        out.pareto_k[place] = k
        out.unreliable[place] = k > reliable_k(len(z))
    out.unreliable[place] |= found.draws.undefined.any(0)
    out.unreliable[place] |= (
        unreached(block, seed) if found.fitted is None else found.fitted.unexplored
    )


def _given(likelihood: Any, x: Tensor) -> Any:
    """p(x | z) given what was seen of x as well, where elements are not independent given z."""
    return likelihood.given(x) if hasattr(likelihood, "given") else likelihood
