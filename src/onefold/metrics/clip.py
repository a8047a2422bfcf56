"""CLIP score (Hessel et al. 2021): how well images fit the texts they were made from."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from onefold.errors import UserError
from onefold.metrics.statistics import finite_rows


class ClipScore(NamedTuple):
    """Mean of 100 max(cos(image, text), 0) and its standard error, which one image alone does not have (NaN)."""

    mean: float
    error: float


def clip_score(image_features: Tensor, text_features: Tensor) -> ClipScore:
    """Row i of both belongs to image i and its text."""
    images, texts = finite_rows(image_features).double(), finite_rows(text_features).double()
    if images.shape != texts.shape or not len(images):
        raise UserError(
            f"CLIP score got image features of shape {tuple(images.shape)} and text features of shape {tuple(texts.shape)}, "
            "expected one text for each image; give as many of both, from one CLIP model"
        )
    scores = 100 * F.cosine_similarity(images, texts).clamp(min=0)
    error = scores.std().item() / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
    return ClipScore(scores.mean().item(), error)
