"""Ways to make images: a teacher with a solver, a grid and a number of calls, or a student."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, Literal

from onefold.data import fingerprint_of
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.grids import usual_schedule
from onefold.sampling import Plan, plan_grid
from onefold.solvers import get_solver
from onefold.student import Student

Kind = Literal["solver", "best", "student"]

SOLVERS = ("euler", "dpmpp2m", "ipndm3")
GRIDS = ("auto", "gits")
CALLS = (1, 2, 3, 4, 6, 8, 12)
BEST = ("ipndm3", 40)  # the teacher at its best: fixed in advance, never chosen from the results
FINE = ("dpmpp3m_exact", 64)  # the solution that others are measured against, where the truth itself is out of reach


@dataclass(frozen=True)
class Way:
    """One row of a comparison."""

    kind: Kind
    model: Denoiser
    plan: Plan
    calls: int  # as asked for
    grid: str  # its name
    recipe: Mapping[str, Any] = field(default_factory=dict)  # a student's

    @property
    def series(self) -> str:
        """What differs in the number of calls alone."""
        if self.kind == "student":
            return f"{self.recipe.get('method', 'student')}: {self.model.name}"
        return f"{self.plan.solver} on {self.grid}" + (" (best)" if self.kind == "best" else "")

    @property
    def label(self) -> str:
        who = f"student {self.model.name}" if self.kind == "student" else self.series
        return f"{who}, {self.calls} call{'s' * (self.calls != 1)}"

    @property
    def cost(self) -> dict[str, Any] | None:
        """Of training."""
        spent = self.recipe.get("cost")
        if not spent:
            return None
        return {
            "seconds": spent.get("seconds"),
            "images": spent.get("images"),
            "calls": sum(spent.get("calls", {}).values()) or None,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Of all that decides the images: weights, process, levels, solver and its settings."""
        grid = self.plan.grid
        facts = {
            "model": fingerprint_of(self.model),
            "solver": self.plan.solver,
            "levels": [level.hex() for level in grid.sigmas.tolist()],
            "start": grid.start,
            "afs": self.plan.afs,
            "settings": dict(self.plan.settings),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def teacher_ways(
    teacher: Denoiser, solvers: Sequence[str] = SOLVERS, grids: Sequence[str] = GRIDS, calls: Sequence[int] = CALLS
) -> list[Way]:
    """Every solver on every grid at every number of calls."""
    names = dict.fromkeys(usual_schedule(teacher.process) if grid == "auto" else grid for grid in grids)
    return [way(teacher, solver, count, grid) for solver, grid, count in product(solvers, names, calls)]


def way(teacher: Denoiser, solver: str, calls: int, grid: str = "auto", kind: Kind = "solver") -> Way:
    if calls < 1:
        raise UserError(f"calls is {calls}, expected 1 or more network calls an image")
    name = usual_schedule(teacher.process) if grid == "auto" else grid
    get_solver(solver)
    return Way(
        kind, teacher, Plan(solver, plan_grid(teacher, solver, calls, name, "zero", None), None, {}), calls, name
    )


def best_way(teacher: Denoiser) -> Way:
    solver, calls = BEST
    return way(teacher, solver, calls, kind="best")


def fine_way(teacher: Denoiser) -> Way:
    solver, calls = FINE
    return way(teacher, solver, calls)


def student_way(student: Student) -> Way:
    plan = Plan("euler", student.grid, student.afs, {})
    return Way("student", student.denoiser, plan, student.calls, "its own grid", student.recipe)
