"""A teacher of 8 x 8 images and 10 classes that costs next to nothing: `small:teacher`, as people bring their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from onefold.denoiser import Denoiser
from onefold.process import DiscreteVP, beta_table


class Network(nn.Module):
    """Two layers over image, time and class."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Embedding(11, 8)
        self.inner = nn.Sequential(nn.Linear(64 + 1 + 8, 96), nn.SiLU(), nn.Linear(96, 64))

    def forward(self, z: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        told = torch.cat([z.flatten(1), time[:, None].to(z.dtype) / 1000, self.classes(labels)], 1)
        out: Tensor = self.inner(told).reshape(z.shape)
        return out


def teacher() -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network().eval().requires_grad_(False)
    process = DiscreteVP.from_betas(beta_table("linear"))
    return Denoiser(network, process, prediction="v", shape=(1, 8, 8), classes=10, null={"labels": 10})
