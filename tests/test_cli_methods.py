"""The commands around methods of several kinds: data, folds, controls, settings, and the recipe's command read back."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import small
from onefold.cli import distill as commands
from onefold.cli import main
from onefold.cli.running import gather
from onefold.distilling import choose
from onefold.methods import METHODS, find
from onefold.methods.chain import STRIDED
from onefold.teachers.own import with_form

QUICK = ("--budget", "32", "--batch-size", "16", "--device", "cpu", "--set", "watched=4")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- what is printed --------------------------------------------------------------------------------------------------


def test_help_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert f"How: {', '.join(METHODS)} (sfd)" in words and "--data" in words


@pytest.mark.parametrize("method", METHODS)
def test_the_settings_of_a_method_fit_the_terminal(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Long meanings go on below; each setting is there once, with its whole meaning."""
    assert main(["methods", method]) == 0
    table = capsys.readouterr().out.partition("\n\n--preset")[0].splitlines()
    assert max(map(len, table)) <= 120
    begin = table[0].index("meaning")
    found, name = dict[str, str](), ""
    for line in table[2:]:
        name = line.split(" ", 1)[0] or name
        found[name] = f"{found.get(name, '')} {line[begin:]}".strip()
    fields = find(method)[1].model_fields
    assert found == {name: " ".join(field.description.split()) for name, field in fields.items()}
    assert re.search(rf"^method +{method} ", "\n".join(table), re.MULTILINE)


def test_a_run_of_folds_tells_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", "digits8", "--method", "progressive", "--calls", "1", "--set", "start=4", *QUICK]
    assert main([*words, "--data", "digits", "--out", "run"]) == 0
    said = capsys.readouterr()
    assert re.search(
        r"^A student of 1 call is in run/student \(64 images in 2 folds, \d+ s\)\.$", said.out, re.MULTILINE
    )
    recipe = json.loads(Path("run/student/student.json").read_text())
    solvers, best = recipe["evidence"]["solvers"], recipe["evidence"]["best_solver"]
    distances = (
        f"student {recipe['evidence']['student']:.4f}, DDIM of the teacher on its levels {solvers[STRIDED]:.4f}, "
        f"best solver at as many calls {solvers[best]:.4f} ({best})."
    )
    assert distances in said.out
    told = [line for line in said.err.splitlines() if line.startswith(("stage", "fold", "finished"))]
    assert [line.split(",")[0] for line in told] == [
        "stage 1 of 2",
        "fold: 4 steps become 2",
        told[2].split(",")[0],
        "stage 2 of 2",
        "fold: 2 steps become 1",
    ]
    assert re.fullmatch(r"finished: 32 images in \d+ s, run/folds/0002/student", told[2])
    page = Path("run/student/README.md").read_text()
    assert "distilled with progressive distillation" in page and "64 images in 2 folds" in page
    assert "folds" not in Path("run/folds/0002/student/README.md").read_text().partition("| cost |")[2].splitlines()[0]


def test_a_run_of_one_fold_shows_the_strided_teacher_too(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", "digits8", "--method", "sfddm", "--calls", "2", "--set", "parts=2", *QUICK]
    assert main([*words, "--data", "digits", "--out", "run"]) == 0
    said = capsys.readouterr()
    assert "(32 images, " in said.out and "DDIM of the teacher on its levels 0." in said.out
    assert "our extension of SFDDM" in said.err and "stage" not in said.err
    assert "distilled with SFDDM" in Path("run/student/README.md").read_text()


def test_the_name_of_the_control_is_the_method_s_own() -> None:
    assert commands.STRIDED == STRIDED


def test_plan_is_of_each_fold_and_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "digits8", "--method", "progressive", "--calls", "1", "--set", "start=4", *QUICK]
    assert main([*words, "--data", "digits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" in ")[0] for line in lines] == [
        "stage 1, expected: 32 images",
        "stage 2, expected: 32 images",
        "all 2 stages: 64 images",
    ]
    assert main([*words, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["images"] == 64 and [stage["calls"]["teacher"] for stage in planned["stages"]] == [4, 2]


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--data", "digits"],
            "method 'sfd' has no setting 'data'; leave it out, or use sfddm or gdd or progressive or consistency",
        ),
        (["--set", "phi=uniform"], "method 'sfd' has no setting 'phi'; leave it out, or use sfddm"),
        (["--method", "sfddm", "--set", "start=8"], "method 'sfddm' has no setting 'start'; .* use progressive"),
        (["--method", "progressive", "--set", "strat=8"], "unknown setting 'strat'; did you mean 'start'"),
        (["--method", "progressiv"], "unknown method 'progressiv'; did you mean 'progressive'"),
        (["--method", "progressive", "--set", "start=24"], "start=24 does not come to 4 calls"),
        (["--method", "progressive", "--set", "states=data"], "states=data needs images; give data"),
        (["--method", "progressive", "--set", "flip=true"], "flip mirrors data, and none is given"),
        (["--method", "sfddm", "--data", "nowhere"], "nowhere"),
        (["--method", "sfddm", "--data", "digits", "--set", "states=teacher"], "states=teacher needs no data"),
    ],
    ids=str,
)
def test_mistakes(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "digits8", *words, "--device", "cpu", "--out", "run"]) == 2
    told = capsys.readouterr()
    errors = [line for line in told.err.splitlines() if line.startswith("Error: ")]
    assert not told.out and len(errors) == 1 and re.search(said, errors[0]), told.err
    assert main(["plan", "digits8", *words, "--device", "cpu"]) == 2


# --- the recipe's command ---------------------------------------------------------------------------------------------


def read_back(command: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings that the command line makes of it."""
    words, seen = shlex.split(command), list[dict[str, Any]]()
    monkeypatch.setattr(commands, "run", lambda values, as_json: seen.append(values))
    assert words[0] == "onefold" and main(words[1:]) == 0
    return choose(seen[0])


GIVEN: list[dict[str, Any]] = [
    {"method": "progressive"},
    {"method": "progressive", "calls": 2, "start": 18, "factor": 3, "grid": "subsequence", "budget": "512"},
    {"method": "progressive", "data": "digits", "flip": True, "weight": "v", "ema_half_life": None, "seed": 3},
    {"method": "progressive", "guidance": 2.5, "states": "teacher", "lora": 4, "lora_targets": ["to_q", "to_v"]},
    {"method": "sfddm", "calls": 3, "phi": [1, 300, 1000]},
    {"method": "sfddm", "calls": 5, "phi": "concentrated:0.4", "data": "digits", "parts": 1, "budget": "2m"},
    {"method": "sfddm", "preset": "official", "data": "my images", "calls": 2, "feature_weight": 0.0, "loss": "l2"},
    {"method": "sfddm", "preset": "paper", "data": "teacher:digits8", "ema_share": 0.2, "batch_size": 8},
    {"method": "sfddm", "calls": 2, "widths": [8, 16], "layers": 1, "time_lr": 30.0, "lr": 1e-4},
    {
        "method": "sfddm",
        "levels": 1000,
        "time": "teacher",
        "begin": "random",
        "precision": "bf16",
        "sample_every": "96",
    },
]


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_the_command_makes_the_same_settings(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = choose({"teacher": "small:teacher", "out": "a folder/run", "device": "auto", **given})
    made = object.__new__(find(given["method"])[0])
    made.settings = settings
    assert read_back(made.command, monkeypatch) == settings
    assert ("--data" in shlex.split(made.command)) == ("data" in given)


def test_the_command_of_a_fold_makes_that_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The students on the way have recipes of their own: a run that ends with them."""
    whole = choose({"teacher": "small:teacher", "method": "progressive", "calls": 2, "start": 16, "out": "run"})
    method, _ = find("progressive")
    teacher = with_form(small.teacher())
    for stage in whole.stages():
        again = read_back(method(teacher, stage).command, monkeypatch)
        assert again == stage and [one.calls for one in again.stages()][-1] == stage.calls


def test_data_is_passed_only_when_given() -> None:
    assert "data" not in gather({"teacher": "digits8", "data": None}, None, None, {}, "onefold distill x")
