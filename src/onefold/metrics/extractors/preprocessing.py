"""What a transformers folder says about its model's images: scale, crop the middle, normalise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from onefold.errors import UserError

BICUBIC = 3  # as Pillow counts


@dataclass(frozen=True)
class Preprocessing:
    """`size` is the shorter side (the longer one follows) or height and width."""

    size: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 N 3 H W -> the floats that the model takes."""
        pixels = self.cropped(self.resized(images)).float()
        mean, std = (pixels.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels * self.factor - mean) / std

    def resized(self, images: Tensor) -> Tensor:
        """On the CPU, where torch scales bytes as Pillow does, by which these models were trained."""
        if self.size is None:
            return images
        target = self.size if isinstance(self.size, tuple) else by_shorter_side(images.shape[-2:], self.size)
        return F.interpolate(images.cpu(), target, mode="bicubic", antialias=True).to(images.device)

    def cropped(self, images: Tensor) -> Tensor:
        if self.crop is None:
            return images
        (height, width), (high, wide) = images.shape[-2:], self.crop
        if high > height or wide > width:
            raise UserError(
                f"images of {height}x{width} are smaller than the {high}x{wide} that the model's preprocessor crops; "
                "mend its preprocessor_config.json"
            )
        top, left = (height - high) // 2, (width - wide) // 2
        return images[..., top : top + high, left : left + wide]


def by_shorter_side(sides: Sequence[int], shorter: int) -> tuple[int, int]:
    height, width = sides
    return (shorter, shorter * width // height) if height <= width else (shorter * height // width, shorter)


def read_preprocessing(config: Mapping[str, Any], where: str) -> Preprocessing:
    """From the values of a preprocessor_config.json."""
    try:
        resample = config.get("resample", BICUBIC)
        if resample != BICUBIC:
            raise UserError(f"{where} asks for resample {resample}, expected {BICUBIC} (bicubic); choose another model")
        return Preprocessing(
            size=shorter_or_both(config["size"]) if config.get("do_resize", True) else None,
            crop=both(config["crop_size"]) if config.get("do_center_crop", True) else None,
            factor=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
            mean=tuple(config["image_mean"]) if config.get("do_normalize", True) else (0.0,),
            std=tuple(config["image_std"]) if config.get("do_normalize", True) else (1.0,),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where} lacks or garbles {error}, expected size, crop_size, image_mean and image_std; restore it"
        ) from error


def shorter_or_both(value: Any) -> int | tuple[int, int]:
    if isinstance(value, Mapping) and "shortest_edge" in value:
        return int(value["shortest_edge"])
    return value if isinstance(value, int) else both(value)


def both(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value["height"]), int(value["width"]))
