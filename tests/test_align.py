"""`onefold align`: the same noise through a student and its teacher, and paths between two noises."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import onefold
from onefold.bench.alignment import Alignment
from onefold.bench.same_noise import Meter, Trio
from onefold.bench.ways import FINE
from onefold.cli import main
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.grids import make_grid
from onefold.losses import root_mean_square
from onefold.metrics.interpolation import between
from onefold.progress import silent
from onefold.sampling import chosen_labels, sample
from onefold.seeds import ImageNoise
from onefold.student import Student
from onefold.teachers import load_teacher
from onefold.variants import Variant

SMALL: dict[str, Any] = {"count": 6, "pairs": 2, "frames": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def teacher() -> Denoiser:
    return load_teacher("digits8", device="cpu")


def pupil(teacher: Denoiser, calls: int = 3, **recipe: Any) -> Student:
    """The teacher's own network as a student: what imitating it level by level ends in."""
    owner = {"name": "digits8", "sha256": teacher.card["sha256"]}
    model = teacher.replace(name="pupil")
    return Student(
        model, make_grid("quadratic", teacher.process, calls), None, {"method": "none", "teacher": owner, **recipe}
    )


@pytest.fixture(scope="module")
def aligned(teacher: Denoiser, tmp_path_factory: pytest.TempPathFactory) -> Alignment:
    out = tmp_path_factory.mktemp("aligned")
    return onefold.align(pupil(teacher), path=("slerp", "linear"), out=out, **SMALL)


def test_a_number_of_calls_is_chosen(teacher: Denoiser) -> None:
    wider = pupil(teacher)
    two = Variant(make_grid("quadratic", teacher.process, 2), {})
    found = onefold.align(replace(wider, variants={2: two}), calls=2, **SMALL)
    assert found.calls == 2 and found.student_to_strided.rmse == 0
    with pytest.raises(UserError, match="makes 3 calls, not 2"):
        onefold.align(wider, calls=2, **SMALL)


def test_a_student_that_is_its_teacher_lies_on_the_strided_teacher(aligned: Alignment) -> None:
    assert aligned.student_to_strided.rmse == 0
    assert aligned.student_to_fine == aligned.strided_to_fine
    assert 0 < aligned.student_to_fine.rmse < 0.7 * aligned.other_noise_to_fine.rmse
    assert aligned.teacher == "digits8" and aligned.student == "pupil" and aligned.calls == 3


def test_distances_are_those_of_images_drawn_one_by_one(teacher: Denoiser, aligned: Alignment) -> None:
    """The other noise is the next image's, the class stays."""
    fine = sample(teacher, 6, solver=FINE[0], calls=FINE[1])
    student = pupil(teacher)
    value = root_mean_square(student.sample(6), fine)
    assert aligned.student_to_fine.rmse == pytest.approx(value, rel=1e-5)
    assert aligned.student_to_fine.psnr == pytest.approx(20 * math.log10(2 / value), rel=1e-5)
    labels = chosen_labels(teacher, 0, range(6), None)
    z = ImageNoise(0, range(6), teacher.shape)()
    assert labels is not None
    others = [
        sample(teacher, 1, solver="euler", grid=student.grid, noise=z[(i + 1) % 6][None], labels=[int(labels[i])])
        for i in range(6)
    ]
    assert aligned.other_noise_to_fine.rmse == pytest.approx(root_mean_square(torch.cat(others), fine), rel=1e-4)


@pytest.mark.parametrize("kind", ["slerp", "linear"])
def test_paths_end_in_the_images_that_are_sampled_without_them(teacher: Denoiser, kind: Any) -> None:
    trio = Trio(pupil(teacher, 2), teacher, 5, 64, Meter(silent, 1))
    images = trio.along(kind, 2, 3, trio.by_student)
    assert images.shape == (2, 3, 1, 8, 8)
    first = trio.student.sample(2, seed=5)
    assert torch.allclose(images[:, 0], first, atol=1e-5)
    labels = chosen_labels(teacher, 5, range(2), None)
    assert labels is not None
    last = trio.student.sample(2, seed=5, first=2, labels=labels.tolist())
    assert torch.allclose(images[:, -1], last, atol=1e-5)
    z = ImageNoise(5, range(4), teacher.shape)()
    lengths = between(kind, z[:2], z[2:], 3).flatten(2).norm(dim=2)
    ends = (lengths[:, 0] + lengths[:, 2]) / 2
    assert torch.allclose(lengths[:, 1], ends, rtol=0.01) == (kind == "slerp")


def test_both_paths_are_judged_and_drawn(aligned: Alignment) -> None:
    assert list(aligned.interpolations) == ["slerp", "linear"]
    for both in aligned.interpolations.values():
        assert both.student is not None and both.teacher is not None
        assert both.student.length >= 1 and both.student.jump >= 1
    names = ["align.png", "interpolation_slerp.png", "interpolation_linear.png"]
    assert [Path(path).name for path in aligned.pictures] == names
    heights = []
    for path in aligned.pictures:
        with Image.open(path) as picture:
            heights.append(picture.height)
    assert heights[1] == heights[2] > heights[0]  # four rows, and three
    assert json.loads(json.dumps(aligned.as_dict()))["student_to_strided"]["rmse"] == 0


def test_the_teacher_is_guided_as_the_student_has_it_folded_in(teacher: Denoiser) -> None:
    guided = pupil(teacher, settings={"guidance": 3.0})
    plain = onefold.align(guided, teacher, **SMALL)
    assert plain.guidance == 3 and plain.student_to_strided.rmse > 0.1  # the pupil itself is not
    folded = Student(guided.denoiser.replace(guidance=3.0), guided.grid, None, guided.recipe)
    assert onefold.align(folded, teacher, **SMALL).student_to_strided.rmse == 0


def test_mistakes_get_one_sentence(teacher: Denoiser) -> None:
    for change, said in (
        ({"count": 1}, "expected 2 or more images"),
        ({"frames": 1}, "2 or more frames"),
        ({"pairs": 0}, "1 or more pairs"),
        ({"path": "slurp"}, "did you mean 'slerp'"),
        ({"path": ()}, "no path is named"),
    ):
        with pytest.raises(UserError, match=said):
            onefold.align(pupil(teacher), **{**SMALL, **change})
    gone = pupil(teacher)
    lonely = Student(gone.denoiser, gone.grid, None, {"teacher": {"name": "gone", "sha256": "0"}})
    with pytest.raises(UserError, match="teacher 'gone' of student 'pupil' is not here.*--teacher"):
        onefold.align(lonely, **SMALL)
    with pytest.raises(UserError, match="other weights"):
        onefold.align(lonely, "digits8", **SMALL)
    with pytest.raises(UserError, match="no student"):
        onefold.align("digits8", **SMALL)


def test_images_that_break_are_told(teacher: Denoiser) -> None:
    def broken(z: Tensor, time: Tensor, **_: Any) -> Tensor:
        return z * math.nan

    student = pupil(teacher)
    lost = Student(
        student.denoiser.replace(call=lambda _, z, time, cond: broken(z, time)), student.grid, None, student.recipe
    )
    with pytest.raises(UserError, match="'pupil' makes images with NaN"):
        onefold.align(lost, teacher, **SMALL)


def test_the_command(teacher: Denoiser, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pupil(teacher, 2).save(tmp_path / "pupil")
    words = ["align", str(tmp_path / "pupil"), "--count", "4", "--pairs", "1", "--frames", "3", "--device", "cpu"]
    assert main([*words, "--path", "linear", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "pupil, 2 calls, and its teacher digits8" in out and "linear, student" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"align.png", "interpolation_linear.png"}
    assert main([*words, "--teacher", "digits8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["student_to_strided"]["rmse"] == 0 and list(found["interpolations"]) == ["slerp"]
    assert main([*words, "--path", "spiral"]) == 2
    assert "unknown path 'spiral'" in capsys.readouterr().err
