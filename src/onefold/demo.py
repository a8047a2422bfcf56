"""What good solvers reach with a teacher at few calls: a comparison that needs no reference but the teacher itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from onefold.denoiser import Denoiser
from onefold.pictures import labelled_rows, save_png
from onefold.progress import Progress, silent
from onefold.sampling import sample

SOLVERS = ("euler", "heun", "ipndm4", "dpmpp2m", "dpmpp3m", "unipc2")
CALLS = (4, 8, 16)
COLUMNS = 10  # of the picture


@dataclass(frozen=True)
class Entry:
    """One solver at one number of calls; `counted` calls were really made."""

    solver: str
    calls: int
    counted: int
    distance: float


@dataclass(frozen=True)
class Demo:
    count: int
    calls: tuple[int, ...]
    reference: str
    check: str  # another fine solution ...
    accuracy: float  # ... and how far it is from the reference: smaller distances say nothing
    entries: tuple[Entry, ...]
    picture: str
    seconds: float

    def best(self, calls: int) -> Entry:
        return min((entry for entry in self.entries if entry.calls == calls), key=lambda entry: entry.distance)

    def cells(self) -> list[list[str]]:
        """Rows of the printed table: a solver and its distance at each number of calls."""
        rows: dict[str, list[str]] = {}
        for entry in self.entries:
            row = rows.setdefault(entry.solver, [entry.solver])
            counted = "" if entry.counted == entry.calls else f" ({entry.counted} made)"
            row.append(f"{entry.distance:.4f}{counted}{'*' if entry == self.best(entry.calls) else ' '}")
        return list(rows.values())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Bench:
    """A teacher, its start noise and labels: the same for every solver."""

    def __init__(self, teacher: Denoiser, count: int, seed: int, budget: int, progress: Progress) -> None:
        self.teacher, self.count, self.seed, self.budget, self.progress = teacher, count, seed, budget, progress
        self.labels = [index % teacher.classes for index in range(count)] if teacher.classes else None
        self.done = 0
        progress(0, budget)

    def images(self, solver: str, calls: int) -> tuple[Tensor, int]:
        """Images and the calls they cost."""
        before = self.teacher.calls
        images = sample(
            self.teacher,
            self.count,
            solver=solver,
            calls=calls,
            seed=self.seed,
            labels=self.labels,
            batch_size=self.count,
        )
        self.done += calls
        self.progress(self.done, self.budget, solver=solver)
        return images.float().cpu(), self.teacher.calls - before


def run(
    teacher: Denoiser,
    *,
    count: int = 16,
    seed: int = 0,
    out: str | Path = "demo",
    quick: bool = False,
    progress: Progress = silent,
) -> Demo:
    """Compares solvers on the same noise and writes `solvers.png` into `out`."""
    begin = time.perf_counter()
    solvers, levels, fine = (SOLVERS[::2], CALLS[:2], 32) if quick else (SOLVERS, CALLS, 128)
    bench = Bench(teacher, count, seed, 2 * fine + len(solvers) * sum(levels), progress)
    reference, _ = bench.images("dpmpp3m", fine)
    check, _ = bench.images("heun", fine)
    results: dict[Entry, Tensor] = {}
    for solver in solvers:
        for calls in levels:
            images, counted = bench.images(solver, calls)
            results[Entry(solver, calls, counted, distance(images, reference))] = images
    demo = Demo(
        count=count,
        calls=levels,
        reference=f"dpmpp3m with {fine} calls",
        check=f"heun with {fine}",
        accuracy=distance(check, reference),
        entries=tuple(results),
        picture=str(Path(out) / "solvers.png"),
        seconds=time.perf_counter() - begin,
    )
    draw(demo, teacher.name, reference, results, levels)
    return demo


def distance(images: Tensor, reference: Tensor) -> float:
    return float((images.double() - reference.double()).square().mean().sqrt())


def draw(demo: Demo, name: str, reference: Tensor, results: dict[Entry, Tensor], levels: Sequence[int]) -> None:
    """The teacher at its best on top, the best solver at fewer and fewer calls below, one noise a column."""
    rows = [(f"{demo.reference}\n(the teacher at its best)", reference)]
    for calls in sorted(levels, reverse=True):
        best = demo.best(calls)
        rows.append((f"{best.solver} with {calls} calls\n(RMSE {best.distance:.3f})", results[best]))
    picture = labelled_rows(
        [(label, images[:COLUMNS]) for label, images in rows], title=f"{name}: the same noise in each column"
    )
    save_png(picture, demo.picture)
