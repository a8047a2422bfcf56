"""What a student's file must say of how it was made, so that no later page or table stumbles over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.grids import Grid
from onefold.settings import first_mistake
from onefold.solvers import AFS

PHI = "phi"  # in a card: the teacher's steps that a student keeps
SAME = 1e-6  # of levels that went through a scheduler's betas: 1 - beta keeps few digits of a small number


class Piece(BaseModel):
    """What is known is of these types; whatever is said besides is kept."""

    model_config = ConfigDict(extra="allow", strict=True)


class Empty(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Teacher(Piece):
    name: str
    sha256: str | None = None


class Cost(Piece):
    images: int
    steps: int
    seconds: float
    device: str
    processes: int
    calls: dict[str, int]
    folds: list[dict[str, Any]] = []  # of a student that was made in several runs: what each cost
    stages: list[dict[str, Any]] = []


class Before(Piece):
    """The first of two stages."""

    method: str
    distance: float | None = None


class Evidence(Piece):
    measure: str
    images: int
    student: float
    best_solver: str
    solvers: dict[str, float]
    teacher: dict[str, Any] | None = None  # the same of the teacher at its best, where that is not the measure itself


class Guided(Piece):
    guidance: float = 1.0
    teacher: str = ""
    root: str | None = None  # of a second stage: the first one's teacher


class Recipe(Piece):
    method: str
    teacher: Teacher
    settings: Guided = Guided()
    cost: Cost | Empty = Empty()
    evidence: Evidence | Empty = Empty()
    by_calls: dict[str, Evidence] = {}
    first_stage: Before | Empty = Empty()
    published: str | None = None
    command: str | None = None
    versions: dict[str, str] = {}


def check_recipe(facts: Mapping[str, Any], path: Path) -> tuple[Grid, AFS | None]:
    """The parts of it that sampling needs."""
    try:
        Recipe.model_validate({key: value for key, value in facts.items() if key in Recipe.model_fields})
        grid = Grid.from_dict(facts.get("grid"))
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {first_mistake(error, 'entry')}; restore it") from None
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    afs = facts.get("afs")
    if not (afs is None or (isinstance(afs, str) and afs in get_args(AFS))):
        raise UserError(
            f"{path} names the analytic first step {afs!r}, expected null, {' or '.join(get_args(AFS))}; restore it"
        )
    if grid.calls - (afs is not None) < 1:
        raise UserError(f"{path} has a grid without a call of the network; restore it")
    return grid, cast(AFS | None, afs)


def further_grids(facts: Mapping[str, Any], most: int, afs: AFS | None, path: Path) -> dict[int, Grid]:
    """Of a student that makes several numbers of calls: the levels of all but the largest."""
    told = facts.get("further_grids", {})
    try:
        grids = {int(calls): Grid.from_dict(values) for calls, values in told.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{path} has further_grids {told!r:.60}, expected one by number of calls; restore it") from None
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    for calls, grid in grids.items():
        if calls != grid.calls - (afs is not None) or not 1 <= calls < most:
            raise UserError(
                f"{path} has a grid of {grid.calls} levels for {calls} calls, expected fewer than the student's {most}; restore it"
            )
    return grids


def must_fit_the_network(grid: Grid, afs: AFS | None, denoiser: Denoiser, card: Mapping[str, Any], path: Path) -> None:
    """The grid is the one that the network was trained for, as far as the network's own folder tells."""
    kept = card.get(PHI)
    if kept is not None and (grid.phi is None or kept != list(grid.phi)):
        said = None if grid.phi is None else list(grid.phi)
        raise UserError(f"{path} says phi {said}, but the network was trained for phi {kept}; restore the file")
    if denoiser.continuous_time:
        return
    levels, process = grid.sigmas[afs is not None : -1], denoiser.process
    off = levels[~torch.isclose(process.sigma(process.time(levels).round()), levels, rtol=SAME, atol=0)]
    if len(off):
        raise UserError(
            f"{path} has a grid with sigma {float(off[0]):.6g}, which is none of the levels that the network was trained for; "
            "restore the file"
        )
