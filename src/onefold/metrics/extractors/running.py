"""What all extractors share: which images they take, 8 bits, inference mode, and float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from onefold.data import to_uint8
from onefold.errors import UserError
from onefold.metrics.extractors import Features

Network = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # uint8 N C H W on its device -> vectors, logits
Shape = tuple[int, int, int]


def extraction(
    name: str, network: Network, device: torch.device, shape: Shape | None = None
) -> Callable[[Tensor], Features]:
    """Images in [-1, 1] -> features. They pass through 8 bits, as saved pictures and the field's FID do."""

    def extract(images: Tensor) -> Features:
        check(images, name, shape)
        with torch.inference_mode():
            vectors, logits = network(to_uint8(images).to(device))
        return Features(plain(vectors), None if logits is None else plain(logits))

    return extract


def check(images: Tensor, name: str, shape: Shape | None) -> None:
    """Anything that would give features that mean nothing."""
    if images.ndim != 4 or 0 in images.shape or not images.is_floating_point():
        raise UserError(
            f"extractor {name!r} got {images.dtype} of shape {tuple(images.shape)}, expected floats in [-1, 1] "
            "as N C H W; reshape and scale them"
        )
    if shape is not None and tuple(images.shape[1:]) != shape:
        raise UserError(
            f"extractor {name!r} takes images of {sides(shape)}, not of {sides(images.shape[1:])}; choose another extractor"
        )
    if shape is None and images.shape[1] not in (1, 3):
        raise UserError(
            f"extractor {name!r} takes grey or RGB images, not {images.shape[1]} channels; convert the images to RGB"
        )
    finite = images.isfinite().flatten(1).all(1)
    if not finite.all():
        raise UserError(
            f"image {int(finite.logical_not().nonzero()[0])} of {len(images)} holds values that are not finite, so it has "
            "no features; find out where they come from, or leave the image out"
        )


def plain(values: Tensor) -> Tensor:
    """A copy, since a tensor of inference mode may not be changed in place outside of it."""
    return values.to("cpu", torch.float32, copy=True)


def as_rgb(images: Tensor) -> Tensor:
    """Grey repeated to three channels."""
    return images.expand(-1, 3, -1, -1)


def sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def no_weights(name: str, weights: Path | None) -> None:
    """For extractors that bring their own."""
    if weights is not None:
        raise UserError(
            f"extractor {name!r} brings its own weights, so {weights} would not be used; leave --weights out"
        )
