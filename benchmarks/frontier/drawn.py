"""Images that the students drew, as rows: the same noise in each column, every method at its largest budget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import COLUMNS, SHOWN, UNSEEN
from halving import Known, Plan, winners
from points import most_trained, students

from onefold.bench.ways import FINE

Row = tuple[str, torch.Tensor]


def drawn_by_teacher(known: dict[str, Any], runs: Path) -> list[Row]:
    """Empty where the runs are not at hand."""
    path = runs / f"fine_{UNSEEN}_{known['count']}.npz"
    if not path.exists():
        return []
    return [(f"teacher\n{FINE[1]} calls", torch.from_numpy(np.load(path)["images"][:COLUMNS]))]


def drawn_by_students(known: dict[str, Any], runs: Path, calls: int) -> Iterator[Row]:
    """Of the first seed; those whose runs are not at hand are left out."""
    plan, cells, found = Plan(**known["plan"]), Known(known["cells"]), students(known)
    at = {
        (name, budget): cell
        for rung, budget in enumerate(plan.budgets)
        for (name, _), (cell, *_) in winners(plan, cells, rung).items()
        if calls in (row["calls"] for row in cells.by_cell[cell].get("rows", []))
    }
    for name in plan.entries:
        point = most_trained(found, name, calls)
        path = None if point is None else runs / at[name, point.budget].name / SHOWN
        if point is not None and path is not None and path.exists():
            yield f"{point.label}\n{point.fd:.2f}", torch.from_numpy(np.load(path)[str(calls)])


def all_drawn(known: dict[str, Any], runs: Path) -> list[Row]:
    """One picture's rows: the teacher, then the students from few calls to many."""
    told = [
        (f"{calls} call{'s' * (calls != 1)}: {label}", images)
        for calls in known["plan"]["calls"]
        for label, images in drawn_by_students(known, runs, calls)
    ]
    return [*drawn_by_teacher(known, runs), *told] if told else []
