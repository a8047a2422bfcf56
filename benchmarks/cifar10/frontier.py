"""The frontier of methods on this teacher: the command line of `benchmarks/frontier`, put together in one place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cifar10.places import PIXELS, Places, check_data, extractor_name, weights_file

ROOT = Path(__file__).parents[2]
CALLS, BUDGETS, SEEDS = (1, 2, 4, 8), ("16k", "64k", "256k"), (0, 1, 2)


def frontier_argv(
    places: Places,
    data: Path,
    weights: Path,
    *,
    extractor: str,
    count: int,
    minutes: float,
    device: str,
    jobs: int,
    more: Sequence[str] = (),
) -> list[str]:
    """One piece of it, with the distance in pixels beside that of the extractor; `more` words go on at the end, where they
    take the place of these."""
    return [
        sys.executable,
        str(ROOT / "benchmarks" / "frontier"),
        str(places.need_teacher()),
        *("--data", str(check_data(data))),
        *("--reference", str(places.need_reference(extractor))),
        *("--reference", str(places.need_reference(PIXELS))),
        *("--extractor", extractor_name(extractor)),
        *("--extractor-weights", str(weights_file(weights, extractor))),
        *("--device", device),
        *("--jobs", str(jobs)),
        *("--calls", *map(str, CALLS)),
        *("--budgets", *BUDGETS),
        *("--seeds", *map(str, SEEDS)),
        *("--count", str(count)),
        *("--minutes", f"{minutes:g}"),
        *("--out", str(places.students)),
        *more,
    ]


def run_frontier(argv: Sequence[str]) -> int:
    """Its exit code, 3 if it is not done. The extractor is found from any folder."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(argv, env={**os.environ, "PYTHONPATH": path}, check=False).returncode
