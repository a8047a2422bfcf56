"""Which method for this teacher, number of calls and time: looked up in what was measured, at this device's pace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from onefold.bench.measured import DATA, Bench, Measured, Solver, bench_like
from onefold.denoiser import Denoiser
from onefold.distilling import choose, plan
from onefold.errors import UserError, suggest
from onefold.methods.base import command_of
from onefold.progress import Tell
from onefold.teachers import load_teacher
from onefold.training.budget import Budget

Goal = Literal["data", "teacher"]
OTHER_SIZE = (
    10  # times the parameters, from which on learning rates that were found for the measured teacher say little
)


@dataclass(frozen=True)
class Advice:
    """What to run, and what that rests on."""

    teacher: str
    calls: int
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
    loaded = teacher if isinstance(teacher, Denoiser) else load_teacher(teacher, device=device)
    told = {"prompts": prompts, "device": device, "precision": precision}
    forwards = seconds * pace(loaded, {key: value for key, value in told.items() if value is not None}, tell)
    bench = bench_like(loaded.image_shape)
    nearest = bench.nearest(calls)
    everyone: list[Measured | Solver] = [*bench.affordable(nearest, forwards), *bench.free(nearest)]
    texts = loaded.encode_texts is not None  # of which what learns from images is told nothing
    options = ranked([one for one in everyone if not one.data or (data is not None and not texts)], goal)
    name = loaded.name if isinstance(teacher, Denoiser) else str(teacher)
    reasons = [why(options, goal, bench), *([] if data or texts else with_data(everyone, goal))]
    return Advice(
        teacher=name,
        calls=calls,
        forwards=forwards,
        bench=bench,
        measured_calls=nearest,
        chosen=options[0],
        options=options,
        reasons=reasons,
        warnings=cautions(loaded, bench, options[0], calls, nearest, forwards),
        commands=commands(options[0], name, calls, seconds, data, prompts),
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
    """Forward passes a second in training, from a few of its steps."""
    outlook = plan(teacher, "sfd", calls=1, budget="16", tell=tell, **told)
    return outlook.forwards * outlook.batch_size / outlook.seconds_per_batch


# --- choosing ---------------------------------------------------------------------------------------------------------


def ranked(options: Sequence[Measured | Solver], goal: Goal) -> list[Measured | Solver]:
    """Nearest to what is wanted first. Distances to the data that are a standard error apart cannot be told apart: of these the one nearest
    to the teacher comes first."""
    near = sorted(options, key=lambda option: option.rmse)
    if goal == "teacher":
        return near
    fair = sorted(options, key=lambda option: option.fd)
    tied = [option for option in near if option.fd <= fair[0].fd + fair[0].spread]
    return [*tied, *(option for option in fair if option not in tied)]


def why(options: Sequence[Measured | Solver], goal: Goal, bench: Bench) -> str:
    first = options[0]
    if goal == "teacher":
        return f"{first.label} comes nearest to the teacher's images from the same noise (RMSE {first.rmse:.3f})"
    fair = min(options, key=lambda option: option.fd)
    if fair is first:
        return f"{first.label} has the smallest distance to the data ({bench.measure} {first.fd:.2f})"
    return (
        f"{first.label} comes nearest to the teacher (RMSE {first.rmse:.3f}) of all whose distance to the data ({bench.measure} {first.fd:.2f}) "
        f"cannot be told from the smallest ({fair.fd:.2f} +- {fair.spread:.2f}, {fair.label})"
    )


def with_data(everyone: Sequence[Measured | Solver], goal: Goal) -> list[str]:
    """What the images that the teacher learned from would be worth, where none are given."""
    best = ranked(everyone, goal)[0]
    if not best.data:
        return []
    return [
        f"with the images that the teacher learned from (--data) it would be {best.label}: distance to the data {best.fd:.2f}, RMSE {best.rmse:.3f}"
    ]


def cautions(
    teacher: Denoiser, bench: Bench, chosen: Measured | Solver, calls: int, nearest: int, forwards: float
) -> list[str]:
    """Where this is not the case that was measured."""
    found = []
    if nearest != calls:
        found.append(f"{calls} calls were not measured; this is what holds for {nearest}")
    least, most = (pick(one.budget for one in bench.students) for pick in (min, max))
    if forwards < least:
        found.append(
            f"the budget buys fewer forward passes here than the {least:,} that were measured; give it more time"
        )
    if forwards > 2 * most:
        found.append(
            f"no more than {most:,} forward passes were measured; more of them are worth more to some methods than to others"
        )
    size = sum(parameter.numel() for parameter in teacher.module.parameters())
    if size > OTHER_SIZE * bench.parameters and isinstance(chosen, Measured):
        found.append(
            f"the rates were found for {bench.parameters / 1e6:.1f} M parameters, and this teacher has {size / 1e6:,.0f} M: take the published ones, "
            f"which are smaller (`onefold methods {chosen.stages[-1]['method']}`), and try two"
        )
    return found


# --- what to run ------------------------------------------------------------------------------------------------------


def commands(
    chosen: Measured | Solver, teacher: str, calls: int, seconds: float, data: str | None, prompts: str | None
) -> list[str]:
    if isinstance(chosen, Solver):
        return [
            f"onefold sample {teacher} --solver {chosen.solver} --grid {chosen.grid} --calls {calls} --count 64 --out samples.png"
        ]
    lines, source = list[str](), teacher
    for number, stage in enumerate(chosen.stages, start=1):
        last = number == len(chosen.stages)
        settings = {key: data if value == DATA else value for key, value in stage["settings"].items()}
        if last:
            settings["calls"] = calls
        out = f"runs/{Path(teacher).stem}-{chosen.method}{calls}" + ("" if last else f"-stage{number}")
        share = f"{max(1, round(seconds * stage['share'] / folds(stage['method'], settings)))}s"
        told = {"prompts": prompts} if prompts and number == 1 else {}
        lines.append(
            command_of(
                choose({**settings, **told, "teacher": source, "method": stage["method"], "budget": share, "out": out})
            )
        )
        source = out
    return lines


def folds(method: str, settings: Mapping[str, Any]) -> int:
    """Runs that share the time."""
    return len(choose({**settings, "teacher": "", "method": method, "out": ""}).stages())


def shown(option: Measured | Solver) -> dict[str, Any]:
    return {"label": option.label, **asdict(option)}


def line(option: Measured | Solver) -> tuple[str, str, str, str, str]:
    """Of the table: what, whether it sees images, training, distance to the data, RMSE."""
    data = "yes" if option.data else "no"
    trained = f"{option.budget:,}" if option.budget else "none"
    return option.label, data, trained, f"{option.fd:.2f} +- {option.spread:.2f}", f"{option.rmse:.3f}"


def heading(advice: Advice) -> str:
    bench, shape = advice.bench, "x".join(map(str, advice.bench.shape))
    return (
        f"{advice.calls} call{'s' * (advice.calls != 1)}, {advice.forwards:,.0f} forward passes here. Measured on {bench.name} ({shape}, {bench.parameters / 1e6:.1f} M "
        f"parameters), whose teacher with {bench.best['calls']} calls has {bench.measure} {bench.best['fd']:.2f}:"
    )
