"""Stable Diffusion 1.x, 2.x and XL: latents, told a text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from onefold.conditions import Conditions
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.teachers.codecs import load_codec
from onefold.teachers.encoders import ADDED, TEXT, encode_texts
from onefold.teachers.parts import Parts
from onefold.teachers.pixels import state_shape, whole
from onefold.teachers.schedulers import read_scheduler

# what networks are told beside text, class or size; nobody here would tell them
UNKNOWN = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "encoder_hid_dim", "time_cond_proj_dim")

NAMED = ("cross_attention_dim", "projection_class_embeddings_input_dim", "addition_time_embed_dim")


def load(parts: Parts, card: Mapping[str, Any]) -> Denoiser:  # noqa: ARG001  (its index tells all)
    process, prediction = read_scheduler(parts.folder("scheduler"))
    config = parts.config("unet")
    large = parts.index.get("_class_name") == "StableDiffusionXLPipeline"
    check_told(parts, config, "text_time" if large else None)
    shape = state_shape(parts, config)
    network: Any = parts.load("unet", "UNet2DConditionModel")
    teacher = Denoiser(
        network,
        process,
        prediction=prediction,
        shape=shape,
        call=partial(call_unet, widths=widths(parts, network.config, large)),
    )
    codec = load_codec(parts, "vae", shape, "AutoencoderKL", centred=large)
    return teacher.replace(codec=codec, encode_texts=partial(encode_texts, parts, codec.shape[1:] if large else None))


def check_told(parts: Parts, config: Mapping[str, Any], added: str | None) -> None:
    expected = {**dict.fromkeys(UNKNOWN), "addition_embed_type": added}
    for name, value in expected.items():
        if config.get(name) != value:
            raise UserError(
                f"{parts.home / 'unet'} has {name} {config.get(name)!r}, expected {value!r} in a {parts.index.get('_class_name')}: "
                "networks that are told more than a text are not supported, give one of text alone"
            )


def widths(parts: Parts, config: Mapping[str, Any], large: bool) -> dict[str, int]:
    """Numbers a row, or a token, of each condition."""
    names = NAMED[: 3 if large else 1]
    found = [value for name in names if (value := whole(parts, config, name)) is not None]
    if len(found) < len(names):
        raise UserError(f"{parts.home / 'unet'} does not name all of {', '.join(names)}; restore its config.json")
    if not large:
        return {TEXT: found[0]}
    text, joined, width = found
    return dict(zip((TEXT, *ADDED), (text, joined - 6 * width, 6), strict=True))


def call_unet(network: Any, z: Tensor, time: Tensor, cond: Conditions, *, widths: Mapping[str, int]) -> Tensor:
    for name, width in widths.items():
        if name not in cond:
            raise UserError("this network is told a text with each image and got none; give it prompts")
        if cond[name].shape[-1] != width:
            raise UserError(
                f"{name} of the prompts has {cond[name].shape[-1]} numbers, expected {width}: they were encoded for another model; "
                "encode the texts with this one"
            )
    told = {name: cond[name].to(z.dtype) for name in widths}
    output: Tensor = network(z, time, encoder_hidden_states=told.pop(TEXT), added_cond_kwargs=told or None).sample
    return output
