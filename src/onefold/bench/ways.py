"""Ways to make images: a teacher with a solver, a grid and a number of calls, or a student."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, Literal

from torch import nn

from onefold.bench.processes import Processes
from onefold.data import fingerprint_of
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.gits import FINE as TUNED_FROM
from onefold.gits import Jumps, fine_levels, measure_jumps
from onefold.grids import TUNED, Grid, usual_schedule
from onefold.sampling import Plan, plan_grid
from onefold.solvers import steps_for
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
    weights: str  # a hash
    plan: Plan
    calls: int  # as asked for
    grid: str  # its name
    recipe: Mapping[str, Any] = field(default_factory=dict)  # a student's
    name: str = ""  # of a student, or of the teacher where there are several

    @property
    def series(self) -> str:
        """What differs in the number of calls alone."""
        if self.kind == "student":
            return f"{self.recipe.get('method', 'student')}: {self.name or self.model.name}"
        whose = f"{self.name}: " if self.name else ""
        return f"{whose}{self.plan.solver} on {self.grid}" + (" (best)" if self.kind == "best" else "")

    @property
    def label(self) -> str:
        who = f"student {self.name or self.model.name}" if self.kind == "student" else self.series
        return f"{who}, {self.calls} call{'s' * (self.calls != 1)}"

    @property
    def owner(self) -> str | None:
        """The hash of a student's teacher."""
        found: str | None = self.recipe.get("teacher", {}).get("sha256")
        return found

    @property
    def guidance(self) -> float:
        """What a student has folded in."""
        return float(self.recipe.get("settings", {}).get("guidance", 1.0))

    @property
    def cost(self) -> dict[str, Any] | None:
        """Of training; calls are those of all networks together."""
        spent = self.recipe.get("cost", {})
        if not {"seconds", "images", "calls"} <= spent.keys():
            return None
        return {"seconds": spent["seconds"], "images": spent["images"], "calls": sum(spent["calls"].values())}

    @property
    def repeatable(self) -> bool:
        """Its weights can be hashed; a plain function's inside cannot, so nothing is kept of it."""
        return isinstance(self.model.network, nn.Module)

    @cached_property
    def fingerprint(self) -> str:
        """Of all that decides the images: weights, process, levels, solver and its settings."""
        grid = self.plan.grid
        facts = {
            "weights": self.weights,
            "solver": self.plan.solver,
            "levels": [level.hex() for level in grid.sigmas.tolist()],
            "start": grid.start,
            "afs": self.plan.afs,
            "settings": dict(self.plan.settings),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def teacher_ways(
    teacher: Denoiser,
    solvers: Sequence[str] = SOLVERS,
    grids: Sequence[str] = GRIDS,
    calls: Sequence[int] = CALLS,
    processes: Processes | None = None,
) -> list[Way]:
    """Every solver on every grid at every number of calls, once. A tuned grid's jumps are measured once for all."""
    if not (solvers and grids and calls):
        raise UserError(
            "a comparison needs at least one of each: solvers, grids and calls; name some, or leave them out"
        )
    names = dict.fromkeys(usual_schedule(teacher.process) if grid == "auto" else grid for grid in grids)
    jumps = measure_jumps(teacher, fine_levels(teacher, max(TUNED_FROM, *calls), "zero")) if TUNED in names else None
    if jumps and processes:
        jumps = processes.agree(jumps)
    weights = fingerprint_of(teacher)
    wanted = product(dict.fromkeys(solvers), names, dict.fromkeys(calls))
    return [way(teacher, solver, count, name, "solver", weights, jumps) for solver, name, count in wanted]


def way(
    teacher: Denoiser,
    solver: str,
    calls: int,
    grid: str = "auto",
    kind: Kind = "solver",
    weights: str | None = None,
    jumps: Jumps | None = None,
) -> Way:
    """`weights` and `jumps` are found out here if nobody knows them."""
    if calls < 1:
        raise UserError(f"calls is {calls}, expected 1 or more network calls an image")
    name = usual_schedule(teacher.process) if grid == "auto" else grid
    made: str | Grid = name
    if name == TUNED and jumps is not None:
        from_inf = math.isinf(teacher.process.sigma_max)
        made = jumps.grid(steps_for(solver, calls, "zero", None, from_inf=from_inf))
    plan = Plan(solver, plan_grid(teacher, solver, calls, made, "zero", None), None, {})
    return Way(kind, teacher, weights or fingerprint_of(teacher), plan, calls, name)


def best_way(teacher: Denoiser) -> Way:
    solver, calls = BEST
    return way(teacher, solver, calls, kind="best")


def fine_way(teacher: Denoiser) -> Way:
    """Always in float32: rounding is no part of the truth."""
    solver, calls = FINE
    return way(teacher.replace(precision="fp32"), solver, calls)


def student_way(student: Student) -> Way:
    plan = Plan("euler", student.grid, student.afs, {})
    return Way(
        "student",
        student.denoiser,
        fingerprint_of(student.denoiser),
        plan,
        student.calls,
        "its own grid",
        student.recipe,
    )
