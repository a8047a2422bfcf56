"""Images that the students drew, as rows: the same noise in each column, every method at its largest budget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import COLUMNS, SHOWN, UNSEEN
from halving import cell_of
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
    found = students(known)
    for point in filter(None, (most_trained(found, name, calls) for name in known["plan"]["entries"])):
        path = runs / cell_of(point.results[0]).name / SHOWN
        if path.exists():
            yield f"{point.label}\n{point.fd:.2f}", torch.from_numpy(np.load(path)[str(calls)])


def all_drawn(known: dict[str, Any], runs: Path) -> list[Row]:
    """One picture's rows: the teacher, then the students from few calls to many."""
    told = [
        (f"{calls} call{'s' * (calls != 1)}: {label}", images)
        for calls in known["plan"]["calls"]
        for label, images in drawn_by_students(known, runs, calls)
    ]
    return [*drawn_by_teacher(known, runs), *told] if told else []
