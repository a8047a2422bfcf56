"""Precision and recall (Kynkaanniemi 2019), density and coverage (Naeem 2020): who lies in whose neighbourhood.

The neighbourhood of an image is the closed ball that reaches its k-th nearest neighbour in its own set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from onefold.errors import UserError
from onefold.metrics.statistics import comparable_rows

ENTRIES = 2**24  # distances held at a time
TIE = 1e-12  # of the squared lengths: what rounding makes of equal distances


class Neighbours(NamedTuple):
    precision: float  # share of generated images in the neighbourhood of a real one
    recall: float  # share of real images in the neighbourhood of a generated one
    density: float  # real neighbourhoods around a generated image, over k
    coverage: float  # share of real images with a generated one in their neighbourhood


def neighbours(generated: Tensor, real: Tensor, *, k: int = 3, density_k: int = 5) -> Neighbours:
    """`k` for precision and recall, `density_k` for density and coverage."""
    generated, real = comparable_rows(generated, real)
    fewest, most = min(len(generated), len(real)), max(k, density_k)
    if fewest <= most:
        raise UserError(
            f"{most} neighbours need more than {most} images on either side, got {fewest}; give more images"
        )
    centre = real.double().mean(0)  # long vectors would round away short distances
    generated, real = generated.double() - centre, real.double() - centre
    (generated_radii,), (real_radii, density_radii) = radii(generated, [k]), radii(real, [k, density_k])
    precise, dense = 0, 0
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool)
    for rows in blocks(len(generated), len(real)):
        distances = squared_distances(generated[rows], real, TIE)
        precise += int((distances <= real_radii).any(1).sum())
        recalled |= (distances <= generated_radii[rows, None]).any(0)
        close = distances <= density_radii
        dense += int(close.sum())
        covered |= close.any(0)
    return Neighbours(
        precision=precise / len(generated),
        recall=float(recalled.double().mean()),
        density=dense / (density_k * len(generated)),
        coverage=float(covered.double().mean()),
    )


def radii(x: Tensor, ks: Sequence[int]) -> list[Tensor]:
    """For each k the squared distance of each row to its k-th nearest other row."""
    nearest = []
    for rows in blocks(len(x), len(x)):
        distances = squared_distances(x[rows], x)
        distances[range(len(distances)), range(rows.start, rows.stop)] = torch.inf  # not its own neighbour
        nearest.append(distances.topk(max(ks), largest=False).values)
    return [torch.cat(nearest)[:, k - 1] for k in ks]


def blocks(count: int, width: int) -> Iterator[slice]:
    size = max(1, ENTRIES // width)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def squared_distances(x: Tensor, y: Tensor, slack: float = 0.0) -> Tensor:
    """|x|^2 + |y|^2 - 2 x.y, less `slack` of the first two."""
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)
    return torch.addmm((1 - slack) * lengths, x, y.T, alpha=-2).clamp_(min=0)
