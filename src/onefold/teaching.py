"""Teaching: data + engine -> a teacher that plain diffusers loads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL.Image import Image
from pydantic import AfterValidator, Field
from torch import Tensor

from onefold import devices, seeds
from onefold.data import ImageData, Stream, load_data, to_float
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.networks.unet import build_unet, call_unet
from onefold.pictures import picture_grid
from onefold.process import Prediction, from_x0
from onefold.progress import Progress, Tell
from onefold.sampling import sample
from onefold.settings import build, command_line, read_yaml
from onefold.teachers.native import Noising, save_teacher
from onefold.training.contract import Batch, Draw, Networks, Update
from onefold.training.folder import RunFolder
from onefold.training.loop import Engine, ignore
from onefold.training.settings import RunSettings
from onefold.training.sharing import rows_of
from onefold.training.start import start_processes
from onefold.version import versions

WARMEST = 0.1  # the share of the budget after which no warm-up goes on
HIDE = 1  # stream of the draws that hide a label
ENOUGH_NOISE = 20.0  # a table whose last sigma is smaller cannot start from pure noise
PREDICTIONS: dict[str, Prediction] = {"vp": "v", "edm": "edm", "flow": "flow"}


def without_slash(path: str) -> str:
    """`photos/` is `photos`."""
    return path.rstrip("/") or path


class TeachSettings(RunSettings):
    """Settings of `onefold teach`."""

    data: Annotated[str, AfterValidator(without_slash)] = Field(
        description="images: a folder, an .npz, hf:NAME, digits, or teacher:NAME"
    )
    size: int | None = Field(
        None, ge=4, description="centre crop and resize to this many pixels; null takes images as they are"
    )
    channels: Literal[1, 3] | None = Field(None, description="1 grey or 3 colour; null takes images as they are")
    labels: bool = Field(True, description="learn the classes when the data has any")
    label_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of images whose class is hidden, so that guidance works; 0 for none"
    )
    flip: bool = Field(False, description="mirror half of the images")
    holdout: int = Field(256, ge=1, description="images kept for validation (at most a tenth of the data)")
    process: Literal["vp", "edm", "flow"] = Field(
        "vp", description="noise process; vp leaves through every stock scheduler"
    )
    prediction: Literal["auto", "v", "eps", "x0"] = Field("auto", description="what a vp network predicts; auto is v")
    timesteps: int = Field(1000, ge=2, description="length of the vp table, or scale of the flow's time")
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = Field(
        "linear", description="betas of the vp table"
    )
    widths: list[Annotated[int, Field(ge=8)]] = Field(
        [32, 64, 64], min_length=1, description="channels at each resolution, each half of the one before"
    )
    layers: int = Field(1, ge=1, description="residual blocks at each resolution")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the residual blocks")
    lr: float = Field(1e-3, gt=0, description="learning rate of Adam")
    warmup: int = Field(5_000, ge=0, description="images over which the learning rate rises")
    decay: float = Field(
        0.3, ge=0, le=1, description="last share of the budget, over which the learning rate falls to 0"
    )


class Teaching:
    """Denoising score matching, one update a batch: || network(a x0 + b eps) - target ||^2 in the network's own prediction."""

    averaged: tuple[str, ...] = ("unet",)
    turns = 1

    def __init__(
        self, denoiser: Denoiser, train: Stream, held_out: ImageData, settings: TeachSettings, command: str
    ) -> None:
        self.denoiser, self.train, self.settings, self.command = denoiser, train, settings, command
        self.networks, self.frozen = {"unet": denoiser.module}, dict[str, torch.nn.Module]()
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "main": torch.optim.Adam(denoiser.module.parameters(), lr=settings.lr)
        }
        self.noising = noising_of(settings)
        self.held_out = self.validation_batch(held_out)
        self.description, self.class_names = train.data.description, train.data.class_names

    def prepare(self, draw: Draw) -> dict[str, Tensor]:
        images, labels = self.train.batch(draw.step, draw.rows)
        if labels is not None and self.settings.label_dropout:
            hidden = draw.uniform(HIDE) < self.settings.label_dropout
            labels = labels.masked_fill(hidden, self.denoiser.null["labels"])
        return self.noised(images, labels, draw.stratified(), draw.noise(self.denoiser.shape))

    def noised(self, images: Tensor, labels: Tensor | None, u: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Network input, time and target for uniform numbers u; the maths of the levels is float64, here on the CPU."""
        process = self.denoiser.process
        sigma = process.training_sigma(u)
        a, b = (scale.to(images.dtype).reshape(-1, 1, 1, 1) for scale in process.scales(sigma))
        z = a * images + b * noise
        target = from_x0(self.denoiser.prediction, images, z, a, b, process.sigma_data, process.floor)
        tensors = {"z": z, "time": process.time(sigma).float(), "target": target}
        return tensors if labels is None else {**tensors, "labels": labels}

    def loss(self, network: torch.nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        cond = {"labels": batch["labels"]} if "labels" in batch else {}
        output = self.denoiser.replace(network=network).run(batch["z"], batch["time"], cond)
        return (output.float() - batch["target"]).square().mean()

    def make_ready(self, folder: Path | None, progress: Progress) -> None:
        """The data is there."""

    def concerns(self) -> Sequence[str]:
        return ()

    def updates(self, batch: Batch) -> Iterator[Update]:
        yield Update(self.loss(self.networks["unet"], batch.tensors))

    def learning_rate(self, _: str, images: int, progress: float) -> float:
        warm = (images + 1) / self.settings.warmup if self.settings.warmup else 1.0
        rise = min(1.0, max(warm, progress / WARMEST))  # short budgets are not all warm-up
        fall = min(1.0, (1 - progress) / self.settings.decay) if self.settings.decay else 1.0
        return self.settings.lr * min(rise, fall)

    def validation_batch(self, data: ImageData) -> dict[str, Tensor]:
        """Held-out images with fixed noise at fixed levels."""
        pixels, labels = data.fetch(range(len(data)))
        draw = Draw(self.settings.seed, -1, range(len(data)), len(data))
        return self.noised(
            to_float(pixels),
            labels if self.denoiser.classes else None,
            draw.stratified(),
            draw.noise(self.denoiser.shape),
        )

    @torch.no_grad()
    def validate(self, networks: Networks) -> dict[str, float]:
        device, size = self.denoiser.device, self.settings.batch_size
        total, count = 0.0, len(self.held_out["z"])
        for first in range(0, count, size):
            part = {key: value[first : first + size].to(device) for key, value in self.held_out.items()}
            total += float(self.loss(networks["unet"], part)) * len(part["z"])
        return {"held_out_loss": total / count}

    def picture(self, networks: Networks) -> Image:
        teacher = self.denoiser.replace(network=networks["unet"])
        labels = None if teacher.classes is None else list(range(min(teacher.classes, 40)))
        return picture_grid(sample(teacher, 40, calls=16, seed=self.settings.seed, labels=labels), columns=10)

    def save(self, folder: Path, networks: Networks, cost: Mapping[str, Any]) -> None:
        unet = networks["unet"]
        card = {
            "name": Path(self.settings.out).name,
            "shape": list(self.denoiser.shape),
            "classes": self.denoiser.classes,
            "class_names": self.class_names,
            "null_label": self.denoiser.null.get("labels"),
            "parameters": sum(p.numel() for p in unet.parameters()),
            "process": self.noising.kind,
            "prediction": self.denoiser.prediction,
            "data": self.description,
            "command": self.command,
            "cost": dict(cost),
            "versions": versions(),
        }
        save_teacher(folder, unet, self.noising, card, self.picture(networks))


def noising_of(settings: TeachSettings) -> Noising:
    if settings.process != "vp" and settings.prediction != "auto":
        raise UserError(
            f"prediction {settings.prediction!r} is a choice for process vp; {settings.process} networks have their own, leave it at auto"
        )
    prediction = PREDICTIONS[settings.process] if settings.prediction == "auto" else settings.prediction
    noising = Noising(settings.process, prediction, settings.timesteps, settings.beta_schedule)
    top = noising.process().sigma_max
    if top < ENOUGH_NOISE:
        raise UserError(
            f"{settings.timesteps} timesteps of {settings.beta_schedule} betas end at sigma {top:.2f}, where the image still shows; "
            "use 1000 timesteps, or beta_schedule=squaredcos_cap_v2"
        )
    return noising


def new_denoiser(data: ImageData, settings: TeachSettings) -> Denoiser:
    """An untrained teacher for this data."""
    classes = data.classes if settings.labels else None
    null = classes if classes and settings.label_dropout else None
    embeddings = None if classes is None else classes + (null is not None)
    with seeds.drawing(settings.seed):
        unet = build_unet(
            data.shape, widths=settings.widths, layers=settings.layers, classes=embeddings, dropout=settings.dropout
        )
    noising = noising_of(settings)
    return Denoiser(
        unet,
        noising.process(),
        prediction=noising.prediction,
        shape=data.shape,
        call=call_unet,
        classes=classes,
        null={} if null is None else {"labels": null},
    )


class Part(ImageData):
    """Some images of a data set."""

    def __init__(self, whole: ImageData, indices: Tensor) -> None:
        self.whole, self.indices = whole, indices
        self.count, self.shape = len(indices), whole.shape
        self.labels = None if whole.labels is None else whole.labels[indices]
        self.classes, self.class_names, self.description = whole.classes, whole.class_names, whole.description

    def pixels(self, indices: Tensor) -> Tensor:
        return self.whole.pixels(self.indices[indices])


def split(data: ImageData, holdout: int, seed: int) -> tuple[ImageData, ImageData]:
    """(train, held out): at most a tenth is held out, at least one image; always the same ones for a seed."""
    if len(data) < 2:
        raise UserError(f"there is only {len(data)} image to learn from; give at least 2")
    count = max(1, min(holdout, len(data) // 10))
    order = torch.randperm(len(data), generator=seeds.generator(seed, seeds.SHUFFLE))
    return Part(data, order[count:].sort().values), Part(data, order[:count])


def teach(
    data: str | Path | None = None,
    *,
    out: str | Path | None = None,
    config: Path | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
    **settings: Any,
) -> Denoiser:
    """Train a teacher; the run folder then holds it as `teacher/`. Settings given here come before those of `config`."""
    given = {key: str(value) for key, value in (("data", data), ("out", out)) if value is not None}
    chosen = build(TeachSettings, {**(read_yaml(config) if config else {}), **settings, **given})
    say = tell or ignore
    device, precision = devices.choose(chosen.device, chosen.precision, say)
    noising_of(chosen)  # what is wrong is told before the data is read
    rows_of(chosen.batch_size, int(os.environ.get("WORLD_SIZE", "1")), 0, chosen.micro_batches)
    RunFolder(Path(chosen.out)).check(chosen.model_dump(mode="json"))
    accelerator = start_processes(device, chosen)
    with accelerator.main_process_first():  # samples of a teacher with a cache are drawn once, and read by the others
        images = load_data(
            chosen.data,
            size=chosen.size,
            channels=chosen.channels,
            labels=chosen.labels,
            device=str(device),
            progress=progress,
        )
    train, held_out = split(images, chosen.holdout, chosen.seed)
    denoiser = new_denoiser(images, chosen).replace(precision=precision)
    parameters = sum(p.numel() for p in denoiser.module.parameters())
    say(
        f"{len(train):,} images to learn from and {len(held_out):,} held out, of {'x'.join(map(str, images.shape))}, {images.classes or 'no'} classes; network of {parameters:,} parameters"
    )
    stream = Stream(train, batch_size=chosen.batch_size, seed=chosen.seed, flip=chosen.flip)
    method = Teaching(denoiser, stream, held_out, chosen, command_of(chosen))
    engine = Engine(
        method,
        chosen,
        chosen.model_dump(mode="json"),
        accelerator,
        precision=precision,
        result="teacher",
        identity={"data": images.description["fingerprint"]},
        progress=progress,
        tell=say,
    )
    engine.run()
    from onefold.teachers import load_teacher

    return load_teacher(Path(chosen.out) / "teacher", device=str(device), precision=precision)


def command_of(settings: TeachSettings) -> str:
    """The command that makes this teacher again."""
    options = ("budget", "batch_size", "seed", "precision", "process", "size")
    return command_line(["onefold", "teach", settings.data], settings, options, {"data"}, {"device"})
