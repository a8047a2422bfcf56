"""What `onefold advise` knows: the results of the bundled teachers without what only the tables need."""

from __future__ import annotations

import json
from typing import Any

from pairs import RESULTS
from points import Point, best, score_of, students

import onefold
from onefold.bench.measured import PATH
from onefold.files import atomic_file


def publish() -> None:
    with atomic_file(PATH) as draft:
        draft.write_text(json.dumps(published(), indent=1) + "\n")


def published() -> dict[str, Any]:
    paths = sorted(RESULTS.glob("frontier_*.json"))
    return {"teachers": [condensed(json.loads(path.read_text())) for path in paths]}


def condensed(known: dict[str, Any]) -> dict[str, Any]:
    teacher = onefold.load_teacher(known["teacher"], device="cpu")
    top = best(known)
    return {
        "name": known["teacher"],
        "shape": list(teacher.image_shape),
        "parameters": sum(parameter.numel() for parameter in teacher.module.parameters()),
        "measure": next(iter(top.rows[0]["scores"])),
        "images": known["count"],
        "floor": rounded(score_of(top.rows[0], "fd")["floor"]["value"]),
        "best": {"calls": top.calls, **quality(top)},
        "solvers": [of_solver(row) for row in known["controls"] if row["grid"] != "best"],
        "students": [of_student(point) for point in students(known)],
        "machine": known["machine"],
        "versions": known["versions"],
    }


def of_solver(row: dict[str, Any]) -> dict[str, Any]:
    names = {name: row[name] for name in ("solver", "grid", "calls")}
    return {**names, **quality(Point("solver", "", False, row["calls"], 0, [row]))}


def of_student(point: Point) -> dict[str, Any]:
    result = point.results[0]
    return {
        "method": point.entry,
        "label": point.label,
        "data": point.data,
        "calls": point.calls,
        "together": sorted(row["calls"] for row in result["rows"]),
        "budget": point.budget,
        **quality(point),
        "recall": rounded(point.mean("recall")),
        "seeds": len(point.rows),
        "seconds": round(point.cost("seconds")),
        "images": round(point.cost("images")),
        "stages": result["stages"],
    }


def quality(point: Point) -> dict[str, float]:
    return {"fd": rounded(point.mean("fd")), "spread": rounded(point.spread), "rmse": rounded(point.mean("rmse"))}


def rounded(value: float) -> float:
    return float(f"{value:.4g}")
