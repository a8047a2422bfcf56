"""Exponential moving averages of networks, with decay counted in images."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class Averages:
    """Averaged copies of networks.

    `half_life` images is the horizon; `share` of the images seen caps it, so that early weights are forgotten
    (share=0.05 alone is the rule of EDM and GDD). Integer buffers are copied.
    """

    def __init__(self, networks: Mapping[str, nn.Module], half_life: float | None, share: float | None) -> None:
        self.half_life, self.share = half_life, share
        self.networks = {
            name: copy.deepcopy(network).eval().requires_grad_(False) for name, network in networks.items()
        }
        pairs = [
            pair
            for name in networks
            for pair in zip(tensors(self.networks[name]), tensors(networks[name]), strict=True)
        ]
        self.pairs = [(average, now) for average, now in pairs if average.is_floating_point()]
        self.copied = [(average, now) for average, now in pairs if not average.is_floating_point()]

    def decay(self, images_seen: int, batch_size: int) -> float:
        horizons = []
        if self.half_life is not None:
            horizons.append(self.half_life)
        if self.share is not None:
            horizons.append(self.share * images_seen)
        horizon = min(horizons, default=0.0)
        return 0.5 ** (batch_size / horizon) if horizon > 0 else 0.0

    @torch.no_grad()
    def update(self, images_seen: int, batch_size: int) -> None:
        averages, now = [a for a, _ in self.pairs], [n.detach() for _, n in self.pairs]
        torch._foreach_lerp_(averages, now, 1.0 - self.decay(images_seen, batch_size))
        for average, value in self.copied:
            average.copy_(value)


def tensors(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
