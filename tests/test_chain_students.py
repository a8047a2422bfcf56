"""Folders of students with levels of their own: they bring their table, and are refused when it is no longer theirs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

import pipelines
from edm_pickles import TINY
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.networks.edm import build_edm
from onefold.networks.folding import fold_to_index
from onefold.process import DiscreteVP, Prediction
from onefold.student import Student, load_student
from onefold.teachers import load_teacher
from onefold.teachers.edm import EDMForm, edm_denoiser, save_edm
from onefold.teachers.edm_process import preconditioning
from onefold.teachers.own import with_form
from test_export import VP
from test_export_chain import RECIPE, indexed

SCHEDULER = Path("scheduler") / "scheduler_config.json"


@pytest.fixture
def teacher(tmp_path: Path) -> Denoiser:
    torch.manual_seed(0)
    noising = diffusers.DDIMScheduler(**pipelines.VP)
    diffusers.DDIMPipeline(pipelines.pixel_unet(), noising).save_pretrained(tmp_path / "teacher")
    return load_teacher(tmp_path / "teacher", device="cpu")


def student_of(teacher: Denoiser, phi: Any, prediction: Prediction = "v", network: nn.Module | None = None) -> Student:
    assert isinstance(teacher.process, DiscreteVP)
    process, grid = indexed(teacher.process, phi)
    network = fold_to_index(teacher.module, [step - 1.0 for step in grid.phi or ()]) if network is None else network
    told = {"process": process, "prediction": prediction, "continuous_time": False, "name": "few"}
    return Student(teacher.replace(network=network, **told), grid, None, RECIPE)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(("phi", "prediction"), [(1, "v"), (4, "eps"), (16, "v"), ([2, 30, 31, 999], "x0")])
def test_a_folder_brings_its_levels(teacher: Denoiser, phi: Any, prediction: Prediction, tmp_path: Path) -> None:
    student = student_of(teacher, phi, prediction)
    student.save(tmp_path / "student")
    again, alone = load_student(tmp_path / "student", device="cpu"), load_teacher(tmp_path / "student", device="cpu")
    assert float((again.sample(3) - student.sample(3)).abs().max()) < 1e-6
    wanted: Any = student.denoiser.process
    for loaded in (again.denoiser, alone):
        process: Any = loaded.process
        assert torch.allclose(process.alphas_cumprod, wanted.alphas_cumprod, rtol=0, atol=1e-12)
        assert not loaded.continuous_time and loaded.prediction == prediction
    assert again.grid.phi == student.grid.phi
    config = json.loads((tmp_path / "student" / SCHEDULER).read_text())
    assert (config["timestep_spacing"], config["clip_sample"]) == ("trailing", False)
    stock = diffusers.DDIMScheduler.from_pretrained(tmp_path / "student" / "scheduler")
    assert stock.config.num_train_timesteps == student.calls
    again.save(tmp_path / "again")  # and so on
    third = load_student(tmp_path / "again", device="cpu")
    assert torch.equal(third.sample(3), again.sample(3)) and not third.denoiser.continuous_time


def test_a_loaded_student_leaves_like_the_one_that_was_made(teacher: Denoiser, tmp_path: Path) -> None:
    student_of(teacher, 4).save(tmp_path / "student")
    exported = load_student(tmp_path / "student", device="cpu").export(tmp_path / "out")
    assert (exported.pipeline, exported.scheduler, exported.custom) == ("DDIMPipeline", "DDIMScheduler", None)


def test_the_teachers_own_scheduler_stays_where_it_is_right(teacher: Denoiser, tmp_path: Path) -> None:
    student = student_of(teacher, 4)
    kept = replace(student, denoiser=teacher)
    kept.save(tmp_path / "student")
    assert (tmp_path / "student" / SCHEDULER).read_bytes() == (tmp_path / "teacher" / SCHEDULER).read_bytes()
    assert load_student(tmp_path / "student", device="cpu").denoiser.continuous_time
    student.save(tmp_path / "few")  # a student of it, told the time again, inherits nothing
    few = load_teacher(tmp_path / "few", device="cpu")
    card = few.card["phi"], few.card["whole_times"]
    replace(student, denoiser=few.replace(continuous_time=True), grid=replace(student.grid, phi=None)).save(
        tmp_path / "b"
    )
    assert card == ([250, 500, 750, 1000], True)
    assert not {"phi", "whole_times"} & json.loads((tmp_path / "b" / "onefold.json").read_text()).keys()


def test_another_grid_than_the_networks_is_refused(teacher: Denoiser, tmp_path: Path) -> None:
    student = student_of(teacher, 4)
    folder, recipe = tmp_path / "student", tmp_path / "student" / "student.json"
    student.save(folder)
    grid = student.grid.to_dict()
    edit(recipe, grid={**grid, "phi": [240, 500, 750, 1000]})
    with pytest.raises(UserError, match=r"phi \[240, 500, 750, 1000\], but .* trained for phi \[250, 500, 750, 1000\]"):
        load_student(folder, device="cpu")
    edit(recipe, grid={**grid, "phi": None})
    with pytest.raises(UserError, match="phi None"):
        load_student(folder, device="cpu")
    for place in range(4):  # also above the top level and below the lowest one, where times are clamped
        levels = [level * (1.02 if index == place else 1) for index, level in enumerate(grid["sigmas"])]
        edit(recipe, grid={**grid, "sigmas": levels})
        with pytest.raises(UserError, match=rf"sigma {levels[place]:.6g}, which is none of the levels"):
            load_student(folder, device="cpu")
    edit(recipe, grid=grid)
    load_student(folder, device="cpu")
    student_of(teacher, [250, 510, 750, 1000]).save(tmp_path / "other")
    (folder / SCHEDULER).write_bytes((tmp_path / "other" / SCHEDULER).read_bytes())
    with pytest.raises(UserError, match="none of the levels"):
        load_student(folder, device="cpu")


def test_a_card_says_true_or_false(teacher: Denoiser, tmp_path: Path) -> None:
    student_of(teacher, 4).save(tmp_path / "student")
    edit(tmp_path / "student" / "onefold.json", whole_times="false")
    with pytest.raises(UserError, match="whole_times 'false', expected true or false"):
        load_teacher(tmp_path / "student", device="cpu")


def test_edm_checkpoints_with_a_table(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_edm("DhariwalUNet", {**TINY, "out_channels": 6, "model_channels": 64})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    made = edm_denoiser(network, preconditioning("iDDPMPrecond", {"M": 400}), "adm")
    made.form = EDMForm(made.card)
    save_edm(made, tmp_path / "teacher")
    assert not (tmp_path / "teacher" / "scheduler").exists()
    student = student_of(load_teacher(tmp_path / "teacher", device="cpu"), [20, 60, 90, 120], "eps")
    student.save(tmp_path / "student")
    again = load_student(tmp_path / "student", device="cpu")
    assert float((again.sample(2) - student.sample(2)).abs().max()) < 1e-6
    assert not again.denoiser.continuous_time
    assert torch.allclose(again.denoiser.process.sigmas, student.denoiser.process.sigmas, rtol=1e-12)  # type: ignore[attr-defined]


class Own(nn.Module):
    """Of a user: it hears an index through a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(1000, 4)

    def forward(self, z: Any, time: Any) -> Any:
        return z * 0.5 + self.table(time).reshape(-1, 1, 2, 2)


def test_networks_of_ones_own(tmp_path: Path) -> None:
    teacher = with_form(Denoiser(Own(), VP, prediction="v", shape=(1, 2, 2), continuous_time=False))
    student = student_of(teacher, 4, network=teacher.module)
    student.save(tmp_path / "student")
    again = load_student(tmp_path / "student", teacher=teacher, device="cpu")
    assert len(again.denoiser.process.sigmas) == 4  # type: ignore[attr-defined]
    assert float((again.sample(3) - student.sample(3)).abs().max()) < 1e-6
    replace(student, denoiser=teacher, grid=replace(student.grid, phi=None)).save(tmp_path / "plain")
    assert not (tmp_path / "plain" / "scheduler").exists()
