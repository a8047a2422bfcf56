"""Frechet distance of 2048-dimensional statistics, ours and through `scipy.linalg.sqrtm`: the bound is 2.5 times as fast.

python benchmarks/frechet_speed.py
"""

from __future__ import annotations

import argparse
from typing import Any

import scipy
import scipy.linalg
import torch
from pairs import interleave, save, summary

from onefold.metrics.frechet import frechet_distance
from onefold.metrics.statistics import Moments, Statistics

DIMENSIONS = 2048
CASES = {"full rank": 5000, "rank-deficient": 1000}  # images on either side


def statistics(count: int, seed: int) -> Statistics:
    """Of features in mixed directions whose standard deviations fall from 1 to 0.01."""
    mix = torch.randn(DIMENSIONS, DIMENSIONS, generator=torch.Generator().manual_seed(0))
    mix *= torch.logspace(0, -2, DIMENSIONS) * DIMENSIONS**-0.5
    return (
        Moments()
        .add(torch.randn(count, DIMENSIONS, generator=torch.Generator().manual_seed(seed)) @ mix.T)
        .statistics()
    )


def through_scipy(a: Statistics, b: Statistics) -> float:
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy())
    traces = a.covariance.trace() + b.covariance.trace()
    return float((a.mean - b.mean).square().sum() + traces) - 2 * float(root.trace().real)


def measure(count: int, pairs: int) -> dict[str, Any]:
    a, b = statistics(count, 1), statistics(count, 2)
    distances: dict[str, float] = {}
    timed = summary(
        interleave(
            lambda: distances.update(ours=frechet_distance(a, b)),
            lambda: distances.update(plain=through_scipy(a, b)),
            pairs,
        ),
        1 / 2.5,
    )
    return {"images": count, **timed, "times_as_fast": round(1 / timed["median_ratio"], 1), "distances": distances}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    result = {case: measure(count, arguments.pairs) for case, count in CASES.items()}
    what = "frechet_distance / the same through scipy.linalg.sqrtm, 2048 dimensions"
    save("frechet_speed", {"what": what, "scipy": scipy.__version__, **result})


if __name__ == "__main__":
    main()
