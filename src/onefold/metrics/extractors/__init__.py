"""Extractors: networks that turn images into features, one file each, and the names they are found by.

A distance between sets of images says as much about its features as about the images, so a metric's name carries the
extractor's. Nothing is downloaded here, and no network silently takes another's place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from onefold.errors import UserError, suggest

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Features:
    """What an extractor sees in N images, as float32 on the CPU."""

    vectors: Tensor  # N D
    logits: Tensor | None  # N classes, where the extractor classifies


@dataclass(frozen=True)
class Extractor:
    """`extract` takes images N C H W in [-1, 1] on any device, and sees what an 8-bit picture of them holds."""

    name: str
    identity: str  # sha256 of what decides its features: its weights, or a user's source
    about: str
    classes: int | None  # None: it does not classify, or only its output says so
    extract: Callable[[Tensor], Features]
    shape: tuple[int, int, int] | None = None  # C H W of the images it takes; None: any size, grey or RGB


# name -> (module, one line); the module is imported when its extractor is asked for
EXTRACTORS = {
    "digits-cnn": ("bundled", "a small classifier of scikit-learn's 8x8 digits, bundled"),
    "fashion-cnn": ("bundled", "a small classifier of Fashion-MNIST (28x28), bundled"),
    "pixels": ("pixels", "no network: the pixels themselves, averaged down to 16x16"),
    "inception": ("inception", "the Inception that FID is defined with, through torch-fidelity"),
    "clip": ("clip", "the image tower of a CLIP model in a folder"),
    "dinov2": ("dinov2", "a DINOv2 model in a folder"),
}
USER = "package.module:function"


def extractors() -> dict[str, str]:
    """Every name with one line about it."""
    return {name: line for name, (_, line) in EXTRACTORS.items()} | {USER: "a function of your own"}


def find_extractor(name: str, *, weights: str | Path | None = None, device: str | torch.device = "cpu") -> Extractor:
    """An extractor by its name, or a user's function as `package.module:function`. `weights` is a file or a folder."""
    from onefold.devices import choose_device

    if name not in EXTRACTORS and ":" not in name:
        raise UserError(f"unknown extractor {name!r}{suggest(name, EXTRACTORS)}; a function of your own is {USER}")
    module = EXTRACTORS[name][0] if name in EXTRACTORS else "user"
    place, _ = choose_device(str(device))
    given = None if weights is None else Path(weights).expanduser()
    built: Extractor = import_module(f"onefold.metrics.extractors.{module}").build(name, given, place)
    return built
