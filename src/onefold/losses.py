"""Distances between what a student gives and what it should give, in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Loss = Literal["l1", "l2", "huber", "pseudo_huber"]
Reduction = Literal["sum", "mean"]


def distance(kind: Loss, output: Tensor, target: Tensor, reduction: Reduction = "sum") -> Tensor:
    """One number: summed (as published by SFD) or averaged over an image, and averaged over the batch.

    huber turns from a square to a line at 1. pseudo_huber is sqrt(|d|^2 + c^2) - c of the whole image's difference d
    with c = 0.00054 sqrt(dimensions), as in improved consistency training; its mean divides by sqrt(dimensions).
    """
    off = (output.float() - target.float()).flatten(1)
    dimensions = off.shape[1]
    if kind == "pseudo_huber":
        c = 0.00054 * math.sqrt(dimensions)
        whole: Tensor = (off.square().sum(1) + c**2).sqrt().mean() - c
        return whole if reduction == "sum" else whole / math.sqrt(dimensions)
    each = ELEMENTWISE[kind](off)
    total: Tensor = each.sum() / len(off) if reduction == "sum" else each.mean()
    return total


def half_square_then_line(off: Tensor) -> Tensor:
    size = off.abs()
    return torch.where(size < 1, 0.5 * size**2, size - 0.5)


ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": torch.abs,
    "l2": torch.square,
    "huber": half_square_then_line,
}


def root_mean_square(images: Tensor, reference: Tensor) -> float:
    """In the images' own units, over everything."""
    return float((images.double() - reference.double()).square().mean().sqrt())
