"""Sampling: teacher + solver + grid -> images, where image i depends on (seed, i) only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from onefold import seeds
from onefold.clipping import Clip, check_clip, clipped
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.gits import gits_grid
from onefold.grids import TUNED, End, Grid, make_grid
from onefold.progress import Progress, silent
from onefold.seeds import NoiseSource
from onefold.solvers import AFS, get_solver, steps_for
from onefold.starts import starting_with, unit_noise


def labels_for(teacher: Denoiser, seed: int, indices: Sequence[int]) -> Tensor | None:
    """The number of image i's class, drawn from (seed, i), or of its prompt: these take turns. None for a teacher that is told
    nothing."""
    if teacher.prompts is not None:
        return torch.tensor([index % len(teacher.prompts) for index in indices])
    if teacher.classes is None:
        return None
    return torch.tensor([seeds.integer(teacher.classes, seed, seeds.LABEL, index) for index in indices])


@overload
def sample(
    teacher: str | Path | Denoiser,
    count: int,
    *,
    solver: str = "ipndm3",
    calls: int = 10,
    seed: int = 0,
    grid: str | Grid | Sequence[float] = "auto",
    end: End = "zero",
    afs: AFS | None = None,
    labels: Sequence[int] | None = None,
    prompts: str | Path | Sequence[str] | None = None,
    guidance: float | None = None,
    clip: Clip | None = None,
    noise: Tensor | None = None,
    trajectory: Literal[False] = False,
    batch_size: int = 64,
    first: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> Tensor: ...


@overload
def sample(
    teacher: str | Path | Denoiser,
    count: int,
    *,
    solver: str = "ipndm3",
    calls: int = 10,
    seed: int = 0,
    grid: str | Grid | Sequence[float] = "auto",
    end: End = "zero",
    afs: AFS | None = None,
    labels: Sequence[int] | None = None,
    prompts: str | Path | Sequence[str] | None = None,
    guidance: float | None = None,
    clip: Clip | None = None,
    noise: Tensor | None = None,
    trajectory: Literal[True],
    batch_size: int = 64,
    first: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor]: ...


def sample(
    teacher: str | Path | Denoiser,
    count: int,
    *,
    solver: str = "ipndm3",
    calls: int = 10,
    seed: int = 0,
    grid: str | Grid | Sequence[float] = "auto",
    end: End = "zero",
    afs: AFS | None = None,
    labels: Sequence[int] | None = None,
    prompts: str | Path | Sequence[str] | None = None,
    guidance: float | None = None,
    clip: Clip | None = None,
    noise: Tensor | None = None,
    trajectory: bool = False,
    batch_size: int = 64,
    first: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Images `first` .. `first + count - 1` of a seed: floats N C H W on the CPU, the data's range being [-1, 1].

    `calls` are network calls an image may cost (guidance doubles them); a solver that needs two for a step makes half the
    steps, and a `grid` of given levels says by itself how many. `labels` are repeated over the images; without them each
    image draws its own. `prompts` (a list, or a file with one a line) take turns too. Further settings are the solver's, such as eta of `ddim`.

    Images are clipped only with `clip`, which bounds what the network says before each step: "static" to [-1, 1], "dynamic"
    by each image's 99.5 % quantile. `noise` (count x the network's shape, of standard deviation 1) is where the images
    start instead of the seed's noise; what a stochastic solver draws later stays the seed's. With `trajectory` the answer
    is (images, states): states (steps + 1, count, *shape), from the start to the clean one, as x0 + sigma eps in the
    network's own space; at sigma = inf that is the noise itself.
    """
    if isinstance(teacher, (str, Path)):
        from onefold.teachers import load_teacher

        teacher = load_teacher(teacher)
    model = teacher if guidance is None else teacher.replace(guidance=guidance)
    model = model if prompts is None else model.with_prompts(prompts)
    check_request(model, count, calls, batch_size, labels)
    check_clip(model, clip)
    starts = None if noise is None else unit_noise(noise, count, model.shape)
    report = progress or silent
    plan = Plan(solver, plan_grid(model, solver, calls, grid, end, afs, report), afs, settings, clip)
    report(0, count, begin=True)
    images: list[Tensor] = []
    paths: list[Tensor] = []
    for indices in batches(first, count, batch_size):
        draws: NoiseSource = seeds.ImageNoise(seed, indices, model.shape)
        if starts is not None:
            draws = starting_with(starts[indices.start - first : indices.stop - first], draws)
        states = plan.solve(model, draws, chosen_labels(model, seed, indices, labels), trajectory=trajectory)
        images.append(model.images(states[-1]).cpu())
        paths += [torch.stack([state.cpu() for state in states])] if trajectory else []
        report(indices.stop - first, count)
    if model is not teacher:
        teacher.calls += model.calls
    return (torch.cat(images), torch.cat(paths, dim=1)) if trajectory else torch.cat(images)


def plan_grid(
    teacher: Denoiser,
    solver: str,
    calls: int,
    grid: str | Grid | Sequence[float],
    end: End,
    afs: AFS | None,
    progress: Progress = silent,
) -> Grid:
    """Levels for so many calls, or the given ones."""
    steps = None
    if isinstance(grid, str):
        steps = steps_for(solver, calls, end, afs, from_inf=math.isinf(teacher.process.sigma_max))
    return grid_for(teacher, grid, steps, end=end, afs=afs, progress=progress)


def grid_for(
    teacher: Denoiser,
    grid: str | Grid | Sequence[float],
    calls: int | None,
    *,
    end: End,
    afs: AFS | None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    progress: Progress = silent,
) -> Grid:
    """`make_grid` for a teacher: also the schedule that is tuned to it, started as the first step wants it, and with levels
    at which its network can be asked."""
    if isinstance(grid, str) and grid == TUNED and calls is not None:
        return gits_grid(teacher, calls, end=end, afs=afs, sigma_min=sigma_min, sigma_max=sigma_max, progress=progress)
    made = make_grid(grid, teacher.process, calls, end=end, sigma_min=sigma_min, sigma_max=sigma_max)
    if afs == "ve":  # x1 = sigma_1 z: the start goes without the process's own scale
        made = made.starting("ve")
    return made if teacher.continuous_time else made.snap(teacher.process, apart=isinstance(grid, str))


@dataclass(frozen=True)
class Plan:
    """How a batch is sampled: decided once, the same for every batch."""

    solver: str
    grid: Grid
    afs: AFS | None
    settings: Mapping[str, Any]  # the solver's own
    clip: Clip | None = None

    def run(self, teacher: Denoiser, seed: int, indices: range, labels: Tensor | None) -> Tensor:
        """Images of these numbers; a solver's further noise is theirs too."""
        return teacher.images(self.solve(teacher, seeds.ImageNoise(seed, indices, teacher.shape), labels)[-1])

    @torch.inference_mode()
    def solve(
        self, teacher: Denoiser, draws: NoiseSource, labels: Tensor | None, *, trajectory: bool = False
    ) -> list[Tensor]:
        """The clean state from any unit noise; with `trajectory` all states before it too, the start included."""
        device = teacher.device
        noise: NoiseSource = lambda: draws().to(device)  # noqa: E731
        cond = {key: value.to(device) for key, value in teacher.conditions(labels).items()}
        start = self.grid.start_state(teacher.process, noise())
        solve, denoise, sigmas = get_solver(self.solver), clipped(teacher, self.clip), self.grid.sigmas
        how: dict[str, Any] = {"cond": cond, "noise": noise, "afs": self.afs, **self.settings}
        if not trajectory:
            return [solve(denoise, start, sigmas, **how)]
        return list(solve(denoise, start, sigmas, trajectory=True, **how)[1])


def check_request(teacher: Denoiser, count: int, calls: int, batch_size: int, labels: Sequence[int] | None) -> None:
    teacher.check_told()
    if calls < 1:
        raise UserError(f"calls is {calls}, expected 1 or more network calls an image")
    if not math.isfinite(teacher.guidance):
        raise UserError(f"guidance is {teacher.guidance}, expected a finite number; 1 leaves it out")
    if teacher.guidance != 1.0 and not teacher.nothing:
        raise UserError(
            f"teacher {teacher.name!r} knows nothing without its condition; guidance must be 1, not {teacher.guidance}"
        )
    if count < 1 or batch_size < 1:
        raise UserError(f"count and batch_size must be 1 or more, not {count} and {batch_size}")
    if labels is None:
        return
    if teacher.choices is None:
        raise UserError(f"teacher {teacher.name!r} has no classes; leave the labels out")
    wrong = [label for label in labels if not 0 <= label < teacher.choices]
    if wrong or not labels:
        raise UserError(f"labels must be numbers from 0 to {teacher.choices - 1}, not {wrong or 'none'}; mend the list")


def batches(first: int, count: int, batch_size: int) -> Iterator[range]:
    for start in range(first, first + count, batch_size):
        yield range(start, min(start + batch_size, first + count))


def chosen_labels(teacher: Denoiser, seed: int, indices: range, labels: Sequence[int] | None) -> Tensor | None:
    """Given labels are repeated over the images of the seed; otherwise each image draws its own."""
    if labels is None:
        return labels_for(teacher, seed, indices)
    return torch.tensor([labels[index % len(labels)] for index in indices])
