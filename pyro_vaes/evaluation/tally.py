"""Running sums over the data: means with standard errors, and curves over the number of draws."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_vaes.evaluation.draws import Draws, RowBlock
from pyro_vaes.evaluation.pareto import MIN_SAMPLES, pareto_k, tail_size

__all__ = ["Curve", "Tally", "undefined_warnings"]


class Curve:
    """The bound with 1, 2, 4, ... samples, each from all draws.

    The bound with k samples is averaged over disjoint groups of k draws (the remainder is dropped),
    so that every point is unbiased: Burda et al. (2016), equation 8. Log means of neighbouring
    groups are joined, so that only one open group is kept at each level.
    """

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._counts: list[int] = []
        self._open: list[Tensor] = []

    def add(self, log_weight: Tensor) -> None:
        """Adds draws, ``(samples, data)``."""
        level, sums = 0, log_weight
        while len(sums):
            if level == len(self._sums):
                self._sums.append(torch.zeros_like(sums[0]))
                self._counts.append(0)
                self._open.append(sums[:0])
            self._sums[level] += sums.sum(0)
            self._counts[level] += len(sums)
            sums = torch.cat([self._open[level], sums])
            whole = len(sums) // 2 * 2
            self._open[level] = sums[whole:]
            sums = torch.logaddexp(sums[0:whole:2], sums[1:whole:2])
            level += 1

    def result(self) -> Tensor:
        """The bound of each datum with 2^j samples, ``(data, levels)``, in nats."""
        return torch.stack(
            [
                sums / count - level * math.log(2)
                for level, (sums, count) in enumerate(zip(self._sums, self._counts, strict=True))
            ],
            dim=-1,
        )


class Tally:
    """Sums over the draws for a block of data, in memory that does not grow with S.

    Args:
        block: the data.
        num_samples: S.
        keep: how many of the first draws to keep as they are.
        diagnostics: False for the log mean weight and its terms only.
    """

    def __init__(
        self, block: RowBlock, num_samples: int, keep: int = 0, diagnostics: bool = False
    ) -> None:
        self._num_samples, self._keep, self._diagnostics = num_samples, keep, diagnostics
        n, device = len(block.x), block.x.device
        self._sums = torch.zeros(3, n, dtype=torch.float64, device=device)
        # Log sums of the weights and of their squares.
        self._totals = torch.full((2, n), -math.inf, dtype=torch.float64, device=device)
        self._range = (
            torch.tensor([math.inf, -math.inf], device=device).double()[:, None].repeat(1, n)
        )
        self._undefined = torch.zeros(n, dtype=torch.long, device=device)
        self._top = torch.zeros(0, n, dtype=torch.float64, device=device)
        self._z_sums: Tensor | None = None
        self._curve = Curve()
        self._kept: dict[str, Tensor] = {}

    def add(self, block: Draws) -> None:
        """Adds draws."""
        weight = block.log_weight
        self._undefined += block.undefined.sum(0)
        terms = (block.log_likelihood, block.log_prior, block.log_posterior)
        self._sums += torch.stack([term.sum(0) for term in terms])
        orders = torch.stack([weight.logsumexp(0), (2 * weight).logsumexp(0)])
        self._totals = torch.logaddexp(self._totals, orders)
        if not self._diagnostics:
            return
        self._curve.add(weight)
        size = tail_size(self._num_samples) + 1
        top = torch.cat([self._top, weight])
        self._top = top.topk(min(size, len(top)), dim=0).values
        low, high = block.log_likelihood.aminmax(dim=0)
        self._range = torch.stack([self._range[0].minimum(low), self._range[1].maximum(high)])
        z = block.z.double()
        sums = torch.stack([z.sum(0), z.square().sum(0)])
        self._z_sums = sums if self._z_sums is None else self._z_sums + sums
        if not self._kept and self._keep:
            self._kept = {
                "z": block.z[: self._keep].transpose(0, 1),
                "log_q": block.log_posterior[: self._keep].mT,
                "log_p": block.log_prior[: self._keep].mT,
            }

    def result(self) -> dict[str, Tensor]:
        """Figures of each datum, the data along the first dimension, in nats."""
        log_likelihood, log_prior, log_posterior = self._sums / self._num_samples
        log_marginal = self._totals[0] - math.log(self._num_samples)
        figures = {
            "log_marginal": log_marginal.masked_fill(
                self._undefined == self._num_samples, math.nan
            ),
            "undefined": self._undefined > 0,
            "log_likelihood": log_likelihood,
            "log_prior": log_prior,
            "log_posterior": log_posterior,
        }
        if not self._diagnostics or self._z_sums is None:
            return figures
        size = (2 * self._totals[0] - self._totals[1]).exp()
        figures["effective_sample_size"] = size.nan_to_num(0.0)
        if self._num_samples >= MIN_SAMPLES:
            figures["pareto_k"] = pareto_k(self._top.mT)
        figures["bound"] = self._curve.result()
        figures["likelihood_range"] = self._range[1] - self._range[0]
        z_sum, z_squares = self._z_sums
        mean = z_sum / self._num_samples
        figures["z_mean"] = mean
        # The variance of a single draw is unknown: 0 / 0 is not a number, as it should be.
        figures["z_variance"] = (z_squares - z_sum * mean) / (self._num_samples - 1)
        return figures | self._kept


def undefined_warnings(undefined: Tensor) -> Iterator[str]:
    """What there is to say of data ``(n,)`` with draws whose weight is not a number."""
    if bool(undefined.any()):
        yield (
            f"p(x, z) or the density of its proposal is not a number at some draws of z for "
            f"{int(undefined.sum())} of {len(undefined)} data: those draws count as weights of 0, "
            "and log p(x) of these data is not to be trusted"
        )
