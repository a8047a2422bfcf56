"""Fidelity to the teacher: how far images are from the teacher's own fine solution from the same noise.

No reference but the teacher is needed, and no data: what a fast sampler should give is known image by image.
"""

from __future__ import annotations

import math

from torch import Tensor

PEAK = 2.0  # between the darkest and the brightest pixel, images being in [-1, 1]
ROUNDING = 2.0**-24  # of a float32 near 1


def typical(errors: Tensor) -> tuple[float, float | None]:
    """The median image's RMSE: a few images that go another way weigh most in `rmse`, not here."""
    each = errors.sqrt()
    value = float(each.median())
    if len(errors) < 20:
        return value, None
    # order statistics: about 68 % of samples of n have their median between these two quantiles
    low, high = each.quantile(0.5 - 0.5 / math.sqrt(len(each))), each.quantile(0.5 + 0.5 / math.sqrt(len(each)))
    return value, float(high - low) / 2


def squared_errors(images: Tensor, reference: Tensor) -> Tensor:
    """Of each image: the mean square over its pixels, float64 on the CPU (some devices have none)."""
    return (images.cpu().double() - reference.cpu().double()).square().flatten(1).mean(1)


def rmse(errors: Tensor) -> tuple[float, float | None]:
    """Over all pixels of all images, with the standard error that the number of images leaves."""
    value = float(errors.mean().sqrt())
    if len(errors) < 2:
        return value, None
    # the square root's slope carries the mean's standard error over: d sqrt(m) = dm / (2 sqrt(m))
    return value, standard_error(errors) / (2 * value) if value else 0.0


def psnr(errors: Tensor) -> tuple[float, float | None]:
    """In dB, of the mean over all images, with the peak of images in [-1, 1]; equal images get what rounding leaves."""
    mean = max(float(errors.mean()), ROUNDING**2)
    value = 10 * math.log10(PEAK**2 / mean)
    return value, 10 / math.log(10) * standard_error(errors) / mean if len(errors) > 1 else None


def standard_error(values: Tensor) -> float:
    """Of a mean of independent values."""
    return float(values.std() / math.sqrt(len(values)))


def feature_errors(vectors: Tensor, reference: Tensor) -> Tensor:
    """Of each image: the squared length of the difference of its features, float64."""
    return (vectors.double() - reference.double()).square().sum(1)
