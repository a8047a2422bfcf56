"""Native teachers: a diffusers folder that plain diffusers loads and samples, and that says all we need to know.

unet/ + scheduler/ + model_index.json    what diffusers reads
onefold.json                             what it has no place for: classes, the null class, data, command, cost, hash
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL.Image import Image

from onefold.card import PICTURE
from onefold.files import atomic_folder, sha256
from onefold.networks.unet import import_diffusers
from onefold.process import EDM, DiscreteVP, Flow, Prediction, Process, beta_table
from onefold.teachers.card import page
from onefold.teachers.parts import CARD
from onefold.teachers.schedulers import DIFFUSERS_NAMES

if TYPE_CHECKING:
    from diffusers import UNet2DModel

WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Noising:
    """How a native teacher is noised, in words that a scheduler's config can hold."""

    kind: Literal["vp", "edm", "flow"] = "vp"
    prediction: Prediction = "v"
    steps: int = 1000
    beta_schedule: str = "linear"

    def process(self) -> Process:
        if self.kind == "vp":
            return DiscreteVP.from_betas(beta_table(self.beta_schedule, self.steps))
        return EDM() if self.kind == "edm" else Flow(float(self.steps))

    def scheduler(self) -> Any:
        diffusers = import_diffusers()
        if self.kind == "edm":
            return diffusers.EDMEulerScheduler(sigma_data=0.5, sigma_min=0.002, sigma_max=80.0)
        if self.kind == "flow":
            return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=self.steps)
        return diffusers.DDIMScheduler(
            num_train_timesteps=self.steps,
            beta_schedule=self.beta_schedule,
            prediction_type=DIFFUSERS_NAMES[self.prediction],
            timestep_spacing="trailing",
            clip_sample=False,
        )


def save_teacher(
    folder: Path, unet: UNet2DModel, noising: Noising, card: Mapping[str, Any], samples: Image | None = None
) -> None:
    """Write the folder whole or not at all. Flow networks have no stock pixel pipeline; their parts are stock."""
    diffusers = import_diffusers()
    scheduler = noising.scheduler()
    with atomic_folder(folder) as draft:
        if noising.kind == "flow":
            unet.save_pretrained(draft / "unet")
            scheduler.save_pretrained(draft / "scheduler")
        elif noising.kind == "vp" and unet.config["num_class_embeds"] is None:
            diffusers.DDIMPipeline(unet=unet, scheduler=scheduler).save_pretrained(draft)
        else:  # the stock host that passes class labels and any scheduler's start
            diffusers.ConsistencyModelPipeline(unet=unet, scheduler=scheduler).save_pretrained(draft)
        facts = {"format": 1, **card, "sha256": sha256(draft / WEIGHTS)}
        (draft / CARD).write_text(json.dumps(facts, indent=1) + "\n")
        if samples is not None:
            samples.save(draft / PICTURE)
            (draft / "README.md").write_text(page(facts, str(folder)))
