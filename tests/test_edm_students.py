"""EDM checkpoints go the whole way: .pkl in, a student, and a folder that plain diffusers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import onefold
from edm_pickles import TINY, write
from onefold import seeds
from onefold.distilling import distill
from onefold.export.edm import source
from onefold.student import Student, load_student
from onefold.teachers import load_teacher
from test_export import sample_elsewhere

COUNT = 3
CASES: list[tuple[str, dict[str, Any], dict[str, Any], Any]] = [
    ("ddpmpp", {"kind": "EDMPrecond"}, {"kind": "SongUNet", **TINY}, "ve"),
    (
        "ncsnpp",
        {"kind": "VEPrecond", "sigma_max": 50.0},
        {
            "kind": "SongUNet",
            **TINY,
            "embedding_type": "fourier",
            "encoder_type": "residual",
            "resample_filter": [1, 3, 3, 1],
        },
        "vp",
    ),
    ("classes", {"kind": "EDMPrecond"}, {"kind": "SongUNet", **TINY, "label_dim": 5, "label_dropout": 0.1}, None),
    ("adm", {"kind": "EDMPrecond"}, {"kind": "DhariwalUNet", **TINY, "model_channels": 64, "label_dim": 4}, "ve"),
]


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> list[Student]:
    """Two updates each, straight from the checkpoints."""
    home = tmp_path_factory.mktemp("edm")
    cases = [
        {"path": str(home / f"{name}.pkl"), "preconditioning": wrapped, "network": network, "seed": 0, "protocol": 4}
        for name, wrapped, network, _ in CASES
    ]
    write(cases, home)
    made = []
    for name, _, _, afs in CASES:
        how: dict[str, Any] = {"calls": 2, "budget": "4", "batch_size": 2, "watched": 4, "afs": afs, "device": "cpu"}
        student = distill(home / f"{name}.pkl", "sfd", out=home / name, sigma_max=2.0, **how)
        again = load_student(home / name / "student", device="cpu")
        assert torch.equal(again.sample(4), student.sample(4))
        assert again.recipe["teacher"]["sha256"] == load_teacher(home / f"{name}.pkl", device="cpu").card["sha256"]
        made.append(again)
    return made


def test_exports_bring_their_network(students: list[Student], tmp_path: Path) -> None:
    jobs = []
    for index, student in enumerate(students):
        exported = student.export(tmp_path / f"case{index}")
        assert exported.custom is not None and "diffusers has no such network" in exported.custom
        labels = [1, 3, 0]
        call = {"batch_size": COUNT} | ({"class_labels": labels} if student.denoiser.classes else {})
        noise = [seeds.image_seed(5, number) for number in range(COUNT)]
        jobs.append({"folder": exported.folder, "custom": True, "seeds": noise, "call": call})
    sample_elsewhere(tmp_path, jobs)
    for student, one in zip(students, jobs, strict=True):
        images = student.sample(COUNT, seed=5, labels=one["call"].get("class_labels"))  # type: ignore[attr-defined]
        assert float((images.abs() < 1).double().mean()) > 0.5
        assert float((2 * torch.load(f"{one['folder']}.pt") - 1 - images.clamp(-1, 1)).abs().max()) < 1e-4


def test_the_code_that_an_export_brings_stands_alone() -> None:
    text = source()
    assert "onefold." not in text and "UserError" not in text
    compile(text, "edm_model.py", "exec")


def test_a_students_student(students: list[Student], tmp_path: Path) -> None:
    """A student can be a teacher again, whatever its family."""
    home = students[0].denoiser.home
    assert home is not None
    how: dict[str, Any] = {"budget": "4", "batch_size": 2, "watched": 4, "device": "cpu", "sigma_max": 2.0}
    student = onefold.distill(home, "sfd", calls=1, out=tmp_path / "run", **how)
    assert student.calls == 1 and student.sample(2).isfinite().all()
