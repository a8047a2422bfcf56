"""Sampling: teacher + solver + grid -> images, where image i depends on (seed, i) only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from onefold import seeds
from onefold.denoiser import Conditions, Denoiser
from onefold.errors import UserError
from onefold.grids import Grid, make_grid
from onefold.progress import Progress, silent
from onefold.solvers import AFS, get_solver, steps_for


def labels_for(teacher: Denoiser, seed: int, indices: Sequence[int]) -> Tensor | None:
    """The class of image i, drawn from (seed, i); none for a teacher without classes."""
    if teacher.classes is None:
        return None
    return torch.tensor([seeds.integer(teacher.classes, seed, seeds.LABEL, index) for index in indices])


def sample(
    teacher: str | Path | Denoiser,
    count: int,
    *,
    solver: str = "unipc2",
    calls: int = 10,
    seed: int = 0,
    grid: str | Grid | Sequence[float] = "auto",
    end: Literal["zero", "sigma_min"] = "zero",
    afs: AFS | None = None,
    labels: Sequence[int] | None = None,
    guidance: float | None = None,
    batch_size: int = 64,
    first: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Images `first` .. `first + count - 1` of a seed: floats about [-1, 1], N C H W, on the CPU.

    `calls` are network calls an image may cost; a solver that needs two for a step makes half the steps. `labels` are
    repeated over the images; without them each image draws its own.
    """
    if isinstance(teacher, (str, Path)):
        from onefold.teachers import load_teacher

        teacher = load_teacher(teacher)
    if guidance is not None:
        teacher = teacher.replace(guidance=guidance)
    plan = Plan.make(teacher, solver, calls, grid, end, afs)
    check_request(teacher, count, batch_size, labels)
    report = progress or silent
    report(0, count)
    parts = []
    for indices in batches(first, count, batch_size):
        parts.append(plan.run(teacher, seed, indices, chosen_labels(teacher, seed, indices, labels)).cpu())
        report(indices.stop - first, count)
    return torch.cat(parts)


@dataclass(frozen=True)
class Plan:
    """How a batch is sampled: decided once, the same for every batch."""

    solver: str
    grid: Grid
    afs: AFS | None

    @classmethod
    def make(
        cls, teacher: Denoiser, solver: str, calls: int, grid: str | Grid | Sequence[float], end: str, afs: AFS | None
    ) -> Plan:
        if calls < 1:
            raise UserError(f"calls is {calls}, expected 1 or more network calls an image")
        if isinstance(grid, Grid):
            return cls(solver, grid, afs)
        from_inf = math.isinf(teacher.process.sigma_max)
        steps = steps_for(solver, calls, end, afs, from_inf=from_inf)  # type: ignore[arg-type]
        made = make_grid(grid, teacher.process, steps, end=end)  # type: ignore[arg-type]
        return cls(solver, made if teacher.continuous_time else made.snap(teacher.process), afs)

    @torch.inference_mode()
    def run(self, teacher: Denoiser, seed: int, indices: range, labels: Tensor | None) -> Tensor:
        device = teacher.device
        draws = seeds.ImageNoise(seed, indices, teacher.shape)
        noise: Callable[[], Tensor] = lambda: draws().to(device)  # noqa: E731
        cond: Conditions = {} if labels is None else {"labels": labels.to(device)}
        grid = self.grid
        z = noise()
        if self.afs == "ve":  # x1 = sigma_1 z: the start goes without the process's own scale
            grid = grid.starting("ve")
        start = grid.start_state(teacher.process, z)
        result: Tensor = get_solver(self.solver)(teacher, start, grid.sigmas, cond=cond, noise=noise, afs=self.afs)
        return result


def check_request(teacher: Denoiser, count: int, batch_size: int, labels: Sequence[int] | None) -> None:
    if count < 1 or batch_size < 1:
        raise UserError(f"count and batch_size must be 1 or more, not {count} and {batch_size}")
    if labels is None:
        return
    if teacher.classes is None:
        raise UserError(f"teacher {teacher.name!r} has no classes; leave the labels out")
    wrong = [label for label in labels if not 0 <= label < teacher.classes]
    if wrong or not labels:
        raise UserError(f"labels must be numbers from 0 to {teacher.classes - 1}, not {wrong or 'none'}; mend the list")


def batches(first: int, count: int, batch_size: int) -> Iterator[range]:
    for start in range(first, first + count, batch_size):
        yield range(start, min(start + batch_size, first + count))


def chosen_labels(teacher: Denoiser, seed: int, indices: range, labels: Sequence[int] | None) -> Tensor | None:
    """Given labels are repeated over the images of the seed; otherwise each image draws its own."""
    if labels is None:
        return labels_for(teacher, seed, indices)
    return torch.tensor([labels[index % len(labels)] for index in indices])
