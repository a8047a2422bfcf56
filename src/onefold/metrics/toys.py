"""Distances for low-dimensional toys, where the data's distribution is known."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from onefold import seeds
from onefold.errors import UserError
from onefold.metrics.statistics import comparable_rows


def sliced_wasserstein(generated: Tensor, real: Tensor, *, directions: int = 256, seed: int = 0) -> float:
    """Root of the mean squared Wasserstein-2 distance of the projections on random directions."""
    generated, real = comparable_rows(generated, real)
    if not len(generated) or not len(real):
        raise UserError(f"got {len(generated)} generated and {len(real)} real samples; give at least one of each")
    normal = torch.randn(generated.shape[1], directions, generator=seeds.generator(seed), dtype=torch.float64)
    normal /= normal.norm(dim=0)
    squares = squared_wasserstein(generated.double() @ normal, real.double() @ normal)
    return float(squares.mean().sqrt())


def squared_wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """For each column of (N, K) and (M, K) the integral of (F_x^-1(u) - F_y^-1(u))^2 over u, exact: both are steps."""
    n, m = len(x), len(y)
    # ends of the steps in units of 1 / (n m): whole numbers, so that equal ends are one
    ends = torch.cat([m * torch.arange(1, n + 1), n * torch.arange(1, m + 1)]).unique()
    widths = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
    differences = x.sort(0).values[(ends - 1) // m] - y.sort(0).values[(ends - 1) // n]
    integral: Tensor = widths @ differences.square()
    return integral


class ModeCoverage(NamedTuple):
    covered: float  # share of modes that get enough samples
    near: float  # share of samples that are near a mode


def mode_coverage(
    samples: Tensor,
    means: Tensor,
    stds: Tensor | float,
    weights: Tensor | None = None,
    *,
    within: float = 3.0,
    enough: float = 0.5,
) -> ModeCoverage:
    """Of a mixture with means (K, D), stds (K,), (K, D) or one, and weights (K,). A sample is near its nearest mode within
    `within` stds; a mode is covered by `enough` of the samples that its weight entitles it to."""
    samples, means = (rows.double() for rows in comparable_rows(samples, means))
    if not len(samples):
        raise UserError("there are no samples; give at least one")
    spread = torch.as_tensor(stds, dtype=torch.float64)
    spread = spread if spread.ndim == 2 else spread.reshape(-1, 1)
    weights = torch.ones(len(means)) if weights is None else weights
    due = len(samples) * weights.double() / weights.double().sum()
    distances, nearest = ((samples[:, None] - means) / spread).norm(dim=2).min(1)
    near = distances <= within
    found = torch.bincount(nearest[near], minlength=len(means))
    return ModeCoverage(float((found >= enough * due).double().mean()), float(near.double().mean()))
