"""Pixel U-Nets: DDPM, DDIM and consistency pipelines, and what `onefold teach` makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.networks.unet import call_unet
from onefold.teachers.parts import Parts
from onefold.teachers.schedulers import read_scheduler

MOST_NUMBERS = 2**26  # in an image, four times 4096 x 4096


def load(parts: Parts, card: Mapping[str, Any]) -> Denoiser:
    process, prediction = read_scheduler(parts.folder("scheduler"))
    config = parts.config("unet")
    shape, embeds, time = state_shape(parts, config), whole(parts, config, "num_class_embeds"), time_of(parts, config)
    classes, null = told_of(parts, card, embeds)
    return Denoiser(
        parts.load("unet", "UNet2DModel"),
        process,
        prediction=prediction,
        shape=shape,
        call=call_unet,
        classes=classes,
        null={} if null is None else {"labels": null},
        continuous_time=time != "learned",
    )


def told_of(parts: Parts, card: Mapping[str, Any], embeds: int | None) -> tuple[int | None, int | None]:
    """(classes, the number of no class), of as many as the network has rows for."""
    classes, null = card.get("classes", embeds), card.get("null_label")
    for name, value, lowest, most in (("classes", classes, 1, embeds or 0), ("null_label", null, 0, (embeds or 0) - 1)):
        if value is not None and (type(value) is not int or not lowest <= value <= most):
            raise UserError(
                f"{parts.home} says {name} {value!r} of a network of {embeds} classes; expected a number of them, or null: restore onefold.json"
            )
    return classes, null


def time_of(parts: Parts, config: Mapping[str, Any]) -> str:
    """How the network reads its time: whole numbers only where it learnt each of them."""
    kind: str = config.get("time_embedding_type", "positional")
    if kind not in ("positional", "learned"):
        raise UserError(
            f"{parts.home / parts.network} has the time embedding {kind!r}, whose output is a score; expected positional or "
            "learned, give a network that predicts noise, image or v"
        )
    return kind


def whole(parts: Parts, config: Mapping[str, Any], name: str) -> int | None:
    value = config.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(
            f"{parts.home / parts.network} names {name} {value!r}; expected a whole number or null, restore its config.json"
        )
    return value


def state_shape(parts: Parts, config: Mapping[str, Any], *, variance: bool = False) -> tuple[int, int, int]:
    """Channels, height and width of what a network denoises, as its config tells them."""
    size, channels, out = (config.get(key) for key in ("sample_size", "in_channels", "out_channels"))
    sizes = [size, size] if isinstance(size, int) else size
    known = isinstance(sizes, list) and len(sizes) == 2 and all(type(side) is int and side > 0 for side in sizes)
    if not known or type(channels) is not int:
        raise UserError(
            f"{parts.home / parts.network} names sample_size {size!r} and in_channels {channels!r}; expected whole numbers, "
            "write them into its config.json"
        )
    assert isinstance(sizes, list)
    if channels < 1 or channels * sizes[0] * sizes[1] > MOST_NUMBERS:
        raise UserError(
            f"{parts.home / parts.network} makes images of {channels} channels and {sizes[0]} x {sizes[1]}; expected "
            f"1 or more, and up to {MOST_NUMBERS:,} numbers in all, restore its config.json"
        )
    out = channels if out is None else out
    if out not in ((channels, 2 * channels) if variance else (channels,)):
        raise UserError(
            f"{parts.home / parts.network} takes {channels} channels and gives {out}: inpainting, upscaling and other networks "
            "that see or give more than the image are not supported, give one that predicts the image alone"
        )
    return channels, sizes[0], sizes[1]
