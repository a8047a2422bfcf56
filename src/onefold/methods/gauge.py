"""How far a generator's images are from the data, measured while it learns.

A method that imitates the data and not its teacher's trajectories has no use for the distance to the teacher's own images. It is
watched by Frechet's distance of distributions, in an extractor that the discriminator never sees; where none is at hand, of pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onefold.data import ImageData, to_float
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.metrics.extractors import Extractor, find_extractor
from onefold.metrics.frechet import frechet_distance
from onefold.metrics.references import NAME, load_reference, maker_of
from onefold.metrics.statistics import Moments, Statistics

MOST = 10_000  # images of the data that are looked at
AT_ONCE = 256


@dataclass(frozen=True)
class Gauge:
    """`key` names the distance as `onefold evaluate` does; `spread` is how far the data's images are from each other."""

    key: str
    about: str
    measure: Callable[[Tensor], float]
    spread: float

    def __call__(self, images: Tensor) -> float:
        return self.measure(images)

    def diversity(self, images: Tensor) -> float:
        """How far images are from each other, beside those of the data: 1 is as far, 0 is one image."""
        seen = Spread()
        seen.add(images)
        return seen.distance / max(self.spread, 1e-12)


def extractor_for(teacher: Denoiser, name: str, weights: str | None) -> Extractor:
    """By its name; `auto` is that of the statistics which lie beside the teacher, otherwise pixels."""
    if name == "auto":
        beside = statistics_beside(teacher.home)
        name = maker_of(beside) if beside else "pixels"
    found = find_extractor(name, weights=weights, device=str(teacher.device))
    if found.shape is not None and tuple(found.shape) != tuple(teacher.image_shape):
        raise UserError(
            f"extractor {name!r} takes images of {found.shape}, and {teacher.name!r} makes {teacher.image_shape}; choose another, or extractor=pixels"
        )
    return found


def statistics_beside(home: Path | None) -> Path | None:
    return home / NAME if home is not None and (home / NAME).is_file() else None


def make_gauge(extractor: Extractor, data: ImageData, home: Path | None) -> Gauge:
    """Against the statistics in the teacher's folder, where that is given and they are this extractor's, otherwise the data's own."""
    beside = statistics_beside(home)
    known = load_reference(beside, extractor) if beside and maker_of(beside) == extractor.name else None
    indices = torch.linspace(0, len(data) - 1, min(len(data), MOST)).round().long()
    features, pixels = Moments(), Spread()
    for part in indices.split(AT_ONCE):
        images = to_float(data.fetch(part)[0])
        pixels.add(images)
        if known is None:
            features.add(extractor.extract(images).vectors)
    statistics = known or features.statistics(extractor.name)
    which = "the statistics beside the teacher" if known else f"{len(indices):,} images of the data"
    return Gauge(
        f"fd[{extractor.name}]",
        f"Frechet distance, {extractor.name} features, to {which}",
        lambda made: frechet_distance(statistics_of(made, extractor), statistics),
        pixels.distance,
    )


def statistics_of(images: Tensor, extractor: Extractor) -> Statistics:
    moments = Moments()
    for part in images.split(AT_ONCE):
        moments.add(extractor.extract(part).vectors)
    return moments.statistics(extractor.name)


class Spread:
    """How far images are from each other, added up batch by batch."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros(()).double(), torch.zeros(()).double()

    def add(self, images: Tensor) -> None:
        pixels = images.double().flatten(1)
        self.count += len(pixels)
        self.sum, self.squares = self.sum + pixels.sum(0), self.squares + pixels.square().sum(0)

    @property
    def distance(self) -> float:
        """Root mean square distance of two of them: sqrt(2) times their standard deviation."""
        variance = self.squares / self.count - (self.sum / self.count).square()
        return float((2 * variance.clamp(min=0).mean()).sqrt())
