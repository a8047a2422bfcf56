"""Looking at a teacher before anyone trains with it: what it is, how well it denoises, how fast solvers converge, what is wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from onefold.bench.checks import CHECKS, Finding, run_checks
from onefold.bench.convergence import Convergence
from onefold.bench.evidence import Evidence, Pictures, Row, levels_of
from onefold.data import ImageData, load_data, to_float
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.pictures import COLUMNS, labelled_rows, save_png
from onefold.process import DiscreteVP
from onefold.progress import Progress, Tell, silent
from onefold.student import Student

MOST_DATA = 128  # images that are denoised for the table
PICTURE = "inspect.png"
SHOWN = (0.5, 2.0)  # noise levels in the picture


@dataclass(frozen=True)
class Facts:
    """What a teacher says of itself."""

    name: str
    shape: tuple[int, ...]
    parameters: int | None
    process: str
    prediction: str
    sigma_min: float
    sigma_max: float
    levels: int | None  # of its table
    continuous_time: bool
    classes: int | None
    without_class: bool  # or text
    guidance: float
    image_shape: tuple[int, ...]
    prompts: int | None
    prior: float  # standard deviation of the start; 1 in the network's own coordinates where sigma_max is inf


@dataclass(frozen=True)
class Inspection:
    facts: Facts
    data: str | None
    denoising: tuple[Row, ...]
    comparison: Convergence | None  # None where a warning makes it meaningless
    checks: tuple[str, ...]  # that were made
    warnings: tuple[Finding, ...]
    picture: str | None
    seconds: float

    @property
    def left_out(self) -> tuple[str, ...]:
        """Checks that a warning made meaningless."""
        return tuple(check.name for check in CHECKS if check.name not in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Plain values; inf is the string "inf"."""
        values = asdict(self) | {"left_out": list(self.left_out)}
        top = values["facts"]["sigma_max"]
        values["facts"]["sigma_max"] = "inf" if math.isinf(top) else top
        return values


def inspect(
    teacher: str | Path | Denoiser,
    data: str | Path | ImageData | None = None,
    *,
    prompts: str | Path | Sequence[str] | None = None,
    count: int = 16,
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Inspection:
    """What a teacher is and what is wrong with it. `data` adds how well it denoises; `out` is a folder for the picture."""
    begin, report = time.perf_counter(), progress or silent
    if count < 2:
        raise UserError(f"count is {count}, expected 2 or more images; one cannot show how images differ")
    if not isinstance(teacher, Denoiser):
        from onefold.teachers import load_teacher

        teacher = load_teacher(teacher, device=device, precision=precision, tell=tell)
    teacher = teacher if prompts is None else teacher.with_prompts(prompts)
    teacher.check_told()
    source, pictures = (None, None) if data is None else read_data(teacher, data, count, device)
    seen = Evidence(teacher, count, seed, report, pictures)
    findings, made = run_checks(seen)
    report(seen.budget, seen.budget)
    picture = None if out is None else str(save_png(draw(seen), Path(out) / PICTURE))
    return Inspection(
        facts=facts_of(teacher),
        data=source,
        denoising=tuple(seen.table),
        comparison=seen.solved[0] if "solved" in vars(seen) else None,
        checks=tuple(made),
        warnings=tuple(findings),
        picture=picture,
        seconds=round(time.perf_counter() - begin, 1),
    )


def open_with_teacher(
    model: str | Path | Denoiser | Student,
    teacher: str | Path | Denoiser | None,
    prompts: str | Path | Sequence[str] | None,
    *,
    device: str,
    precision: str,
    tell: Tell | None,
) -> tuple[Student | None, Denoiser]:
    """(a student, its teacher), or (None, a teacher); told the prompts, if any."""
    from onefold.bench.same_noise import open_pair
    from onefold.student import is_student

    if isinstance(model, Student) or (not isinstance(model, Denoiser) and is_student(model)):
        texts = None if prompts is None else Path(str(prompts))
        return open_pair(model, teacher, texts, device=device, precision=precision, tell=tell or (lambda _: None))
    if teacher is not None:
        raise UserError(f"{model} is no student, so it has no teacher of its own; leave the teacher out")
    if not isinstance(model, Denoiser):
        from onefold.teachers import load_teacher

        model = load_teacher(model, device=device, precision=precision, tell=tell)
    told = model if prompts is None else model.with_prompts(prompts)
    told.check_told()
    return None, told


def read_data(
    teacher: Denoiser, data: str | Path | ImageData, count: int, device: str, most: int = MOST_DATA
) -> tuple[str, Pictures]:
    """(where from, images evenly spaced over the data): with their classes, or without where the teacher knows that too."""
    if teacher.prompts is not None:
        raise UserError(f"{teacher.name!r} is told a text with each image, and data has none; leave the data out")
    data = open_data(teacher, data, count, device)
    pixels, labels = data.fetch(evenly(data, most))
    if teacher.classes is None:
        labels = None
    elif data.classes != teacher.classes:
        if "labels" not in teacher.null:
            raise UserError(
                f"{teacher.name!r} is told one of {teacher.classes} classes with each image, the data has {data.classes or 'none'}; "
                "give data with these classes, or leave it out"
            )
        labels = torch.full((len(pixels),), teacher.null["labels"])
    images = to_float(pixels)
    if teacher.codec is not None:
        images = teacher.codec.latents(images.to(teacher.device)).cpu()
    return str(data.description["source"]), Pictures(images, labels)


def open_data(teacher: Denoiser, data: str | Path | ImageData, count: int, device: str) -> ImageData:
    """Data whose images have the shape of the teacher's, at least `count` of them."""
    shape = teacher.image_shape
    if len(shape) != 3:
        raise UserError(f"{teacher.name!r} makes no pictures but {shape}, so no data can be read for it; leave it out")
    channels, height, width = shape
    if not isinstance(data, ImageData):
        data = load_data(data, size=height if height == width else None, channels=channels, device=device)
    if tuple(data.shape) != shape:
        raise UserError(
            f"the data's images are {data.shape}, those of {teacher.name!r} {shape}; give data of that shape"
        )
    if len(data) < count:
        raise UserError(
            f"there are {len(data)} images in the data, fewer than count, {count}; give more, or a smaller count"
        )
    return data


def evenly(data: ImageData, most: int) -> list[int]:
    """Numbers of up to so many images, evenly spaced: folders are often sorted by class."""
    count = min(most, len(data))
    return [index * len(data) // count for index in range(count)]


def facts_of(teacher: Denoiser) -> Facts:
    process, network = teacher.process, teacher.network
    top = process.sigma_max
    return Facts(
        name=teacher.name,
        shape=teacher.shape,
        parameters=sum(p.numel() for p in network.parameters()) if isinstance(network, nn.Module) else None,
        process=type(process).__name__,
        prediction=teacher.prediction,
        sigma_min=process.sigma_min,
        sigma_max=top,
        levels=len(process.sigmas) if isinstance(process, DiscreteVP) else None,
        continuous_time=teacher.continuous_time,
        classes=teacher.classes,
        without_class=bool(teacher.nothing),
        guidance=teacher.guidance,
        image_shape=teacher.image_shape,
        prompts=None if teacher.prompts is None else len(teacher.prompts),
        prior=float(process.prior(torch.ones((), dtype=torch.float64), top)),
    )


def draw(seen: Evidence) -> Image:
    """What the checks saw, the same noise in each column: samples at more and fewer calls, then images noised and denoised.
    Where the kind of output is wrong: samples for each way to read it."""
    rows: list[tuple[str, Tensor]] = []
    if "solved" in vars(seen):
        comparison, solution, images = seen.solved
        rows.append((f"samples\n{comparison.reference}", solution))
        for calls in sorted(comparison.calls, reverse=True):
            best = comparison.best(calls)
            rows.append((f"{calls} calls, RMSE {best.cell}\n{best.solver} on {best.grid}", images[best]))
    else:
        rows += [(f"samples\nread as {kind}", seen.samples_read_as(kind).images) for kind in seen.readings]
    clean = seen.samples_read_as(seen.teacher.prediction)
    if seen.data is not None:
        clean = seen.data
        rows.append(("data", clean.images))
    for sigma in levels_of(seen.teacher, SHOWN):
        rows.append((f"noise of sigma {sigma:.2g}", seen.noised(clean.first(COLUMNS).images, sigma)))
        rows.append(("denoised", seen.denoised(seen.teacher, clean.first(COLUMNS), sigma)))
    shown = [
        (label, seen.whole.images(images[:COLUMNS].nan_to_num().to(seen.whole.device)).cpu()) for label, images in rows
    ]
    return labelled_rows(shown, title=f"{seen.teacher.name}: the same noise in each column")
