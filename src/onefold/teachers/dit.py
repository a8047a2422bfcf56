"""Diffusion transformers with classes (DiTPipeline)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from onefold.conditions import Conditions
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.teachers.codecs import load_codec
from onefold.teachers.parts import Parts
from onefold.teachers.pixels import state_shape, whole
from onefold.teachers.schedulers import read_scheduler


def load(parts: Parts, card: Mapping[str, Any]) -> Denoiser:  # noqa: ARG001  (its index tells all)
    process, prediction = read_scheduler(parts.folder("scheduler"))
    config = parts.config(parts.network)
    shape, classes = state_shape(parts, config, variance=True), whole(parts, config, "num_embeds_ada_norm")
    if classes is None:
        raise UserError(
            f"{parts.home / parts.network} names no num_embeds_ada_norm, so it is told no class; give a DiT"
        )
    network: Any = parts.load(parts.network, "DiTTransformer2DModel", "Transformer2DModel")
    for block in network.transformer_blocks:  # in training mode each block would hide labels by itself
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    teacher = Denoiser(
        network,
        process,
        prediction=prediction,
        shape=shape,
        call=call_dit,
        classes=classes,
        null={"labels": classes},  # one more row of the embedding, learnt by dropping classes
    )
    return teacher.replace(codec=load_codec(parts, "vae", shape, "AutoencoderKL"))


def call_dit(network: Any, z: Tensor, time: Tensor, cond: Conditions) -> Tensor:
    """The learned variance, a second half of the channels, is for ancestral sampling."""
    if "labels" not in cond:
        raise UserError("this network is class-conditional; give cond={'labels': a tensor of class numbers}")
    output: Tensor = network(z, timestep=time, class_labels=cond["labels"]).sample
    return output[:, : z.shape[1]]
