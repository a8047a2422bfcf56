"""Distilling end to end: teacher, method, engine, student folder, and the commands."""

from __future__ import annotations

import json
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
import yaml

import onefold
from onefold.cli import main
from onefold.denoiser import Denoiser
from onefold.distilling import distill
from onefold.errors import UserError
from onefold.methods.sfd import SFD, SFDSettings
from onefold.sampling import sample
from onefold.settings import build, parse_assignments, read_value
from onefold.student import Student, load_student
from onefold.teachers import load_teacher
from onefold.training.contract import Draw

SMALL: dict[str, Any] = {"budget": "192", "batch_size": 32, "device": "cpu", "watched": 8, "sample_every": "96"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Student]:
    out = tmp_path_factory.mktemp("distilled") / "digits3"
    return out, distill("digits8", "sfd", out=out, calls=3, grid="quadratic", lr=2e-4, **SMALL)


def test_the_run_folder_has_what_people_look_for(run: tuple[Path, Student]) -> None:
    out, student = run
    assert student.calls == 3 and student.recipe["cost"]["images"] == 192
    assert student.recipe["teacher"]["sha256"] == load_teacher("digits8").card["sha256"]
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    distances = [row["validation"]["distance_to_teacher"] for row in log if "validation" in row]
    assert len(distances) == 3 and distances[-1] < distances[0]
    assert len(list((out / "samples").glob("*.png"))) == 3
    assert (out / "best" / "student.json").is_file() and (out / "student" / "student.json").is_file()
    assert yaml.safe_load((out / "config.yaml").read_text())["calls"] == 3


def test_a_student_is_a_folder(run: tuple[Path, Student], tmp_path: Path) -> None:
    """P1: save, load, sample, bit for bit."""
    _, student = run
    images = student.sample(5, seed=7)
    student.save(tmp_path / "copy")
    again = onefold.load_student(tmp_path / "copy", device="cpu")
    assert torch.equal(again.sample(5, seed=7), images)
    assert again.grid == student.grid and again.afs == student.afs and again.recipe == student.recipe
    assert torch.allclose(student.sample(2, seed=7, first=3, batch_size=1), images[3:], atol=1e-5)


def test_a_student_counts_its_calls_and_refuses_others(run: tuple[Path, Student]) -> None:
    _, student = run
    student.denoiser.calls = 0
    student.sample(4, batch_size=4)
    assert student.denoiser.calls == 3
    with pytest.raises(UserError, match="makes 3 calls, not 4"):
        student.sample(4, calls=4)


def test_a_student_can_be_a_teacher(run: tuple[Path, Student]) -> None:
    """Its folder is one of diffusers, so every solver takes it."""
    out, _ = run
    assert sample(load_teacher(out / "student", device="cpu"), 2, calls=4).shape == (2, 1, 8, 8)


def test_stopping_and_going_on_is_bit_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**SMALL, "calls": 2, "checkpoint_every": "64"}
    straight = distill("digits8", "sfd", out=tmp_path / "straight", **settings)
    prepare = SFD.prepare

    def stop(self: SFD, draw: Draw) -> dict[str, torch.Tensor]:
        if draw.step == 5:
            raise KeyboardInterrupt
        return prepare(self, draw)

    monkeypatch.setattr(SFD, "prepare", stop)
    with pytest.raises(KeyboardInterrupt):
        distill("digits8", "sfd", out=tmp_path / "halved", **settings)
    monkeypatch.undo()
    names = sorted(p.name for p in (tmp_path / "halved" / "checkpoints").iterdir())
    assert names == ["step-0000000002", "step-0000000004"]
    again = distill("digits8", "sfd", out=tmp_path / "halved", **settings)
    a, b = straight.denoiser.module.state_dict(), again.denoiser.module.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "sdf"}, "did you mean 'sfd'"),
        ({"call": 3}, "did you mean 'calls'"),
        ({"calls": 0}, "setting calls=0 does not fit: it should be greater than or equal to 1"),
        (
            {"grid": [80.0, 1.0, 0.1], "calls": 4},
            "4 calls need a list of 5 levels, the first of them for the analytic step",
        ),
        ({"sigma_max": 200.0}, "from sigma 200 down to .*'digits8' knows 157"),
        ({"sigma_max": 1.0, "sigma_min": 5.0}, "do not fall"),
        ({"preset": "paper_cifar"}, "did you mean 'paper_cifar10'"),
        ({"teacher": "digit8"}, "did you mean 'digits8'"),
        ({"solver": "dpm3"}, "unknown solver"),
        ({"loss": "l3"}, "loss"),
    ],
    ids=str,
)
def test_mistakes_get_one_sentence(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    values = {"teacher": "digits8", "method": "sfd", "out": tmp_path / "run", **SMALL, **settings}
    with pytest.raises(UserError, match=message) as error:
        distill(**values)
    assert "\n" not in str(error.value)


def test_the_commands(run: tuple[Path, Student], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, student = run
    words = ["distill", "digits8", "--calls", "1", "--budget", "32", "--batch-size", "16", "--device", "cpu"]
    assert main([*words, "--set", "watched=4", "--out", str(tmp_path / "one"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calls"] == 1
    assert load_student(tmp_path / "one", device="cpu").calls == 1
    again = [*words, "--set", "watched=4", "--out", str(tmp_path / "one")]  # finished already: the same evidence again
    assert main(again) == 0
    assert "best solver at as many calls" in capsys.readouterr().out
    assert main(["sample", str(out), "--count", "5", "--seed", "7", "--out", str(tmp_path / "x.npz"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counted_calls"] == 3
    assert main(["sample", str(out), "--count", "5", "--solver", "heun", "--out", str(tmp_path / "y.npz")]) == 2
    assert "leave out --solver" in capsys.readouterr().err
    assert main(["methods"]) == 0 and "Simple and Fast" in capsys.readouterr().out
    assert main(["methods", "sfd", "--json"]) == 0
    assert "parts" in {row["name"] for row in json.loads(capsys.readouterr().out)["settings"]}
    assert "sfd" in onefold.methods()
    assert student.name == "digits3"


def test_a_plan_counts_what_a_run_costs_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outlook = onefold.plan("digits8", "sfd", calls=2, parts=3, budget="1000", batch_size=16, device="cpu")
    assert outlook.calls == {"teacher": 9, "student": 2}  # K N, and a call for each trained step
    assert outlook.images == 1008 and outlook.seconds == pytest.approx(63 * outlook.seconds_per_batch)
    assert outlook.memory > 2**20 and "1,008 images" in outlook.line
    timed = onefold.plan("digits8", calls=1, parts=4, afs=None, budget="10m", batch_size=16, device="cpu")
    assert timed.seconds == 600 and timed.calls == {"teacher": 4, "student": 1}
    assert not list(tmp_path.iterdir())


def test_distill_says_what_to_expect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--calls", "1", "--budget", "96", "--batch-size", "16", "--device", "cpu", "--set", "watched=4"]
    assert main(["distill", "digits8", *words, "--out", str(tmp_path / "one")]) == 0
    said = capsys.readouterr()
    assert "expected: 96 images in about" in said.err and "4 of the teacher and 1 of the student calls" in said.err
    assert "onefold export" in said.out or "export" in said.out
    assert main(["plan", "digits8", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calls"] == {"teacher": 4, "student": 1}


def test_presets_hold_the_published_settings(tmp_path: Path) -> None:
    """Section 1.6 of the specification; what is given besides comes first."""
    paper = build(SFDSettings, {"teacher": "x", "out": "y", "preset": "paper_cifar10"})
    assert (paper.lr, paper.batch_size, paper.budget, paper.parts) == (5e-5, 128, "200k", 4)
    assert (paper.grid, paper.end, paper.sigma_max, paper.sigma_min) == ("karras", "sigma_min", 80.0, 0.006)
    assert (paper.afs, paper.solver, paper.loss, paper.reduction) == ("vp", "dpmpp3m", "l1", "sum")
    assert (paper.clip, paper.ema_half_life, paper.dropout, paper.lr_drop) == (0, None, True, 0.1)
    assert build(SFDSettings, {"teacher": "x", "out": "y", "preset": "paper_imagenet64"}).lr == 1e-5
    latent = build(SFDSettings, {"teacher": "x", "out": "y", "preset": "sd15", "lr": 1e-6})
    assert (latent.sigma_max, latent.sigma_min, latent.solver, latent.lr) == (14.61, 0.1, "dpmpp2m", 1e-6)


def test_the_published_number_stands_beside_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", "digits8", "--preset", "paper_cifar10", "--calls", "2", "--budget", "128", "--device", "cpu"]
    extra = ["--set", "sigma_min=0.01", "--set", "watched=4", "--out", str(tmp_path / "paper")]
    assert main([*words, *extra]) == 0
    assert "Published: FID 4.53 after 0.64 A100 hours" in capsys.readouterr().out
    assert "4.53" in (tmp_path / "paper" / "student" / "README.md").read_text()


def test_a_student_s_folder_has_a_page_and_a_picture(run: tuple[Path, Student], tmp_path: Path) -> None:
    out, student = run
    page = (out / "student" / "README.md").read_text()
    assert "3 network calls" in page and "--calls 3" in page and "best solver" in page
    with PIL.Image.open(out / "student" / "samples.png") as picture:
        size = picture.size
    student.save(tmp_path / "copy")
    with PIL.Image.open(tmp_path / "copy" / "samples.png") as picture:
        assert picture.size == size


def test_exporting_by_command(run: tuple[Path, Student], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, student = run
    assert main(["export", str(out), "--out", str(tmp_path / "shipped"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["custom"] is None and told["largest_difference"] < 1e-4
    page = (tmp_path / "shipped" / "README.md").read_text()
    assert "num_inference_steps=3" in page and 'DiffusionPipeline.from_pretrained("shipped")' in page
    assert (tmp_path / "shipped" / "samples.png").is_file()
    assert main(["export", str(out), "--out", str(tmp_path / "shipped")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", "digits8", "--out", str(tmp_path / "other")]) == 2
    assert "is no student" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"holds runs, not a model; give one of them: .*{out.name}"):
        load_teacher(out.parent)
    with pytest.raises(UserError, match="was exported for plain diffusers"):
        load_teacher(tmp_path / "shipped")
    with pytest.raises(UserError, match="exists already"):
        student.export(tmp_path / "shipped")


def method_of(teacher: Denoiser, **settings: Any) -> SFD:
    return SFD(teacher, build(SFDSettings, {"teacher": "digits8", "out": "x", "watched": 4, "calls": 2, **settings}))


def test_guidance_is_folded_in_and_judged_by_what_it_folds_in() -> None:
    """The student is sampled without guidance, and measured against the guided teacher, whoever set what before."""
    teacher = load_teacher("digits8", device="cpu")
    plain, guided = method_of(teacher), method_of(teacher, guidance=3.0)
    assert plain.target.guidance == 1 and guided.target.guidance == 3 and guided.student.guidance == 1
    assert not torch.allclose(plain.teacher_at_its_best(), guided.teacher_at_its_best(), atol=0.05)
    expected = sample(teacher, 4, guidance=3.0, solver="dpmpp3m_exact", calls=64)
    assert torch.equal(guided.teacher_at_its_best(), expected)
    spoiled = method_of(teacher.replace(guidance=3.0))
    assert spoiled.student.guidance == spoiled.target.guidance == 1
    with pytest.raises(UserError, match="guidance is 3, but .* knows no images without a condition"):
        method_of(teacher.replace(null={}), guidance=3.0)


def test_a_teacher_s_solver_must_not_add_noise() -> None:
    with pytest.raises(UserError, match="'ancestral' adds noise"):
        method_of(load_teacher("digits8", device="cpu"), solver="ancestral")


def test_the_command_of_a_student_makes_it_again() -> None:
    """Also where a value overrides a preset by what is the default elsewhere."""
    given = {"preset": "paper_cifar10", "batch_size": 16, "dropout": False, "sigma_min": 0.01, "guidance": 2.0}
    method = method_of(load_teacher("digits8", device="cpu"), **given)
    words = shlex.split(method.command)
    assert words[:3] == ["onefold", "distill", "digits8"] and "lr" not in method.command
    options = {word[2:]: value for word, value in pairwise(words) if word.startswith("--") and word != "--set"}
    values = {key.replace("-", "_"): read_value(key, text) for key, text in options.items()}
    values |= parse_assignments([value for word, value in pairwise(words) if word == "--set"])
    assert build(SFDSettings, {"teacher": words[2], **values}) == method.settings


def test_labels_are_apart_from_all_other_numbers() -> None:
    draw = Draw(0, 3, range(64), 64)
    labels = draw.labels(10)
    assert 0 <= int(labels.min()) and int(labels.max()) == 9
    assert all(not torch.equal(labels, draw.integers(10, stream)) for stream in range(8))
    assert torch.equal(labels[8:16], Draw(0, 3, range(8, 16), 64).labels(10))


def test_a_damaged_picture_costs_the_picture_only(run: tuple[Path, Student], tmp_path: Path) -> None:
    _, student = run
    student.save(tmp_path / "copy")
    (tmp_path / "copy" / "samples.png").write_bytes(b"no picture")
    assert load_student(tmp_path / "copy", device="cpu").picture is None


def test_what_a_run_cost_names_its_network_calls(run: tuple[Path, Student]) -> None:
    _, student = run
    assert student.recipe["cost"]["calls"] == {
        "teacher": 192 * 8,
        "student": 192 * 3,
    }  # K N with K = 2, and a call a step
    assert student.recipe["cost"]["forwards"] == 192 * (8 + 3 * 3)


def test_watching_leaves_nothing_at_the_teacher(tmp_path: Path) -> None:
    teacher = load_teacher("digits8", device="cpu")
    distill(teacher, "sfd", out=tmp_path / "short", calls=1, budget="16", watched=2, device="cpu")
    assert not teacher.module._forward_pre_hooks
