"""Pictures of the frontier: quality against calls, and against training at each number of calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from points import Point, best, everything, most_trained, pareto, solver, students

COLOURS = {
    "sfd": "#1f4e9c",
    "sfd_v": "#4f8fdb",
    "second": "#12b5cb",
    "sfddm": "#8a8a8a",
    "rollout": "#1b7837",
    "rollout_free": "#7fbf7b",
    "progressive": "#8c6d31",
    "consistency": "#d95f02",
    "consistency_free": "#fdae61",
    "tuning": "#e7298a",
    "gdd": "#b2182b",
    "gdd_i": "#ef6548",
}
AXES = {"fd": "distance to the data", "rmse": "RMSE to the teacher's fine solution"}


def plot(known: dict[str, Any], measure: str, path: Path) -> None:
    """Left: by calls, each method's largest budget. Right: by training, a panel for each number of calls."""
    plan = known["plan"]
    figure = plt.figure(figsize=(12.5, 6.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    found, front = students(known), pareto(everything(known, measure), measure)
    by_calls(left.subplots(), known, measure, found, front)
    count = len(plan["calls"])
    panels = list(right.subplots(-(-count // 2), 2, sharey=True, sharex=True, squeeze=False).flat)
    for axes, calls in zip(panels[:count], plan["calls"], strict=True):
        by_training(axes, known, measure, calls, found, front)
    for axes in panels[count:]:
        axes.set_visible(False)
    right.supxlabel("training, in thousands of the teacher's forward passes", fontsize=9)
    name = known["teacher"]
    finished(
        figure, f"{name}: which method pays? Ringed: nothing is better for as few calls and as little training", path
    )


def overview(known: dict[str, Any], path: Path) -> None:
    """Both measures by calls, side by side."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    found = students(known)
    for axes, measure in zip(panels, AXES, strict=True):
        by_calls(axes, known, measure, found, pareto(everything(known, measure), measure))
        axes.set_title({"fd": "like the data", "rmse": "like the teacher, from the same noise"}[measure], fontsize=10)
    finished(figure, f"{known['teacher']}: methods at their largest budget, beside the teacher's best solver", path)


def finished(figure: Figure, title: str, path: Path) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def by_calls(axes: Axes, known: dict[str, Any], measure: str, found: Sequence[Point], front: Sequence[Point]) -> None:
    plan = known["plan"]
    for name in plan["entries"]:
        points = [most_trained(found, name, calls) for calls in plan["calls"]]
        draw(axes, [(point.calls, point) for point in points if point], measure, name, front)
    free = [solver(known, calls, measure) for calls in plan["calls"]]
    axes.plot(
        plan["calls"],
        [point.mean(measure) for point in free],
        color="black",
        lw=1,
        ls=":",
        marker="x",
        label="best solver, free",
    )
    finish(axes, known, measure)
    axes.set(
        xscale="log", xticks=plan["calls"], xticklabels=plan["calls"], xlabel="network calls", ylabel=AXES[measure]
    )
    axes.set_title("at its largest budget", fontsize=9)
    top = best(known)
    axes.annotate(
        f"teacher, {top.calls} calls",
        (0.01, top.mean(measure)),
        xycoords=("axes fraction", "data"),
        va="bottom",
        fontsize=7,
        color="0.4",
    )
    axes.xaxis.set_minor_locator(NullLocator())


def by_training(
    axes: Axes, known: dict[str, Any], measure: str, calls: int, found: Sequence[Point], front: Sequence[Point]
) -> None:
    for name in known["plan"]["entries"]:
        points = [(p.budget / 1000, p) for p in found if p.entry == name and p.calls == calls]
        draw(axes, points, measure, name, front)
    axes.axhline(solver(known, calls, measure).mean(measure), color="black", lw=1, ls=":")
    finish(axes, known, measure)
    budgets = [budget / 1000 for budget in known["plan"]["budgets"]]
    axes.set(xscale="log", xticks=budgets, xticklabels=[f"{budget:g}" for budget in budgets])
    axes.set_title(f"{calls} call{'s' * (calls != 1)}", fontsize=9)
    axes.xaxis.set_minor_locator(NullLocator())


def draw(axes: Axes, points: Sequence[tuple[float, Point]], measure: str, name: str, front: Sequence[Point]) -> None:
    """Dashed if it learns from data; the bar is the seeds' range."""
    if not points:
        return
    places, values = [place for place, _ in points], [point.mean(measure) for _, point in points]
    ranges = [
        [value - min(p.values(measure)) for value, (_, p) in zip(values, points, strict=True)],
        [max(p.values(measure)) - value for value, (_, p) in zip(values, points, strict=True)],
    ]
    first = points[0][1]
    axes.errorbar(
        places,
        values,
        ranges,
        color=COLOURS[name],
        lw=1.4,
        ms=4,
        marker="o",
        elinewidth=0.8,
        ls="--" if first.data else "-",
        label=first.label + (" (data)" if first.data else ""),
    )
    ringed = [(place, value) for place, value, (_, point) in zip(places, values, points, strict=True) if point in front]
    axes.plot([place for place, _ in ringed], [value for _, value in ringed], "o", ms=10, mfc="none", mec=COLOURS[name])


def finish(axes: Axes, known: dict[str, Any], measure: str) -> None:
    axes.axhline(best(known).mean(measure), color="0.6", lw=1, ls="--")
    axes.set(yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.2)
