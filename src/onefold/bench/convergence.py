"""What good solvers reach with a teacher at few calls: a comparison that needs no reference but the teacher itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from torch import Tensor

from onefold.denoiser import Denoiser
from onefold.grids import usual_schedule
from onefold.losses import root_mean_square
from onefold.process import Process
from onefold.progress import Progress
from onefold.sampling import sample

# Two fine solutions by different formulas: how far they are apart says how far either can be trusted.
FINE = ("dpmpp3m_exact", "ipndm4")
FAILED = 1.0  # pixels in [-1, 1] that are this far off are no picture


@dataclass(frozen=True)
class Entry:
    """One solver on one grid at one number of calls; `counted` calls were really made."""

    solver: str
    grid: str
    calls: int
    counted: int
    distance: float

    @property
    def cell(self) -> str:
        made = "" if self.counted == self.calls else f" ({self.counted} calls)"
        return ("fails" if not self.distance < FAILED else f"{self.distance:.4f}") + made


@dataclass(frozen=True)
class Convergence:
    count: int
    calls: tuple[int, ...]
    reference: str
    check: str  # another fine solution ...
    accuracy: float  # ... and how far it is from the reference: smaller distances say nothing
    entries: tuple[Entry, ...]
    seconds: float

    def best(self, calls: int) -> Entry:
        return min((entry for entry in self.entries if entry.calls == calls), key=lambda entry: entry.distance)

    def cells(self) -> list[list[str]]:
        """Rows of the printed table: solver, grid and the distance at each number of calls; a star at the best."""
        rows: dict[tuple[str, str], list[str]] = {}
        for entry in self.entries:
            row = rows.setdefault((entry.solver, entry.grid), [entry.solver, entry.grid])
            row.append(entry.cell + ("*" if entry == self.best(entry.calls) else " "))
        return list(rows.values())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Probe:
    """A teacher, its start noise and labels: the same for every solver."""

    def __init__(self, teacher: Denoiser, count: int, seed: int, budget: int, progress: Progress) -> None:
        self.teacher, self.count, self.seed, self.budget, self.progress = teacher, count, seed, budget, progress
        self.labels = [index % teacher.choices for index in range(count)] if teacher.choices else None
        self.done = 0
        progress(0, budget)

    def images(self, solver: str, calls: int, grid: str = "karras") -> tuple[Tensor, int]:
        """Images and the calls they cost."""
        before = self.teacher.calls
        images = sample(
            self.teacher,
            self.count,
            solver=solver,
            calls=calls,
            grid=grid,
            seed=self.seed,
            labels=self.labels,
            batch_size=self.count,
        )
        self.done += calls
        self.progress(self.done, self.budget, solver=solver)
        return images.float().cpu(), self.teacher.calls - before


def calls_of_comparison(solvers: Sequence[str], calls: Sequence[int], fine: int) -> int:
    """What `converge` costs, on the two grids of `grids_for`."""
    return 2 * fine + 2 * len(solvers) * sum(calls)


def converge(
    bench: Probe, solvers: Sequence[str], calls: Sequence[int], fine: int
) -> tuple[Convergence, Tensor, dict[Entry, Tensor]]:
    """(numbers, the fine solution's images, the images of each entry); nothing is written."""
    begin = time.perf_counter()
    reference, check = (bench.images(solver, fine)[0] for solver in FINE)
    results: dict[Entry, Tensor] = {}
    for grid, solver, steps in product(grids_for(bench.teacher.process), solvers, calls):
        images, counted = bench.images(solver, steps, grid)
        results[Entry(solver, grid, steps, counted, root_mean_square(images, reference))] = images
    comparison = Convergence(
        count=bench.count,
        calls=tuple(calls),
        reference=f"{FINE[0]}, {fine} calls",
        check=f"{FINE[1]}, {fine} calls",
        accuracy=root_mean_square(check, reference),
        entries=tuple(results),
        seconds=time.perf_counter() - begin,
    )
    return comparison, reference, results


def grids_for(process: Process) -> tuple[str, str]:
    """The field's usual grid, and the one that this process is sampled on by default."""
    usual = usual_schedule(process)
    return "karras", "logsnr" if usual == "karras" else usual
