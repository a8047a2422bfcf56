"""Comparisons on exact teachers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from onefold.bench.solvers import compare_solvers, grids_for
from onefold.denoiser import GaussianMixture
from onefold.process import EDM, DiscreteVP, Flow, Process, beta_table

PROCESSES = [EDM(), Flow(), DiscreteVP.from_betas(beta_table("linear"))]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_solvers_are_compared_on_an_exact_teacher(process: Process, tmp_path: Path) -> None:
    means = torch.linspace(-0.8, 0.8, 3 * 16, dtype=torch.float64).reshape(3, 1, 4, 4)
    teacher = GaussianMixture(means, 0.2, labels=[0, 1, 2], process=process)
    seen: list[tuple[int, int | None]] = []
    comparison = compare_solvers(
        teacher, count=4, out=tmp_path, quick=True, progress=lambda done, total, **_: seen.append((done, total))
    )
    assert comparison.accuracy < 0.02
    assert {entry.grid for entry in comparison.entries} == set(grids_for(process))
    assert all(entry.counted <= entry.calls for entry in comparison.entries)
    assert comparison.best(8).distance < comparison.best(4).distance
    assert sum(cell.endswith("*") for row in comparison.cells() for cell in row) == len(comparison.calls)
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1]
    assert json.loads(json.dumps(comparison.as_dict()))["count"] == 4
    with Image.open(tmp_path / "solvers.png") as picture:
        assert picture.format == "PNG"
