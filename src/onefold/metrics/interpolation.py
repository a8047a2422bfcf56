"""Paths between two noises, and how evenly the images move along them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from onefold.errors import UserError

Path = Literal["slerp", "linear"]


def between(kind: Path, begin: Tensor, end: Tensor, frames: int) -> Tensor:
    """(pairs, frames, ...) from noises (pairs, ...): evenly spaced, the ends exactly as they are given."""
    if frames < 2:
        raise UserError(f"a path needs 2 frames or more, its ends, not {frames}")
    along = torch.linspace(0, 1, frames, dtype=torch.float64)
    pairs = [weights(kind, one, other, along) for one, other in zip(begin, end, strict=True)]
    shape = (frames, *[1] * (begin.ndim - 1))
    return torch.stack(
        [
            one.double() * a.reshape(shape) + other.double() * b.reshape(shape)
            for one, other, (a, b) in zip(begin, end, pairs, strict=True)
        ]
    ).to(begin.dtype)


def weights(kind: Path, one: Tensor, other: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """slerp goes along the great circle, so that noise keeps its length; linear passes through shorter ones."""
    if kind == "linear":
        return 1 - along, along
    u, v = one.flatten().double(), other.flatten().double()
    angle = torch.arccos((u @ v / (u.norm() * v.norm())).clamp(-1, 1))
    if float(angle.sin()) < 1e-6:  # the same direction, or the opposite one, through which no single circle leads
        return 1 - along, along
    return ((1 - along) * angle).sin() / angle.sin(), (along * angle).sin() / angle.sin()


@dataclass(frozen=True)
class Evenness:
    """Of images along paths; means over the pairs."""

    length: float  # the way's length over the distance of its ends: 1 is straight
    jump: float  # the largest step over the mean one: 1 is even


def evenness(images: Tensor) -> Evenness | None:
    """images (pairs, frames, ...), distances in pixels. None where a path's ends gave the same image: nothing moves."""
    steps = (images[:, 1:].double() - images[:, :-1].double()).flatten(2).norm(dim=2)
    whole = (images[:, -1].double() - images[:, 0].double()).flatten(1).norm(dim=1)
    if not bool((whole > 0).all()):
        return None
    return Evenness(float((steps.sum(1) / whole).mean()), float((steps.amax(1) / steps.mean(1)).mean()))
