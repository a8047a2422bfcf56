"""The demo: the whole way from a bundled teacher to a folder for plain diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from onefold.cli import main
from onefold.demo import MANY, run
from onefold.teachers import load_teacher


def test_the_demo_goes_the_whole_way(tmp_path: Path) -> None:
    teacher = load_teacher("digits8", device="cpu")
    said: list[str] = []
    demo = run(teacher, out=tmp_path, calls=2, budget="96", count=6, tell=said.append)
    distances = [row.distance for row in demo.rows]
    assert distances == sorted(distances) and demo.accuracy < min(distances)
    assert {row.calls for row in demo.rows} == {2, MANY} and sum(row.calls == MANY for row in demo.rows) == 1
    assert demo.student_row.calls == 2 and demo.trained["images"] == 96
    assert demo.ratio == demo.best_solver.distance / demo.student_row.distance
    with Image.open(demo.picture) as picture:
        assert picture.width > picture.height
    assert (Path(demo.export) / "model_index.json").is_file() and (Path(demo.student) / "student").is_dir()
    assert any("expected" not in line and "distilling" in line for line in said)


def test_the_command_ends_with_a_table_and_can_be_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "--teacher", "digits8", "--calls", "1", "--budget", "64", "--count", "2", "--out", str(tmp_path)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "student" in printed and str(tmp_path / "demo.png") in printed
    assert main([*words, "--json"]) == 0  # nothing is trained twice: the run was finished
    again = json.loads(capsys.readouterr().out)
    assert again["trained"]["images"] == 64
    student = next(row for row in again["rows"] if row["who"] == "student")
    assert f"{student['distance']:.4f}" in printed
