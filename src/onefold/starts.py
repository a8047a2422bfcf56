"""Starts: the unit noise that images begin with, given in place of the seed's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onefold.errors import UserError
from onefold.seeds import NoiseSource


def unit_noise(noise: object, count: int, shape: Sequence[int]) -> Tensor:
    """What the user gave, checked, in float32 on the CPU as the seed's own is."""
    if not isinstance(noise, Tensor):
        raise UserError(f"noise is a {type(noise).__name__}, expected a tensor of {wanted(count, shape)}; convert it")
    if tuple(noise.shape) != (count, *shape):
        raise UserError(
            f"noise has shape {tuple(noise.shape)}, expected {wanted(count, shape)}; give one for each image"
        )
    if not noise.is_floating_point():
        raise UserError(f"noise is {noise.dtype}, expected floats of standard deviation 1; convert it")
    noise = noise.detach().float().cpu()
    if not bool(torch.isfinite(noise).all()):
        raise UserError("noise holds NaN or infinite numbers, expected those of a unit Gaussian; draw it again")
    return noise


def wanted(count: int, shape: Sequence[int]) -> str:
    return f"shape {(count, *shape)}"


def starting_with(start: Tensor, draws: NoiseSource) -> NoiseSource:
    """The given start in place of the first draw; the draws after it are what they are without it."""
    starts = [start]

    def draw() -> Tensor:
        drawn = draws()
        return starts.pop() if starts else drawn

    return draw
