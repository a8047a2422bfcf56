"""What both stages of SFD share: a student that walks from noise and is compared with where another walk from that noise has come."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field

from onefold.denoiser import Denoiser
from onefold.grids import Grid
from onefold.losses import Loss, Reduction
from onefold.methods.base import Distillation, DistillSettings
from onefold.solvers import AFS


class TrajectorySettings(DistillSettings):
    """Settings of both stages."""

    batch_size: int = Field(16, ge=1, description="trajectories a batch, over all processes and micro-batches")
    loss: Loss = Field("pseudo_huber", description="l1 (as published), l2, huber or pseudo_huber")
    reduction: Reduction = Field("sum", description="over an image's pixels: sum (as published) or mean")
    dropout: bool = Field(False, description="keep the network's dropout active in training (as published)")
    lr: float = Field(
        1e-4,
        gt=0,
        description="of Adam; 1e-4 suits about a million parameters, published are 5e-5 (CIFAR-10) and 1e-5 (ImageNet 64)",
    )
    warmup: float = Field(
        0.0, ge=0, lt=1, description="share of the budget over which the learning rate rises; 0 as published"
    )
    schedule: Literal["cosine", "drop"] = Field(
        "cosine", description="the learning rate falls to 0 along a cosine, or once, by lr_drop at half (as published)"
    )
    lr_drop: float = Field(0.1, gt=0, le=1, description="factor on the learning rate after half of the budget")
    clip: float = Field(0.0, ge=0, description="largest gradient norm; 0 does not clip (as published)")
    ema_half_life: float | None = Field(
        None, gt=0, description="half-life of averaged weights in images; null for none (as published)"
    )
    ema_share: float | None = Field(
        None, gt=0, lt=1, description="caps the half-life at this share of the images seen; null for none"
    )


class Trajectory(Distillation):
    """One optimiser, and a learning rate that falls."""

    settings: TrajectorySettings

    def __init__(self, teacher: Denoiser, grid: Grid, afs: AFS | None, settings: TrajectorySettings) -> None:
        super().__init__(teacher, grid, afs, settings)
        network = self.networks["student"]
        network.train(settings.dropout)
        self.optimizers = {"main": torch.optim.Adam(network.parameters(), lr=settings.lr)}

    def learning_rate(self, _optimizer: str, _images: int, progress: float) -> float:
        chosen = self.settings
        rising = min(1.0, progress / chosen.warmup) if chosen.warmup else 1.0
        if chosen.schedule == "cosine":
            return chosen.lr * rising * (1 + math.cos(math.pi * progress)) / 2
        return chosen.lr * rising * (chosen.lr_drop if progress >= 0.5 else 1.0)
