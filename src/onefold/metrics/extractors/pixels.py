"""No network at all: the pixels themselves, averaged down to a small picture.

What a discriminator on a pretrained network has learned to please, this distance has never seen. It hears colours, coarse shapes and
how they vary together, and nothing of what makes a picture look right.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from onefold.data import to_float
from onefold.metrics.extractors import Extractor
from onefold.metrics.extractors.running import extraction, no_weights

SIDE = 16  # pixels at most, so that a covariance needs some thousand images


def build(name: str, weights: Path | None, device: torch.device) -> Extractor:
    no_weights(name, weights)
    return Extractor(
        name=name,
        identity=hashlib.sha256(f"means of pixels, {SIDE}x{SIDE} at most".encode()).hexdigest(),
        about=f"the pixels themselves, averaged down to {SIDE}x{SIDE}",
        classes=None,
        extract=extraction(name, lambda images: (small(to_float(images)).flatten(1), None), device),
    )


def small(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return F.adaptive_avg_pool2d(images, (min(height, SIDE), min(width, SIDE)))
