"""What a student's file must say of how it was made, so that no later page or table stumbles over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from onefold.errors import UserError
from onefold.grids import Grid
from onefold.settings import first_mistake
from onefold.solvers import AFS

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
    seconds: float
    device: str
    processes: int
    calls: dict[str, int]


class Evidence(Piece):
    measure: str
    images: int
    student: float
    best_solver: str
    solvers: dict[str, float]


class Guided(Piece):
    guidance: float = 1.0
    teacher: str = ""


class Recipe(Piece):
    method: str
    teacher: Teacher
    settings: Guided = Guided()
    cost: Cost | Empty = Empty()
    evidence: Evidence | Empty = Empty()
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
