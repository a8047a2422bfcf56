"""GITS: noise levels tuned to a teacher by dynamic programming (Chen et al., ICML 2024, arXiv 2405.11326). Needs no data.

A few noises are carried along a fine grid by a good solver. A jump from level i to level j > i is one Euler step from the
trajectory's own state; `cost(i, j)` is the mean square of how far it lands from the trajectory's state at j. The trajectory
keeps the denoised image at each of its levels, so no jump costs a call. The best way from level i to the end in k jumps is

    V_k(i) = min over j > i of cost(i, j) + gamma V_(k-1)(j),    V_1(i) = cost(i, end).

gamma multiplies what is still to come, so above 1 it weighs errors at low noise more: those at high noise shrink on the way
to the image. Squares, and not the distances themselves: with the published gamma of 1.15 they serve both bundled teachers
better, with Euler and with iPNDM-3, and between 1 and 1.3 gamma matters little (benchmarks/results/gits_*.json).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onefold import seeds
from onefold.conditions import Conditions
from onefold.denoiser import Denoiser
from onefold.errors import UserError, whole_number
from onefold.grids import End, Grid, make_grid, with_table
from onefold.progress import Progress, silent
from onefold.solvers import AFS, analytic_denoised, euler_step, get_solver

GAMMA = 1.15
TRAJECTORIES, FINE, SOLVER = 16, 60, "ipndm3"
TOGETHER = 16  # trajectories, which stay in memory with all their levels
APART = int.from_bytes(b"gits")  # noises of their own: a grid must not be tuned on the images it will be judged by


@dataclass(frozen=True, eq=False)
class Jumps:
    """What every jump between two levels of a fine grid costs a teacher: grids for any number of calls."""

    fine: Grid
    costs: Tensor  # [i, j]: from level i to level j, inf where j <= i

    def grid(self, calls: int, *, gamma: float = GAMMA) -> Grid:
        """The best `calls` levels and the end. It sub-divides along the fine grid's own axis."""
        check_calls(calls, self.fine)
        if not gamma > 0:
            raise UserError(f"gamma is {gamma:g}, expected a number above 0; {GAMMA:g} is usual")
        chosen = best_path(self.costs, calls, gamma)
        times, phi = self.fine.times, self.fine.phi
        return replace(
            self.fine,
            sigmas=self.fine.sigmas[chosen],
            times=None if times is None else times[chosen[:-1]],
            phi=None if phi is None else tuple(phi[-1 - place] for place in reversed(chosen[:-1])),
        )


def gits_grid(
    teacher: Denoiser,
    calls: int,
    *,
    end: End = "zero",
    afs: AFS | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    trajectories: int = TRAJECTORIES,
    fine: int = FINE,
    solver: str = SOLVER,
    gamma: float = GAMMA,
    seed: int = 0,
    progress: Progress = silent,
) -> Grid:
    """A grid of so many evaluated levels (an analytic first step is one of them), with the start and the end that a named
    schedule would have. Costs `fine` calls for each trajectory, which are not counted as the teacher's."""
    levels = fine_levels(teacher, fine, end, sigma_min=sigma_min, sigma_max=sigma_max)
    check_calls(calls, levels)
    jumps = measure_jumps(
        teacher, levels, afs=afs, trajectories=trajectories, solver=solver, seed=seed, progress=progress
    )
    return jumps.grid(calls, gamma=gamma)


def fine_levels(teacher: Denoiser, count: int, end: End, **ends: float | None) -> Grid:
    """The levels to choose from, on the process's usual schedule; for a network of whole times each entry of its table once."""
    grid = make_grid("auto", teacher.process, count, end=end, **ends)
    if teacher.continuous_time:
        return grid
    table = with_table(teacher.process)
    entries = table.time(grid.sigmas[grid.sigmas > 0]).round().long().unique().flip(0)
    levels = torch.cat([table.sigmas[entries], grid.sigmas[grid.sigmas == 0]])
    return replace(grid, sigmas=levels, times=None).snap(table)


def check_calls(calls: int, fine: Grid) -> None:
    if whole_number("calls", calls) > fine.calls:
        raise UserError(
            f"{calls} calls do not fit into the {fine.calls} levels of the fine grid; ask for at most {fine.calls}, or give a "
            "larger fine= where the teacher has more levels"
        )


def measure_jumps(
    teacher: Denoiser,
    fine: Grid,
    *,
    afs: AFS | None = None,
    trajectories: int = TRAJECTORIES,
    solver: str = SOLVER,
    seed: int = 0,
    progress: Progress = silent,
) -> Jumps:
    """Mean over trajectories, always in float32: rounding is no deviation, and the grid is the same in any precision."""
    count, known = whole_number("the number of trajectories", trajectories), get_solver(solver)
    if known.stochastic or known.calls_per_step != 1:
        raise UserError(
            f"solver {solver!r} does not follow a trajectory with one call a level; use ipndm3 or dpmpp3m, for instance"
        )
    model = teacher.replace(precision="fp32")
    fine = fine.starting("ve") if afs == "ve" else fine
    costs = torch.zeros(len(fine.sigmas), len(fine.sigmas), dtype=torch.float64)
    progress(0, count)
    for first in range(0, count, TOGETHER):
        indices = range(first, min(first + TOGETHER, count))
        states, denoised = walk(model, fine, solver, seed, indices)
        costs += jump_costs(states, denoised, fine.sigmas.tolist(), afs) * len(indices) / count
        progress(indices.stop, count)
    if not bool(costs[torch.ones_like(costs).triu(1).bool()].isfinite().all()):
        raise UserError(
            f"{teacher.name!r} gives NaN or infinite numbers along its trajectories, so no grid fits it; see `onefold inspect`"
        )
    return Jumps(fine, costs)


@torch.inference_mode()
def walk(model: Denoiser, fine: Grid, solver: str, seed: int, indices: range) -> tuple[list[Tensor], list[Tensor]]:
    """The state at each level, and the denoised image at each but the last. Classes take turns."""
    device, states, denoised = model.device, list[Tensor](), list[Tensor]()
    z = seeds.ImageNoise(seeds.mix(seed, APART), indices, model.shape)().to(device)
    turns = torch.tensor(indices) % model.choices if model.choices else None
    cond = {key: value.to(device) for key, value in model.conditions(turns).items()}

    def watched(x: Tensor, sigma: float, cond: Conditions | None) -> Tensor:
        image = model(x, sigma, cond)
        states.append(x.cpu())
        denoised.append(image.cpu())
        return image

    end = get_solver(solver)(watched, fine.start_state(model.process, z), fine.sigmas, cond=cond)
    return [*states, end.cpu()], denoised


def jump_costs(states: list[Tensor], denoised: list[Tensor], levels: list[float], afs: AFS | None) -> Tensor:
    """[i, j]: the mean square of the deviation after one Euler step from level i to level j; inf where j <= i."""
    if afs is not None:  # the first step of every grid
        denoised = [analytic_denoised(states[0], levels[0], afs), *denoised[1:]]
    costs = torch.full((len(levels), len(levels)), math.inf, dtype=torch.float64)
    for i, (x, image) in enumerate(zip(states, denoised, strict=False)):
        x, image = x.double(), image.double()
        for j in range(i + 1, len(levels)):
            deviation = euler_step(x, image, levels[i], levels[j]) - states[j].double()
            costs[i, j] = deviation.square().mean()
    return costs


def best_path(costs: Tensor, jumps: int, gamma: float) -> list[int]:
    """Places of the levels, from 0 to the last, that so many jumps visit at the least V."""
    to_go, choices = costs[:, -1], list[Tensor]()
    for _ in range(jumps - 1):
        to_go, best = (costs + gamma * to_go).min(dim=1)
        choices.append(best)
    path = [0]
    for best in reversed(choices):
        path.append(int(best[path[-1]]))
    return [*path, len(costs) - 1]
