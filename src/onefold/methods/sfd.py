"""SFD: Simple and Fast Distillation (Zhou et al., NeurIPS 2024, arXiv 2409.19681), first stage.

The student is trained at its N sampling levels only, data-free, in minutes. From fresh noise the teacher makes K steps in
each interval; the student walks its own trajectory, and at each step is pulled to the teacher's state at the same level:

    y_n = r x_n + (1 - r) D(x_n, sigma_n),  r = sigma_{n+1} / sigma_n,   L_n = | y_n - y*_{n+1} |,   x_{n+1} = stop_grad(y_n)

One optimiser update a step, so memory does not grow with N. With an analytic first step the first costs no call and no update.

SFD-v is the same for several N: each batch is for one of them, whose number the network is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from onefold import seeds
from onefold.conditions import Conditions
from onefold.data import fingerprint_of
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.grids import TUNED, End, Grid, explicit, usual_schedule
from onefold.losses import distance
from onefold.methods.base import begun_with
from onefold.methods.kept_trajectories import KeptTrajectories
from onefold.methods.trajectory import Trajectory, TrajectorySettings
from onefold.networks.step_condition import TIME_READERS, StepCondition
from onefold.sampling import grid_for
from onefold.solvers import AFS, analytic_denoised, euler_step, get_solver
from onefold.student import Student
from onefold.targets import denoised_target, fine_grid, rollout
from onefold.training.contract import HOST, Batch, Draw, Networks, Update
from onefold.variants import Variant

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
# preset -> (calls -> FID, A100 hours of the one model)
PUBLISHED_TOGETHER = {
    "paper_cifar10": ({2: 4.28, 3: 3.50, 4: 3.18, 5: 2.95}, 4.26),
    "paper_imagenet64": ({2: 9.47, 3: 5.78, 4: 4.72, 5: 4.21}, 23.62),
}

STATES, ROWS = "states", HOST + "rows"


class SFDSettings(TrajectorySettings):
    """Settings of SFD."""

    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    also: list[int] = Field(
        [],
        description="further, smaller numbers of calls that the same student knows (SFD-v); --calls 2,3,4,5 says calls=5 also=[2,3,4]",
    )
    step_init: Literal["zero", "official"] = Field(
        "zero",
        description="with several numbers of calls: the layers that tell the network which begin at zero, so that the student begins as its teacher, or at random (official)",
    )
    step_layers: list[str] | None = Field(
        None,
        description="with several numbers of calls: the linear layers that are told which, by the ends of their names; null is those that read the time",
    )
    parts: int = Field(
        2,
        ge=1,
        description="K: teacher steps in one student step (published: 4); more are more exact and leave fewer trajectories to a budget",
    )
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
    domain: Literal["sample", "x0"] = Field(
        "sample", description="compare the states (as published) or the denoised images that lead there"
    )
    walk: Literal["own", "teacher", "through"] = Field(
        "own",
        description="the student's input: its own detached state (as published), the teacher's, or its own with gradients through all steps",
    )

    pieces: int = Field(
        1,
        ge=1,
        description="the teacher walks with a whole batch at once, which keeps a processor busy; the student learns from it in so many pieces, each with its own updates",
    )
    cache: str | None = Field(
        None,
        description="a folder that keeps the teacher's trajectories for further runs with the same teacher, levels, batches and seed, which then need no call of it",
    )

    @property
    def counts(self) -> list[int]:
        return sorted([*self.also, self.calls])

    @classmethod
    def several(cls, counts: list[Any]) -> dict[str, Any]:
        numbers = [one for one in counts if isinstance(one, int) and not isinstance(one, bool) and one > 0]
        if not numbers or len(set(numbers)) != len(counts):
            raise UserError(f"calls is {counts}, expected different numbers of 1 or more, such as 2,3,4,5")
        *others, most = sorted(numbers)
        return {"calls": most, "also": others}

    @model_validator(mode="after")
    def numbers_fit(self) -> Self:
        if any(calls < 1 for calls in self.also) or len({*self.also, self.calls}) <= len(self.also):
            raise UserError(
                f"also is {self.also}, expected different numbers of 1 or more, and not calls={self.calls} again"
            )
        if max(self.counts) != self.calls:
            raise UserError(f"calls is {self.calls}, but also has {max(self.also)}; give the largest number as calls")
        if self.also and isinstance(self.grid, list):
            raise UserError(
                f"grid is a list of {len(self.grid)} levels, which fits one number of calls, not {len(self.counts)}; name a schedule"
            )
        if self.also and self.lora:
            raise UserError("lora adapts a student of one number of calls; leave lora or the further numbers out")
        if not self.also and (self.step_init, self.step_layers) != ("zero", None):
            raise UserError(
                "step_init and step_layers are for several numbers of calls; give --calls 2,3,4,5 or leave them out"
            )
        return self


@dataclass(frozen=True)
class Course:
    """What one number of calls walks: the student's levels, and the teacher's between them."""

    grid: Grid
    fine: Grid

    @property
    def steps(self) -> list[tuple[float, float]]:
        return list(pairwise(self.grid.sigmas.tolist()))


class SFD(Trajectory):
    """Simple and Fast Distillation: data-free, minutes; one student for one number of calls, or for several (SFD-v)."""

    settings: SFDSettings

    def __init__(self, teacher: Denoiser, settings: SFDSettings) -> None:
        if get_solver(settings.solver).stochastic:
            raise UserError(f"solver {settings.solver!r} adds noise, so it says not where a noise leads; use ipndm3")
        self.courses = {calls: course_of(teacher, settings, calls) for calls in settings.counts}
        super().__init__(teacher, self.courses[settings.calls].grid, settings.afs, settings)
        self.kept = None if settings.cache is None else KeptTrajectories(settings.cache, self.of_trajectories)
        if isinstance(self.student.module, StepCondition):
            self.notes = (*self.notes, self.student.module.note)

    @property
    def grids(self) -> dict[int, Grid]:
        return {calls: course.grid for calls, course in self.courses.items()}

    @property
    def of_trajectories(self) -> dict[str, Any]:
        """All that decides the teacher's trajectories. Which rows are drawn together does not."""
        told = self.told.prompts  # those that are learned from: how many are kept to look at is a setting
        return {
            **self.identity,
            **{name: getattr(self.settings, name) for name in ("solver", "parts", "seed")},
            "teacher": fingerprint_of(self.target),  # with its guidance and precision
            "prompts": None if told is None else told.fingerprint,
        }

    @property
    def turns(self) -> int:
        return len(self.courses)

    def begin(self) -> Denoiser:
        begun, settings = super().begin(), self.settings
        if not settings.also:
            return begun
        how: dict[str, Any] = {"layers": settings.step_layers or TIME_READERS, "init": settings.step_init}
        seed = seeds.mix(settings.seed, seeds.ADAPTER)
        return begun.replace(network=StepCondition(begun.module, settings.counts, **how, seed=seed))

    def turn(self, step: int) -> int:
        """The numbers of calls take turns, a batch each: all processes and micro-batches walk the same."""
        calls = self.settings.counts[step % self.turns]
        network = self.student.module
        if isinstance(network, StepCondition):
            network.told(calls)
        return calls

    def prepare(self, draw: Draw) -> dict[str, Tensor]:
        tensors = super().prepare(draw)
        if self.kept is None:
            return tensors
        known = self.kept.read(draw.step, draw.rows)
        states = {} if known is None else {STATES: known}
        return {**tensors, **states, ROWS: torch.tensor([draw.rows.start, draw.rows.stop])}

    def updates(self, batch: Batch) -> Iterator[Update]:
        calls = self.turn(batch.step)
        course, cond, pieces = self.courses[calls], batch.conditions, self.settings.pieces
        start = course.grid.start_state(self.teacher.process, batch["z"])
        states = self.trajectory(batch, start, course)
        check_pieces(len(start), pieces)
        name = "loss" if len(self.courses) == 1 else f"loss_of_{calls}"
        for piece in range(pieces):  # every so many-th row, so that processes and micro-batches make the same pieces
            rows = slice(piece, None, pieces)
            told = {key: value[rows] for key, value in cond.items()}
            losses = self.walk(start[rows], [state[rows] for state in states], course, told)
            for n, loss in losses:
                last = piece == pieces - 1 and n == course.grid.calls - 1
                yield Update(loss, ema=last, logs={f"{name}_{n}": loss})

    def trajectory(self, batch: Batch, start: Tensor, course: Course) -> list[Tensor]:
        """The teacher's states at the student's levels."""
        if STATES in batch.tensors:
            return [start, *batch[STATES].unbind(1)]
        how: dict[str, Any] = {"solver": self.settings.solver, "cond": batch.conditions}
        states = rollout(self.target, start, course.fine, self.settings.parts, **how)
        if self.kept is not None:
            self.kept.write(batch.step, range(*batch[ROWS].tolist()), states[1:])
        return states

    def walk(
        self, x: Tensor, states: Sequence[Tensor], course: Course, cond: Conditions
    ) -> Iterator[tuple[int, Tensor]]:
        """The loss of each step that is learned, or with walk=through one of all."""
        total: Tensor | None = None
        for n, (sigma, to) in enumerate(course.steps):
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
            yield n, loss
            x = y.detach()
        if total is not None:
            yield course.grid.calls - 1, total

    def loss(self, x: Tensor, y: Tensor, denoised: Tensor, state: Tensor, sigma: float, to: float) -> Tensor:
        kind, reduction = self.settings.loss, self.settings.reduction
        if self.settings.domain == "x0":
            return distance(kind, denoised, denoised_target(x.detach(), state, sigma, to), reduction)
        return distance(kind, y, state, reduction)

    def sampler(self, networks: Networks) -> Student:
        network = networks["student"]
        if not isinstance(network, StepCondition):
            return super().sampler(networks)
        most, *others = reversed(self.settings.counts)
        whole = super().sampler({"student": network.folded(most)})
        variants = {calls: Variant(self.courses[calls].grid, network.biases(calls)) for calls in others}
        return replace(whole, variants=variants)

    def published(self) -> str | None:
        if self.settings.preset is None:
            return None
        if self.settings.also:
            return published_of_several(self.settings.preset, self.settings.counts)
        fid, hours = PUBLISHED.get(self.settings.preset, {}).get(self.calls, (None, None))
        if fid is None:
            return f"no number of the paper is known to us for {self.settings.preset} at {self.calls} calls"
        return (
            f"FID {fid} after {hours} A100 hours ({self.settings.preset}, {self.calls} calls; the paper's own teacher)"
        )


def check_pieces(rows: int, pieces: int) -> None:
    if rows % pieces:
        raise UserError(
            f"pieces is {pieces}, but a process has {rows} trajectories at a time; let batch_size be a multiple of "
            "pieces x micro_batches x processes"
        )


def published_of_several(preset: str, counts: Sequence[int]) -> str:
    numbers, hours = PUBLISHED_TOGETHER.get(preset, ({}, 0.0))
    if sorted(numbers) != list(counts):
        return (
            f"no number of the paper is known to us for {preset} at {', '.join(map(str, counts))} calls of one student"
        )
    fids = ", ".join(f"{numbers[calls]} at {calls}" for calls in counts)
    return f"FID {fids} calls after {hours} A100 hours in all ({preset}, SFD-v; the paper's own teacher)"


def course_of(teacher: Denoiser, settings: SFDSettings, calls: int) -> Course:
    grid = student_grid(teacher, settings.model_copy(update={"calls": calls}))
    return Course(grid, fine_grid(teacher, grid, settings.parts))


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
