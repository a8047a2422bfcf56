"""Comparisons on exact teachers."""

from __future__ import annotations

import json

import pytest
import torch

from onefold.bench.convergence import Probe, calls_of_comparison, converge, grids_for
from onefold.denoiser import GaussianMixture
from onefold.process import EDM, DiscreteVP, Flow, Process, beta_table

PROCESSES = [EDM(), Flow(), DiscreteVP.from_betas(beta_table("linear"))]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_solvers_are_compared_on_an_exact_teacher(process: Process) -> None:
    means = torch.linspace(-0.8, 0.8, 3 * 16, dtype=torch.float64).reshape(3, 1, 4, 4)
    teacher = GaussianMixture(means, 0.2, labels=[0, 1, 2], process=process)
    seen: list[tuple[int, int | None]] = []
    solvers, calls, fine = ("euler", "dpmpp2m", "unipc2"), (4, 8), 48
    budget = calls_of_comparison(solvers, calls, fine)
    probe = Probe(teacher, 4, 0, budget, lambda done, total, **_: seen.append((done, total)))
    found, reference, images = converge(probe, solvers, calls, fine)
    assert found.accuracy < 0.02
    assert {entry.grid for entry in found.entries} == set(grids_for(process))
    assert all(entry.counted <= entry.calls for entry in found.entries)
    assert found.best(8).distance < found.best(4).distance
    assert sum(cell.endswith("*") for row in found.cells() for cell in row) == len(found.calls)
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] == budget
    assert json.loads(json.dumps(found.as_dict()))["count"] == 4
    best = found.best(8)
    assert best.distance == pytest.approx(float((images[best] - reference).square().mean().sqrt()), rel=1e-5)
