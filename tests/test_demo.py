"""The demo: the whole way from a bundled teacher to a folder for plain diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from onefold.bench.ways import BEST
from onefold.cli import main
from onefold.cli.evaluate import cell
from onefold.demo import run
from onefold.teachers import load_teacher


def test_the_demo_goes_the_whole_way(tmp_path: Path) -> None:
    teacher = load_teacher("digits8", device="cpu")
    said: list[str] = []
    demo = run(teacher, out=tmp_path, calls=2, budget="96", count=20, tell=said.append)
    rows = demo.comparison.rows
    # three solvers on three grids, at half, at once and at twice the calls of the student
    assert sorted(row["calls"] for row in rows) == [1] * 9 + [2] * 10 + [4] * 9 + [BEST[1]]
    assert demo.student_row["calls"] == 2 and demo.trained["images"] == 96
    solvers = [row["scores"]["rmse"]["value"] for row in rows if row["kind"] == "solver" and row["calls"] == 2]
    assert demo.ratio("rmse") == min(solvers) / demo.student_row["scores"]["rmse"]["value"]
    with Image.open(demo.comparison.picture) as picture:
        assert picture.width > picture.height
    assert demo.comparison.report.read_text().startswith("<!")
    assert (Path(demo.export) / "model_index.json").is_file() and (Path(demo.student) / "student").is_dir()
    assert any("expected" not in line and "distilling" in line for line in said)


def test_the_command_ends_with_a_table_and_can_be_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "--teacher", "digits8", "--calls", "1", "--budget", "64", "--count", "2", "--out", str(tmp_path)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "student" in printed and str(tmp_path / "report.html") in printed
    assert "euler on karras, 1 call" in printed and ", 2 calls" not in printed  # short: the student's own calls
    assert main([*words, "--json"]) == 0  # nothing is trained twice: the run was finished
    again = json.loads(capsys.readouterr().out)
    assert again["trained"]["images"] == 64
    student = next(row for row in again["comparison"]["rows"] if row["kind"] == "student")
    assert cell(student["scores"]["rmse"]) in printed
