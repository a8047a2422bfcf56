"""One cell of the frontier: one student, trained with a budget in forward passes, and what it is worth on noise that no training has seen."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from entries import DATA, ENTRIES, Stage
from torch import Tensor

import onefold
from onefold.bench.ways import FINE
from onefold.data import to_uint8
from onefold.denoiser import Denoiser
from onefold.errors import DivergedError
from onefold.files import atomic_file
from onefold.losses import root_mean_square
from onefold.student import Student, load_student

RESULT, SHOWN = "result.json", "shown.npz"
# The first images by which settings are chosen, and of the comparison; training watches others, of other seeds.
CHOICE, UNSEEN = 500_000, 1_000_000
METRICS = ("fd", "precision", "recall", "fd[pixels]")
COLUMNS = 12  # images that are kept to be shown


@dataclass(frozen=True)
class Bench:
    """What all cells of a comparison have in common."""

    teacher: str
    data: str
    references: tuple[str, ...]
    count: int
    device: str = "cpu"
    extractor: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Cell:
    """One student to be made."""

    entry: str
    calls: int  # of a student of several, the most
    budget: int  # in forward passes of the teacher
    candidate: int
    seed: int

    @property
    def settings(self) -> str:
        return f"{self.entry}_{self.calls}_{self.candidate}"

    @property
    def name(self) -> str:
        return f"{self.settings}_{self.budget}_{self.seed}"

    @property
    def stages(self) -> list[Stage]:
        return ENTRIES[self.entry].candidates(self.calls)[self.candidate]


# --- training ---------------------------------------------------------------------------------------------------------


def train(cell: Cell, bench: Bench, folder: Path) -> Student:
    """Each stage gets as many images as its share of the budget pays for."""
    teacher: str = bench.teacher
    for number, stage in enumerate(cell.stages):
        out = folder / f"stage_{number}"
        settings = {key: bench.data if value == DATA else value for key, value in stage.settings.items()}
        common: dict[str, Any] = {"device": bench.device, "watched": 4, "seed": cell.seed}
        settings = {**common, **settings}
        if not (out / "student").is_dir():
            each = work_of_an_image(
                teacher, stage.method, settings, folder.parent / f"work_{cell.settings}_{number}.json"
            )
            images = max(batch_of(stage.method, settings), round(cell.budget * stage.share / each))
            settings |= {"budget": str(images), **quiet(stage.method)}
            onefold.distill(teacher, stage.method, out=out, **settings)
        teacher = str(out)
    return load_student(out, device=bench.device, precision="fp32")


def quiet(method: str) -> dict[str, Any]:
    """Nothing is looked at on the way, and little at the end: what students are worth is measured here."""
    looks = {"sample_every": "10h", "log_every": 1000, "judged": 50}
    return {name: value for name, value in looks.items() if name in settings_of(method)}


def settings_of(method: str) -> dict[str, Any]:
    return {row["name"]: row["default"] for row in onefold.methods()[method]["settings"]}


def work_of_an_image(teacher: str, method: str, settings: dict[str, Any], cache: Path) -> float:
    """Forward passes in all runs of a method, as a few of its steps ask for them; it depends neither on the batch nor on the seed."""
    if not cache.exists():
        few = {"batch_size": 4, "budget": "1M", **({"pieces": 1} if "pieces" in settings else {})}
        outlook = onefold.plan(teacher, method, **{**settings, **few})
        with atomic_file(cache) as draft:
            draft.write_text(json.dumps(outlook.forwards * max(1, len(outlook.stages))))
    found: float = json.loads(cache.read_text())
    return found


def batch_of(method: str, settings: dict[str, Any]) -> int:
    return int(settings.get("batch_size", settings_of(method)["batch_size"]))


# --- measuring --------------------------------------------------------------------------------------------------------


def fine_solution(teacher: Denoiser, first: int, count: int, cache: Path) -> Tensor:
    """The teacher's, kept for all cells; whoever comes first draws it."""
    path = cache / f"fine_{first}_{count}.npz"
    if not path.exists():
        images = onefold.sample(teacher, count, solver=FINE[0], calls=FINE[1], first=first)
        with atomic_file(path) as draft, draft.open("wb") as file:
            np.savez(file, images=images.numpy())
    return torch.from_numpy(np.load(path)["images"])


def scores_of(images: Tensor, bench: Bench) -> dict[str, Any]:
    """Distances to the data, by the names of their features."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npz"
        np.savez(path, images=to_uint8(images).permute(0, 2, 3, 1).numpy())
        weights = None if bench.weights is None else Path(bench.weights)
        how: dict[str, Any] = {"extractor": bench.extractor, "weights": weights, "device": bench.device}
        found = onefold.evaluate(path, reference=list(bench.references), metrics=METRICS, **how)
    return {name: slim(score) for name, score in found["scores"].items()}


def slim(score: dict[str, Any]) -> dict[str, Any]:
    floor = {key: score["floor"][key] for key in ("value", "count")}
    return {"value": score["value"], "spread": score["spread"], "floor": floor}


def measured(images: Tensor, fine: Tensor, bench: Bench) -> dict[str, Any]:
    return {"rmse": root_mean_square(images, fine), "scores": scores_of(images, bench)}


def measure(student: Student, calls: int, fines: dict[int, Tensor], bench: Bench) -> dict[str, Any]:
    drawn = {first: student.sample(len(fine), first=first, calls=calls) for first, fine in fines.items()}
    chosen_by, found = (measured(drawn[first], fines[first], bench) for first in (CHOICE, UNSEEN))
    fd = next(iter(chosen_by["scores"].values()))["value"]
    return {"calls": calls, **found, "choice": {"rmse": chosen_by["rmse"], "fd": fd}}


def fines_of(bench: Bench, cache: Path) -> dict[int, Tensor]:
    teacher = onefold.load_teacher(bench.teacher, device=bench.device, precision="fp32")
    return {first: fine_solution(teacher, first, bench.count, cache) for first in (CHOICE, UNSEEN)}


def run(cell: Cell, bench: Bench, folder: Path, cache: Path) -> dict[str, Any]:
    """The row of every number of calls, or why there is none."""
    told = {**asdict(cell), "stages": [asdict(stage) for stage in cell.stages]}
    try:
        student = train(cell, bench, folder)
    except DivergedError as error:
        return {**told, "failed": str(error)}
    fines = fines_of(bench, cache)
    rows = [measure(student, calls, fines, bench) for calls in student.counts]
    shown = {str(calls): student.sample(COLUMNS, first=UNSEEN, calls=calls).numpy() for calls in student.counts}
    np.savez(folder / SHOWN, **shown)
    return {**told, "cost": student.recipe["cost"], "rows": rows}


def make(cell: Cell, bench: Bench, cache: Path) -> None:
    """Writes the result into the cell's folder; evidence is kept, weights are not."""
    folder = cache / cell.name
    folder.mkdir(exist_ok=True)
    result = run(cell, bench, folder, cache)
    with atomic_file(folder / RESULT) as draft:
        draft.write_text(json.dumps(result) + "\n")
    for stage in folder.glob("stage_*"):
        shutil.rmtree(stage)
