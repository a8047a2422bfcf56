"""SFD: Simple and Fast Distillation (Zhou et al., NeurIPS 2024, arXiv 2409.19681), first stage.

The student is trained at its N sampling levels only, data-free, in minutes. From fresh noise the teacher makes K steps in
each interval; the student walks its own trajectory, and at each step is pulled to the teacher's state at the same level:

    y_n = r x_n + (1 - r) D(x_n, sigma_n),  r = sigma_{n+1} / sigma_n,   L_n = | y_n - y*_{n+1} |,   x_{n+1} = stop_grad(y_n)

One optimiser update a step, so memory does not grow with N. With an analytic first step the first costs no call and no update.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from onefold import seeds
from onefold.denoiser import Denoiser
from onefold.grids import End, Grid, make_grid
from onefold.losses import Loss, Reduction, distance
from onefold.methods.base import Distillation, DistillSettings
from onefold.solvers import AFS, analytic_denoised, euler_step
from onefold.targets import denoised_target, fine_grid, rollout
from onefold.training.contract import Batch, Draw, Update


class SFDSettings(DistillSettings):
    """Settings of SFD."""

    parts: int = Field(4, ge=1, description="K: teacher steps in one student step")
    solver: str = Field("dpmpp3m", description="of the teacher")
    grid: str | list[float] = Field(
        "auto",
        description="the student's levels: a schedule (auto by process; published: karras) or a falling list with its end",
    )
    end: End = Field(
        "zero", description="the last call: zero gives the clean image, sigma_min stops at that level (as published)"
    )
    sigma_min: float | None = Field(None, gt=0, description="the lowest level; null is the teacher's own")
    sigma_max: float | None = Field(None, gt=0, description="where sampling starts; null is the teacher's own")
    afs: AFS | None = Field("ve", description="analytic first step, which spares a call: ve, vp (as published) or null")
    loss: Loss = Field("l1", description="l1, l2, huber or pseudo_huber")
    reduction: Reduction = Field("sum", description="over an image's pixels: sum (as published) or mean")
    domain: Literal["sample", "x0"] = Field(
        "sample", description="compare the states (as published) or the denoised images that lead there"
    )
    walk: Literal["own", "teacher", "through"] = Field(
        "own",
        description="the student's input: its own detached state (as published), the teacher's, or its own with gradients through all steps",
    )
    guidance: float = Field(
        1.0, description="guidance folded into the teacher's target; 1 leaves it out (as published)"
    )
    dropout: bool = Field(True, description="keep the network's dropout active in training (as published)")
    lr: float = Field(
        5e-4,
        gt=0,
        description="of Adam; 5e-4 suits about a million parameters, published are 5e-5 (CIFAR-10) and 1e-5 (ImageNet 64)",
    )
    warmup: float = Field(
        0.0, ge=0, lt=1, description="share of the budget over which the learning rate rises; 0 as published"
    )
    lr_drop: float = Field(0.1, gt=0, le=1, description="factor on the learning rate after half of the budget")
    clip: float = Field(0.0, ge=0, description="largest gradient norm; 0 does not clip (as published)")
    ema_half_life: float | None = Field(
        None, gt=0, description="half-life of averaged weights in images; null for none (as published)"
    )
    ema_share: float | None = Field(
        None, gt=0, lt=1, description="caps the half-life at this share of the images seen; null for none"
    )


class SFD(Distillation):
    """Simple and Fast Distillation: data-free, minutes; one student for one number of calls."""

    settings: SFDSettings

    def __init__(self, teacher: Denoiser, settings: SFDSettings) -> None:
        super().__init__(teacher, student_grid(teacher, settings), settings.afs, settings)
        self.target = teacher.replace(guidance=settings.guidance)
        self.fine = fine_grid(teacher, self.grid, settings.parts)
        self.levels: list[float] = self.grid.sigmas.tolist()
        network = self.networks["student"]
        network.train(settings.dropout)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "main": torch.optim.Adam(network.parameters(), lr=settings.lr)
        }

    def prepare(self, draw: Draw) -> dict[str, Tensor]:
        tensors = {"z": draw.noise(self.teacher.shape)}
        if self.teacher.classes:
            tensors["labels"] = draw.integers(self.teacher.classes, seeds.LABEL)
        return tensors

    def updates(self, batch: Batch) -> Iterator[Update]:
        cond = {name: value for name, value in batch.tensors.items() if name != "z"}
        x = self.grid.start_state(self.teacher.process, batch["z"])
        states = rollout(self.target, x, self.fine, self.settings.parts, solver=self.settings.solver, cond=cond)
        total: Tensor | None = None
        for n, (sigma, to) in enumerate(pairwise(self.levels)):
            last = n == len(self.levels) - 2
            if n == 0 and self.afs:
                x = euler_step(x, analytic_denoised(x, sigma, self.afs), sigma, to)
                continue
            x = states[n] if self.settings.walk == "teacher" else x
            denoised = self.student.denoise(x, sigma, cond)
            y = euler_step(x, denoised, sigma, to)
            loss = self.loss(x, y, denoised, states[n + 1], sigma, to)
            if self.settings.walk == "through":
                total, x = (loss if total is None else total + loss), y
                continue
            yield Update(loss, ema=last, logs={f"loss_{n}": loss})
            x = y.detach()
        if total is not None:
            yield Update(total)

    def loss(self, x: Tensor, y: Tensor, denoised: Tensor, state: Tensor, sigma: float, to: float) -> Tensor:
        kind, reduction = self.settings.loss, self.settings.reduction
        if self.settings.domain == "x0":
            return distance(kind, denoised, denoised_target(x.detach(), state, sigma, to), reduction)
        return distance(kind, y, state, reduction)

    def learning_rate(self, _optimizer: str, _images: int, progress: float) -> float:
        rising = min(1.0, progress / self.settings.warmup) if self.settings.warmup else 1.0
        return self.settings.lr * rising * (self.settings.lr_drop if progress >= 0.5 else 1.0)


def student_grid(teacher: Denoiser, settings: SFDSettings) -> Grid:
    """N steps are calls, and one more where the first is free."""
    steps = settings.calls + (settings.afs is not None)
    ends: dict[str, Any] = {"sigma_min": settings.sigma_min, "sigma_max": settings.sigma_max}
    grid = make_grid(
        settings.grid, teacher.process, steps, end=settings.end, **{k: v for k, v in ends.items() if v is not None}
    )
    return grid if settings.afs != "ve" else grid.starting("ve")
