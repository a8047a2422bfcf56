"""Between images and the latents that a model denoises: met at the two ends only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

AT_ONCE = 4 * 512**2  # pixels; decoders need far more memory than denoisers


@dataclass(frozen=True)
class Codec:
    """`encode` and `decode` are the adapter's, for float32 batches."""

    module: nn.Module
    shape: tuple[int, ...]  # of images
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def images(self, latents: Tensor) -> Tensor:
        return torch.cat([self.decode(part) for part in self.parts(latents)])

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        return torch.cat([self.encode(part) for part in self.parts(images)])

    def parts(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Where the module is, a few images at a time."""
        place = next((parameter.device for parameter in self.module.parameters()), batch.device)
        parts: tuple[Tensor, ...] = batch.to(place, torch.float32).split(max(1, AT_ONCE // math.prod(self.shape[1:])))
        return parts
