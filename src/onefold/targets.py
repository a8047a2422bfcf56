"""What a student should hit: teacher roll-outs between the levels of a grid, and their one-step equivalents."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onefold.conditions import Conditions
from onefold.denoiser import Denoiser, spread
from onefold.grids import Grid
from onefold.solvers import AFS, get_solver


def fine_grid(teacher: Denoiser, grid: Grid, parts: int) -> Grid:
    """Every interval of the student's grid in `parts` steps, on levels that the teacher takes."""
    fine = grid.subdivide(parts, teacher.process)
    return fine if teacher.continuous_time else fine.snap(teacher.process)


@torch.no_grad()
def rollout(
    teacher: Denoiser,
    start: Tensor,
    fine: Grid,
    parts: int,
    *,
    solver: str,
    cond: Conditions,
    afs: AFS | None = None,
) -> list[Tensor]:
    """The teacher's states at the student's levels: the start, then after every `parts` of its own steps."""
    _, states = get_solver(solver)(teacher, start, fine.sigmas, cond=cond, afs=afs, trajectory=True)
    return states[::parts]


def denoised_target(x: Tensor, target: Tensor, sigma: float, to: float) -> Tensor:
    """The D with which one step from x lands on the target: the inverse of `euler_step`."""
    if math.isinf(sigma):
        return target - to * x
    r = to / sigma
    return (target - r * x) / (1 - r)


@torch.no_grad()
def step_target(
    teacher: Denoiser, x: Tensor, levels: Tensor, *, cond: Conditions, second_order: bool = False
) -> Tensor:
    """The D with which one step of each row lands where the teacher's own steps land: `levels` (rows, K + 1), falling, float64 on
    the CPU. The K steps are DDIM's, or DPM-Solver++ (2M)'s.

    A step is x' = r x + (1 - r) D, so the landing is R x + y with R the product of all r, and y grows like x does, from 0. The D of
    one step is y / (1 - R): an average of the teacher's own, without the difference of two large states.
    """
    if levels.shape[1] == 2:
        return teacher.denoise(x, levels[:, 0], cond)
    y, before = torch.zeros_like(x), None
    for k in range(levels.shape[1] - 1):
        sigma, to = levels[:, k], levels[:, k + 1]
        denoised = teacher.denoise(x, sigma, cond)
        bent = denoised
        if before is not None:
            bent = denoised + spread(half_step_ratio(levels[:, k - 1], sigma, to), x) * (denoised - before)
        ratio, infinite = to / sigma, torch.isinf(sigma)
        add = spread(1 - ratio, x)
        x = spread(torch.where(infinite, to, ratio), x) * x + add * bent  # from inf x is unit noise
        y = spread(ratio, x) * y + add * bent
        before = denoised if second_order else None
    whole = 1 - levels[:, -1] / levels[:, 0]  # 1 from inf
    return y / spread(whole, y)


def half_step_ratio(last: Tensor, sigma: Tensor, to: Tensor) -> Tensor:
    """h / (2 h') with steps h in ln sigma, of DPM-Solver++ (2M): 0 into sigma = 0, and where the last step came from inf."""
    ratio = (sigma / to).log() / (last / sigma).log() / 2
    return torch.where(torch.isfinite(ratio), ratio, 0.0)
