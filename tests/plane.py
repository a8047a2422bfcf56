"""Teachers in the plane that are exact, small networks that correct them, and SFD on them: `plane:teacher` is one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from onefold.denoiser import Denoiser, GaussianMixture
from onefold.methods.sfd import SFD, SFDSettings
from onefold.networks.step_condition import StepCondition
from onefold.process import EDM
from onefold.settings import build
from onefold.solvers import SOLVERS
from onefold.targets import rollout
from onefold.training.contract import Batch, Draw

RING = torch.stack([torch.tensor([math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)]) for k in range(8)]).double()
CENTRED = GaussianMixture(RING, 0.3)
SHIFTED = GaussianMixture(RING + torch.tensor([1.0, 0.0]), 0.3)  # data whose mean the analytic first step does not know
OVERLAPPING = GaussianMixture(RING + torch.tensor([2.0, 0.0]), 0.5)

WATCHED = torch.randn(512, 2, generator=torch.Generator().manual_seed(123))
TOLD = ("correction.0", "correction.2")  # layers of a small network that can hear a number of calls


class Corrected(nn.Module):
    """An exact denoiser in the plane, and what corrects it, told the network's input and time: nothing at first."""

    def __init__(self, exact: GaussianMixture, correction: nn.Module) -> None:
        super().__init__()
        self.exact, self.correction = exact, correction

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        sigma = (4 * time).exp().unsqueeze(1)
        x = z * (sigma**2 + 0.25).sqrt()
        exact = self.exact.closed_form(x, sigma[:, 0].double().cpu())
        corrected: Tensor = exact + self.correction(torch.cat([z, time.unsqueeze(1)], 1))
        return corrected


def small_network(width: int = 64) -> nn.Sequential:
    torch.manual_seed(0)
    out = nn.Linear(width, 2)
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)
    return nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Dropout(0.0), out)


def exact_teacher(
    exact: GaussianMixture = CENTRED, correction: nn.Module | None = None, kind: type[Denoiser] = Denoiser
) -> Denoiser:
    network = Corrected(exact, correction or small_network()).eval().requires_grad_(False)
    teacher = kind(network, EDM(0.006, 80.0), prediction="x0", shape=(2,))
    teacher.name = "exact"
    return teacher


def teacher() -> Denoiser:
    """As people bring their own."""
    with torch.random.fork_rng(devices=[]):
        return exact_teacher()


def sfd(teacher: Denoiser | None = None, **settings: Any) -> SFD:
    """With the published K, teacher, loss, dropout and schedule."""
    published = {"parts": 4, "solver": "dpmpp3m", "loss": "l1", "dropout": True, "schedule": "drop"}
    values = {"teacher": "exact", "out": "x", "calls": 2, "lr": 1e-3, "batch_size": 32, **published, **settings}
    return SFD(teacher or exact_teacher(), build(SFDSettings, values))


def batch_of(method: Any, step: int = 0, size: int = 32, rows: range | None = None) -> Batch:
    return Batch(step, 0.0, method.prepare(Draw(0, step, rows or range(size), size)))


def train(method: Any, steps: int, size: int = 32) -> None:
    """The engine's part, in short."""
    for index in range(steps):
        batch = batch_of(method, index, size)
        for update in method.updates(batch):
            optimizer = method.optimizers["main"]
            for group in optimizer.param_groups:
                group["lr"] = method.learning_rate("main", 0, index / steps)
            optimizer.zero_grad()
            update.loss.backward()
            optimizer.step()


def teacher_states(method: SFD, z: Tensor, calls: int | None = None) -> list[Tensor]:
    """The teacher's trajectory from noise, at the student's levels."""
    course = method.courses[calls or method.calls]
    start = course.grid.start_state(method.teacher.process, z)
    parts, solver = method.settings.parts, method.settings.solver
    return rollout(method.target, start, course.fine, parts, solver=solver, cond={})


def end_distance(method: SFD, calls: int | None = None, told: int | None = None) -> float:
    """Mean distance of the student's end points to the teacher's (its K steps in each interval), for the same fresh noise."""
    network = method.networks["student"].eval()
    if isinstance(network, StepCondition):
        network.told(told or calls or method.calls)
    student, grid = method.teacher.replace(network=network), method.courses[calls or method.calls].grid
    with torch.no_grad():
        start = grid.start_state(method.teacher.process, WATCHED)
        ends = SOLVERS["euler"](student, start, grid.sigmas, afs=method.afs)
    network.train(method.settings.dropout)
    return float((ends - teacher_states(method, WATCHED, calls)[-1]).norm(dim=1).mean())


def gradient(method: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for p in method.networks["student"].parameters() if p.grad is not None])
