"""docs/adding-a-teacher.md: its program is complete, and the whole house takes what it makes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import onefold
from onefold.cli import main
from onefold.errors import UserError
from onefold.student import load_student
from onefold.teachers import load_teacher
from onefold.teachers.folders import FAMILIES

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-teacher.md"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 1
    (tmp_path / "mine.py").write_text(blocks[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def test_its_function_is_a_teacher_and_has_students(here: Path) -> None:
    words = ["distill", "mine:teacher", "--calls", "2", "--budget", "64", "--out", "runs/mine2", "--device", "cpu"]
    command = [sys.executable, "-m", "onefold", *words, "--set", "watched=4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment, cwd=here)
    assert done.returncode == 0, done.stderr
    with pytest.raises(UserError, match=r"give its teacher: load_student\(folder, teacher="):
        load_student("runs/mine2", device="cpu")
    student = load_student("runs/mine2", teacher="mine:teacher", device="cpu")
    assert (student.calls, student.name) == (2, "mine2")
    assert student.sample(3).shape == (3, 1, 8, 8)
    again = load_student("runs/mine2", teacher=load_teacher("mine:teacher", device="cpu"), device="cpu")
    assert torch.equal(again.sample(3), student.sample(3))
    with pytest.raises(UserError, match="is no network of diffusers"):
        student.export("out")
    assert "Ship it" not in done.stdout and "--teacher mine:teacher" in done.stdout
    assert 'teacher="package.module:function"' in Path("runs/mine2/student/README.md").read_text()
    for words in (
        ["sample", "runs/mine2", "--teacher", "mine:teacher", "--count", "2"],
        ["evaluate", "runs/mine2", "--teacher", "mine:teacher", "--count", "4", "--metrics", "rmse"],
        [
            "compare",
            "mine:teacher",
            "runs/mine2",
            "--count",
            "4",
            "--calls",
            "2",
            "--solvers",
            "euler",
            "--grids",
            "auto",
        ],
    ):
        assert main([*words, "--device", "cpu"]) == 0
    with pytest.raises(UserError, match="holds weights of a network of your own"):
        load_teacher("runs/mine2", device="cpu")


def test_a_denoiser_without_a_folder_has_students_too(here: Path) -> None:
    torch.manual_seed(0)
    teacher = load_teacher("mine:teacher", device="cpu")
    how = {"calls": 1, "budget": "32", "batch_size": 16, "watched": 4, "device": "cpu"}
    student = onefold.distill(teacher, "sfd", out=here / "run", **how)
    assert student.recipe["teacher"]["sha256"] == teacher.card["sha256"]
    compared = onefold.compare([teacher, student], out=here / "compared", calls=(1,), count=8, device="cpu")
    assert {row["kind"] for row in compared.rows} == {"solver", "best", "student"}
    assert all("rmse" in row["scores"] for row in compared.rows)  # the student's teacher was recognised
    with pytest.raises(UserError, match="does not fit the network"):
        load_student(here / "run", teacher=load_teacher("digits8", device="cpu"), device="cpu")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("mine:teacherz", "did you mean 'teacher'"),
        ("missing_module:teacher", "needs module 'missing_module'"),
        ("mine:call", "takes|missing"),
        ("mine:Network", "gives a Network, expected a Denoiser"),
    ],
)
def test_mistakes_are_one_sentence(here: Path, source: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_teacher(source, device="cpu")


def test_the_page_names_every_family() -> None:
    text = PAGE.read_text()
    assert all(f"`{name}`" in text for name in FAMILIES)
