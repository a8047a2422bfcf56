"""Native teachers: a diffusers folder that plain diffusers loads and samples, and that says all we need to know.

unet/ + scheduler/ + model_index.json    what diffusers reads
onefold.json                             what it has no place for: classes, the null class, data, command, cost, hash
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL.Image import Image

from onefold.card import PICTURE
from onefold.denoiser import Denoiser
from onefold.errors import UserError, first_line, suggest
from onefold.files import atomic_folder, sha256
from onefold.networks.unet import call_unet, import_diffusers
from onefold.process import EDM, DiscreteVP, Flow, Prediction, Process, beta_table, zero_terminal_snr
from onefold.teachers.card import page

if TYPE_CHECKING:
    from diffusers import UNet2DModel

CARD = "onefold.json"
WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"
DIFFUSERS_NAMES: dict[Prediction, str] = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
OUR_NAMES = {theirs: ours for ours, theirs in DIFFUSERS_NAMES.items()}


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


def save_like(teacher: Denoiser, folder: Path, texts: Mapping[str, str], pictures: Mapping[str, Image]) -> None:
    """A network in the form of the folder its teacher came from, with further files. Without a model_index.json:
    a stock pipeline would load it and sample it on a grid that is not its own."""
    if teacher.home is None:
        raise UserError(
            f"{teacher.name!r} did not come from a folder, so there is no form to save it in; load it from one"
        )
    unet: Any = teacher.module
    with atomic_folder(folder) as draft:
        unet.save_pretrained(draft / "unet")
        shutil.copytree(teacher.home / "scheduler", draft / "scheduler")
        facts = {"format": 1, **teacher.card, "name": teacher.name, "sha256": sha256(draft / WEIGHTS)}
        (draft / CARD).write_text(json.dumps(facts, indent=1) + "\n")
        for name, text in texts.items():
            (draft / name).write_text(text)
        for name, picture in pictures.items():
            picture.save(draft / name)


def load_folder(folder: Path) -> Denoiser:
    """A teacher from a diffusers folder with a UNet2DModel, read from its own scheduler's config."""
    card = read_json(folder / CARD) if (folder / CARD).exists() else {}
    if "exported" in card:
        raise UserError(
            f"{folder} was exported for plain diffusers, its network's time is changed; give the folder it was exported from"
        )
    for part in (WEIGHTS, Path("scheduler") / "scheduler_config.json"):
        if not (folder / part).is_file():
            raise UserError(
                f"{folder} is not a teacher: {part} is missing; give a folder made by `onefold teach` or save_pretrained"
            )
    weights = sha256(folder / WEIGHTS)
    if card and weights != card.get("sha256"):
        raise UserError(
            f"the weights in {folder} do not match their checksum; the folder is damaged or was edited, restore it"
        )
    process, prediction = read_scheduler(read_json(folder / "scheduler" / "scheduler_config.json"))
    kind, size = unet_facts(folder / "unet" / "config.json")
    if kind != "UNet2DModel" or not size:
        raise UserError(
            f"{folder / 'unet'} is a {kind} of sample size {size}; expected a UNet2DModel that names its sample_size"
        )
    try:
        unet = import_diffusers().UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / 'unet'} does not load as a UNet2DModel ({first_line(error)}); restore it"
        ) from error
    if unet.config.in_channels != unet.config.out_channels:
        raise UserError(
            f"{folder / 'unet'} takes {unet.config.in_channels} channels and gives {unet.config.out_channels}; "
            "networks that also predict a variance are not supported, give one that predicts the image alone"
        )
    height, width = (size, size) if isinstance(size, int) else size
    null = card.get("null_label")
    embeds = unet.config.num_class_embeds
    denoiser = Denoiser(
        unet.eval().requires_grad_(False),
        process,
        prediction=prediction,
        shape=(unet.config.in_channels, height, width),
        call=call_unet,
        classes=card.get("classes", embeds),
        null={} if null is None else {"labels": null},
    )
    denoiser.name, denoiser.card, denoiser.home = (
        str(card.get("name", folder.name)),
        {**card, "sha256": weights},
        folder,
    )
    return denoiser


def unet_facts(path: Path) -> tuple[object, Any]:
    config = read_json(path)
    return config.get("_class_name"), config.get("sample_size")


def read_scheduler(config: Mapping[str, Any]) -> tuple[Process, Prediction]:
    """Process and prediction type, from what the scheduler's config says about itself."""
    kind = config.get("_class_name")
    if kind == "EDMEulerScheduler" and {"sigma_min", "sigma_max", "sigma_data"} <= config.keys():
        return EDM(config["sigma_min"], config["sigma_max"], config["sigma_data"]), "edm"
    if kind == "FlowMatchEulerDiscreteScheduler" and "num_train_timesteps" in config:
        return Flow(float(config["num_train_timesteps"])), "flow"
    if not {"beta_schedule", "beta_start", "beta_end", "num_train_timesteps"} <= config.keys():
        raise UserError(
            f"scheduler {kind!r} is not known; known are those with a beta schedule, EDMEuler and FlowMatchEulerDiscrete"
        )
    kind = config.get("prediction_type", "epsilon")
    if kind not in OUR_NAMES:
        raise UserError(f"prediction type {kind!r} is not known{suggest(kind, OUR_NAMES)}")
    return DiscreteVP(alphas_cumprod(config)), OUR_NAMES[kind]


def alphas_cumprod(config: Mapping[str, Any]) -> torch.Tensor:
    betas = config.get("trained_betas")
    if betas is None:
        ends = {"start": config["beta_start"], "end": config["beta_end"]}
        betas = beta_table(config["beta_schedule"], config["num_train_timesteps"], **ends)
    table = (1 - torch.as_tensor(betas, dtype=torch.float64)).cumprod(0)
    return zero_terminal_snr(table) if config.get("rescale_betas_zero_snr") else table


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON ({first_line(error)}); restore it") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(values).__name__}; restore it")
    return values
