"""docs/adding-a-method.md: its program is complete, learns what it says, and keeps the rules that stand below it."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import onefold
from onefold.losses import root_mean_square
from onefold.methods import METHODS
from onefold.settings import build
from onefold.teachers import load_teacher
from onefold.training.contract import Batch, Draw

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-method.md"


def write_program(folder: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 1
    (folder / "endpoint.py").write_text(blocks[0])


def run(*words: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_program_runs_and_its_student_comes_nearer_to_the_teacher(tmp_path: Path) -> None:
    """On noise and labels that neither training nor validation has seen, and without the method being known here."""
    write_program(tmp_path)
    assert "endpoint of digits8" in run("endpoint.py", folder=tmp_path)
    assert "endpoint" not in METHODS
    student = onefold.load_student(tmp_path / "runs" / "endpoint", device="cpu")
    assert student.calls == 1 and student.recipe["cost"]["images"] == 1024
    teacher = load_teacher("digits8", device="cpu")
    ends = onefold.sample(teacher, 32, solver="dpmpp3m", calls=8, seed=1)
    untrained = onefold.sample(teacher, 32, solver="euler", calls=1, seed=1)
    assert root_mean_square(student.sample(32, seed=1), ends) < 0.65 * root_mean_square(untrained, ends)


def test_the_command_line_knows_it_once_its_module_is_imported(tmp_path: Path) -> None:
    write_program(tmp_path)
    line = re.search(r'^python -c "(.*?)" distill', PAGE.read_text(), re.MULTILINE)
    assert line is not None
    assert "teacher steps in one student step" in run("-c", line[1], "methods", "endpoint", folder=tmp_path)


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    write_program(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, "endpoint", ("", "", ""))  # taken out again at the end
    return importlib.import_module("endpoint")


def test_it_keeps_the_rules(endpoint: ModuleType) -> None:
    """One update a batch, marked for the averages, and the same gradient however the batch is cut."""
    settings = build(endpoint.EndpointSettings, {"teacher": "digits8", "out": "x", "calls": 2, "parts": 2})
    method = endpoint.Endpoint(load_teacher("digits8", device="cpu"), settings)
    method.networks["student"].eval()  # dropout is the exception
    gradients: list[Tensor] = []
    for cuts in ([range(4)], [range(2), range(2, 4)]):
        method.optimizers["main"].zero_grad()
        for rows in cuts:
            (update,) = method.updates(Batch(0, 0.0, method.prepare(Draw(0, 0, rows, 4))))
            (update.loss / len(cuts)).backward()
            assert update.ema
        gradients.append(torch.cat([p.grad.flatten() for p in method.networks["student"].parameters()]))
    whole, parts = gradients
    assert whole.norm() > 0 and torch.allclose(whole, parts, atol=1e-5)
    assert all(p.grad is None for p in method.teacher.module.parameters())
