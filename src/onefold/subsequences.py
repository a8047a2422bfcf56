"""Which steps of a discrete teacher a student keeps: phi_1 < ... < phi_T' of the steps 1..T, as in SFDDM (arXiv 2405.14961).

Steps are 1-based; step s is entry s - 1 of the teacher's table. Nothing here knows what the levels are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal, get_args

from onefold import seeds
from onefold.errors import UserError, check_choice, whole_number

Anchor = Literal["end", "start"]

APART = int.from_bytes(b"phi")  # draws of their own
CLUSTER = 256  # spacing in the cluster is T / 256: 4 of the published 1024


def even_steps(total: int, steps: int, *, anchor: Anchor = "end", strict: bool = False) -> tuple[int, ...]:
    """phi_1 < ... < phi_T', 1-based. "end": phi_t = round(t T / T'), which reaches T. "start": floor((t - 1) T / T') + 1,
    which begins at 1 (the anchor of the published code). strict: T' must divide T."""
    check_choice("anchor", anchor, get_args(Anchor))
    steps = steps_that_fit(total, steps)
    if strict and total % steps:
        raise UserError(f"{steps} steps do not divide the teacher's {total}; use a divisor or strict=False")
    if anchor == "start":
        return tuple(t * total // steps + 1 for t in range(steps))
    return tuple(round(Fraction(t * total, steps)) for t in range(1, steps + 1))


def concentrated(total: int, steps: int, share: float, *, anchor: Anchor = "end") -> tuple[int, ...]:
    """A share of the steps in a cluster about the middle, the others those of `even_steps` nearest to its two ends.

    Made after the published examples of this family, which the "start" anchor gives: T = 1024, 16 steps, and 9, 5 or 3 of
    them at a spacing of 4 about the middle. The lower end has the larger half of the others.
    """
    even = even_steps(total, steps, anchor=anchor)
    if not 0 < share <= 1:
        raise UserError(
            f"the share of concentrated steps is {share:g}; it must be above 0 and at most 1, 0.4 for instance"
        )
    inside = round(share * len(even))
    outside = len(even) - inside
    if inside < 1 or outside < 2:
        raise UserError(
            f"a share of {share:g} puts {inside} of {len(even)} steps in the cluster; there must be 1 at least, and 2 "
            "outside for the two ends, so change the share or ask for more steps"
        )
    phi = (*even[: outside - outside // 2], *cluster(total, inside, anchor), *even[-(outside // 2) :])
    if any(lower >= upper for lower, upper in pairwise(phi)):
        raise UserError(
            f"a cluster of {inside} steps overlaps the other {outside} in a teacher of {total}; ask for fewer steps, or for "
            f"another share than {share:g}"
        )
    return phi


def cluster(total: int, count: int, anchor: Anchor) -> list[int]:
    """So many steps about the middle, which is the even step number T' / 2 of either anchor."""
    middle = Fraction(total, 2) + (anchor == "start")
    spacing = max(Fraction(1), Fraction(total, CLUSTER))
    places = [middle + spacing * Fraction(2 * i + 1 - count, 2) for i in range(count)]
    return [math.floor(place + Fraction(1, 2)) for place in places]  # `round` would join 0.5 and -0.5


def scattered(total: int, steps: int, seed: int = 0) -> tuple[int, ...]:
    """One step drawn from each of T' equal cells, and T from the last.

    The paper has a random sub-sequence whose definition is not known to us; this is one of the kind.
    """
    steps = steps_that_fit(total, steps)
    edges = [t * total // steps for t in range(steps + 1)]
    drawn = (
        lower + 1 + seeds.integer(upper - lower, seed, APART, t) for t, (lower, upper) in enumerate(pairwise(edges))
    )
    return (*list(drawn)[:-1], total)


def rising(total: int, times: Sequence[float]) -> tuple[int, ...]:
    """Whole steps of 1..total from 1-based times between them.

    Rounded; where times are closer than steps, each step is pushed up to the next that is free, as far as it goes on, and
    what would pass the top is pushed down from there.
    """
    if not all(math.isfinite(time) for time in times) or any(lower > upper for lower, upper in pairwise(times)):
        raise UserError("times of steps must be finite and rise; sort them from the lowest noise to the highest")
    steps_that_fit(total, len(times))
    floor, pushed = 1, list[int]()
    for time in times:
        pushed.append(max(round(time), floor))
        floor = pushed[-1] + 1
    ceiling, phi = total, list[int]()
    for step in reversed(pushed):
        phi.append(min(step, ceiling))
        ceiling = phi[-1] - 1
    return tuple(reversed(phi))


def checked_steps(total: int, steps: Sequence[Any]) -> tuple[int, ...]:
    """An explicit sub-sequence, or the reason why it is none."""
    if not steps:
        raise UserError("the sub-sequence is empty; give at least one step")
    phi = tuple(whole_number("a step of the sub-sequence", step) for step in steps)
    if max(phi) > total:
        raise UserError(f"step {max(phi)} lies beyond the teacher's {total}; steps are 1-based, from 1 to {total}")
    for lower, upper in pairwise(phi):
        if lower >= upper:
            raise UserError(
                f"step {upper} follows step {lower}; a sub-sequence rises strictly, sort it and drop repeats"
            )
    return phi


def steps_that_fit(total: int, steps: Any) -> int:
    count = whole_number("the number of steps", steps)
    if count > total:
        raise UserError(f"{count} steps do not fit into the teacher's {total}; ask for at most {total}")
    return count
