"""How much of each spatial frequency a model's images have, beside real ones.

The power of an image at a frequency is |FFT|^2 / pixels: white noise of variance v has v everywhere. Rings gather frequencies
of about the same length, in cycles over the shorter side; ring 0 is the mean brightness, and those beyond half the
shorter side are the corners of the frequency plane.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onefold.bench import plots
from onefold.bench.inspection import evenly, open_data, open_with_teacher
from onefold.bench.same_noise import Meter
from onefold.bench.ways import BEST
from onefold.data import ImageData, to_float, to_uint8
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.progress import Progress, Tell, silent
from onefold.sampling import sample
from onefold.student import Student

COUNT = 256  # images of each
OTHERS = "other real images"
PICTURE = "spectrum.png"


@dataclass(frozen=True)
class Line:
    """Images beside the data: the power by ring, and its ratio to the data's in decibel."""

    name: str
    power: tuple[float, ...]
    decibels: tuple[float, ...]

    @property
    def off(self) -> float:
        """Mean absolute decibel over the rings, the mean brightness left out."""
        shapes = self.decibels[1:] or self.decibels
        return sum(map(abs, shapes)) / len(shapes)


@dataclass(frozen=True)
class Spectrum:
    model: str
    teacher: str | None  # of a student
    data: str
    count: int
    seed: int
    size: tuple[int, int]  # height and width
    rings: tuple[int, ...]  # how many frequencies each has
    power: tuple[float, ...]  # of the data
    lines: tuple[Line, ...]
    picture: str | None
    seconds: float

    def cells(self) -> list[list[str]]:
        """Rows of the printed table: a band of rings, the data's power, each line's decibel; at last how far a line is off."""
        rows = []
        for band in bands(len(self.rings)):
            name = f"{band.start}" if len(band) == 1 else f"{band.start} to {band.stop - 1}"
            beside = [f"{self.beside(line, band):+.2f}" for line in self.lines]
            rows.append([name, f"{self.within(self.power, band):.2e}", *beside])
        return [*rows, ["mean |dB|, 1 on", "", *(f"{line.off:.2f}" for line in self.lines)]]

    def within(self, power: Sequence[float], band: range) -> float:
        """Mean power over the frequencies of some rings."""
        return sum(power[ring] * self.rings[ring] for ring in band) / sum(self.rings[ring] for ring in band)

    def beside(self, line: Line, band: range) -> float:
        """Decibel of a line over the data in some rings."""
        both = [torch.tensor(self.within(power, band), dtype=torch.float64) for power in (line.power, self.power)]
        return float(decibels(*both))

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"lines": [asdict(line) | {"off": line.off} for line in self.lines]}


def radial_spectrum(images: Tensor) -> Tensor:
    """(rings,) float64: |FFT|^2 / pixels, averaged over images, channels and the frequencies of each ring (N, C, H, W)."""
    ring = ring_numbers(*images.shape[-2:])
    power = torch.zeros(images.shape[-2:], dtype=torch.float64)
    for part in images.split(64):  # float64 takes room
        power += torch.fft.fft2(part.cpu().double(), norm="ortho").abs().square().sum((0, 1))
    sums = torch.bincount(ring.flatten(), power.flatten() / (images.shape[0] * images.shape[1]))
    return sums / torch.bincount(ring.flatten())


def ring_numbers(height: int, width: int) -> Tensor:
    """(H, W): the length of each frequency of the FFT in cycles over the shorter side, rounded."""
    rows, columns = (torch.fft.fftfreq(size, dtype=torch.float64) * min(height, width) for size in (height, width))
    return torch.hypot(rows[:, None], columns[None, :]).round().long()


def decibels(power: Tensor, reference: Tensor) -> Tensor:
    """10 log10 of the ratio; no power in both is 0."""
    smallest = torch.finfo(torch.float64).tiny
    return 10 * (power.clamp(min=smallest) / reference.clamp(min=smallest)).log10()


def bands(rings: int, most: int = 12) -> list[range]:
    """The rings in at most so many groups: one a band first, then wider and wider ones."""
    edges = [0, 1, 2]
    while edges[-1] < rings:
        factor = (rings / edges[-1]) ** (1 / max(1, most + 1 - len(edges)))
        edges.append(max(edges[-1] + 1, round(edges[-1] * factor)))
    inside = [edge for edge in edges if edge < rings] + [rings]
    return [range(first, last) for first, last in pairwise(inside)]


def inspect_spectrum(
    model: str | Path | Denoiser | Student,
    data: str | Path | ImageData | None,
    *,
    teacher: str | Path | Denoiser | None = None,
    prompts: str | Path | Sequence[str] | None = None,
    count: int = COUNT,
    seed: int = 0,
    batch_size: int = 64,
    out: str | Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Spectrum:
    """The spectrum of a teacher at its best, or of a student and its teacher at its best, beside that of real images.

    All are taken as pictures of 8 bits. Where the data has twice the images, the others of it say how far real images are
    from real images. `out` is a folder for a plot.
    """
    begin = time.perf_counter()
    if data is None:
        raise UserError("a spectrum is compared with that of real images, and no data is given; name some with --data")
    if out is not None:
        plots.need_matplotlib()
    pupil, owner = open_with_teacher(model, teacher, prompts, device=device, precision=precision, tell=tell)
    real = open_data(owner, data, count, device)
    chosen = evenly(real, 2 * count if len(real) >= 2 * count else count)
    images = to_float(real.fetch(chosen)[0])
    reference, others = (images, None) if len(images) == count else (images[::2], images[1::2])
    made = drawn(pupil, owner, count, seed, batch_size, progress or silent)
    power = radial_spectrum(reference)
    named = made if others is None else {**made, OTHERS: others}
    found = Spectrum(
        model=owner.name if pupil is None else pupil.name,
        teacher=None if pupil is None else owner.name,
        data=str(real.description["source"]),
        count=count,
        seed=seed,
        size=(real.shape[1], real.shape[2]),
        rings=tuple(torch.bincount(ring_numbers(*real.shape[1:]).flatten()).tolist()),
        power=tuple(power.tolist()),
        lines=tuple(line_of(name, radial_spectrum(batch), power) for name, batch in named.items()),
        picture=None if out is None else str(Path(out) / PICTURE),
        seconds=round(time.perf_counter() - begin, 1),
    )
    if out is not None:
        plots.save_spectrum(found, Path(out) / PICTURE)
    return found


def line_of(name: str, power: Tensor, reference: Tensor) -> Line:
    return Line(name, tuple(power.tolist()), tuple(decibels(power, reference).tolist()))


def drawn(
    student: Student | None, teacher: Denoiser, count: int, seed: int, batch_size: int, progress: Progress
) -> dict[str, Tensor]:
    """Images by who made them, of the same noise."""
    solver, calls = BEST
    own = 0 if student is None else student.calls
    meter, made = Meter(progress, count * (own + calls)), dict[str, Tensor]()
    how: dict[str, Any] = {"seed": seed, "batch_size": batch_size}
    if student is not None:
        name = f"student, {own} call{'s' * (own != 1)}"
        made[name] = student.sample(count, progress=meter.part(own), **how)
    made[f"teacher, {calls} calls"] = sample(
        teacher, count, solver=solver, calls=calls, progress=meter.part(calls), **how
    )
    for name, images in made.items():
        if not math.isfinite(float(images.sum())):
            raise UserError(
                f"{name}: images have NaN or infinite numbers; look at the model with `onefold inspect` alone"
            )
    return {name: to_float(to_uint8(images)) for name, images in made.items()}
