"""The teacher, in pieces of some minutes: the engine is asked to stop as by Ctrl-C, and the same command goes on.

The budget is of images, so that the learning rate falls at the same images however the run is cut.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from benchmarks.cifar10.places import Places, check_data
from safetensors.torch import save_file

from onefold.devices import choose_device
from onefold.files import atomic_folder, read_json, sha256
from onefold.progress import Progress, Tell
from onefold.teachers.card import page
from onefold.teachers.native import WEIGHTS
from onefold.teachers.parts import CARD
from onefold.teaching import teach
from onefold.weights import read_tensors

BUDGET = "8M"
MOST_BYTES = 16 * 2**20  # of weights that are kept
# 7.6 M parameters, 15.3 MB in half precision; 2.1 G multiplications an image, so 8 M images are about 1e17 operations.
RECIPE: dict[str, Any] = {
    "process": "edm",
    "widths": [96, 128, 128],
    "layers": 2,
    "flip": True,
    "batch_size": 512,
    "lr": 1e-3,
    "warmup": 100_000,
    "decay": 0.5,
    "ema_half_life": 250_000,
    "holdout": 1_024,
}


class Piece:
    """Progress of one piece. When its time is over it sends this process the signal that the engine ends on after the step
    in hand, with a checkpoint; outside of the engine's loop, where nobody would catch it, it waits."""

    def __init__(self, progress: Progress, seconds: float) -> None:
        self.progress, self.end, self.asked = progress, time.monotonic() + seconds, False

    def __call__(self, done: int, total: int | None, **facts: object) -> None:
        self.progress(done, total, **facts)
        if not self.asked and time.monotonic() >= self.end and callable(signal.getsignal(signal.SIGTERM)):
            self.asked = True
            signal.raise_signal(signal.SIGTERM)


def learn(
    places: Places,
    data: Path,
    *,
    budget: str,
    device: str,
    eager: bool,
    settings: Mapping[str, Any],
    progress: Progress,
    tell: Tell,
) -> Path:
    """The teacher that is kept, when the run is through; a piece that ends before raises `Stopped`."""
    cuda = choose_device(device)[0].type == "cuda"
    chosen = {**RECIPE, "compile": cuda and not eager, **settings}
    teach(
        check_data(data),
        out=places.run,
        budget=budget,
        device=device,
        labels=not places.unconditional,
        progress=progress,
        tell=tell,
        **chosen,
    )
    size = keep(places.run / "teacher", places.teacher)
    tell(f"{places.teacher}: {size / 1e6:.1f} MB of weights in half precision")
    if size > MOST_BYTES:
        tell(f"that is more than the {MOST_BYTES / 2**20:.0f} MiB of weights that are kept; choose smaller widths")
    return places.teacher


def keep(teacher: Path, target: Path) -> int:
    """The same folder with its weights in half precision; returns their bytes."""
    with atomic_folder(target) as draft:
        shutil.copytree(teacher, draft, dirs_exist_ok=True)
        tensors, about = read_tensors(draft / WEIGHTS)
        halves = {name: one.half() if one.dtype == torch.float32 else one for name, one in tensors.items()}
        save_file(halves, draft / WEIGHTS, about)
        card = {**read_json(draft / CARD), "stored": "float16", "sha256": sha256(draft / WEIGHTS)}
        (draft / CARD).write_text(json.dumps(card, indent=1) + "\n")
        (draft / "README.md").write_text(page(card, str(target)))
    return (target / WEIGHTS).stat().st_size
