"""Levels and states of consistency models: which the student is called at, which it learns, and what two of them share."""

from __future__ import annotations

import torch
from torch import Tensor

from onefold.denoiser import Denoiser, spread
from onefold.grids import Grid, make_grid, with_table
from onefold.process import Process


def step(x: Tensor, denoised: Tensor, sigma: Tensor, to: Tensor) -> Tensor:
    """Euler's, of each row between its own levels; from inf, where x is unit noise, D + to x."""
    ratio = to / sigma
    return spread(torch.where(torch.isinf(sigma), to, ratio), x) * x + spread(1 - ratio, x) * denoised


def noised(clean: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
    """x0 + sigma z; at inf the noise itself."""
    infinite = torch.isinf(sigma)
    return spread((~infinite).double(), z) * clean + spread(torch.where(infinite, 1.0, sigma), z) * z


def snapped(teacher: Denoiser, sigma: Tensor) -> Tensor:
    """The nearest levels that the network knows."""
    if teacher.continuous_time:
        return sigma
    table: Tensor = with_table(teacher.process).sigmas
    return table[teacher.process.time(sigma).round().long()]


def student_grid(teacher: Denoiser, schedule: str, calls: int) -> Grid:
    """Ends clean, unless the last call would then be at sigma_min, where nothing is left to do."""
    process = teacher.process
    grid = make_grid(schedule, process, calls)
    if float(grid.sigmas[-2]) <= process.sigma_min:
        grid = make_grid(schedule, process, calls, end="sigma_min")
    return grid if teacher.continuous_time else grid.snap(process, apart=True)


def discretised(teacher: Denoiser, grid: Grid, parts: int) -> Tensor:
    """Falling levels down to sigma_min, `parts` in each step of the student, all of its own among them."""
    lowest = torch.tensor([teacher.process.sigma_min], dtype=torch.float64)
    whole = Grid(torch.cat([grid.sigmas[:-1], lowest]), end="sigma_min", space=grid.space, rho=grid.rho)
    levels: Tensor = snapped(teacher, whole.subdivide(parts, teacher.process).sigmas).unique()
    return levels.flip(0)


def places(levels: Tensor, some: Tensor) -> Tensor:
    """Indices of some of the falling levels."""
    found: Tensor = (levels >= some[:, None]).sum(1) - 1
    return found


def log_normal(process: Process, mean: float, std: float, place: Tensor) -> Tensor:
    """Quantiles of sigma, cut to the levels that the process knows."""
    edges = torch.tensor([process.sigma_min, process.sigma_top], dtype=torch.float64)
    low, high = torch.special.ndtr((edges.log() - mean) / std)
    level: Tensor = (mean + std * torch.special.ndtri(low + (high - low) * place)).exp()
    return level.clamp(process.sigma_min, process.sigma_top)


def lower(teacher: Denoiser, t: Tensor, a: int) -> Tensor:
    """r = t (1 - n(t) / 2^a), n(t) = 1 + 8 sigmoid(-t), of easy consistency tuning, at a level below t that the network knows."""
    process = teacher.process
    finite = t.clamp(max=process.sigma_top)
    r = finite * (1 - (1 + 8 * torch.sigmoid(-finite)) / 2**a)
    r = snapped(teacher, r.clamp(min=process.sigma_min))
    if teacher.continuous_time:
        return r
    below: Tensor = snapped(teacher, process.sigma((process.time(t) - 1).clamp(min=0)))
    return torch.minimum(r, below)
