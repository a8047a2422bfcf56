"""The frontier as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from points import Point, best, everything, paired_error, pareto, score_of, solver, solvers, students

from onefold.bench.measured import fairest_first
from onefold.progress import duration


def markdown(known: dict[str, Any]) -> Iterator[str]:
    """A part for each number of calls; what is on the frontier is bold, of either measure for itself."""
    plan, found = known["plan"], students(known)
    frontier = {measure: {key(point) for point in pareto(everything(known, measure), measure)} for measure in MEASURES}
    yield heading(known)
    yield ""
    columns = [f"{budget / 1000:,.0f}k forwards" for budget in plan["budgets"]]
    yield "| calls | method | data | " + " | ".join(columns) + " | seconds | recall |"
    yield "|---" * (5 + len(columns)) + "|"
    for calls in plan["calls"]:
        yield free(known, calls, frontier, len(columns))
        for name in plan["entries"]:
            points = [point for point in found if point.entry == name and point.calls == calls]
            if points:
                yield line(points, plan["budgets"], frontier)


MEASURES = ("fd", "rmse")


def short(known: dict[str, Any]) -> Iterator[str]:
    """The first at each number of calls, of all budgets, by the rule of `onefold advise`: of what is free, without images, and with them."""
    yield "| calls | no training | best student without images | best with images |"
    yield "|---|---|---|---|"
    found = students(known)
    error = paired_error(found)
    for calls in known["plan"]["calls"]:
        here = [point for point in found if point.calls == calls]
        kinds = [solvers(known, calls), [p for p in here if not p.data], [p for p in here if p.data]]
        yield (
            f"| {calls} | " + " | ".join(told(fairest_first(kind, error)[0]) if kind else "-" for kind in kinds) + " |"
        )


def told(point: Point) -> str:
    trained = f", {duration(point.cost('seconds'))}" if point.budget else ""
    return f"{point.fd:.2f} / {point.rmse:.3f} {point.label}{trained}"


def heading(known: dict[str, Any]) -> str:
    top = best(known)
    name = next(iter(top.rows[0]["scores"]))
    floor = score_of(top.rows[0], "fd")["floor"]
    return (
        f"`{name}` / RMSE to the teacher's fine solution, {known['count']:,} images. The teacher with {top.calls} calls: {top.fd:.2f} / "
        f"{top.rmse:.4f}; as many real images: {floor['value']:.2f}. Standard error of such a distance near the teacher's: {top.spread:.2f}; of "
        f"a difference of two, from the same noise: {paired_error(students(known)):.2f}."
    )


def key(point: Point) -> tuple[str, int, int]:
    return point.entry, point.calls, point.budget


def free(known: dict[str, Any], calls: int, frontier: dict[str, set[Any]], columns: int) -> str:
    fair, near = solver(known, calls, "fd"), solver(known, calls, "rmse")
    value = f"{bold(fair, 'fd', frontier)} / {bold(near, 'rmse', frontier)}"
    names = fair.label if fair.label == near.label else f"{fair.label}; {near.label}"
    return f"| {calls} | free: {names} | - | " + " | ".join([value, *["-"] * (columns + 1)]) + " |"


def line(points: Sequence[Point], budgets: Sequence[int], frontier: dict[str, set[Any]]) -> str:
    by_budget = {point.budget: point for point in points}
    cells = [cell(by_budget[budget], frontier) if budget in by_budget else "-" for budget in budgets]
    last = points[-1]
    told = [duration(last.cost("seconds")), f"{last.mean('recall'):.2f}"]
    return f"| {last.calls} | {last.label} | {'yes' if last.data else 'no'} | " + " | ".join([*cells, *told]) + " |"


def cell(point: Point, frontier: dict[str, set[Any]]) -> str:
    """Both means with half of the seeds' range."""
    seeds = "" if len(point.rows) > 1 else " (one seed)"
    return f"{bold(point, 'fd', frontier)} / {bold(point, 'rmse', frontier)}{seeds}"


def bold(point: Point, measure: str, frontier: dict[str, set[Any]]) -> str:
    digits = 2 if measure == "fd" else 3
    values = point.values(measure)
    text = f"{point.mean(measure):.{digits}f}"
    if key(point) in frontier[measure]:
        text = f"**{text}**"
    return text + (f" ± {(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else "")
