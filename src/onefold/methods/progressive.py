"""Progressive distillation (Salimans and Ho, ICLR 2022, arXiv 2202.00512): fold after fold, two steps become one.

A fold's teacher makes N steps. Its student begins as the teacher, and learns the one DDIM step that lands where two of the teacher's land:

    z_t -> teacher -> z_{t'} -> teacher -> z_{t''};   x~ = (z_{t''} - r z_t) / (1 - r), r = sigma_{t''} / sigma_t   (sigma coordinates)
    L = max(SNR_t, 1) | x~ - x_student(z_t) |^2

Then it is the teacher of the next fold. Every fold is a run of its own inside the run folder, and goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator
from torch import nn

from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.files import read_json
from onefold.grids import TUNED, Grid, make_grid
from onefold.methods.base import begun_as
from onefold.methods.chain import Chain, ChainSettings
from onefold.methods.stages import added
from onefold.student import RECIPE, Student, load_student
from onefold.training.budget import Amount
from onefold.training.contract import Networks

FOLDS = "folds"


class ProgressiveSettings(ChainSettings):
    """Settings of progressive distillation."""

    budget: Amount = Field("10m", description="how long to train each fold: images (200k, 1.5M) or time (30s, 5m, 2h)")
    start: int | None = Field(
        None, ge=2, description="steps of the first fold's teacher, calls x factor^folds; null is calls x factor^4"
    )
    factor: int = Field(
        2, ge=2, description="steps of the teacher in one of the student's, in each fold (published: 2)"
    )
    grid: str = Field(
        "auto", description="spacing of the first fold's steps, of which later ones keep some: a named schedule"
    )
    lr: float = Field(1e-4, gt=0, description="of Adam, anew in each fold")
    solver: str = Field("euler", description="of the teacher's steps; euler is DDIM (as published)")

    @model_validator(mode="after")
    def folds_fit(self) -> Self:
        steps = self.first
        while steps > self.calls and steps % self.factor == 0:
            steps //= self.factor
        if steps != self.calls or self.first == self.calls:
            raise UserError(
                f"start={self.first} does not come to {self.calls} calls by dividing by {self.factor}; "
                f"give calls x {self.factor}^folds, such as start={self.calls * self.factor**3}"
            )
        if self.grid == TUNED:
            raise UserError(
                "grid=gits is tuned for one number of steps, and folds keep every second one; use a schedule such as auto"
            )
        return self

    @property
    def first(self) -> int:
        return self.calls * self.factor**4 if self.start is None else self.start

    def stages(self) -> list[Self]:
        """A run for each fold; the last one is the whole run's own."""
        steps, stages = self.first // self.factor, list[Self]()
        while steps > self.calls:
            changes = {"calls": steps, "start": self.first, "out": str(Path(self.out) / FOLDS / f"{steps:04}")}
            stages.append(self.model_copy(update=changes))
            steps //= self.factor
        return [*stages, self]


class Progressive(Chain):
    """Progressive distillation: fold after fold, two DDIM steps become one; the students on the way are kept."""

    settings: ProgressiveSettings

    def __init__(self, teacher: Denoiser, settings: ProgressiveSettings, before: Path | None = None) -> None:
        """One fold: from the student in `before`, or from the teacher."""
        self.previous = None if before is None else previous_student(before, teacher)
        self.before_cost = {} if before is None else dict(read_json(before / RECIPE)["cost"])
        first, every = first_grid(teacher, settings), settings.first // settings.calls
        grid, fine = strided(first, every), strided(first, every // settings.factor)
        super().__init__(teacher, fine, settings.factor, grid, settings)
        self.frozen = {"teacher": self.shown.module}
        self.notes = (*self.notes, f"fold: {settings.calls * settings.factor} steps become {settings.calls}")

    @property
    def shown(self) -> Denoiser:
        """Guidance is folded in by the first fold."""
        return self.target if self.previous is None else self.previous

    @property
    def identity(self) -> dict[str, Any]:
        before = None if self.previous is None else self.previous.card.get("sha256")
        return {**super().identity, "earlier fold": before}

    def begin(self) -> Denoiser:
        network: nn.Module = self.shown.module
        return self.teacher.replace(network=begun_as(network, self.settings))

    def as_student(self, networks: Networks, cost: Mapping[str, Any] | None = None) -> Student:
        """What it cost is what all folds cost. A later fold's adapter is the difference to the fold before, so it fits no copy of the
        teacher and is not kept."""
        student = super().as_student(
            networks, None if cost is None else added(self.before_cost, cost, FOLDS, self.calls)
        )
        return student if self.previous is None else replace(student, adapter=None)


def previous_student(folder: Path, teacher: Denoiser) -> Denoiser:
    student = load_student(folder, teacher=teacher, device=str(teacher.device), precision=teacher.precision)
    return student.denoiser.replace(prompts=teacher.prompts)


def first_grid(teacher: Denoiser, settings: ProgressiveSettings) -> Grid:
    grid = make_grid(settings.grid, teacher.process, settings.first)
    return grid if teacher.continuous_time else grid.snap(teacher.process, apart=True)


def strided(grid: Grid, every: int) -> Grid:
    """Every so many-th level, from the first on."""
    phi = None if grid.phi is None else grid.phi[::-1][::every][::-1]
    times = None if grid.times is None else grid.times[::every]
    return replace(grid, sigmas=grid.sigmas[::every], times=times, phi=phi)
