"""Exports: a fresh process with plain diffusers, without onefold, gives the student's own images for the same noise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onefold import seeds
from onefold.denoiser import Denoiser
from onefold.export import Exported, export
from onefold.grids import make_grid
from onefold.networks.unet import build_unet, call_unet
from onefold.process import EDM, DiscreteVP, Flow, Prediction, Process, beta_table, zero_terminal_snr
from onefold.sampling import chosen_labels
from onefold.student import Student

VP = DiscreteVP.from_betas(beta_table("linear"))
SNR0 = DiscreteVP(zero_terminal_snr(VP.alphas_cumprod))
COUNT = 3
LOAD = """
import json, sys
import torch
from diffusers import DiffusionPipeline

assert not any(name.split(".")[0] == "onefold" for name in sys.modules)
for job in json.load(open(sys.argv[1])):
    pipe = DiffusionPipeline.from_pretrained(job["folder"], trust_remote_code=job["custom"])
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in job["seeds"]]
    images = pipe(generator=generators, output_type="np", **job["call"]).images
    torch.save(torch.from_numpy(images).permute(0, 3, 1, 2), job["folder"] + ".pt")
try:
    import onefold
    raise SystemExit("onefold is on the path")
except ModuleNotFoundError:
    pass
"""


def student_of(
    process: Process, prediction: Prediction, grid: Any, calls: int, afs: Any, *, classes: bool, end: Any
) -> Student:
    """A small network with random weights: an export has to be right whatever the network says."""
    torch.manual_seed(calls)
    unet = build_unet((1, 8, 8), widths=(16, 32), layers=1, classes=5 if classes else None)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    denoiser = Denoiser(
        unet.eval().requires_grad_(False),
        process,
        prediction=prediction,
        shape=(1, 8, 8),
        call=call_unet,
        classes=4 if classes else None,
        null={"labels": 4} if classes else None,
    )
    denoiser.name = "small"
    given: dict[str, Any] = {"end": "zero", "sigma_max": 0.6} if end == "low" else {"end": end}
    made = make_grid(grid, process, None if isinstance(grid, list) else calls + (afs is not None), **given)
    recipe = {"method": "sfd", "teacher": {"name": "small", "sha256": None}, "settings": {}, "cost": {}, "evidence": {}}
    return Student(denoiser, made.starting("ve") if afs == "ve" else made, afs, recipe)


# process, prediction, grid, calls, analytic first step, classes, end ("low": zero, and the grid begins at 0.6, since random
# eps-networks give images far beyond the pixels' range at high levels, and those are clipped on both sides)
STOCK: list[tuple[Process, Prediction, Any, int, Any, bool, Any]] = [
    (VP, "eps", "karras", 1, None, False, "low"),
    (VP, "v", "karras", 2, "ve", True, "sigma_min"),
    (VP, "v", "karras", 4, "ve", True, "zero"),
    (VP, "v", "karras", 7, None, False, "sigma_min"),
    (VP, "v", "uniform", 1, "ve", True, "zero"),
    (VP, "eps", "uniform", 3, "ve", False, "low"),
    (VP, "x0", "uniform", 4, None, True, "zero"),
    (VP, "v", "uniform", 7, "ve", False, "zero"),
    (VP, "v", "quadratic", 4, None, False, "sigma_min"),
    (VP, "v", "quadratic", 4, "ve", True, "zero"),
    (VP, "v", [120.0, 5.0, 0.0], 1, "ve", False, "zero"),
    (VP, "v", [150.0, 31.0, 2.0, 0.3, 0.05], 3, "ve", True, "sigma_min"),
    (VP, "eps", [0.6, 0.3, 0.1, 0.02], 3, None, True, "sigma_min"),
    (VP, "v", [90.0, 8.0, 0.6, 0.02], 3, None, True, "sigma_min"),
    (SNR0, "v", "uniform", 1, None, True, "zero"),
    (SNR0, "v", "uniform", 3, None, True, "zero"),
    (SNR0, "v", "uniform", 3, "ve", False, "zero"),
    (EDM(), "edm", "karras", 1, None, True, "zero"),
]
CUSTOM: list[tuple[Process, Prediction, Any, int, Any, bool, Any]] = [
    (VP, "v", "karras", 2, "vp", True, "zero"),
    (EDM(), "edm", "karras", 3, None, False, "sigma_min"),
    (EDM(), "edm", "karras", 3, "ve", True, "zero"),
    (Flow(), "flow", "uniform", 4, None, True, "zero"),
]
REASONS = ["analytic first step", "EDM", "EDM", "Flow"]


def own_images(student: Student) -> Tensor:
    images = student.sample(COUNT, seed=5)
    assert float((images.abs() < 1).double().mean()) > 0.5  # what is clipped on both sides proves nothing
    return images.clamp(-1, 1)


def job(student: Student, folder: Path, *, custom: bool) -> dict[str, Any]:
    labels = chosen_labels(student.denoiser, 5, range(COUNT), None)
    call: dict[str, Any] = {} if labels is None else {"class_labels": labels.tolist()}
    call |= {"batch_size": COUNT} | ({} if custom else {"num_inference_steps": student.calls})
    noise = [seeds.image_seed(5, index) for index in range(COUNT)]
    return {"folder": str(folder), "custom": custom, "seeds": noise, "call": call}


def elsewhere(home: Path, cases: Any) -> list[tuple[Student, Exported]]:
    """All cases exported, then loaded and sampled by one process that does not see onefold."""
    made, jobs = [], []
    for index, (process, prediction, grid, calls, afs, classes, end) in enumerate(cases):
        student = student_of(process, prediction, grid, calls, afs, classes=classes, end=end)
        assert student.calls == calls
        exported = export(student, home / f"case{index}")
        made.append((student, exported))
        jobs.append(job(student, home / f"case{index}", custom=exported.custom is not None))
    sample_elsewhere(home, jobs)
    return made


def sample_elsewhere(home: Path, jobs: list[dict[str, Any]]) -> None:
    """One process that does not see onefold loads every job's folder, and leaves its images beside it."""
    (home / "jobs.json").write_text(json.dumps(jobs))
    (home / "load.py").write_text(LOAD)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = {"PYTHONPATH": ":".join(packages), "HOME": str(home), "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}
    # -S: the path file of an editable install of onefold is not read
    command = [sys.executable, "-S", str(home / "load.py"), str(home / "jobs.json")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=home, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_stock_pipelines_give_the_students_images(tmp_path: Path) -> None:
    for case, (student, exported) in zip(STOCK, elsewhere(tmp_path, STOCK), strict=True):
        difference = (2 * torch.load(f"{exported.folder}.pt") - 1 - own_images(student)).abs().max()
        assert difference < 1e-4, case
        assert exported.custom is None and not (Path(exported.folder) / "pipeline.py").exists()


def test_a_pipeline_file_where_no_stock_form_exists(tmp_path: Path) -> None:
    made = elsewhere(tmp_path, CUSTOM)
    for case, reason, (student, exported) in zip(CUSTOM, REASONS, made, strict=True):
        difference = (2 * torch.load(f"{exported.folder}.pt") - 1 - own_images(student)).abs().max()
        assert difference < 1e-4, case
        assert exported.custom is not None and reason in exported.custom
