"""Students of latents and texts leave through their teachers' stock pipelines, and give the same images without onefold."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import onefold
import pipelines
from onefold import seeds
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.export import CHECKED_TEXTS, Exported, export
from onefold.grids import make_grid
from onefold.sampling import chosen_labels
from onefold.student import Student
from onefold.teachers import load_teacher
from test_export import sample_elsewhere

COUNT = 3
EULER = {key: value for key, value in pipelines.SD.items() if key != "clip_sample"}
# family, grid, calls, analytic first step, guidance folded in; random networks need low levels, as eps blows up above them
STOCK: list[tuple[str, Any, int, Any, float]] = [
    ("latent", "karras", 3, "ve", 1.0),
    ("latent", "uniform", 4, None, 1.0),
    ("dit", "uniform", 2, None, 1.0),
    ("text", "karras", 1, "ve", 1.0),
    ("text", "uniform", 4, "ve", 7.5),
    ("text", [0.9, 0.4, 0.1, 0.0], 3, None, 1.0),
    ("text v", "quadratic", 3, "ve", 1.0),
    ("text zero-snr", "uniform", 3, None, 1.0),
    ("large", "karras", 4, "ve", 5.0),
]
CUSTOM: list[tuple[str, Any, int, Any, float]] = [
    ("latent", "karras", 2, "vp", 1.0),
    ("dit", "uniform", 3, "ve", 1.0),
]


def pipe_of(family: str, place: Path) -> Any:
    v = {"prediction_type": "v_prediction"}
    match family:
        case "latent":
            return pipelines.latent_pipeline()
        case "dit":
            return pipelines.dit_pipeline()
        case "text":
            return pipelines.text_pipeline(place)
        case "text v":
            return pipelines.text_pipeline(place, diffusers.EulerDiscreteScheduler(**EULER, **v))
        case "text zero-snr":
            zero = diffusers.DDIMScheduler(**pipelines.SD, steps_offset=1, rescale_betas_zero_snr=True, **v)
            return pipelines.text_pipeline(place, zero)
    return pipelines.large_pipeline(place)


def student_of(teacher: Denoiser, grid: Any, calls: int, afs: Any, guidance: float) -> Student:
    low = {} if teacher.prediction == "v" or isinstance(grid, list) else {"sigma_max": 1.0}
    made = make_grid(grid, teacher.process, None if isinstance(grid, list) else calls + (afs is not None), **low)
    recipe = {"method": "sfd", "teacher": {"name": "tiny", "sha256": None}, "settings": {"guidance": guidance}}
    return Student(teacher, made.starting("ve") if afs == "ve" else made, afs, {**recipe, "cost": {}, "evidence": {}})


def told(student: Student, guidance: float, *, custom: bool) -> dict[str, Any]:
    """As the card's call has it."""
    steps = {} if custom else {"num_inference_steps": student.calls}
    if student.denoiser.encode_texts is not None:  # a student with guidance folded in takes the pipeline's own default
        return steps | {"prompt": list(CHECKED_TEXTS[:COUNT])} | ({} if guidance != 1 else {"guidance_scale": 1.0})
    labels = chosen_labels(student.denoiser, 5, range(COUNT), None)
    if labels is None:
        return steps | {"batch_size": COUNT}
    return steps | {"class_labels": labels.tolist()} | ({"batch_size": COUNT} if custom else {"guidance_scale": 1.0})


def elsewhere(home: Path, cases: Any) -> list[tuple[Student, Exported]]:
    made, jobs = [], []
    for index, (family, grid, calls, afs, guidance) in enumerate(cases):
        folder = home / family
        if not folder.exists():
            pipe_of(family, home / "words").save_pretrained(folder)
        student = student_of(load_teacher(folder, device="cpu"), grid, calls, afs, guidance)
        assert student.calls == calls
        exported = export(student, home / f"case{index}")
        made.append((student, exported))
        custom = exported.custom is not None
        noise = [seeds.image_seed(5, number) for number in range(COUNT)]
        call = told(student, guidance, custom=custom)
        jobs.append({"folder": exported.folder, "custom": custom, "seeds": noise, "call": call})
    sample_elsewhere(home, jobs)
    return made


def off(student: Student, exported: Exported) -> float:
    """The largest difference between the student's images and the pipeline's."""
    texts = None if student.denoiser.encode_texts is None else CHECKED_TEXTS
    images = student.sample(COUNT, seed=5, prompts=texts)
    assert float((images.abs() < 1).double().mean()) > 0.5  # what is clipped on both sides proves nothing
    return float((2 * torch.load(f"{exported.folder}.pt") - 1 - images.clamp(-1, 1)).abs().max())


def test_stock_pipelines_of_every_family(tmp_path: Path) -> None:
    for case, (student, exported) in zip(STOCK, elsewhere(tmp_path, STOCK), strict=True):
        assert off(student, exported) < 1e-4, case
        assert exported.custom is None and not (Path(exported.folder) / "pipeline.py").exists()
        card = (Path(exported.folder) / "README.md").read_text()
        assert ("folded into the network" in card) == (case[-1] != 1)
    with pytest.raises(UserError, match="was exported for plain diffusers"):
        load_teacher(exported.folder)


def test_a_pipeline_file_for_what_has_no_stock_form(tmp_path: Path) -> None:
    for case, (student, exported) in zip(CUSTOM, elsewhere(tmp_path, CUSTOM), strict=True):
        assert off(student, exported) < 1e-4, case
        assert exported.custom is not None


def test_weights_in_half_precision_alone_leave_by_their_plain_names(tmp_path: Path) -> None:
    pipe = pipe_of("text", tmp_path / "words").to(torch.float16)
    pipe.save_pretrained(tmp_path / "t", variant="fp16")
    student = student_of(load_teacher(tmp_path / "t", device="cpu"), "karras", 2, "ve", 1.0)
    exported = student.export(tmp_path / "out")
    assert (tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors").is_file()
    assert exported.largest_difference < 1e-4


def test_a_text_student_without_a_stock_form_says_how_to_get_one(tmp_path: Path) -> None:
    pipe_of("text", tmp_path / "words").save_pretrained(tmp_path / "t")
    student = student_of(load_teacher(tmp_path / "t", device="cpu"), "karras", 2, "vp", 1.0)
    with pytest.raises(UserError, match="afs=vp.*distil it with afs=ve"):
        student.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_lora_student_leaves_as_a_whole_pipeline_and_as_a_lora(tmp_path: Path) -> None:
    """The card's second program, run as it is printed but for the prompts and the noise."""
    pipe_of("text v", tmp_path / "words").save_pretrained(tmp_path / "the-teacher")
    (tmp_path / "prompts.txt").write_text("\n".join(f"number {letter}" for letter in "abcdefghijkl"))
    how = {"prompts": str(tmp_path / "prompts.txt"), "budget": "16", "batch_size": 4, "watched": 2, "device": "cpu"}
    student = onefold.distill(
        tmp_path / "the-teacher", "sfd", calls=3, out=tmp_path / "run", lora=2, lr=0.02, schedule="drop", **how
    )
    exported = student.export(tmp_path / "out")
    ours = student.sample(COUNT, seed=5, prompts=CHECKED_TEXTS[:COUNT])
    base = replace(student, denoiser=load_teacher(tmp_path / "the-teacher", device="cpu"))
    assert (
        float((base.sample(COUNT, seed=5, prompts=CHECKED_TEXTS[:COUNT]) - ours).abs().max()) > 1e-3
    )  # it has learned
    program = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)[1]
    assert str(tmp_path / "the-teacher") in program
    program = program.replace('"out/', f'"{tmp_path}/out/')
    told = f"prompt={list(CHECKED_TEXTS[:COUNT])!r}, generator=noise, output_type='np', "
    noise = [torch.Generator().manual_seed(seeds.image_seed(5, number)) for number in range(COUNT)]
    names: dict[str, Any] = {"noise": noise}
    exec(program.replace('["a red boat"] * 4, ', told), names)
    theirs = 2 * torch.from_numpy(names["images"]).permute(0, 3, 1, 2) - 1
    assert exported.largest_difference < 1e-4
    assert float((theirs - ours.clamp(-1, 1)).abs().max()) < 1e-4
