"""Frechet distance between the Gaussians with two sets' means and covariances, its floor and its standard error.

d^2 = |m_a - m_b|^2 + tr A + tr B - 2 tr sqrt(A B). With A = L L^T and B = R R^T the last trace is the sum of the singular
values of L^T R: no square root of a matrix is taken, and rank-deficient covariances, as fewer images than dimensions
give them, need no padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from onefold import seeds
from onefold.errors import UserError
from onefold.metrics.statistics import Moments, Statistics

EPS = torch.finfo(torch.float64).eps
PRECISION = 1e-8  # of tr sqrt(A B)
CHUNK = 4096  # simulated images held at a time


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The squared distance d^2, as FID is."""
    check_comparable(a, b)
    means = (a.mean - b.mean).square().sum()
    traces = a.covariance.trace() + b.covariance.trace()
    between = singular_value_sum(root(a.covariance) @ root(b.covariance).T)
    return max(0.0, float(means + traces) - 2 * between)


def check_comparable(a: Statistics, b: Statistics) -> None:
    if len(a.mean) != len(b.mean) or (a.extractor and b.extractor and a.extractor != b.extractor):
        told = " and ".join(
            f"{len(one.mean)} dimensions of {one.extractor or 'an unknown extractor'}" for one in (a, b)
        )
        raise UserError(f"statistics have {told}, expected the same for both; compute them with one extractor")


def root(covariance: Tensor) -> Tensor:
    """L^T, as many rows as the rank, with covariance = L L^T."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(covariance, upper=True)
    return singular_root(covariance) if failed else factor


def singular_root(covariance: Tensor) -> Tensor:
    """Cholesky's decomposition that takes the largest remaining variance next and ends where only rounding is left."""
    left = covariance.diagonal().clone()
    least = len(left) * EPS * left.amax()
    rows = torch.zeros_like(covariance)
    for rank in range(len(rows)):
        pivot = int(left.argmax())
        if left[pivot] <= max(least, -left.amin()):
            return rows[:rank]
        rows[rank] = (covariance[pivot] - rows[:rank, pivot] @ rows[:rank]) / left[pivot].sqrt()
        left -= rows[rank].square()  # below 0 by rounding alone
    return rows


def singular_value_sum(matrix: Tensor) -> float:
    """From the eigenvalues of M M^T, which is quicker by far but loses what is small in M: then from M itself."""
    if 0 in matrix.shape:
        return 0.0
    wide = matrix if matrix.shape[0] < matrix.shape[1] else matrix.T
    squares = torch.linalg.eigvalsh(wide @ wide.T)
    noise = EPS * squares.amax()
    values = squares.clamp(min=noise).sqrt()
    error = (noise / (2 * values)).sum()  # d sqrt(s) = ds / (2 sqrt(s))
    if bool(error <= PRECISION * values.sum()):
        return float(values.sum())
    return float(torch.linalg.svdvals(wide).sum())


class Floor(NamedTuple):
    """What real images reach against the reference: mean, lowest and highest of the draws, and how they were drawn."""

    mean: float
    low: float
    high: float
    taken: int  # images in a draw
    about: str


def floor(reference: Statistics, count: int, draws: int = 5, seed: int = 0) -> Floor:
    """The distance of `count` real images to the reference: what no generator can be expected to beat."""
    further = 0 if reference.features is None else len(reference.features)
    taken = min(count, further or count)
    if further == 0:
        sets = [simulated(reference, taken, seed, draw) for draw in range(draws)]
        about = f"{draws} sets of {count} drawn from the Gaussian of the reference, which keeps no further real images"
    elif count < further:
        sets = [subset(reference, taken, seed, draw) for draw in range(draws)]
        about = f"{draws} subsets of {count} of the {further} further real images"
    else:
        sets = [subset(reference, taken, seed, 0)]
        about = f"all {further} further real images" + (f", as there are not {count}" if count > further else "")
    distances = [frechet_distance(one.statistics(), reference) for one in sets]
    return Floor(sum(distances) / len(distances), min(distances), max(distances), taken, about)


def subset(reference: Statistics, count: int, seed: int, draw: int) -> Moments:
    assert reference.features is not None
    order = torch.randperm(len(reference.features), generator=seeds.generator(seed, draw))
    return Moments().add(reference.features[order[:count]])


def simulated(reference: Statistics, count: int, seed: int, draw: int) -> Moments:
    return reduce(Moments.add, gaussian(reference, count, seeds.generator(seed, draw)), Moments())


def gaussian(reference: Statistics, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    rows = root(reference.covariance)
    for start in range(0, count, CHUNK):
        z = torch.randn(min(CHUNK, count - start), len(rows), generator=generator, dtype=torch.float64)
        yield reference.mean + z @ rows


def jackknife(groups: Sequence[Moments], reference: Statistics) -> float:
    """The standard error of the distance of all groups together: sqrt((g - 1) / g sum (d_i - mean d)^2), d_i without group i."""
    if len(groups) < 2:
        raise UserError(
            f"a jackknife leaves one group out, so it needs at least 2, got {len(groups)}; give more images"
        )
    rests = (reduce(Moments.merge, [*groups[:i], *groups[i + 1 :]], Moments()) for i in range(len(groups)))
    distances = torch.tensor([frechet_distance(rest.statistics(), reference) for rest in rests], dtype=torch.float64)
    return float(((len(groups) - 1) * distances.var(correction=0)).sqrt())
