"""Progressive distillation through `distill`: folds as runs of their own, what they cost together, and going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import small
from edm_pickles import TINY
from onefold.denoiser import Denoiser
from onefold.distilling import distill, plan
from onefold.errors import UserError
from onefold.methods.chain import STRIDED
from onefold.methods.progressive import Progressive, ProgressiveSettings
from onefold.networks.edm import build_edm
from onefold.networks.lora import FILE
from onefold.settings import build
from onefold.student import Student, load_student
from onefold.teachers.edm import edm_denoiser
from onefold.teachers.edm_process import preconditioning
from onefold.teachers.own import with_form
from onefold.training.loop import Engine

SMALL: dict[str, Any] = {"calls": 2, "start": 8, "budget": "96", "batch_size": 16, "watched": 4, "device": "cpu"}
WEIGHTS = Path("student") / "network.safetensors"


def progressive(out: Path, teacher: Any = "small:teacher", **settings: Any) -> Student:
    return distill(teacher, "progressive", out=out, **{**SMALL, **settings})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Student, list[str]]:
    out, said = tmp_path_factory.mktemp("progressive") / "run", list[str]()
    return out, progressive(out, tell=said.append), said


def bytes_below(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def same_weights(one: Path, other: Path) -> bool:
    a, b = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- what lies in the folder ------------------------------------------------------------------------------------------


def test_every_fold_leaves_a_student(run: tuple[Path, Student, list[str]]) -> None:
    out, student, _ = run
    assert [path.name for path in (out / "folds").iterdir()] == ["0004"]
    fold = load_student(out / "folds" / "0004", teacher="small:teacher", device="cpu")
    assert (fold.calls, student.calls) == (4, 2)
    assert fold.grid.sigmas[::2].tolist() == student.grid.sigmas.tolist()
    assert fold.sample(3).shape == student.sample(3).shape == (3, 1, 8, 8)
    begun = load_file(out / "folds" / "0004" / WEIGHTS)
    assert any(not torch.equal(value, begun[key]) for key, value in load_file(out / WEIGHTS).items())


def test_a_fold_begins_as_the_student_of_the_one_before(run: tuple[Path, Student, list[str]]) -> None:
    out, _, _ = run
    before = out / "folds" / "0004" / "student"
    stage = build(ProgressiveSettings, {"teacher": "x", "method": "progressive", "out": "x", **SMALL})
    method = Progressive(with_form(small.teacher()), stage, before)
    learned = load_file(before / "network.safetensors")
    for network in (method.networks["student"], method.shown.module):
        assert all(torch.equal(value, learned[key]) for key, value in network.state_dict().items())
    assert any(not torch.equal(value, learned[key]) for key, value in small.teacher().module.state_dict().items())
    assert method.frozen["teacher"] is method.shown.module is not method.networks["student"]


def test_a_fold_is_the_run_that_would_end_with_it(run: tuple[Path, Student, list[str]], tmp_path: Path) -> None:
    progressive(tmp_path / "fold", calls=4)
    assert same_weights(tmp_path / "fold", run[0] / "folds" / "0004")


def test_what_all_folds_cost(run: tuple[Path, Student, list[str]]) -> None:
    """On trajectories a fold's teacher makes all its steps: 8, then 4; the student learns 4, then 2."""
    _, student, _ = run
    cost = student.recipe["cost"]
    assert [(fold["calls"], fold["images"], fold["steps"]) for fold in cost["folds"]] == [(4, 96, 6), (2, 96, 6)]
    assert (cost["images"], cost["steps"]) == (192, 12)
    assert cost["calls"] == {"teacher": 96 * (8 + 4), "student": 96 * (4 + 2)}
    assert cost["seconds"] == pytest.approx(sum(fold["seconds"] for fold in cost["folds"]), abs=0.11)
    assert STRIDED in student.recipe["evidence"]["solvers"]


def test_each_fold_is_announced(run: tuple[Path, Student, list[str]]) -> None:
    out, _, said = run
    told = [line for line in said if line.startswith(("stage", "fold", "finished"))]
    assert told[:2] == ["stage 1 of 2", "fold: 8 steps become 4"]
    assert told[2].startswith("finished: 96 images in ") and told[2].endswith(str(out / "folds" / "0004" / "student"))
    assert told[3:] == ["stage 2 of 2", "fold: 4 steps become 2"]


def test_the_same_call_again_trains_nothing(run: tuple[Path, Student, list[str]]) -> None:
    out, student, _ = run
    before, said = bytes_below(out / "folds"), list[str]()
    again = progressive(out, tell=said.append)
    assert bytes_below(out / "folds") == before
    assert f"stage 1 of 2: finished before, {out / 'folds' / '0004' / 'student'}" in said
    assert torch.equal(again.sample(4), student.sample(4))
    counted = ("images", "steps", "calls")
    assert [again.recipe["cost"][key] for key in counted] == [student.recipe["cost"][key] for key in counted]


@pytest.mark.parametrize("changed", [{"lr": 1e-3}, {"start": 16}, {"weight": "v"}, {"seed": 1}], ids=str)
def test_changed_settings_are_refused(run: tuple[Path, Student, list[str]], changed: dict[str, Any]) -> None:
    out, _, _ = run
    before = bytes_below(out / "folds")
    with pytest.raises(UserError, match=f"holds a run with other settings .*{next(iter(changed))}"):
        progressive(out, **changed)
    assert bytes_below(out / "folds") == before


# --- guidance ---------------------------------------------------------------------------------------------------------


def test_guidance_is_folded_in_once(tmp_path: Path) -> None:
    """The first fold asks its teacher twice a step, with and without the class; its student has learned what comes of it."""
    student = progressive(tmp_path / "run", guidance=3.0)
    assert student.recipe["cost"]["calls"]["teacher"] == 96 * (2 * 8 + 4)
    assert student.denoiser.guidance == 1
    outlook = plan(small.teacher(), "progressive", **SMALL, guidance=3.0)
    assert [stage.calls["teacher"] for stage in outlook.stages] == [16, 4]


# --- plans ------------------------------------------------------------------------------------------------------------


def test_only_the_first_fold_has_an_adapter_for_the_teacher(tmp_path: Path) -> None:
    student = progressive(tmp_path / "run", lora=2, lora_targets=["inner.0", "inner.2"], start=8)
    first, last = tmp_path / "run" / "folds" / "0004" / "student", tmp_path / "run" / "student"
    assert (first / FILE).is_file() and not (last / FILE).exists() and student.adapter is None


def test_settings_that_do_not_fit_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no linear or convolution layer called nowhere"):
        progressive(tmp_path / "run", lora=2, lora_targets=["nowhere"])
    assert not (tmp_path / "run").exists()


def test_a_plan_is_of_every_fold_and_of_all() -> None:
    outlook = plan(small.teacher(), "progressive", **SMALL)
    assert [stage.calls for stage in outlook.stages] == [{"teacher": 8, "student": 4}, {"teacher": 4, "student": 2}]
    assert (outlook.images, outlook.calls) == (192, {"teacher": 6, "student": 3})
    assert outlook.seconds == pytest.approx(sum(stage.seconds for stage in outlook.stages))
    lines = outlook.line.splitlines()
    assert len(lines) == 3 and lines[0].startswith("stage 1, expected: 96 images") and "8 of the teacher" in lines[0]
    assert lines[2].startswith("all 2 stages: 192 images in about ")
    one = plan(small.teacher(), "progressive", **{**SMALL, "start": 4})
    assert not one.stages and one.images == 96
    timed = plan(small.teacher(), "progressive", **{**SMALL, "budget": "10m"})
    assert timed.seconds == 1200


# --- other states and teachers ----------------------------------------------------------------------------------------


def test_folds_of_noised_data(tmp_path: Path) -> None:
    """Two teacher calls and one of the student for each image, in every fold."""
    student = progressive(tmp_path / "run", data="digits", flip=True)
    assert student.recipe["cost"]["calls"] == {"teacher": 96 * (2 + 2), "student": 96 * 2}
    assert "--data digits" in student.recipe["command"]
    assert student.sample(2).isfinite().all()


def test_a_bundled_teacher(tmp_path: Path) -> None:
    student = progressive(tmp_path / "run", "digits8", start=4, budget="32", watched=2)
    assert student.recipe["cost"]["folds"][0]["calls"] == student.calls == 2
    assert student.export(tmp_path / "out").custom is None


def test_a_network_of_edm(tmp_path: Path) -> None:
    """Given as it is, without a folder."""
    teacher = tiny_edm()
    student = progressive(tmp_path / "run", teacher, budget="4", batch_size=2, watched=2)
    assert student.calls == 2 and student.sample(2).isfinite().all()
    fold = load_student(tmp_path / "run" / "folds" / "0004", teacher=teacher, device="cpu")
    assert fold.grid.sigmas[::2].tolist() == student.grid.sigmas.tolist()


def tiny_edm() -> Denoiser:
    torch.manual_seed(0)
    network = build_edm("SongUNet", TINY)
    return edm_denoiser(network, preconditioning("EDMPrecond", {}))


# --- interruptions ----------------------------------------------------------------------------------------------------


def test_a_fold_that_another_one_replaced_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second fold is interrupted, and the first one's weights are exchanged before it goes on."""
    step = Engine.train_step

    def stop(self: Engine, drawn: Any) -> None:
        if self.step == 3 and Path(self.settings.out).name == "run":
            raise KeyboardInterrupt
        step(self, drawn)

    monkeypatch.setattr(Engine, "train_step", stop)
    with pytest.raises(KeyboardInterrupt):
        progressive(tmp_path / "run", checkpoint_every="16")
    monkeypatch.undo()
    progressive(tmp_path / "other", calls=4, seed=1)
    (tmp_path / "run" / "folds" / "0004" / "student").rename(tmp_path / "old")
    (tmp_path / "other" / "student").rename(tmp_path / "run" / "folds" / "0004" / "student")
    with pytest.raises(UserError, match="the earlier fold of this run changed since it was interrupted"):
        progressive(tmp_path / "run", checkpoint_every="16")


def test_killed_in_the_second_fold(tmp_path: Path) -> None:
    """A real process, ended by SIGTERM; the same command then gives the bits of a run that was left alone."""
    words = ["small:teacher", "--method", "progressive", "--calls", "2", "--budget", "1600", "--batch-size", "16"]
    words += ["--device", "cpu", "--set", "start=8", "--set", "watched=4", "--set", "log_every=1"]
    words += ["--set", "sample_every=1M", "--out", "run"]
    command = [sys.executable, "-m", "onefold", "distill", *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    how: dict[str, Any] = {"cwd": tmp_path, "env": environment, "stdout": subprocess.DEVNULL}
    out, log = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **how) as process:
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 5):
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in said, said
    assert (out / "folds" / "0004" / WEIGHTS).is_file() and not (out / WEIGHTS).exists()
    before = bytes_below(out / "folds")
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, **how)
    assert done.returncode == 0 and "going on after" in done.stderr, done.stderr
    assert bytes_below(out / "folds") == before
    progressive(tmp_path / "straight", budget="1600")
    assert same_weights(out, tmp_path / "straight")
    cost = json.loads((out / "student" / "student.json").read_text())["cost"]
    assert cost["images"] == 3_200 and cost["calls"]["teacher"] == 1600 * 12


@pytest.mark.slow
def test_two_processes_equal_one(run: tuple[Path, Student, list[str]], tmp_path: Path) -> None:
    """They agree on who prepares the folders, and each begins a fold when all have the last one's student."""
    words = ["small:teacher", "--method", "progressive", "--calls", "2", "--budget", "96", "--batch-size", "16"]
    words += ["--device", "cpu", "--set", "start=8", "--set", "watched=4", "--out", str(tmp_path / "run")]
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "onefold"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([*launched, "distill", *words], capture_output=True, text=True, timeout=150, env=environment)
    assert done.returncode == 0, done.stderr
    for place in (Path(), Path("folds") / "0004"):
        a, b = load_file(tmp_path / "run" / place / WEIGHTS), load_file(run[0] / place / WEIGHTS)
        assert all(torch.allclose(a[key], b[key], atol=1e-4) for key in a)
    assert done.stderr.count("stage 1 of 2") == 1
