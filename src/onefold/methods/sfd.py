"""SFD: Simple and Fast Distillation (Zhou et al., NeurIPS 2024, arXiv 2409.19681), first stage.

The student is trained at its N sampling levels only, data-free, in minutes. From fresh noise the teacher makes K steps in
each interval; the student walks its own trajectory, and at each step is pulled to the teacher's state at the same level:

    y_n = r x_n + (1 - r) D(x_n, sigma_n),  r = sigma_{n+1} / sigma_n,   L_n = | y_n - y*_{n+1} |,   x_{n+1} = stop_grad(y_n)

One optimiser update a step, so memory does not grow with N. With an analytic first step the first costs no call and no update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.grids import TUNED, End, Grid, explicit, usual_schedule
from onefold.losses import Loss, Reduction, distance
from onefold.methods.base import Distillation, DistillSettings, begun_with
from onefold.sampling import grid_for
from onefold.solvers import AFS, analytic_denoised, euler_step, get_solver
from onefold.targets import denoised_target, fine_grid, rollout
from onefold.training.contract import Batch, Update

PAPER = {
    "budget": "200k",
    "batch_size": 128,
    "grid": "karras",
    "end": "sigma_min",
    "sigma_max": 80.0,
    "sigma_min": 0.006,
    "parts": 4,
    "solver": "dpmpp3m",
    "afs": "vp",
    "loss": "l1",
    "reduction": "sum",
    "domain": "sample",
    "walk": "own",
    "lr": 5e-5,
    "schedule": "drop",
    "lr_drop": 0.1,
    "warmup": 0.0,
    "dropout": True,
    "guidance": 1.0,
    "clip": 0.0,
    "ema_half_life": None,
    "ema_share": None,
}
# The paper does not give the learning rate for 64x64 faces and animals, nor that and the budget for Stable Diffusion:
# there they are those of CIFAR-10.
# The first step is that which the stock pipeline makes: at sigma 14.6 the published one differs by 0.2 %.
SD15 = {"grid": "uniform", "sigma_max": 14.61, "sigma_min": 0.1, "solver": "dpmpp2m", "micro_batches": 16, "afs": "ve"}
PRESETS: dict[str, dict[str, Any]] = {
    "paper_cifar10": PAPER,
    "paper_64": PAPER,
    "paper_imagenet64": {**PAPER, "lr": 1e-5},
    "sd15": {**PAPER, **SD15},
}
# preset -> calls -> (FID, A100 hours), Tables 2 and 3 of the paper
PUBLISHED = {
    "paper_cifar10": {2: (4.53, 0.64), 3: (3.58, 0.92), 4: (3.24, 1.17), 5: (3.06, 1.42)},
    "paper_imagenet64": {2: (10.25, 3.34), 3: (6.35, 4.63), 4: (4.99, 5.98), 5: (4.33, 7.11)},
}


class SFDSettings(DistillSettings):
    """Settings of SFD."""

    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    batch_size: int = Field(16, ge=1, description="trajectories a batch, over all processes and micro-batches")
    parts: int = Field(3, ge=1, description="K: teacher steps in one student step (published: 4)")
    solver: str = Field("ipndm3", description="of the teacher (published: dpmpp3m)")
    grid: str | list[float] = Field(
        "auto",
        description="the student's levels: a schedule (auto by process; gits is tuned to the teacher; published: karras) or a falling list with its end",
    )
    end: End | Literal["auto"] = Field(
        "auto",
        description="zero: the last call gives the clean image; sigma_min: it stops there (as published); auto is zero for grids in time, whose last level is worth a call, and otherwise sigma_min",
    )
    sigma_min: float | None = Field(None, gt=0, description="the lowest level; null is the teacher's own")
    sigma_max: float | None = Field(None, gt=0, description="where sampling starts; null is the teacher's own")
    afs: AFS | None = Field("ve", description="analytic first step, which spares a call: ve, vp (as published) or null")
    loss: Loss = Field("pseudo_huber", description="l1 (as published), l2, huber or pseudo_huber")
    reduction: Reduction = Field("sum", description="over an image's pixels: sum (as published) or mean")
    domain: Literal["sample", "x0"] = Field(
        "sample", description="compare the states (as published) or the denoised images that lead there"
    )
    walk: Literal["own", "teacher", "through"] = Field(
        "own",
        description="the student's input: its own detached state (as published), the teacher's, or its own with gradients through all steps",
    )
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


class SFD(Distillation):
    """Simple and Fast Distillation: data-free, minutes; one student for one number of calls."""

    settings: SFDSettings

    def __init__(self, teacher: Denoiser, settings: SFDSettings) -> None:
        super().__init__(teacher, student_grid(teacher, settings), settings.afs, settings)
        if get_solver(settings.solver).stochastic:
            raise UserError(f"solver {settings.solver!r} adds noise, so it says not where a noise leads; use ipndm3")
        self.fine = fine_grid(teacher, self.grid, settings.parts)
        self.levels: list[float] = self.grid.sigmas.tolist()
        network = self.networks["student"]
        network.train(settings.dropout)
        self.optimizers = {"main": torch.optim.Adam(network.parameters(), lr=settings.lr)}

    def updates(self, batch: Batch) -> Iterator[Update]:
        cond = batch.conditions
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
        chosen = self.settings
        rising = min(1.0, progress / chosen.warmup) if chosen.warmup else 1.0
        if chosen.schedule == "cosine":
            return chosen.lr * rising * (1 + math.cos(math.pi * progress)) / 2
        return chosen.lr * rising * (chosen.lr_drop if progress >= 0.5 else 1.0)

    def published(self) -> str | None:
        if self.settings.preset is None:
            return None
        fid, hours = PUBLISHED.get(self.settings.preset, {}).get(self.calls, (None, None))
        if fid is None:
            return f"no number of the paper is known to us for {self.settings.preset} at {self.calls} calls"
        return (
            f"FID {fid} after {hours} A100 hours ({self.settings.preset}, {self.calls} calls; the paper's own teacher)"
        )


def student_grid(teacher: Denoiser, settings: SFDSettings) -> Grid:
    """N steps are calls, and one more where the first is free."""
    steps = settings.calls + (settings.afs is not None)
    low, high = settings.sigma_min, settings.sigma_max
    if isinstance(settings.grid, list):
        end = chosen_end(settings, settings.grid[-1:] == [0])
        grid = explicit(settings.grid, process=teacher.process, end=end)
        if grid.calls != steps or low or high:
            free = f", the first of them for the analytic step (afs={settings.afs})" if settings.afs else ""
            raise UserError(
                f"{settings.calls} calls need a list of {steps} levels{free} and its end, without sigma_min and sigma_max; "
                f"given are {grid.calls} levels and the end {float(grid.sigmas[-1]):g}: change the list or calls"
            )
        return grid_for(teacher, grid, steps, end=end, afs=settings.afs)
    schedule = usual_schedule(teacher.process) if settings.grid == "auto" else settings.grid
    end = chosen_end(settings, schedule not in ("karras", "logsnr"))
    begun = begun_with(settings) if schedule == TUNED else None  # another device might tune it another way
    return begun or grid_for(teacher, schedule, steps, end=end, afs=settings.afs, sigma_min=low, sigma_max=high)


def chosen_end(settings: SFDSettings, to_zero: bool) -> End:
    """karras and logsnr have their last level at sigma_min: a call from there to 0 would have nothing to do."""
    if settings.end != "auto":
        return settings.end
    return "zero" if to_zero else "sigma_min"
