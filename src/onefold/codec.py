"""Between images and the latents that a model denoises: met at the two ends only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

AT_ONCE = 4  # images; decoders need far more memory than denoisers


@dataclass(frozen=True)
class Codec:
    """`encode` and `decode` are the adapter's, for float32 batches."""

    module: nn.Module
    shape: tuple[int, ...]  # of images
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def images(self, latents: Tensor) -> Tensor:
        return torch.cat([self.decode(part) for part in latents.float().split(AT_ONCE)])

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        return torch.cat([self.encode(part) for part in images.float().split(AT_ONCE)])
