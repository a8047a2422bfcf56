"""CLIP score (Hessel et al. 2021): how well images fit the texts they were made from."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from onefold.errors import UserError


class ClipScore(NamedTuple):
    """Mean of 100 max(cos(image, text), 0) and its standard error."""

    value: float
    spread: float


def clip_score(image_features: Tensor, text_features: Tensor) -> ClipScore:
    """Row i of both belongs to image i and its text."""
    if image_features.shape != text_features.shape or image_features.ndim != 2 or not len(image_features):
        raise UserError(
            f"CLIP score got image features of shape {tuple(image_features.shape)} and text features of shape "
            f"{tuple(text_features.shape)}, expected one text for each image from one CLIP model; give as many of both"
        )
    cosines = F.cosine_similarity(image_features.double().cpu(), text_features.double().cpu())
    scores = 100 * cosines.clamp(min=0)
    if not scores.isfinite().all():
        raise UserError("CLIP score got features that are not finite; find out where they come from")
    spread = scores.std().item() / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
    return ClipScore(scores.mean().item(), spread)
