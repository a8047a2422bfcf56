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

from onefold.data import ImageData, to_float, to_uint8
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
        return mean_distance(images) / max(self.spread, 1e-12)


def make_gauge(teacher: Denoiser, data: ImageData, extractor: str, weights: str | None) -> Gauge:
    """`extractor` is a name, or `auto`: that of the statistics which lie beside the teacher, otherwise pixels."""
    images = some_of(data)
    spread = mean_distance(images)
    beside = None if teacher.home is None else teacher.home / NAME
    reference = beside if beside is not None and beside.is_file() else None
    name = (maker_of(reference) if reference else "pixels") if extractor == "auto" else extractor
    found = find_extractor(name, weights=weights, device=str(teacher.device))
    if found.shape is not None and tuple(found.shape) != tuple(teacher.image_shape):
        raise UserError(
            f"extractor {name!r} takes images of {found.shape}, and {teacher.name!r} makes {teacher.image_shape}; choose another, or extractor=pixels"
        )
    known = usable(reference, found)
    statistics = known or statistics_of(images, found)
    about = f"Frechet distance, {found.name} features, to " + (
        f"the statistics beside {teacher.name!r}" if known else f"{len(images):,} images of the data"
    )
    return Gauge(
        f"fd[{found.name}]", about, lambda made: frechet_distance(statistics_of(made, found), statistics), spread
    )


def usable(reference: Path | None, extractor: Extractor) -> Statistics | None:
    if reference is None or maker_of(reference) != extractor.name:
        return None
    return load_reference(reference, extractor)


def some_of(data: ImageData) -> Tensor:
    """All, or MOST of them spread over the whole."""
    indices = torch.linspace(0, len(data) - 1, min(len(data), MOST)).round().long()
    return torch.cat([to_float(data.fetch(part)[0]) for part in indices.split(AT_ONCE)])


def statistics_of(images: Tensor, extractor: Extractor) -> Statistics:
    moments = Moments()
    for part in images.split(AT_ONCE):
        moments.add(extractor.extract(to_float(to_uint8(part))).vectors)
    return moments.statistics(extractor.name, {}, None)


def mean_distance(images: Tensor) -> float:
    """Root mean square distance of two of them: sqrt(2) times their standard deviation."""
    return float((2 * images.double().flatten(1).var(0).mean()).sqrt())
