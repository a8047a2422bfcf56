"""Sub-sequences by name: the steps of its table that a student of a discrete teacher keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from onefold.errors import UserError, suggest
from onefold.grids import Grid, karras, logsnr, quadratic, with_table
from onefold.process import Process
from onefold.subsequences import checked_steps, concentrated, even_steps, rising, scattered, steps_that_fit

CONCENTRATED, SHARE = "concentrated", 0.4
SPACED: dict[str, Callable[[Process, int], Grid]] = {"logsnr": logsnr, "karras": karras, "quadratic": quadratic}
WAYS = ("uniform", "start", *SPACED, CONCENTRATED, "scattered")


def kept_steps(process: Process, steps: int, how: str | Sequence[int] | Tensor, *, seed: int = 0) -> tuple[int, ...]:
    """phi_1 < ... < phi_T', 1-based, for T' = `steps`.

    "uniform" reaches T, "start" begins at 1; "logsnr", "karras" and "quadratic" space the levels as the grids of these
    names, each at a step of its own; "concentrated:0.4" has that share about the middle, "scattered" depends on the seed. A list
    is taken as it is.
    """
    table = with_table(process)
    total = len(table.sigmas)
    if not isinstance(how, str):
        return listed(total, steps, how)
    steps = steps_that_fit(total, steps)
    name, _, detail = how.partition(":")
    if detail and name in WAYS and name != CONCENTRATED:
        raise UserError(f"the sub-sequence is {how!r}, but only {CONCENTRATED!r} takes a number; write {name!r}")
    if name in SPACED:
        evaluated = SPACED[name](table, steps).sigmas[:-1]
        return rising(total, (1 + table.time(evaluated)).flip(0).tolist())
    match name:
        case "uniform":
            return even_steps(total, steps)
        case "start":
            return even_steps(total, steps, anchor="start")
        case "concentrated":
            return concentrated(total, steps, share_of(how, detail))
        case "scattered":
            return scattered(total, steps, seed)
    raise UserError(f"unknown sub-sequence {how!r}{suggest(name, WAYS)}")


def listed(total: int, steps: int, given: Sequence[int] | Tensor) -> tuple[int, ...]:
    phi = checked_steps(total, given.tolist() if isinstance(given, Tensor) else list(given))
    if len(phi) != steps:
        raise UserError(
            f"the sub-sequence has {len(phi)} steps, but calls is {steps}; give calls={len(phi)}, or as many steps as calls"
        )
    return phi


def share_of(how: str, detail: str) -> float:
    try:
        return float(detail) if detail else SHARE
    except ValueError:
        raise UserError(f"the sub-sequence is {how!r}; write the share as a number, '{CONCENTRATED}:{SHARE}'") from None
