"""Tuned grids beside the named ones: distance to a teacher's own fine solution, and what each part of the tuning contributes.

python benchmarks/gits.py fashion28
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pairs import save
from torch import Tensor

import onefold
from onefold.bench.convergence import FINE as SOLUTION
from onefold.bench.convergence import Probe
from onefold.denoiser import Denoiser
from onefold.gits import FINE, GAMMA, SOLVER, TOGETHER, TRAJECTORIES, Jumps, fine_levels, measure_jumps, walk
from onefold.grids import Grid
from onefold.losses import root_mean_square
from onefold.progress import silent
from onefold.solvers import euler_step

CALLS = (4, 6, 8)
SOLVERS = ("euler", "ipndm3")
NAMED = ("karras", "quadratic")


# How far a jump lands from the trajectory: off, the tangent at its beginning, both (N, pixels).


def mean_square(off: Tensor, _: Tensor) -> float:
    return float(off.square().mean())


def l2(off: Tensor, _: Tensor) -> float:
    return float(off.square().mean(1).sqrt().mean())


def l1(off: Tensor, _: Tensor) -> float:
    return float(off.abs().mean())


def perpendicular(off: Tensor, tangent: Tensor) -> float:
    """L2 without the part along the jump, which is but an error of the noise's scale."""
    along = (off * tangent).sum(1) / tangent.norm(dim=1)
    return float(((off.square().sum(1) - along**2).clamp(min=0) / off.shape[1]).sqrt().mean())


DEVIATIONS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "mean square": mean_square,
    "L2": l2,
    "L1": l1,
    "perpendicular L2": perpendicular,
}


def costs_of(
    states: list[Tensor], denoised: list[Tensor], levels: list[float], deviation: str, *, heun: bool = False
) -> Tensor:
    """As `onefold.gits.jump_costs`, with another measure or another jump."""
    costs = torch.full((len(levels), len(levels)), math.inf, dtype=torch.float64)
    for i in range(len(levels) - 1):
        x, image = states[i].double().flatten(1), denoised[i].double().flatten(1)
        for j in range(i + 1, len(levels)):
            landed = euler_step(x, image, levels[i], levels[j])
            if heun and levels[j]:  # the slope at the end is the trajectory's own
                landed += (levels[i] - levels[j]) / (2 * levels[j]) * (denoised[j].double().flatten(1) - image)
            costs[i, j] = DEVIATIONS[deviation](landed - states[j].double().flatten(1), x - image)
    return costs


class Judge:
    """Distances to the fine solution, each grid and solver once."""

    def __init__(self, teacher: Denoiser, count: int, seed: int) -> None:
        self.bench = Probe(teacher, count, seed, 0, silent)
        self.teacher, self.known = teacher, dict[Any, float]()
        self.reference, check = (self.bench.images(solver, 128)[0] for solver in SOLUTION)
        self.accuracy = root_mean_square(check, self.reference)

    def distance(self, solver: str, calls: int, grid: str | Grid) -> float:
        key = solver, calls, grid if isinstance(grid, str) else tuple(grid.sigmas.tolist())
        if key not in self.known:
            images, _ = self.bench.images(solver, calls, grid)  # type: ignore[arg-type]
            self.known[key] = round(root_mean_square(images, self.reference), 4)
        return self.known[key]

    def row(self, what: str, grids: Callable[[int], str | Grid]) -> dict[str, Any]:
        found = {solver: {calls: self.distance(solver, calls, grids(calls)) for calls in CALLS} for solver in SOLVERS}
        shown = "   ".join(" ".join(f"{value:.4f}" for value in found[solver].values()) for solver in SOLVERS)
        print(f"{what:44} {shown}", flush=True)
        levels = grids(CALLS[0])
        shape = {} if isinstance(levels, str) else {"levels": [float(f"{x:.4g}") for x in levels.sigmas.tolist()]}
        return {"what": what, **found, **shape}


def tuned(teacher: Denoiser, fine: int = FINE, **how: Any) -> Jumps:
    return measure_jumps(teacher, fine_levels(teacher, fine, "zero"), **how)


def variants(teacher: Denoiser) -> Iterator[tuple[str, Callable[[int], Grid]]]:
    """One thing changed at a time, and measures of the deviation with each gamma."""
    for name, change in (
        *((f"{count} trajectories", {"trajectories": count}) for count in (4, 8, 32, 64)),
        *((f"fine grid of {fine}", {"fine": fine}) for fine in (30, 120)),
        *((f"trajectories by {solver}", {"solver": solver}) for solver in ("euler", "dpmpp3m", "ipndm4")),
        *((f"seed {seed}", {"seed": seed}) for seed in (1, 2)),
    ):
        yield name, tuned(teacher, **change).grid  # type: ignore[arg-type]
    fine = fine_levels(teacher, FINE, "zero")
    walks = [
        walk(teacher, fine, SOLVER, 0, range(first, first + TOGETHER)) for first in range(0, TRAJECTORIES, TOGETHER)
    ]
    levels = fine.sigmas.tolist()
    for heun in (False, True):
        for deviation in DEVIATIONS if not heun else ("mean square",):
            costs = torch.stack([costs_of(*walked, levels, deviation, heun=heun) for walked in walks]).mean(0)
            for gamma in (0.85, 1.0, GAMMA, 1.3):
                name = f"{'trapezium' if heun else 'Euler'} jumps, {deviation}, gamma {gamma:g}"
                yield name, lambda calls, c=costs, g=gamma: Jumps(fine, c).grid(calls, gamma=g)  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    teacher = onefold.load_teacher(arguments.teacher, device="cpu", precision="fp32")
    judge = Judge(teacher, arguments.count, arguments.seed)
    print(f"{teacher.name}: RMSE to the fine solution (accurate to {judge.accuracy:.4f}); {SOLVERS} at {CALLS} calls")
    rows = [judge.row(f"{name} grid", lambda _, name=name: name) for name in NAMED]  # type: ignore[misc]
    rows.append(judge.row("gits", tuned(teacher).grid))
    rows += [judge.row(what, grids) for what, grids in variants(teacher)]
    defaults = {"gamma": GAMMA, "trajectories": TRAJECTORIES, "fine": FINE, "solver": SOLVER}
    facts = {"count": arguments.count, "seed": arguments.seed, "accuracy": judge.accuracy, "defaults": defaults}
    what = "RMSE to the fine solution, same noise, by solver and calls"
    save(f"gits_{teacher.name}", {"what": what, **facts, "rows": rows}, show=False)


if __name__ == "__main__":
    main()
