"""Which method for this teacher, number of calls and time: looked up in what was measured, at this device's pace."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from onefold.bench.measured import (
    DATA,
    ERRORS_APART,
    Bench,
    Measured,
    Solver,
    bench_like,
    benches,
    fairest_first,
    nearest_in_size,
)
from onefold.data import check_source
from onefold.denoiser import Denoiser
from onefold.distilling import choose, plan
from onefold.errors import UserError, suggest
from onefold.methods import find
from onefold.methods.base import command_of
from onefold.networks.step_condition import size
from onefold.progress import Tell
from onefold.teachers import load_teacher
from onefold.training.budget import Budget
from onefold.training.loop import ignore

Goal = Literal["data", "teacher"]
# Beside what was measured: so many times the pixels want more training, and the parameters other learning rates.
MORE_PIXELS, OTHER_SIZE = 4, 10
RATES = ("lr", "lr_discriminator")
FIT_ALL = ("sfd", "second")  # any teacher can have these


@dataclass(frozen=True)
class Case:
    """What is asked for."""

    teacher: str
    calls: int
    seconds: float
    data: str | None
    told: Mapping[str, Any]
    large: bool  # beside what was measured


@dataclass(frozen=True)
class Advice:
    """What to run, and what that rests on."""

    teacher: str
    calls: int
    goal: Goal
    forwards: float  # what the budget comes to on this device
    bench: Bench
    measured_calls: int
    chosen: Measured | Solver
    options: Sequence[Measured | Solver]  # all that could be chosen, best first
    reasons: Sequence[str]
    warnings: Sequence[str]
    commands: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        measured = {name: getattr(self.bench, name) for name in ("name", "shape", "parameters", "measure", "best")}
        words = ("teacher", "calls", "forwards", "measured_calls", "reasons", "warnings", "commands")
        return {
            **{word: getattr(self, word) for word in words},
            "measured_on": measured,
            "chosen": shown(self.chosen),
            "options": [shown(option) for option in self.options],
        }


def advise(
    teacher: str | Path | Denoiser,
    *,
    calls: int = 4,
    budget: str = "30m",
    data: str | None = None,
    goal: Goal = "data",
    prompts: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    tell: Tell | None = None,
) -> Advice:
    """A method with its settings. `goal`: images like the data, or those that the teacher makes of the same noise."""
    seconds = check(calls, budget, goal)
    if data is not None:
        check_source(data)
    loaded = teacher if isinstance(teacher, Denoiser) else load_teacher(teacher, device=device)
    told = {"prompts": prompts, "device": device, "precision": precision}
    forwards = seconds * pace(loaded, {key: value for key, value in told.items() if value is not None}, tell)
    bench = bench_like(loaded.image_shape)
    nearest = bench.nearest(calls)
    everyone = bench.options(nearest, forwards)
    texts = loaded.encode_texts is not None  # of which what learns from images is told nothing
    sees = data is not None and not texts
    name = loaded.name if isinstance(teacher, Denoiser) else str(teacher)
    case = Case(name, calls, seconds, data, {key: told[key] for key in ("prompts", "precision")}, large(loaded, bench))
    possible = ranked([one for one in everyone if sees or not one.data], goal, bench)
    options, misfits = that_fit(possible, loaded, case)
    hints = [] if data or texts else with_data(everyone, goal, bench)
    return Advice(
        teacher=name,
        calls=calls,
        goal=goal,
        forwards=forwards,
        bench=bench,
        measured_calls=nearest,
        chosen=options[0],
        options=options,
        reasons=[why(options, goal, bench), *nearer(options), *hints],
        warnings=[
            *misfits,
            *other_budget(loaded, bench, case, forwards, goal, sees=sees),
            *cautions(loaded, bench, options[0], case, nearest),
        ],
        commands=commands(options[0], case),
    )


def check(calls: int, budget: str, goal: str) -> float:
    """Seconds of the budget."""
    if calls < 1:
        raise UserError(f"calls is {calls}, expected 1 or more network calls of the student")
    if goal not in get_args(Goal):
        raise UserError(f"goal is {goal!r}, expected data or teacher{suggest(goal, get_args(Goal))}")
    seconds = Budget.parse(budget).seconds
    if seconds is None:
        raise UserError(
            f"budget is {budget!r} images, which cost each method differently; give the time to be used, such as 10m or 2h"
        )
    return seconds


def pace(teacher: Denoiser, told: Mapping[str, Any], tell: Tell | None) -> float:
    """Forward passes a second in training, from a few of its steps; of latents with batches as small as they are trained with."""
    batch = 64 if teacher.codec is None else 16
    (tell or ignore)("measuring this device's pace, with a few training steps")
    outlook = plan(teacher, "sfd", calls=1, budget="64", batch_size=batch, tell=tell, **told)
    return outlook.forwards * outlook.batch_size / outlook.seconds_per_batch


# --- choosing ---------------------------------------------------------------------------------------------------------


def ranked(options: Sequence[Measured | Solver], goal: Goal, bench: Bench) -> list[Measured | Solver]:
    """Nearest to what is wanted first."""
    return fairest_first(options, bench.error) if goal == "data" else sorted(options, key=lambda option: option.rmse)


def that_fit(
    options: Sequence[Measured | Solver], teacher: Denoiser, case: Case
) -> tuple[list[Measured | Solver], list[str]]:
    """Without those at the head that this teacher cannot have, and why not."""
    misfits = []
    for place, option in enumerate(options):
        try:
            if isinstance(option, Measured) and option.method not in FIT_ALL:
                stage = stages_of(option, case)[0]
                find(stage.method)[0](teacher, stage)
        except UserError as error:
            misfits.append(f"{option.label} would come first, but does not fit ({error})")
        else:
            return list(options[place:]), misfits
    raise UserError(f"no method that was measured fits {teacher.name!r}: {misfits[0]}")


def why(options: Sequence[Measured | Solver], goal: Goal, bench: Bench) -> str:
    first = options[0]
    if goal == "teacher":
        return f"{first.label} comes nearest to the teacher's images from the same noise (RMSE {first.rmse:.3f})"
    fair = min(options, key=lambda option: option.fd)
    if fair is first:
        return f"{first.label} has the smallest distance to the data ({bench.measure} {first.fd:.2f})"
    return (
        f"{first.label} is as like the data as any ({bench.measure} {first.fd:.2f}, the least is {fair.fd:.2f}, and less than {ERRORS_APART * bench.error:.2f} is chance), "
        f"and of these it is nearest to the teacher (RMSE {first.rmse:.3f})"
    )


def nearer(options: Sequence[Measured | Solver]) -> list[str]:
    """Who gives up the teacher's own images for such as are more like the data should know it."""
    near = min(options, key=lambda option: option.rmse)
    if near is options[0]:
        return []
    return [
        f"{near.label} comes nearer to the images that the teacher makes of the same noise (RMSE {near.rmse:.3f}, {options[0].label} {options[0].rmse:.3f}); --goal teacher asks for these"
    ]


def with_data(everyone: Sequence[Measured | Solver], goal: Goal, bench: Bench) -> list[str]:
    """What the images that the teacher learned from would be worth, where none are given."""
    best = ranked(everyone, goal, bench)[0]
    if not best.data:
        return []
    return [
        f"with the images that the teacher learned from (--data) it would be {best.label}: distance to the data {best.fd:.2f}, RMSE {best.rmse:.3f}"
    ]


def large(teacher: Denoiser, bench: Bench) -> bool:
    """So much larger than what was measured that rates which were found there say nothing."""
    return size(teacher.module) > OTHER_SIZE * bench.parameters


def other_budget(teacher: Denoiser, bench: Bench, case: Case, forwards: float, goal: Goal, *, sees: bool) -> list[str]:
    """Where the budget is none that was measured; and what came first on another teacher, if students of that one had more."""
    least, most = bench.budgets[0], bench.budgets[-1]
    if forwards < least:
        return [f"the budget buys fewer forward passes here than the {least:,} that were measured; give it more time"]
    if forwards <= 2 * most:
        return []
    said = f"no more than {most:,} forward passes were measured; more of them are worth more to some methods than to others"
    longer = [other for other in benches() if any(most < budget <= forwards for budget in other.budgets)]
    if longer:
        other = nearest_in_size(longer, teacher.image_shape)
        calls = other.nearest(case.calls)
        options = [one for one in other.options(calls, forwards) if sees or not one.data]
        (first, *_), _ = that_fit(ranked(options, goal, other), teacher, case)
        trained = f" after {first.budget:,}" if first.budget else ""
        said += f". On {other.name}, in {calls} call{'s' * (calls != 1)}, {first.label}{trained} comes first ({other.measure} {first.fd:.2f}, RMSE {first.rmse:.3f})"
    return [said]


def cautions(teacher: Denoiser, bench: Bench, chosen: Measured | Solver, case: Case, nearest: int) -> list[str]:
    """Where this is not the case that was measured."""
    found = []
    if nearest != case.calls:
        found.append(f"{case.calls} calls were not measured; this is what holds for {nearest}")
    pixels = math.prod(teacher.image_shape) / math.prod(bench.shape)
    if pixels > MORE_PIXELS:
        found.append(
            f"this teacher's images have {pixels:,.0f} times as many pixels as those that were measured; expect to need more training for as much"
        )
    if teacher.codec is not None:
        found.append("this teacher works on latents, and only models of pixels were measured")
    if case.data is not None and teacher.encode_texts is not None:
        found.append("a model of texts learns nothing of them from images, so the data is left out")
    if case.large and isinstance(chosen, Measured):
        found.append(
            f"this teacher has {size(teacher.module) / 1e6:,.0f} M parameters, and {bench.parameters / 1e6:.1f} M were measured: the rates found there are left "
            f"out; published ones for such networks stand in `onefold methods {chosen.stages[-1]['method']}`, and it will want more training"
        )
    return found


# --- what to run ------------------------------------------------------------------------------------------------------


def commands(chosen: Measured | Solver, case: Case) -> list[str]:
    if isinstance(chosen, Solver):
        words = ("--solver", chosen.solver, "--grid", chosen.grid, "--calls", str(case.calls), "--count", "64")
        return [shlex.join(["onefold", "sample", case.teacher, *words, "--out", "samples.png"])]
    return [command_of(stage) for stage in stages_of(chosen, case)]


def stages_of(chosen: Measured, case: Case) -> list[Any]:
    """The settings of its runs, each from the last one's student."""
    found, source = list[Any](), case.teacher
    for number, stage in enumerate(chosen.stages, start=1):
        last = number == len(chosen.stages)
        settings = {key: value for key, value in stage["settings"].items() if not (case.large and key in RATES)}
        if last:
            settings = of_calls(settings, case.calls)
        if settings.get("data") == DATA:
            settings["data"] = case.data
        out = f"runs/{Path(case.teacher).stem}-{chosen.method}{case.calls}" + ("" if last else f"-stage{number}")
        told = {key: value for key, value in case.told.items() if value not in (None, "auto")}
        names = {"teacher": source, "method": stage["method"], "out": out}
        runs = len(choose({**settings, **told, **names}).stages())  # which share the time
        share = amount(case.seconds * stage["share"] / runs)
        found.append(choose({**settings, **told, **names, "budget": share}))
        source = out
    return found


def amount(seconds: float) -> str:
    """As a budget is written."""
    whole = max(1, round(seconds))
    return f"{whole // 60}m" if whole % 60 == 0 else f"{whole}s"


def of_calls(settings: Mapping[str, Any], calls: int) -> dict[str, Any]:
    """For another number of calls; what is a multiple of them stays one."""
    start = {"start": settings["start"] // settings["calls"] * calls} if "start" in settings else {}
    return {**settings, **start, "calls": calls}


def shown(option: Measured | Solver) -> dict[str, Any]:
    return {"label": option.label, **asdict(option)}


def line(option: Measured | Solver) -> tuple[str, str, str, str, str]:
    """Of the table: what, whether it sees images, training, distance to the data, RMSE."""
    data = "yes" if option.data else "no"
    trained = f"{option.budget:,}" if option.budget else "none"
    return option.label, data, trained, f"{option.fd:.2f}", f"{option.rmse:.3f}"


def order(advice: Advice) -> str:
    """Of the table's rows."""
    if advice.goal == "teacher":
        return "Nearest to the teacher first."
    chance = ERRORS_APART * advice.bench.error
    return f"Within {chance:.2f} of the least distance to the data, which may be chance, the nearest to the teacher comes first; then by that distance."


def heading(advice: Advice) -> str:
    bench, shape = advice.bench, "x".join(map(str, advice.bench.shape))
    return (
        f"{advice.calls} call{'s' * (advice.calls != 1)}, {advice.forwards:,.0f} forward passes here. Measured on {bench.name} ({shape}, {bench.parameters / 1e6:.1f} M "
        f"parameters), whose teacher with {bench.best['calls']} calls has {bench.measure} {bench.best['fd']:.2f}:"
    )
