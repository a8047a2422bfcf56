"""Kernel (Inception) distance: the squared maximum mean discrepancy of a cubic kernel, without bias (Binkowski 2018)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from onefold import seeds
from onefold.errors import UserError
from onefold.metrics.statistics import comparable_rows


class KernelDistance(NamedTuple):
    """Over the subsets. The mean of equal distributions is 0, so it can be negative."""

    mean: float
    std: float


def kernel_distance(
    generated: Tensor, real: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """E k(x, x') + E k(y, y') - 2 E k(x, y) of subsets. Each takes `subset_size` random images of either side, none twice."""
    generated, real = comparable_rows(generated, real)
    fewest = min(len(generated), len(real))
    if not 2 <= subset_size <= fewest:
        raise UserError(
            f"subset_size is {subset_size}, expected 2 to {fewest}, as there are {len(generated)} generated and "
            f"{len(real)} real images; lower it or give more images"
        )
    distances = torch.zeros(subsets, dtype=torch.float64)
    for index in range(subsets):
        x, y = draw(generated, subset_size, seed, 2 * index), draw(real, subset_size, seed, 2 * index + 1)
        distances[index] = within(x) + within(y) - 2 * kernel(x, y).mean()
    return KernelDistance(float(distances.mean()), float(distances.std(correction=0)))


def kernel_spread(generated: Tensor, real: Tensor, groups: int = 10) -> float:
    """The standard error of all generated images' distance, leaving out one group after the other; near 0, where it falls
    as 1 / n, up to 1.4 times too large. The real images stay, so pairs among them say nothing here."""
    parts, real = [generated[first::groups].double() for first in range(groups)], real.double()
    across = torch.stack([kernel(x, real).sum() for x in parts])
    among = torch.zeros(groups, groups, dtype=torch.float64)
    for a, x in enumerate(parts):
        for b, y in enumerate(parts[: a + 1]):
            values = kernel(x, y)
            among[a, b] = among[b, a] = values.sum() - (values.trace() if a == b else 0)
    left = len(generated) - torch.tensor([len(x) for x in parts])
    pairs = among.sum() - 2 * among.sum(1) + among.diagonal()
    distances = pairs / (left * (left - 1)) - 2 * (across.sum() - across) / (left * len(real))
    return float(((groups - 1) * distances.var(correction=0)).sqrt())


def draw(rows: Tensor, count: int, seed: int, index: int) -> Tensor:
    return rows[torch.randperm(len(rows), generator=seeds.generator(seed, index))[:count]].double()


def within(x: Tensor) -> Tensor:
    """Of pairs of different images: each with itself is what would bias the estimate."""
    values = kernel(x, x)
    return (values.sum() - values.trace()) / (len(x) * (len(x) - 1))


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / D + 1)^3."""
    return (x @ y.T / x.shape[1] + 1).pow(3)
