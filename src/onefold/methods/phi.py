"""Which levels of its teacher a student keeps, and how the teacher itself steps between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.grids import TUNED, Grid, Space, karras, subsequence, times_of, uniform, usual_schedule
from onefold.kept import kept_steps
from onefold.process import EDM, VE, Process, Tabled, indexed
from onefold.sampling import grid_for
from onefold.targets import fine_grid


def kept_grid(teacher: Denoiser, phi: str | Sequence[int], calls: int, *, levels: int | None, seed: int) -> Grid:
    """The levels at the steps phi of the teacher's table, told in the teacher's own time."""
    table = table_of(teacher, levels)
    if phi == TUNED:
        grid = grid_for(teacher, TUNED, calls, end="zero", afs=None).snap(table)
    else:
        name = usual_schedule(teacher.process) if phi == "auto" else phi
        grid = subsequence(table, kept_steps(table, calls, name, seed=seed))
    return replace(grid, times=times_of(teacher.process, grid.sigmas))


def table_of(teacher: Denoiser, levels: int | None) -> Tabled:
    """The teacher's own table, or one that a continuous teacher is divided into."""
    process = teacher.process
    if isinstance(process, Tabled):
        if levels is not None:
            raise UserError(f"{teacher.name!r} has a table of {len(process.sigmas)} steps of its own; leave levels out")
        return process
    if levels is None:
        raise UserError(
            f"{teacher.name!r} has continuous noise levels, and SFDDM keeps steps of a table; set levels, say levels=1000, to divide them"
        )
    return indexed(process, divided(process, levels).sigmas[:-1].flip(0))


def divided(process: Process, levels: int) -> Grid:
    """Evenly in time; EDM's and VE's as EDM's paper does."""
    return karras(process, levels) if isinstance(process, EDM | VE) else uniform(process, levels)


def fine_steps(teacher: Denoiser, grid: Grid, parts: int) -> Grid:
    """The teacher's own steps are spaced as serves its solvers best, whatever the student's: on uniform phi as many come twice as near."""
    if teacher.continuous_time:
        space: Space = "root" if usual_schedule(teacher.process) == "quadratic" else grid.space
        return fine_grid(teacher, replace(grid, space=space), parts)
    try:
        return fine_grid(teacher, grid, parts)
    except UserError as error:
        raise UserError(
            f"parts={parts} steps in each of the student's do not fit between the whole times that {teacher.name!r} knows ({error}); "
            "set parts=1, distil the model that it was made from, or try phi=uniform"
        ) from None
