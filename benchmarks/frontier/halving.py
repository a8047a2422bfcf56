"""Which students to make next: successive halving of settings within each method, and of methods before the largest budget.

At the smallest budget every candidate of a method is tried with the first seed, at the next the better half, and so on; at each budget the
best one, by noise that the comparison does not see, is made with the other seeds too. At the largest budget only those methods go on that were
among the best few at as many calls, by distance to the data or to the teacher's solution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from cells import Cell
from entries import ENTRIES

Result = dict[str, Any]
Contestant = tuple[str, int]  # entry, calls of its student


@dataclass(frozen=True)
class Plan:
    """What is compared."""

    calls: Sequence[int]
    budgets: Sequence[int]
    seeds: Sequence[int]
    entries: Sequence[str]
    keep: int  # methods of each number of calls, by either measure, at the largest budget
    chosen: Sequence[Sequence[Any]] = ()  # entry, calls and candidate: these alone, as found on another teacher

    def contestants(self) -> list[Contestant]:
        if self.chosen:
            return [(name, calls) for name, calls, _ in self.chosen]
        found: list[Contestant] = []
        for name in self.entries:
            counts = [calls for calls in self.calls if calls in ENTRIES[name].counts]
            found += [(name, max(counts))] if ENTRIES[name].together else [(name, calls) for calls in counts]
        return found

    def candidates(self, contestant: Contestant) -> list[int]:
        if self.chosen:
            return [candidate for *one, candidate in self.chosen if tuple(one) == contestant]
        name, calls = contestant
        return list(range(len(ENTRIES[name].candidates(calls))))


def cell_of(result: Result) -> Cell:
    return Cell(*(result[name] for name in Cell.__dataclass_fields__))


def current(result: Result) -> bool:
    """Whether a candidate still is what it was when this was found."""
    candidates = ENTRIES[result["entry"]].candidates(result["calls"]) if result["entry"] in ENTRIES else []
    place = result["candidate"]
    return place < len(candidates) and result["stages"] == [asdict(stage) for stage in candidates[place]]


class Known:
    """What was found, by cell."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.by_cell = {cell_of(result): result for result in results if current(result)}

    def has(self, cell: Cell) -> bool:
        return cell in self.by_cell

    def choice(self, cell: Cell) -> float:
        """By what settings are chosen: the distance to the data times that to the teacher's solution, of a generator that does not imitate
        its teacher the first alone; the geometric mean over the numbers of calls. A run that failed is worst."""
        rows = self.by_cell[cell].get("rows", [])
        if not rows:
            return math.inf
        imitates = ENTRIES[cell.entry].imitates
        values = [row["choice"]["fd"] * (row["choice"]["rmse"] if imitates else 1) for row in rows]
        return fmean(map(math.log, values))

    def best_first(self, cells: Sequence[Cell]) -> list[Cell]:
        return sorted(cells, key=self.choice)


def upcoming(plan: Plan, known: Known) -> Iterator[Cell]:
    """All that are still to be made and whose turn has come: at each budget everyone's first seed before the others."""
    for rung in range(len(plan.budgets)):
        everyone = [cell for one in alive(plan, known, rung) for cell in due(one, plan, known, rung)]
        yield from sorted(
            (cell for cell in everyone if not known.has(cell)), key=lambda cell: plan.seeds.index(cell.seed)
        )


def due(contestant: Contestant, plan: Plan, known: Known, rung: int) -> list[Cell]:
    """Of one method at one budget: its candidates with the first seed; when they are known, the best with the others."""
    first = first_seeds(contestant, plan, known, rung)
    if not first or not all(map(known.has, first)):
        return first
    return first + other_seeds(known.best_first(first)[0], plan)


def first_seeds(contestant: Contestant, plan: Plan, known: Known, rung: int) -> list[Cell]:
    candidates = candidates_at(contestant, plan, known, rung)
    return [Cell(*contestant, plan.budgets[rung], candidate, plan.seeds[0]) for candidate in candidates]


def other_seeds(cell: Cell, plan: Plan) -> list[Cell]:
    return [replace(cell, seed=seed) for seed in plan.seeds[1:]]


def candidates_at(contestant: Contestant, plan: Plan, known: Known, rung: int) -> list[int]:
    """Of the last budget's the better half; none before that is known. The last budget of three or more has one."""
    if rung == 0:
        return plan.candidates(contestant)
    tried = first_seeds(contestant, plan, known, rung - 1)
    if not tried or not all(map(known.has, tried)):
        return []
    last = rung == len(plan.budgets) - 1 and rung > 1
    return [cell.candidate for cell in known.best_first(tried)[: 1 if last else math.ceil(len(tried) / 2)]]


def winners(plan: Plan, known: Known, rung: int) -> dict[Contestant, list[Cell]]:
    """The best settings of each method at a budget, with as many seeds as are known."""
    found: dict[Contestant, list[Cell]] = {}
    for contestant in plan.contestants():
        first = [cell for cell in first_seeds(contestant, plan, known, rung) if known.has(cell)]
        if first:
            best = known.best_first(first)[0]
            found[contestant] = [cell for cell in (best, *other_seeds(best, plan)) if known.has(cell)]
    return found


def alive(plan: Plan, known: Known, rung: int) -> list[Contestant]:
    """Who goes on at this budget."""
    everyone = plan.contestants()
    if rung == 0 or rung < len(plan.budgets) - 1:
        return everyone
    before = [due(one, plan, known, rung - 1) for one in everyone]
    if not all(found and all(map(known.has, found)) for found in before):  # who goes on depends on all of them
        return []
    going = best_few(winners(plan, known, rung - 1), plan, known)
    return [contestant for contestant in everyone if contestant in going]


def best_few(found: dict[Contestant, list[Cell]], plan: Plan, known: Known) -> set[Contestant]:
    measures = ("fd", "rmse")
    return {
        one for calls in plan.calls for measure in measures for one in ranked(found, known, calls, measure)[: plan.keep]
    }


def ranked(before: dict[Contestant, list[Cell]], known: Known, calls: int, measure: str) -> list[Contestant]:
    values: dict[Contestant, float] = {}
    for contestant, found in before.items():
        rows = [row for cell in found for row in known.by_cell[cell].get("rows", []) if row["calls"] == calls]
        if rows:
            values[contestant] = fmean(row["choice"][measure] for row in rows)
    return sorted(values, key=lambda contestant: values[contestant])


def finalists(plan: Plan, known: Known) -> list[tuple[str, int, int]]:
    """The best few of each number of calls, by either measure, with their settings at the largest budget that is known of each."""
    latest: dict[Contestant, list[Cell]] = {}
    for rung in range(len(plan.budgets)):
        latest.update(winners(plan, known, rung))
    going = best_few(latest, plan, known)
    return [
        (name, calls, latest[name, calls][0].candidate) for name, calls in plan.contestants() if (name, calls) in going
    ]
