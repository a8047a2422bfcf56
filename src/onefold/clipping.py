"""Clipping: what the network says is brought back into the range of images before each step.

Clipping wraps the denoise function and knows nothing of steps. A step is written as r x + (1 - r) D, which is D + to * eps
with eps = (x - D) / sigma: from a clipped D it derives the noise again by itself, as DDPM and DDIM do with clipped samples.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from onefold.conditions import Conditions
from onefold.denoiser import Denoiser
from onefold.errors import UserError, suggest
from onefold.solvers import Denoise

Clip = Literal["static", "dynamic"]
QUANTILE = 0.995  # of an image's |D|: above it lie the pixels that dynamic thresholding cuts


def check_clip(model: Denoiser, clip: Clip | None) -> None:
    if clip is None:
        return
    if clip not in get_args(Clip):
        raise UserError(
            f"clip is {clip!r}{suggest(str(clip), get_args(Clip))}; it must be 'static' (to [-1, 1]), 'dynamic' (by quantile) or None"
        )
    if model.codec is not None:
        raise UserError(
            f"clip is {clip!r}, but {model.name!r} denoises latents, which have no range to be clipped to; leave it out"
        )


def clipped(model: Denoiser, clip: Clip | None) -> Denoise:
    """The denoise function whose images are clipped; the model itself without `clip`."""
    if clip is None:
        return model
    limit = static if clip == "static" else dynamic

    def denoise(x: Tensor, sigma: float, cond: Conditions | None, /) -> Tensor:
        return limit(model(x, sigma, cond))

    return denoise


def static(denoised: Tensor) -> Tensor:
    return denoised.clamp(-1, 1)


def dynamic(denoised: Tensor) -> Tensor:
    """Of each image, s = max(1, the quantile of |D|): clamp(D, -s, s) / s (Saharia et al. 2022, section 2.3)."""
    # image by image: torch.quantile refuses tensors as large as some batches are
    quantiles = torch.stack([image.abs().float().flatten().quantile(QUANTILE) for image in denoised])
    scale = quantiles.clamp(min=1).to(denoised.dtype).reshape(-1, *[1] * (denoised.ndim - 1))
    return denoised.clamp(-scale, scale) / scale
