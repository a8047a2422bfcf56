"""What `onefold advise` knows: the results of the bundled teachers without what only the tables need."""

from __future__ import annotations

import json
from typing import Any

from entries import ENTRIES
from pairs import RESULTS
from points import Point, best, paired_error, students

import onefold
from onefold.bench.measured import PATH
from onefold.files import atomic_file
from onefold.grids import usual_schedule
from onefold.teachers import bundled


def publish() -> None:
    with atomic_file(PATH) as draft:
        draft.write_text(json.dumps(published(), indent=1) + "\n")


def published() -> dict[str, Any]:
    """Of those teachers that everyone has."""
    paths = [RESULTS / f"frontier_{name}.json" for name in bundled()]
    return {"teachers": [condensed(json.loads(path.read_text())) for path in paths if path.exists()]}


def condensed(known: dict[str, Any]) -> dict[str, Any]:
    teacher = onefold.load_teacher(known["teacher"], device="cpu")
    top, found = best(known), [point for point in students(known) if not ENTRIES[point.entry].together]
    usual = usual_schedule(teacher.process)
    return {
        "name": known["teacher"],
        "shape": list(teacher.image_shape),
        "parameters": sum(parameter.numel() for parameter in teacher.module.parameters()),
        "measure": next(iter(top.rows[0]["scores"])),
        "error": rounded(paired_error(found)),
        "best": {"calls": top.calls, **quality(top)},
        "solvers": [of_solver(row, usual) for row in known["controls"] if row["grid"] != "best"],
        "students": [of_student(point) for point in found],
        "machine": known["machine"],
        "versions": known["versions"],
    }


def of_solver(row: dict[str, Any], usual: str) -> dict[str, Any]:
    names = {"solver": row["solver"], "grid": "auto" if row["grid"] == usual else row["grid"], "calls": row["calls"]}
    return {**names, **quality(Point("solver", "", False, row["calls"], 0, [row]))}


def of_student(point: Point) -> dict[str, Any]:
    result = point.results[0]
    return {
        "method": point.entry,
        "label": point.label,
        "data": point.data,
        "calls": point.calls,
        "budget": point.budget,
        **quality(point),
        "recall": rounded(point.mean("recall")),
        "seeds": len(point.rows),
        "seconds": round(point.cost("seconds")),
        "images": round(point.cost("images")),
        "stages": result["stages"],
    }


def quality(point: Point) -> dict[str, float]:
    return {"fd": rounded(point.fd), "rmse": rounded(point.rmse)}


def rounded(value: float) -> float:
    return float(f"{value:.4g}")
