"""The VAE of a pipeline of latents, called as the pipeline calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from onefold.codec import Codec
from onefold.errors import UserError
from onefold.teachers.parts import Parts


def load_codec(parts: Parts, part: str, latents: Sequence[int], *kinds: str, centred: bool = False) -> Codec:
    """Latents are multiplied by the VAE's factor; `centred`: moved by its mean and divided by its deviation too."""
    module: Any = parts.load(part, *kinds)
    config = module.config
    channels = config.get("vq_embed_dim") or config["latent_channels"]
    if channels != latents[0]:
        raise UserError(
            f"{parts.home / part} makes latents of {channels} channels and {parts.network}/ takes {latents[0]}; "
            "give a folder whose parts belong together"
        )
    mean, factor = scales(parts, part, config, channels, centred)

    def encode(images: Tensor) -> Tensor:
        found = module.encode(images)
        clean: Tensor = found.latents if "latents" in found else found.latent_dist.mode()
        return (clean - mean.to(clean)) * factor.to(clean)

    def decode(clean: Tensor) -> Tensor:
        images: Tensor = module.decode(clean / factor.to(clean) + mean.to(clean)).sample
        return images

    smaller = 2 ** (len(config["block_out_channels"]) - 1)
    return Codec(module, (config["out_channels"], *(side * smaller for side in latents[1:])), encode, decode)


def scales(parts: Parts, part: str, config: Mapping[str, Any], channels: int, centred: bool) -> tuple[Tensor, Tensor]:
    """(mean, factor) with clean = (latents - mean) * factor, a number a channel."""
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if not centred or mean is None or deviation is None:
        mean, deviation = [0.0] * channels, [1.0] * channels
    try:
        table = torch.tensor([mean, deviation], dtype=torch.float64).reshape(2, channels, 1, 1)
        factor = torch.tensor(config["scaling_factor"], dtype=torch.float64) / table[1]
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(f"{parts.home / part} has scales that no VAE has ({error}); restore its config.json") from None
    if not bool((torch.isfinite(factor) & (factor > 0)).all()):
        raise UserError(
            f"{parts.home / part} scales latents by {factor.flatten().tolist()}; expected positive numbers, restore its config.json"
        )
    return table[0], factor
