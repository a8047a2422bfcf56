"""Losses of a generator and a discriminator, and what keeps the latter smooth; in float32.

A discriminator gives logits of each of its heads, one tensor (N, positions) a head. Every loss is a mean over positions, then
over heads and the batch, so that it means the same for any number of either (the published code sums over the images that a
GPU holds and its two networks: `mean_convention`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Adversarial = Literal["non_saturating", "hinge", "relativistic"]
Logits = Sequence[Tensor]


def mean_of_heads(values: Iterable[Tensor]) -> Tensor:
    """Of (N, positions) of each head."""
    return torch.stack([each.float().mean() for each in values]).mean()


def generator_loss(kind: Adversarial, fake: Logits, real: Logits | None = None) -> Tensor:
    """What the generator makes small: softplus(-f), or -f with hinge, or softplus(-(f - r)) of pairs (relativistic)."""
    if kind == "hinge":
        return mean_of_heads(-f for f in fake)
    if kind == "non_saturating":
        return mean_of_heads(F.softplus(-f) for f in fake)
    assert real is not None
    return mean_of_heads(F.softplus(r - f) for f, r in zip(fake, real, strict=True))


def discriminator_loss(kind: Adversarial, real: Logits, fake: Logits) -> Tensor:
    """softplus(f) + softplus(-r), or relu(1 + f) + relu(1 - r) with hinge, or softplus(-(r - f)) of pairs (relativistic)."""
    if kind == "relativistic":
        return mean_of_heads(F.softplus(f - r) for r, f in zip(real, fake, strict=True))
    bend = F.softplus if kind == "non_saturating" else above_margin
    return mean_of_heads(bend(f) for f in fake) + mean_of_heads(bend(-r) for r in real)


def above_margin(logits: Tensor) -> Tensor:
    return F.relu(1 + logits)


def approximate_r1(logits: Logits, shifted: Logits) -> Tensor:
    """E | l(x) - l(x + s eta) |^2, about s^2 E | grad l |^2: R1 without a second backward pass. Both must see the same noise."""
    return mean_of_heads((a.float() - b.float()).square() for a, b in zip(logits, shifted, strict=True))


def r1(judge: Callable[[Tensor], Logits], real: Tensor) -> Tensor:
    """E | grad_x mean l(x) |^2 / 2 on real images, exactly."""
    x = real.detach().requires_grad_(True)
    each_image = torch.stack([logits.float().flatten(1).mean(1) for logits in judge(x)]).mean(0)
    (gradient,) = torch.autograd.grad(each_image.sum(), x, create_graph=True)
    penalty: Tensor = gradient.float().square().flatten(1).sum(1).mean() / 2
    return penalty


def share_right(real: Logits, fake: Logits) -> Tensor:
    """How much of both the discriminator tells right: 1 is all, 1/2 a guess."""
    return (mean_of_heads((r > 0).float() for r in real) + mean_of_heads((f < 0).float() for f in fake)) / 2


def mean_convention(gamma: float, logits: Sequence[int], images: int) -> float:
    """The weight of R1 beside our means that the published one, `gamma`, has beside sums.

    There the loss is a sum over B images (of one GPU) and n networks of means over J logits each, and R1 the mean over images of
    gamma / 2 | grad sum of all logits |^2. Divided by B n the loss is ours; the sum of logits is n J times our mean, so gamma
    becomes gamma n J^2 / B. Where the networks differ in J this takes their mean: the sum weighs them by J, and no number says that.
    """
    count = len(logits)
    return gamma * count * math.pow(sum(logits) / count, 2) / images
