"""Grids: the noise levels a sampler visits, as data that travels with the weights.

A grid holds the N levels at which the network is called, from high to low, and the level where sampling ends: 0 after a
last denoise, or sigma_min. Named schedules space the levels evenly along some axis (a power of sigma, ln sigma, the
network's time); `subdivide` refines a grid along the same axis.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from onefold.errors import UserError, check_choice, first_line, suggest, whole_number
from onefold.process import ContinuousVP, DiscreteVP, Flow, Process, Tabled, as_sigma
from onefold.subsequences import Anchor, checked_steps, even_steps, rising

Start = Literal["prior", "ve"]
End = Literal["zero", "sigma_min"]
Space = Literal["power", "log", "time", "root"]


@dataclass(frozen=True, eq=False)
class Grid:
    """N evaluated levels and the end. Everything but `sigmas` says how the grid came about, or is used.

    times: the network's own time at the evaluated levels. phi: the same levels as 1-based steps of a discrete teacher,
    rising as in the paper (phi[-1] belongs to sigmas[0]). start: "prior" is the process's own, "ve" is sigmas[0] * z.
    space, rho: the axis on which `subdivide` interpolates.
    """

    sigmas: Tensor
    times: Tensor | None = None
    phi: tuple[int, ...] | None = None
    start: Start = "prior"
    end: End = "zero"
    space: Space = "power"
    rho: float = 7.0

    def __post_init__(self) -> None:
        sigmas = torch.as_tensor(self.sigmas, dtype=torch.float64, device="cpu").detach().clone()
        object.__setattr__(self, "sigmas", sigmas)
        if self.times is not None:
            object.__setattr__(self, "times", torch.as_tensor(self.times, dtype=torch.float64, device="cpu").clone())
        if self.phi is not None:
            object.__setattr__(self, "phi", tuple(self.phi))
        check_levels(sigmas)
        for field, kinds in (("start", Start), ("end", End), ("space", Space)):
            check_choice(field, getattr(self, field), get_args(kinds))
        if (self.end == "zero") != (float(sigmas[-1]) == 0):
            raise UserError(
                f"the last level is {float(sigmas[-1]):.6g} but end is {self.end!r}; "
                "a grid ends at 0 with end='zero' and above 0 with end='sigma_min'"
            )
        for field in ("times", "phi"):
            value = getattr(self, field)
            if value is not None and len(value) != self.calls:
                raise UserError(
                    f"{field} has {len(value)} entries; give one for each of the {self.calls} evaluated levels"
                )

    def part(self, kept: Sequence[int]) -> Grid:
        """Of these of its levels alone, by their places, the end among them."""
        called = list(kept[:-1])
        times = None if self.times is None else self.times[called]
        phi = None if self.phi is None else tuple(self.phi[::-1][place] for place in called)[::-1]
        return replace(self, sigmas=self.sigmas[list(kept)], times=times, phi=phi)

    @property
    def calls(self) -> int:
        """N: network calls of a solver that makes one a step."""
        return len(self.sigmas) - 1

    def start_state(self, process: Process, z: Tensor) -> Tensor:
        """Where sampling starts, from unit noise; at sigma = inf the noise itself (see `solvers`)."""
        first = float(self.sigmas[0])
        return first * z if self.start == "ve" and math.isfinite(first) else process.prior(z, first)

    def starting(self, start: Start) -> Grid:
        """The same levels from another start."""
        return replace(self, start=start)

    def subdivide(self, parts: int, process: Process | None = None) -> Grid:
        """Every interval in `parts` sub-steps along the schedule's own axis; the levels of this grid stay bitwise.

        The process is needed where that axis is the network's time, and to fill in `times`.
        """
        parts = whole_number("the number of sub-steps", parts)
        axes = self.axes(process)
        pieces = [between(axes, upper, lower, parts)[:-1] for upper, lower in pairwise(self.sigmas)]
        sigmas = torch.cat([*pieces, self.sigmas[-1:]])
        return replace(self, sigmas=sigmas, times=times_of(process, sigmas), phi=self.phi if parts == 1 else None)

    def axes(self, process: Process | None) -> list[Axis]:
        """The own axis, then those that stay finite at 0, and at 0 and inf."""
        if self.space == "power":
            own = power_axis(self.rho)
        elif self.space == "log":
            own = LOG_AXIS
        elif process is None:
            raise UserError(
                "this grid is spaced in the network's time; sub-divide it with grid.subdivide(parts, process)"
            )
        else:
            own = clock(process) if self.space == "time" else root_clock(process)
        return [own, power_axis(7.0), SHARE_AXIS]

    def snap(self, process: Process, *, apart: bool = False) -> Grid:
        """Every level at the nearest entry of the process's table (nearest in its time), and phi filled in. Two at one entry are
        an error, or with `apart` move on to the next that is free."""
        process = with_table(process)
        levels = self.sigmas[self.sigmas > 0]
        times = process.time(levels)
        index = times.round().long()
        if apart and bool((index.diff() >= 0).any()):
            index = torch.tensor(rising(len(process.sigmas), (1 + times).flip(0).tolist())).flip(0) - 1
        for place in (index.diff() >= 0).nonzero().flatten().tolist():
            raise UserError(
                f"levels {float(levels[place]):.6g} and {float(levels[place + 1]):.6g} snap to the same entry of the table "
                f"of {len(process.sigmas)}, entry {int(index[place])}; use fewer calls or a network with continuous time"
            )
        sigmas = torch.cat([process.sigmas[index], self.sigmas[self.sigmas == 0]])
        phi = tuple((index[: self.calls] + 1).flip(0).tolist())
        return replace(self, sigmas=sigmas, times=times_of(process, sigmas), phi=phi)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; floats survive the round trip exactly, and inf is the string "inf"."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["sigmas"] = ["inf" if math.isinf(level) else level for level in self.sigmas.tolist()]
        values["times"] = None if self.times is None else self.times.tolist()
        values["phi"] = None if self.phi is None else list(self.phi)
        return values

    @classmethod
    def from_dict(cls, values: Any) -> Grid:
        if not isinstance(values, dict):
            raise UserError(
                f"a grid is a {type(values).__name__}, expected an object; restore the file it was read from"
            )
        known = [field.name for field in fields(cls)]
        for key in values.keys() - set(known):
            raise UserError(f"a grid has no entry {key!r}{suggest(key, known)}")
        if "sigmas" not in values:
            raise UserError("a grid needs its 'sigmas'; the file it was read from is incomplete")
        try:
            return cls(**{**values, **{key: READERS[key](value) for key, value in values.items() if key in READERS}})
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"a grid has values that no grid has ({first_line(error)}); restore the file it was read from"
            ) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((tuple(self.sigmas.tolist()), self.phi, self.start, self.end, self.space, self.rho))


# --- named schedules --------------------------------------------------------------------------------------------------


def karras(
    process: Process,
    calls: int,
    *,
    rho: float = 7.0,
    end: End = "zero",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    start: Start = "prior",
) -> Grid:
    """Even in sigma^(1/rho), from sigma_max to sigma_min (Karras et al. 2022)."""
    if not rho > 0:
        raise UserError(f"rho is {rho}; it must be above 0, 7 is usual")
    sigmas = spaced(power_axis(rho), process, calls, end, sigma_min, sigma_max)
    return Grid(sigmas, times_of(process, sigmas), start=start, end=end, space="power", rho=rho)


def logsnr(
    process: Process,
    calls: int,
    *,
    end: End = "zero",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    start: Start = "prior",
) -> Grid:
    """Even in ln sigma, from sigma_max to sigma_min."""
    sigmas = spaced(LOG_AXIS, process, calls, end, sigma_min, sigma_max)
    return Grid(sigmas, times_of(process, sigmas), start=start, end=end, space="log")


def uniform(
    process: Process,
    calls: int,
    *,
    end: End = "zero",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    start: Start = "prior",
) -> Grid:
    """Even in the network's time. With end="zero" the steps go evenly to the time of sigma = 0 where there is one (VP
    and flow, as diffusers' "trailing"), unless sigma_min is given; a last call at sigma_min would be wasted."""
    sigmas = spaced_in_time(clock(process), process, calls, end, sigma_min, sigma_max)
    return Grid(sigmas, times_of(process, sigmas), start=start, end=end, space="time")


def quadratic(
    process: Process,
    calls: int,
    *,
    end: End = "zero",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    start: Start = "prior",
) -> Grid:
    """Even in the square root of the network's time: denser at low noise, as DDIM's CIFAR-10 sub-sequences."""
    time = clock(process)
    if time.at(0.0) != 0:
        raise UserError(
            f"the quadratic schedule needs a time that is 0 at sigma = 0, unlike {type(process).__name__}'s; use karras"
        )
    sigmas = spaced_in_time(root_clock(process), process, calls, end, sigma_min, sigma_max)
    return Grid(sigmas, times_of(process, sigmas), start=start, end=end, space="root")


def subsequence(
    process: Process,
    steps: int | Sequence[int] | Tensor,
    *,
    anchor: Anchor = "end",
    strict: bool = False,
    end: End = "zero",
    start: Start = "prior",
) -> Grid:
    """The table's own levels at the steps phi: T' of them evenly (see `even_steps`), or an explicit rising list."""
    process = with_table(process)
    total = len(process.sigmas)
    if not isinstance(steps, (Sequence, Tensor)):
        phi = even_steps(total, steps, anchor=anchor, strict=strict)
    else:
        phi = checked_steps(total, steps.tolist() if isinstance(steps, Tensor) else list(steps))
    levels = process.sigmas[torch.tensor(phi).flip(0) - 1]
    sigmas = torch.cat([levels, as_sigma([0.0] if end == "zero" else [process.sigma_min])])
    return Grid(sigmas, times_of(process, sigmas), phi=phi, start=start, end=end, space="time")


def explicit(
    sigmas: Sequence[float] | Tensor, *, process: Process | None = None, end: End = "zero", start: Start = "prior"
) -> Grid:
    """The given levels. end="zero" adds the last 0 if it is missing; end="sigma_min" takes the last level as the end."""
    levels = as_sigma(sigmas).flatten()
    if end == "zero" and len(levels) and float(levels[-1]) != 0:
        levels = torch.cat([levels, torch.zeros(1, dtype=torch.float64)])
    return Grid(levels, times_of(process, levels), start=start, end=end)


TUNED = "gits"  # made by `sampling.grid_for`, since it asks the teacher itself
SCHEDULES: dict[str, Callable[..., Grid]] = {
    "karras": karras,
    "logsnr": logsnr,
    "uniform": uniform,
    "quadratic": quadratic,
    "subsequence": subsequence,
}


def make_grid(
    schedule: str | Grid | Sequence[float] | Tensor,
    process: Process,
    calls: int | None = None,
    *,
    end: End = "zero",
    **ends: float | None,
) -> Grid:
    """A grid from a schedule's name ("auto": the process's usual one), from a list of levels, or as it is.

    `ends` are sigma_min and sigma_max of a named schedule, None for the process's own.
    """
    if isinstance(schedule, str):
        schedule = usual_schedule(process) if schedule == "auto" else schedule
        if schedule == TUNED:
            raise UserError(
                f"schedule {TUNED!r} asks the teacher, not the process; use onefold.gits.gits_grid(teacher, calls)"
            )
        if schedule not in SCHEDULES:
            raise UserError(f"unknown schedule {schedule!r}{suggest(schedule, ['auto', *SCHEDULES, TUNED])}")
        if calls is None:
            raise UserError(f"schedule {schedule!r} needs the number of calls; give calls=4, for instance")
        given = {name: level for name, level in ends.items() if level is not None}
        return SCHEDULES[schedule](process, calls, end=end, **given)
    grid = schedule if isinstance(schedule, Grid) else explicit(schedule, process=process, end=end)
    if calls is not None and calls != grid.calls:
        raise UserError(f"calls is {calls} but the grid has {grid.calls} evaluated levels; leave one of them out")
    return grid


def usual_schedule(process: Process) -> str:
    """What serves few calls well: see docs/decisions.md."""
    if isinstance(process, (DiscreteVP, ContinuousVP)):
        return "quadratic"
    return "uniform" if isinstance(process, Flow) else "karras"


# --- axes along which levels are spaced -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A monotone coordinate of sigma and its inverse."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor]

    def at(self, sigma: float | Tensor) -> float:
        return float(self.forward(as_sigma(sigma)))


LOG_AXIS = Axis(torch.log, torch.exp)
SHARE_AXIS = Axis(  # flow time, finite at 0 and at inf
    lambda sigma: torch.where(torch.isinf(sigma), 1.0, sigma / (1 + sigma)), lambda share: share / (1 - share)
)


def power_axis(rho: float) -> Axis:
    return Axis(lambda sigma: sigma ** (1 / rho), lambda root: root**rho)


def clock(process: Process) -> Axis:
    """The network's time. A table is counted in 1-based steps, so that step 0 is the clean image, sigma = 0."""
    if not isinstance(process, Tabled):
        return Axis(process.time, process.sigma)
    lowest = process.sigma_min
    return Axis(
        lambda sigma: torch.where(sigma < lowest, sigma / lowest, 1 + process.time(sigma)),
        lambda step: torch.where(step < 1, step * lowest, process.sigma(step - 1)),
    )


def root_clock(process: Process) -> Axis:
    """The square root of the network's time."""
    time = clock(process)
    return Axis(lambda sigma: time.forward(sigma).sqrt(), lambda root: time.backward(root**2))


def ladder(axis: Axis, top: float | Tensor, bottom: float | Tensor, count: int) -> Tensor:
    """`count` >= 2 levels evenly along the axis; both ends exact."""
    first, last = axis.at(top), axis.at(bottom)
    levels = axis.backward(first + torch.linspace(0, 1, count, dtype=torch.float64) * (last - first))
    levels[0], levels[-1] = top, bottom
    return levels


def between(axes: Sequence[Axis], upper: Tensor, lower: Tensor, parts: int) -> Tensor:
    """An interval in parts, along the first axis on which both of its ends are finite."""
    axis = next(axis for axis in axes if math.isfinite(axis.at(upper)) and math.isfinite(axis.at(lower)))
    return ladder(axis, upper, lower, parts + 1)


def spaced(
    axis: Axis,
    process: Process,
    calls: int,
    end: End,
    sigma_min: float | None,
    sigma_max: float | None,
    *,
    finite_top: bool = True,
) -> Tensor:
    """Levels from sigma_max to sigma_min: all N + 1, or N and then 0. An axis that does not reach inf (`finite_top`) has
    inf put before the levels from the process's finite top."""
    check_choice("end", end, get_args(End))
    top, bottom = level_range(process, sigma_min, sigma_max)
    count = whole_number("calls", calls) + (end == "sigma_min")
    infinite = math.isinf(top) and finite_top
    if infinite:
        top, count = process.sigma_top, count - 1
    if count >= 2:
        levels = ladder(axis, top, bottom, count)
    else:
        levels = as_sigma([bottom if end == "sigma_min" else top][:count])
    head = as_sigma([math.inf] if infinite else [])
    return torch.cat([head, levels, as_sigma([0.0] if end == "zero" else [])])


def spaced_in_time(
    axis: Axis, process: Process, calls: int, end: End, sigma_min: float | None, sigma_max: float | None
) -> Tensor:
    """N even steps to sigma = 0 where it is finite on the axis, as long as none is taken below the process's sigma_min;
    otherwise down to sigma_min."""
    if end == "zero" and sigma_min is None and math.isfinite(axis.at(0.0)):
        top, bottom = level_range(process, None, sigma_max)
        sigmas = ladder(axis, top, 0.0, whole_number("calls", calls) + 1)
        if float(sigmas[-2]) >= bottom:
            return sigmas
    return spaced(axis, process, calls, end, sigma_min, sigma_max, finite_top=False)


# --- checks -----------------------------------------------------------------------------------------------------------


def level_range(process: Process, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    bottom = process.sigma_min if sigma_min is None else sigma_min
    top = process.sigma_max if sigma_max is None else sigma_max
    if not 0 < bottom <= top:
        raise UserError(f"levels from {top:.6g} down to {bottom:.6g} do not fall; give 0 < sigma_min <= sigma_max")
    return top, bottom


def times_of(process: Process | None, sigmas: Tensor) -> Tensor | None:
    return None if process is None else process.time(sigmas[:-1])


def check_levels(sigmas: Tensor) -> None:
    shown = ", ".join(f"{level:.6g}" for level in sigmas.flatten()[:8].tolist())
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise UserError(f"a grid needs an evaluated level and an end, not [{shown}]; give two levels at least")
    if not bool((sigmas[1:] < sigmas[:-1]).all()) or not float(sigmas[-1]) >= 0:
        raise UserError(
            f"levels must fall strictly and stay at or above 0, not [{shown}]; check for repeats, or use fewer calls"
        )


def levels_of(values: Any) -> Tensor:
    """From JSON, where inf is a word."""
    if not isinstance(values, list | tuple | Tensor):
        raise TypeError(f"{values!r} is no list of levels")
    return torch.tensor([float(level) for level in values], dtype=torch.float64)


def exponent_of(value: Any) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"rho is {value!r}, expected a positive number")
    return number


# What a file says, as what a grid holds.
READERS: dict[str, Callable[[Any], Any]] = {
    "sigmas": levels_of,
    "times": lambda values: None if values is None else levels_of(values),
    "phi": lambda values: None if values is None else tuple(operator.index(step) for step in values),
    "rho": exponent_of,
}


def with_table(process: Process) -> Tabled:
    if not isinstance(process, Tabled):
        raise UserError(
            f"{type(process).__name__} has no table of levels to choose steps from; use karras, logsnr or uniform without snapping"
        )
    return process
