"""What the checks of a teacher look at: its images, how well it denoises them, and how solvers converge on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from onefold import seeds
from onefold.bench.convergence import Convergence, Entry, Probe, calls_of_comparison, converge
from onefold.denoiser import Denoiser, Precision
from onefold.gits import fine_levels
from onefold.grids import LOG_AXIS, ladder
from onefold.losses import root_mean_square
from onefold.process import Prediction, Process, as_sigma
from onefold.progress import Progress
from onefold.sampling import batches, sample

LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0)  # about the spread of images in [-1, 1], where the network decides what is seen
QUICK = 10  # calls of images that need not be exact
ROWS = 8  # levels of the table
TIMES = 7  # that the network is told at each level
SOLVERS, CALLS, FINE = ("euler", "dpmpp2m", "ipndm3"), (4, 8, 16), 48


@dataclass(frozen=True)
class Row:
    """RMSE to the clean image at a noise level: of the network, of the data's mean, of the noisy image itself."""

    sigma: float
    network: float
    mean: float
    noisy: float


@dataclass(frozen=True)
class Pictures:
    """Clean images (N, C, H, W) and what the teacher is told with them: a class each, or nothing."""

    images: Tensor
    labels: Tensor | None

    def first(self, count: int) -> Pictures:
        return Pictures(self.images[:count], None if self.labels is None else self.labels[:count])


class Evidence:
    """What the checks look at, computed when it is first asked for."""

    def __init__(
        self, teacher: Denoiser, count: int, seed: int, progress: Progress, data: Pictures | None = None
    ) -> None:
        self.whole, self.teacher = (
            teacher,
            teacher.replace(codec=None),
        )  # all below is about what it denoises: latents, if any
        self.count, self.seed, self.data, self.progress = count, seed, data, progress
        self.turns = None if teacher.choices is None else torch.arange(count) % teacher.choices
        self.quick: dict[tuple[Prediction, Precision], Tensor] = {}
        self.made = 0
        progress(0, self.budget)

    @property
    def process(self) -> Process:
        return self.teacher.process

    @property
    def readings(self) -> tuple[Prediction, ...]:
        """Kinds of output the network may have, its own first. An exact teacher is no network: it is what it is."""
        if type(self.teacher).evaluate is not Denoiser.evaluate:
            return ()
        others = (kind for kind in self.process.predictions if kind != self.teacher.prediction)
        return (self.teacher.prediction, *others)

    @property
    def low_precisions(self) -> tuple[Precision, ...]:
        return ("bf16", "fp16") if self.teacher.device.type == "cuda" else ("bf16",)

    @property
    def budget(self) -> int:
        """Network calls of all checks, each on `count` images."""
        told = len(self.readings) * (QUICK + len(LEVELS)) + TIMES * len(LEVELS)
        return told + calls_of_comparison(SOLVERS, CALLS, FINE) + QUICK * (1 + len(self.low_precisions))

    def spend(self, calls: int) -> None:
        self.made += calls
        self.progress(min(self.made, self.budget), self.budget)

    @property
    def levels(self) -> list[float]:
        return levels_of(self.teacher, LEVELS)

    def noise(self, sigma: float, count: int) -> Tensor:
        """Unit noise, the same whoever denoises it at this level."""
        return seeds.ImageNoise(seeds.mix(self.seed, round(1e6 * sigma)), range(count), self.teacher.shape)()

    def noised(self, images: Tensor, sigma: float) -> Tensor:
        return images.to(torch.float32) + sigma * self.noise(sigma, len(images))

    @torch.inference_mode()
    def denoised(self, teacher: Denoiser, clean: Pictures, sigma: float) -> Tensor:
        x, device, parts = self.noised(clean.images, sigma), teacher.device, list[Tensor]()
        for rows in batches(0, len(x), self.count):
            part = slice(rows.start, rows.stop)
            told = teacher.conditions(None if clean.labels is None else clean.labels[part])
            cond = {key: value.to(device) for key, value in told.items()}
            parts.append(teacher.denoise(x[part].to(device), sigma, cond).float().cpu())
        return torch.cat(parts)

    def error(self, teacher: Denoiser, clean: Pictures) -> float:
        """Of denoising, over the trivial one (the noise itself or the images' spread, whichever is less): the geometric mean
        over the levels. 1 is worth nothing."""
        spread = float(clean.images.std())
        if not spread > 1e-3:  # one grey tone is no image
            return math.inf
        ratios = [
            root_mean_square(self.denoised(teacher, clean, sigma), clean.images) / min(sigma, spread)
            for sigma in self.levels
        ]
        self.spend(len(LEVELS))
        return math.prod(ratios) ** (1 / len(ratios)) if all(map(math.isfinite, ratios)) else math.inf

    def samples_read_as(self, prediction: Prediction, precision: Precision = "fp32") -> Pictures:
        """Quick samples, from a finite level since an eps-prediction says nothing at inf."""
        if (prediction, precision) not in self.quick:
            reading = self.teacher.replace(prediction=prediction, precision=precision)
            grid = fine_levels(reading, QUICK, "zero", sigma_max=min(self.process.sigma_max, self.process.sigma_top))
            self.quick[prediction, precision] = sample(
                reading,
                self.count,
                solver="dpmpp2m",
                calls=grid.calls,
                grid=grid,
                seed=self.seed,
                labels=None if self.turns is None else self.turns.tolist(),
                batch_size=self.count,
            )
            self.spend(QUICK)
        return Pictures(self.quick[prediction, precision], self.turns)

    def clean(self, prediction: Prediction) -> Pictures:
        """Images to noise and denoise: the user's where there are any, otherwise the teacher's own."""
        return self.samples_read_as(prediction) if self.data is None else self.data.first(self.count)

    @cached_property
    def table(self) -> list[Row]:
        """How well the data is denoised, over all levels; nothing without data."""
        if self.data is None:
            return []
        images, rows = self.data.images, list[Row]()
        levels = ladder(LOG_AXIS, self.process.sigma_min, self.process.sigma_top, ROWS)
        for sigma in levels_of(self.teacher, tuple(levels.tolist())):
            network = root_mean_square(self.denoised(self.teacher, self.data, sigma), images)
            rows.append(Row(sigma, network, root_mean_square(images.mean(0, keepdim=True), images), sigma))
        return rows

    @cached_property
    def solved(self) -> tuple[Convergence, Tensor, dict[Entry, Tensor]]:
        """Solvers compared, and their images: the fine solution's first."""
        before = self.made

        def progress(done: int, total: int | None, **facts: object) -> None:  # noqa: ARG001
            self.made = before + done
            self.progress(min(self.made, self.budget), self.budget, **facts)

        bench = Probe(self.teacher, self.count, self.seed, calls_of_comparison(SOLVERS, CALLS, FINE), progress)
        return converge(bench, SOLVERS, CALLS, FINE)

    @property
    def samples(self) -> Tensor:
        return self.solved[1]


def levels_of(teacher: Denoiser, levels: tuple[float, ...]) -> list[float]:
    """Those that the teacher knows; for a network of whole times the entries nearest to them."""
    process = teacher.process
    inside = as_sigma([level for level in levels if process.sigma_min <= level <= process.sigma_top])
    if not teacher.continuous_time:
        inside = process.sigma(process.time(inside).round()).unique()
    known: list[float] = inside.tolist()
    return known or [process.sigma_top]
