"""Students that are ordinary diffusion models of few steps leave through DDIM, told the numbers of their levels."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import onefold
import pipelines
from onefold import seeds
from onefold.denoiser import Denoiser
from onefold.export import Exported, export
from onefold.grids import Grid, subsequence
from onefold.networks.folding import fold_to_index
from onefold.networks.unet import build_unet, call_unet
from onefold.process import DiscreteVP, Prediction
from onefold.student import Student
from onefold.teachers import load_teacher
from test_export import COUNT, SNR0, VP, job, own_images, sample_elsewhere

LOW = [3, 20, 90, 160]  # a random eps-network gives images far beyond the pixels' range at high levels
RECIPE = {"method": "sfddm", "teacher": {"name": "small", "sha256": None}, "settings": {}, "cost": {}, "evidence": {}}


def indexed(teacher: DiscreteVP, phi: Any) -> tuple[DiscreteVP, Grid]:
    """The teacher's chain at the steps phi alone, and its grid."""
    grid = subsequence(teacher, phi)
    assert grid.phi is not None
    process = DiscreteVP(teacher.alphas_cumprod[torch.tensor(grid.phi) - 1])
    return process, replace(grid, times=process.time(grid.sigmas[:-1]))


def network(classes: int | None = None) -> Any:
    torch.manual_seed(2)
    unet = build_unet((1, 8, 8), widths=(16, 32), layers=1, classes=classes)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return unet.eval().requires_grad_(False)


def student_of(
    phi: Any,
    prediction: Prediction = "v",
    *,
    classes: bool = False,
    teacher: DiscreteVP = VP,
    own_time: bool = True,
    afs: Any = None,
    unet: Any = None,
) -> Student:
    """Told its own indices by `fold_to_index`, or the teacher's times."""
    process, grid = indexed(teacher, phi)
    real = [float(step - 1) for step in grid.phi or ()]
    unet = network(5 if classes else None) if unet is None else unet
    denoiser = Denoiser(
        fold_to_index(unet, real) if own_time else unet,
        process if own_time else teacher,
        prediction=prediction,
        shape=(1, 8, 8),
        call=call_unet,
        classes=4 if classes else None,
        null={"labels": 4} if classes else None,
        continuous_time=not own_time,
    )
    denoiser.name = "small"
    grid = grid if own_time else subsequence(teacher, phi)
    return Student(denoiser, grid.starting("ve") if afs == "ve" else grid, afs, RECIPE)


# the pipeline, and the student
CASES: list[tuple[str, dict[str, Any]]] = [
    ("DDIMPipeline", {"phi": 1}),
    ("DDIMPipeline", {"phi": 2}),
    ("DDIMPipeline", {"phi": 4}),
    ("DDIMPipeline", {"phi": 16}),
    ("DDIMPipeline", {"phi": [1, 40, 500, 700, 980]}),
    ("DDIMPipeline", {"phi": LOW, "prediction": "eps"}),
    ("DDIMPipeline", {"phi": 4, "teacher": SNR0}),
    ("ConsistencyModelPipeline", {"phi": 4, "classes": True}),
    ("ConsistencyModelPipeline", {"phi": 16, "classes": True}),
    ("ConsistencyModelPipeline", {"phi": LOW, "prediction": "eps", "classes": True}),
    # too many steps of the teacher's time for one layer to be solved again
    ("DDIMPipeline", {"phi": 64, "own_time": False}),
    ("ConsistencyModelPipeline", {"phi": 64, "own_time": False, "classes": True}),
]


def job_of(student: Student, exported: Exported) -> dict[str, Any]:
    custom = exported.custom is not None
    made = job(student, Path(exported.folder), custom=custom)
    made["call"] |= {"eta": 0.0} if exported.pipeline == "DDIMPipeline" else {}
    return made


def off(student: Student, exported: Exported) -> float:
    theirs: Tensor = 2 * torch.load(f"{exported.folder}.pt") - 1
    return float((theirs - own_images(student)).abs().max())


def test_chains_leave_through_ddim(tmp_path: Path) -> None:
    made = []
    for index, (_, how) in enumerate(CASES):
        student = student_of(**how)
        made.append((student, export(student, tmp_path / f"case{index}")))
    sample_elsewhere(tmp_path, [job_of(*one) for one in made])
    for (pipeline, how), (student, exported) in zip(CASES, made, strict=True):
        assert off(student, exported) < 1e-4, how
        assert (exported.pipeline, exported.scheduler, exported.custom) == (pipeline, "DDIMScheduler", None), how
        config = json.loads((Path(exported.folder) / "scheduler" / "scheduler_config.json").read_text())
        assert config["num_train_timesteps"] == student.calls == len(config["trained_betas"])


def test_the_network_itself_is_shipped(tmp_path: Path) -> None:
    """Nothing is folded where the student knows its own indices."""
    student = student_of(16)
    export(student, tmp_path / "out")
    shipped = diffusers.UNet2DModel.from_pretrained(tmp_path / "out" / "unet").state_dict()
    for name, value in student.denoiser.module.state_dict().items():
        assert torch.equal(shipped[name], value)


def programs(folder: Path) -> list[str]:
    found: list[str] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return found


@pytest.mark.parametrize(("phi", "prediction"), [(4, "v"), (16, "v"), (LOW, "eps")])
def test_the_programs_of_the_card(phi: Any, prediction: Prediction, tmp_path: Path) -> None:
    """As they are printed but for the noise and the kind of output: DDIM, then ancestral sampling."""
    student = student_of(phi, prediction)
    steps = student.calls
    export(student, tmp_path / "out")
    first, second = programs(tmp_path / "out")
    assert f"pipe(batch_size=8, num_inference_steps={steps}, eta=0.0)" in first
    names: dict[str, Any] = {}
    for program, solver in ((first, "euler"), (second, "ancestral")):
        names["noise"] = [torch.Generator().manual_seed(seeds.image_seed(3, number)) for number in range(8)]
        told = "batch_size=8, generator=noise, output_type='np',"
        exec(program.replace('"out"', repr(str(tmp_path / "out"))).replace("batch_size=8,", told), names)
        theirs = 2 * torch.from_numpy(names["images"]).permute(0, 3, 1, 2) - 1
        ours = onefold.sample(student.denoiser, 8, solver=solver, grid=student.grid, seed=3)
        assert float((ours.abs() < 1).double().mean()) > 0.5
        assert float((theirs - ours.clamp(-1, 1)).abs().max()) < 1e-4, solver


def test_other_step_counts_are_wrong_as_the_card_says(tmp_path: Path) -> None:
    student = student_of(4)
    export(student, tmp_path / "out")
    assert "More steps raise, fewer run and give wrong images" in (tmp_path / "out" / "README.md").read_text()
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="cannot be larger"):
        pipe(batch_size=1, num_inference_steps=5)
    pipe(batch_size=1, num_inference_steps=2)


def test_where_no_stock_pipeline_is_exact(tmp_path: Path) -> None:
    """The folder's own pipeline tells a table whole numbers; DDIM's single precision is too coarse for eps at the top."""
    made = []
    for index, (how, reason) in enumerate(
        [
            ({"phi": [10, 20, 40, 60, 80, 100, 120, 140, 160], "afs": "ve"}, "learned time embedding"),
            ({"phi": 1, "prediction": "eps"}, "rounds so high a level"),
        ]
    ):
        exported = export(student_of(**how), tmp_path / f"case{index}")
        assert exported.custom is not None and reason in exported.custom
        made.append(exported)
    assert made[0].largest_difference < 1e-4


# family, how many levels; random eps-networks need low levels
FAMILIES = [("latent", 3), ("latent", 16), ("dit", 4), ("text", 3)]


def test_other_families_keep_their_host(tmp_path: Path) -> None:
    made, jobs = [], []
    for family, steps in FAMILIES:
        folder = tmp_path / family
        if not folder.exists():
            makers = {"latent": pipelines.latent_pipeline, "dit": pipelines.dit_pipeline}
            pipe = makers[family]() if family in makers else pipelines.text_pipeline(tmp_path / "words")
            pipe.save_pretrained(folder)
        teacher = load_teacher(folder, device="cpu")
        phi = list(range(10, 10 + 10 * steps, 10))
        process, grid = indexed(teacher.process, phi)  # type: ignore[arg-type]
        network = fold_to_index(teacher.module, [float(step - 1) for step in phi])
        denoiser = teacher.replace(network=network, process=process, continuous_time=False)
        student = Student(denoiser, grid, None, RECIPE)
        exported = export(student, tmp_path / f"{family}-{steps}-out")
        assert (exported.scheduler, exported.custom) == ("DDIMScheduler", None)
        assert exported.pipeline == teacher.form.index["_class_name"]  # type: ignore[union-attr]
        call: dict[str, Any] = {"num_inference_steps": steps}
        if family == "latent":
            call |= {"batch_size": COUNT}
        elif family == "dit":
            call |= {"class_labels": [1, 3, 0], "guidance_scale": 1.0}
        else:
            call |= {"prompt": ["a boat", "", "two birds"], "guidance_scale": 1.0}
        noise = [seeds.image_seed(5, number) for number in range(COUNT)]
        jobs.append({"folder": exported.folder, "custom": False, "seeds": noise, "call": call})
        made.append((student, exported, call))
    sample_elsewhere(tmp_path, jobs)
    for student, exported, call in made:
        told = {"labels": call.get("class_labels"), "prompts": call.get("prompt")}
        images = student.sample(COUNT, seed=5, **told)
        assert float((images.abs() < 1).double().mean()) > 0.5
        theirs = 2 * torch.load(f"{exported.folder}.pt") - 1
        assert float((theirs - images.clamp(-1, 1)).abs().max()) < 1e-4, exported
