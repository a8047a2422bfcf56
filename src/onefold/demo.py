"""The whole way in a few minutes: a bundled teacher, its best solvers at few calls, a student, and the student shipped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor

from onefold.bench.solvers import FINE, Bench, grids_for
from onefold.denoiser import Denoiser
from onefold.distilling import distill
from onefold.export import FACTS
from onefold.losses import root_mean_square
from onefold.methods.base import CONTROL
from onefold.pictures import COLUMNS, labelled_rows, save_png
from onefold.progress import Progress, Tell, silent
from onefold.student import Student
from onefold.teachers.native import read_json
from onefold.training.loop import ignore

Watch = Callable[[str, str], AbstractContextManager[Progress]]

MANY = 40  # calls: the teacher as one would use it for quality
REFERENCE = 48  # calls of the fine solution


@dataclass(frozen=True)
class Row:
    """One way to sample, and how far its images are from the teacher's fine solution."""

    who: str
    how: str
    calls: int
    distance: float  # RMSE over all images; a few that go another way weigh most in it ...
    typical: float  # ... which is why the median of the images' own RMSE stands beside it


@dataclass(frozen=True)
class Demo:
    count: int
    reference: str
    accuracy: float  # another fine solution's distance: smaller distances say nothing
    rows: tuple[Row, ...]  # nearest first
    trained: dict[str, Any]
    picture: str
    student: str
    export: str
    seconds: float

    @property
    def student_row(self) -> Row:
        return next(row for row in self.rows if row.who == "student")

    @property
    def best_solver(self) -> Row:
        """The nearest of the teacher's own at the student's number of calls."""
        return next(row for row in self.rows if row.who == "teacher" and row.calls == self.student_row.calls)

    @property
    def ratio(self) -> float:
        return self.best_solver.distance / self.student_row.distance

    @property
    def typical_ratio(self) -> float:
        return self.best_solver.typical / self.student_row.typical

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio, "typical_ratio": self.typical_ratio}


@contextmanager
def unwatched(_label: str, _unit: str) -> Iterator[Progress]:
    yield silent


class Gallery:
    """Images of several ways to sample from the same noise, each measured against the teacher's fine solution."""

    def __init__(self, reference: Tensor) -> None:
        self.reference, self.images = reference, dict[Row, Tensor]()

    def add(self, who: str, how: str, calls: int, drawn: Tensor) -> None:
        each = (drawn - self.reference).square().flatten(1).mean(1).sqrt()
        self.images[Row(who, how, calls, root_mean_square(drawn, self.reference), float(each.median()))] = drawn

    @property
    def rows(self) -> tuple[Row, ...]:
        """Nearest first."""
        return tuple(sorted(self.images, key=lambda row: row.distance))


def run(
    teacher: Denoiser,
    *,
    out: str | Path,
    calls: int = 4,
    budget: str = "3.5m",
    count: int = 64,
    seed: int = 0,
    watch: Watch = unwatched,
    tell: Tell = ignore,
) -> Demo:
    """Compares, distils, compares again and exports; everything lies in `out` then."""
    begin, home = time.perf_counter(), Path(out)
    tell(f"{teacher.name}: its fine solution, and what solvers reach with {calls} calls, for {count} images")
    with watch("comparing solvers", "calls") as progress:
        bench = Bench(teacher, count, seed, 2 * REFERENCE + calls * 2 * len(CONTROL) + MANY, progress)
        gallery, accuracy = compare(bench, calls)
    tell(f"distilling it to {calls} calls with SFD, from noise alone")
    folder = home / f"{teacher.name}-{calls}-calls-seed-{seed}"
    # two teacher steps in one of the student's are exact enough for what can be learned in minutes
    settings: dict[str, Any] = {"parts": 2, "calls": calls, "budget": budget, "seed": seed, "watched": 32}
    settings |= {"device": str(teacher.device), "precision": teacher.precision}
    with watch("distilling", "images") as progress:
        student = distill(teacher, "sfd", out=folder, progress=progress, tell=tell, **settings)
    drawn = student.sample(count, seed=seed, labels=bench.labels, batch_size=count)
    gallery.add("student", f"SFD, {student.recipe['cost']['seconds']:.0f} s of training", student.calls, drawn)
    demo = Demo(
        count=count,
        reference=f"{FINE[0]}, {REFERENCE} calls",
        accuracy=accuracy,
        rows=gallery.rows,
        trained=dict(student.recipe["cost"]),
        picture=str(home / "demo.png"),
        student=str(folder),
        export=ship(student, folder.with_name(f"{folder.name}-exported")),
        seconds=time.perf_counter() - begin,
    )
    save_png(draw(demo, teacher.name, gallery.images), demo.picture)
    return demo


def compare(bench: Bench, calls: int) -> tuple[Gallery, float]:
    """The teacher with good solvers at so few calls and the best of them at many, and how far two fine solutions are apart."""
    reference, check = (bench.images(solver, REFERENCE)[0] for solver in FINE)
    gallery = Gallery(reference)
    for grid in grids_for(bench.teacher.process):
        for solver in CONTROL:
            gallery.add("teacher", f"{solver} on {grid}", calls, bench.images(solver, calls, grid)[0])
    solver, grid = gallery.rows[0].how.split(" on ")
    gallery.add("teacher", f"{solver} on {grid}", MANY, bench.images(solver, MANY, grid)[0])
    return gallery, root_mean_square(check, reference)


def ship(student: Student, folder: Path) -> str:
    """Exported; what a demo exported there before is replaced, anything else is left and refused."""
    if (folder / FACTS).is_file() and "exported" in read_json(folder / FACTS):
        shutil.rmtree(folder)
    student.export(folder)
    return str(folder)


def draw(demo: Demo, name: str, images: dict[Row, Tensor]) -> Image:
    """The teacher at its leisure, the student, then the teacher at as many calls: its best way and the plainest."""
    student, best = demo.student_row, demo.best_solver
    many = next(row for row in demo.rows if row.who == "teacher" and row.calls == MANY)
    plain = next(row for row in demo.rows if row.how == "euler on karras")
    shown = [many, student, best, plain]
    rows = [
        (
            f"{row.who}, {row.calls} calls\n{row.how}\nRMSE {row.distance:.3f}, median {row.typical:.3f}",
            images[row][:COLUMNS],
        )
        for row in shown
    ]
    return labelled_rows(rows, title=f"{name}: the same noise in each column")
