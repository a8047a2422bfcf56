"""What a student should hit: teacher roll-outs between the levels of a grid, and their one-step equivalents."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onefold.conditions import Conditions
from onefold.denoiser import Denoiser
from onefold.grids import Grid
from onefold.solvers import get_solver


def fine_grid(teacher: Denoiser, grid: Grid, parts: int) -> Grid:
    """Every interval of the student's grid in `parts` steps, on levels that the teacher takes."""
    fine = grid.subdivide(parts, teacher.process)
    return fine if teacher.continuous_time else fine.snap(teacher.process)


@torch.no_grad()
def rollout(teacher: Denoiser, start: Tensor, fine: Grid, parts: int, *, solver: str, cond: Conditions) -> list[Tensor]:
    """The teacher's states at the student's levels: the start, then after every `parts` of its own steps."""
    _, states = get_solver(solver)(teacher, start, fine.sigmas, cond=cond, trajectory=True)
    return states[::parts]


def denoised_target(x: Tensor, target: Tensor, sigma: float, to: float) -> Tensor:
    """The D with which one step from x lands on the target: the inverse of `euler_step`."""
    if math.isinf(sigma):
        return target - to * x
    r = to / sigma
    return (target - r * x) / (1 - r)
