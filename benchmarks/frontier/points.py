"""What the cells come to: a point for each method, number of calls and budget, with its best settings and all of its seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

from entries import ENTRIES
from halving import Known, Plan, Result, winners


@dataclass(frozen=True)
class Point:
    """Of one number of calls; what is free has no budget."""

    entry: str
    label: str
    data: bool
    calls: int
    budget: int
    rows: Sequence[dict[str, Any]]  # what was measured, one a seed
    results: Sequence[Result] = ()  # the whole results that these are of

    def values(self, measure: str) -> list[float]:
        """rmse, or the first of the scores by that name: fd, precision, recall, or fd[pixels]."""
        if measure == "rmse":
            return [row["rmse"] for row in self.rows]
        return [score_of(row, measure)["value"] for row in self.rows]

    def mean(self, measure: str) -> float:
        return fmean(self.values(measure))

    @property
    def fd(self) -> float:
        return self.mean("fd")

    @property
    def rmse(self) -> float:
        return self.mean("rmse")

    @property
    def spread(self) -> float:
        """The standard error of a Fréchet distance of so many images."""
        return fmean(score_of(row, "fd")["spread"] for row in self.rows)

    def cost(self, name: str) -> float:
        return fmean(result["cost"][name] for result in self.results) if self.results else 0.0


def score_of(row: dict[str, Any], measure: str) -> dict[str, Any]:
    found: dict[str, Any] = next(score for name, score in row["scores"].items() if name.startswith(measure))
    return found


def students(known: dict[str, Any]) -> list[Point]:
    plan = Plan(**known["plan"])
    cells = Known(known.get("cells", []))
    return [
        point
        for rung in range(len(plan.budgets))
        for (name, _), found in winners(plan, cells, rung).items()
        for point in of_results(name, [cells.by_cell[cell] for cell in found])
    ]


def of_results(name: str, results: Sequence[Result]) -> Iterator[Point]:
    entry = ENTRIES[name]
    whole = [result for result in results if "rows" in result]
    for calls in sorted({row["calls"] for result in whole for row in result["rows"]}):
        rows = [row for result in whole for row in result["rows"] if row["calls"] == calls]
        yield Point(name, entry.label, entry.data, calls, whole[0]["budget"], rows, whole)


def best(known: dict[str, Any]) -> Point:
    """The teacher, with as many calls as it ever needs."""
    row = next(row for row in known["controls"] if row["grid"] == "best")
    return Point("best", f"teacher, {row['solver']}", False, row["calls"], 0, [row])


def solvers(known: dict[str, Any], calls: int) -> list[Point]:
    rows = [row for row in known["controls"] if row["calls"] == calls and row["grid"] != "best"]
    return [Point("solver", f"{row['solver']} on {row['grid']}", False, calls, 0, [row]) for row in rows]


def solver(known: dict[str, Any], calls: int, measure: str) -> Point:
    """The best one of all at so many calls, by this measure."""
    return min(solvers(known, calls), key=lambda point: point.mean(measure))


def most_trained(found: Sequence[Point], name: str, calls: int) -> Point | None:
    """With the most training; the least distance of several would be so by chance."""
    points = [point for point in found if point.entry == name and point.calls == calls]
    return max(points, key=lambda point: point.budget, default=None)


def pareto(points: Sequence[Point], measure: str) -> list[Point]:
    """Those that none is better than for as few calls and as little training."""

    def beaten(point: Point) -> bool:
        return any(
            other.calls <= point.calls and other.budget <= point.budget and other.mean(measure) < point.mean(measure)
            for other in points
        )

    return [point for point in points if not beaten(point)]


def everything(known: dict[str, Any], measure: str) -> list[Point]:
    """All students, and at each number of calls the best that is free."""
    return [*students(known), *(solver(known, calls, measure) for calls in known["plan"]["calls"])]


def paired_error(found: Sequence[Point]) -> float:
    """Of a difference of two students' distances to the data, from the same noise: how much more the differences between two sets of noise
    vary than their common part, over the better half of all students."""
    rows = sorted((row for point in found for row in point.rows), key=lambda row: score_of(row, "fd")["value"])
    changes = [score_of(row, "fd")["value"] - row["choice"]["fd"] for row in rows[: len(rows) // 2]]
    return pstdev(changes)  # of one student at two sets, as much as of two students at one
