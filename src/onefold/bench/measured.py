"""What was measured of the methods on the bundled teachers (`benchmarks/frontier`), as a table to look things up in."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

PATH = Path(__file__).parent.parent / "assets" / "frontier.json"
ERRORS_APART = 2  # standard errors of a difference
DATA = "DATA"  # in settings: the images that the teacher learned from


@dataclass(frozen=True)
class Solver:
    """The teacher itself, which costs nothing."""

    solver: str
    grid: str
    calls: int
    fd: float
    rmse: float

    budget, data = 0, False

    @property
    def label(self) -> str:
        return f"no training: {self.solver} on {self.grid}"


@dataclass(frozen=True)
class Measured:
    """A method's best settings for a number of calls and a budget, in forward passes of the teacher; means over the seeds."""

    method: str
    label: str
    data: bool  # whether it learns from images
    calls: int
    budget: int
    fd: float
    rmse: float
    recall: float
    seeds: int
    seconds: int
    images: int
    stages: Sequence[dict[str, Any]]  # runs that follow each other: method, settings, share of the budget


@dataclass(frozen=True)
class Bench:
    """All of one teacher."""

    name: str
    shape: Sequence[int]
    parameters: int
    measure: str
    error: float  # standard error of a difference of two distances to the data
    best: dict[str, float]
    solvers: Sequence[Solver]
    students: Sequence[Measured]

    @property
    def counts(self) -> list[int]:
        return sorted({one.calls for one in self.students})

    @property
    def budgets(self) -> list[int]:
        return sorted({one.budget for one in self.students})

    def nearest(self, calls: int) -> int:
        """Of the numbers of calls that were measured."""
        return min(self.counts, key=lambda known: abs(math.log(known / calls)))

    def free(self, calls: int) -> list[Solver]:
        """The solver with the least distance to the data, and the one that is nearest to the teacher."""
        here = [one for one in self.solvers if one.calls == calls]
        fair, near = min(here, key=lambda one: one.fd), min(here, key=lambda one: one.rmse)
        return [fair] if fair is near else [fair, near]

    def options(self, calls: int, forwards: float) -> list[Measured | Solver]:
        return [*self.affordable(calls, forwards), *self.free(calls)]

    def affordable(self, calls: int, forwards: float) -> list[Measured]:
        """Of each method what it does with the largest budget that is not above this one; with less than any, the smallest."""
        found: dict[str, Measured] = {}
        for one in sorted(self.students, key=lambda one: one.budget):
            if one.calls == calls and (one.method not in found or one.budget <= forwards):
                found[one.method] = one
        return list(found.values())


class Scored(Protocol):
    """By its distance to the data and to the teacher's solution."""

    @property
    def fd(self) -> float: ...

    @property
    def rmse(self) -> float: ...


AnyScored = TypeVar("AnyScored", bound=Scored)


def fairest_first(options: Sequence[AnyScored], error: float) -> list[AnyScored]:
    """By distance to the data. Those that are within ERRORS_APART standard errors of the least cannot be told apart: of these the one nearest to the
    teacher comes first."""
    fair = sorted(options, key=lambda option: option.fd)
    tied = sum(option.fd <= fair[0].fd + ERRORS_APART * error for option in fair)
    return sorted(fair[:tied], key=lambda option: option.rmse) + fair[tied:]


@cache
def benches() -> list[Bench]:
    return [read(found) for found in json.loads(PATH.read_text(encoding="utf-8"))["teachers"]]


def read(found: dict[str, Any]) -> Bench:
    plain = {name: found[name] for name in ("name", "shape", "parameters", "measure", "error", "best")}
    solvers = [Solver(**one) for one in found["solvers"]]
    students = [Measured(**one) for one in found["students"]]
    return Bench(**plain, solvers=solvers, students=students)


def bench_like(shape: Sequence[int]) -> Bench:
    """Of the teacher whose images are nearest in size."""
    return nearest_in_size(benches(), shape)


def nearest_in_size(found: Sequence[Bench], shape: Sequence[int]) -> Bench:
    return min(found, key=lambda bench: abs(math.log(math.prod(bench.shape) / math.prod(shape))))
