"""Two ways of doing the same work, timed in turns: machines are shared and noisy, ratios of neighbours are not."""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onefold.version import hardware, versions

RESULTS = Path(__file__).parent / "results"


def timed(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def interleave(ours: Callable[[], Any], plain: Callable[[], Any], pairs: int) -> list[tuple[float, float]]:
    """(ours, plain) seconds, after one warm-up each; who goes first alternates."""
    ours(), plain()
    seconds = []
    for index in range(pairs):
        if index % 2:
            second, first = timed(plain), timed(ours)
        else:
            first, second = timed(ours), timed(plain)
        seconds.append((first, second))
        print(f"pair {index + 1}/{pairs}: {first:.3f} s, {second:.3f} s, ratio {first / second:.4f}", flush=True)
    return seconds


def summary(seconds: list[tuple[float, float]], bound: float) -> dict[str, Any]:
    """Median of the pairs' ratios with a bootstrap 95 % interval."""
    ratios = [a / b for a, b in seconds]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(10_000))
    upper = medians[9_749]
    return {
        "pairs": len(ratios),
        "median_ratio": round(statistics.median(ratios), 4),
        "interval_95": [round(medians[249], 4), round(upper, 4)],
        "bound": bound,
        "holds": upper <= bound,
        "median_seconds": {
            "ours": statistics.median(a for a, _ in seconds),
            "plain": statistics.median(b for _, b in seconds),
        },
    }


def save(name: str, result: dict[str, Any], *, show: bool = True) -> None:
    """Print, and keep as JSON with what it depends on."""
    script = Path(sys.argv[0])
    command = " ".join(["python", f"benchmarks/{script.name}", *sys.argv[1:]])
    record = {"command": command, **result, "versions": versions(), "machine": hardware()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    if show:
        print(json.dumps(record, indent=1))
