"""The whole way in a few minutes: a bundled teacher, a student of it, both compared with good solvers, and the student shipped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onefold.bench.compare import Comparison, compare
from onefold.bench.ways import SOLVERS
from onefold.denoiser import Denoiser
from onefold.distilling import distill
from onefold.export import FACTS
from onefold.files import read_json
from onefold.progress import Progress, Tell, silent
from onefold.student import Student
from onefold.training.loop import ignore

Watch = Callable[[str, str], AbstractContextManager[Progress]]
Row = dict[str, Any]
# Levels that are tuned to the teacher leave the student less to learn.
SETTINGS: dict[str, Any] = {"grid": "gits", "watched": 16}


@dataclass(frozen=True)
class Demo:
    comparison: Comparison
    trained: dict[str, Any]
    student: str
    export: str
    seconds: float

    @property
    def student_row(self) -> Row:
        return next(row for row in self.comparison.rows if row["kind"] == "student")

    @property
    def best_solver(self) -> Row:
        """The nearest of the teacher's own at the student's number of calls."""
        calls = self.student_row["calls"]
        solvers = [
            row for row in self.comparison.rows if (row["kind"], row["calls"], row["broken"]) == ("solver", calls, 0)
        ]
        return min(solvers, key=lambda row: distance(row, "rmse"))

    def ratio(self, measure: str) -> float:
        """How many times nearer the student is than the solver that is nearest in the RMSE of all images."""
        return distance(self.best_solver, measure) / distance(self.student_row, measure)

    def as_dict(self) -> dict[str, Any]:
        return {
            "ratio": self.ratio("rmse"),
            "median_ratio": self.ratio("median"),
            "trained": self.trained,
            "student": self.student,
            "export": self.export,
            "seconds": self.seconds,
            "comparison": dict(self.comparison.results),
        }


def distance(row: Row, measure: str) -> float:
    return float(row["scores"][measure]["value"])


@contextmanager
def unwatched(_label: str, _unit: str) -> Iterator[Progress]:
    yield silent


def run(
    teacher: Denoiser,
    *,
    out: str | Path,
    calls: int = 4,
    budget: str = "3k",  # enough of fashion28 to come nearer than its solvers, on any machine
    count: int = 64,
    seed: int = 0,
    command: str | None = None,
    watch: Watch = unwatched,
    tell: Tell = ignore,
) -> Demo:
    """Distils, compares and exports; everything lies in `out` then."""
    begin, home = time.perf_counter(), Path(out)
    folder = home / f"{teacher.name}-{calls}-calls-seed-{seed}"
    tell(f"distilling {teacher.name} to {calls} calls with SFD, from noise alone")
    settings = SETTINGS | {"calls": calls, "budget": budget, "seed": seed}
    settings |= {"device": str(teacher.device), "precision": teacher.precision}
    with watch("distilling", "images") as progress:
        student = distill(teacher, "sfd", out=folder, progress=progress, tell=tell, **settings)
    ladder = sorted({max(1, calls // 2), calls, 2 * calls})
    told = ", ".join(map(str, ladder))
    tell(f"comparing it with good solvers at {told} calls and with the teacher at its best, on {count} noises")
    with watch("comparing", "calls") as progress:
        comparison = compare(
            [teacher, student],
            out=home,
            calls=ladder,
            solvers=SOLVERS,
            grids=("auto", "gits", "karras"),
            count=count,
            seed=seed,
            lead="rmse",  # so few images say little through their features
            command=command,
            progress=progress,
            tell=tell,
        )
    return Demo(
        comparison=comparison,
        trained=dict(student.recipe["cost"]),
        student=str(folder),
        export=ship(student, folder.with_name(f"{folder.name}-exported")),
        seconds=time.perf_counter() - begin,
    )


def ship(student: Student, folder: Path) -> str:
    """Exported; what a demo exported there before is replaced, anything else is left and refused."""
    if (folder / FACTS).is_file() and "exported" in read_json(folder / FACTS):
        shutil.rmtree(folder)
    student.export(folder)
    return str(folder)
