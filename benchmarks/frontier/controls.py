"""What is free: the teacher with solvers at as many calls, and at its best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cells import UNSEEN, Bench
from torch import Tensor

import onefold
from onefold.bench.ways import BEST, teacher_ways

SOLVERS = ("euler", "dpmpp2m", "dpmpp3m", "unipc2", "ipndm2", "ipndm3")


def controls(
    bench: Bench, calls: Sequence[int], fines: dict[int, Tensor], measured: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    """Every solver on the usual and on a tuned grid at every number of calls, then the teacher at its best."""
    teacher = onefold.load_teacher(bench.teacher, device=bench.device, precision="fp32")
    found, fine = list[dict[str, Any]](), fines[UNSEEN]
    for way in teacher_ways(teacher, SOLVERS, ("auto", "gits"), calls):
        drawn = onefold.sample(teacher, len(fine), solver=way.plan.solver, grid=way.plan.grid, first=UNSEEN)
        found.append({"solver": way.plan.solver, "grid": way.grid, "calls": way.calls, **measured(drawn, fine, bench)})
    best = onefold.sample(teacher, len(fine), solver=BEST[0], calls=BEST[1], first=UNSEEN)
    return [*found, {"solver": BEST[0], "grid": "best", "calls": BEST[1], **measured(best, fine, bench)}]
