"""onefold distill, plan and methods: make a model fast, what that would cost, and the ways to do it."""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onefold.cli.common import program, read_numbers, say, say_json, table, tell
from onefold.cli.running import BatchSize, Budget, Config, Data, Device, Out, Precision, Prompts, Seed, Sets, gather
from onefold.methods import METHODS

if TYPE_CHECKING:
    from onefold.student import Student

Teacher = Annotated[
    str | None,
    typer.Argument(
        help="A bundled teacher's name, a folder with a model, an EDM .pkl, a name on the Hugging Face hub, or package.module:function.",
        show_default=False,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(help=f"How: {', '.join(METHODS)} (sfd); `onefold methods` tells them apart.", show_default=False),
]
Calls = Annotated[
    str | None,
    typer.Option(
        help="Network calls of the student (4, of gdd and the second stage 1); 2,3,4,5 is one student for all of these (method sfd).",
        show_default=False,
    ),
]
Preset = Annotated[
    str | None, typer.Option(help="Published settings; `onefold methods METHOD` lists them.", show_default=False)
]

NEEDS_TEACHER = "TEACHER (a bundled name or a folder)"


def register(app: typer.Typer) -> None:
    app.command("distill")(distill_command)
    app.command("plan")(plan_command)
    app.command("methods")(methods_command)


def distill_command(
    teacher: Teacher = None,
    method: Method = None,
    calls: Calls = None,
    budget: Budget = None,
    preset: Preset = None,
    prompts: Prompts = None,
    data: Data = None,
    out: Out = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    config: Config = None,
    settings: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Distil a model into a student of a few network calls.

    For the settings of a method: onefold methods sfd
    """
    words = {**options(locals()), "calls": read_calls(calls)}
    needs = {"teacher": NEEDS_TEACHER, "out": "--out (a run folder)"}
    example = "onefold distill digits8 --calls 4 --budget 2m --out runs/digits4"
    values = gather(words, config, settings, needs, example)
    run(values, as_json=as_json)


def options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a command was given that is a setting by the same name."""
    return {name: value for name, value in arguments.items() if name not in ("config", "settings", "as_json")}


def read_calls(text: str | None) -> int | list[int] | None:
    numbers = read_numbers(text, "--calls")
    return numbers[0] if numbers is not None and len(numbers) == 1 else numbers


def run(values: dict[str, Any], *, as_json: bool) -> None:
    from onefold.card import PICTURE, in_runs
    from onefold.distilling import choose, distill
    from onefold.progress import terminal_progress

    settings = choose(values)
    with terminal_progress("distilling") as progress:
        student = distill(progress=progress, tell=tell, **settings.model_dump())
    folder = Path(settings.out) / "student"
    if as_json:
        say_json(
            {
                "student": str(folder),
                "calls": student.calls,
                **{k: student.recipe[k] for k in SAID if k in student.recipe},
            }
        )
        return
    more, shipped = uses(student, settings)
    cost, evidence = student.recipe["cost"], student.recipe["evidence"]
    earlier = None if student.variants else nearer(Path(settings.out), evidence["student"])
    used = folder if earlier is None else Path(settings.out) / "best"
    numbers = " or ".join(map(str, student.counts))
    say(
        f"A student of {numbers} call{'s' * (numbers != '1')} is in {folder} ({cost['images']:,} images{in_runs(cost)}, {cost['seconds']:.0f} s).\n"
        + "".join(
            compared(student.at(calls).recipe["evidence"], f"{calls} calls. " if student.variants else "", earlier)
            for calls in student.counts
        )
        + (f"Published: {student.recipe['published']}.\n" if student.recipe["published"] else "")
        + f"Beside its control: {folder / PICTURE}\n"
        f"Use it: {program()} sample {shlex.quote(str(used))} {more} --out pictures.png"
        + (f"\nShip it: {program()} export {shlex.quote(str(used))} --out my-student" if shipped else "")
    )


STRIDED = "euler on the same levels"  # as in methods/chain.py, which is not imported for a name
TO_TEACHER = "Distance to the teacher's fine solution, {images} images from the same noise"
ON_THE_WAY = "On the way it was nearer, {best:.4f} after {images:,} images: {folder} holds that one.\n"
FARTHER = "That solver is free and comes nearer: give the student more budget, or ship the solver.\n"


SAID = ("cost", "evidence", "by_calls", "first_stage")


def compared(evidence: Mapping[str, Any], which: str = "", earlier: Mapping[str, Any] | None = None) -> str:
    """The student, its teacher in DDIM steps on the same levels where the method tells it, and the best that is free."""
    solvers, best, student = evidence["solvers"], evidence["best_solver"], evidence["student"]
    ddim = f", DDIM of the teacher on its levels {solvers[STRIDED]:.4f}" if STRIDED in solvers else ""
    fine = evidence.get("teacher")  # where another distance is measured than that to this very teacher
    measure = f"{evidence['measure']}, {evidence['images']} images" if fine else ""
    top = f", the teacher in {fine['calls']} calls {fine['value']:.4f}" if fine else ""
    return (
        f"{which}{measure or TO_TEACHER.format(**evidence)}: student {student:.4f}{ddim}, best solver at as many calls "
        f"{solvers[best]:.4f} ({best}){top}.\n"
        + ("" if earlier is None else ON_THE_WAY.format(**earlier))
        + (FARTHER if min(student, earlier["best"] if earlier else student) > solvers[best] else "")
    )


def nearer(out: Path, distance: float) -> dict[str, Any] | None:
    """The earlier state of the run that is kept, where it came nearer than the last."""
    from onefold.files import read_json
    from onefold.student import RECIPE

    kept = out / "best" / RECIPE
    found = read_json(kept) if kept.is_file() else {}
    best = found.get("evidence", {}).get("student")
    if best is None or best >= 0.95 * distance:
        return None
    return {"best": best, "images": found["cost"]["images"], "folder": kept.parent}


def uses(student: Student, settings: Any) -> tuple[str, bool]:
    """How it is sampled, and whether diffusers has a form for it."""
    from onefold.teachers.own import OwnForm

    if isinstance(student.denoiser.form, OwnForm):
        return f"--teacher {settings.teacher} --count 64", False
    told = student.denoiser.encode_texts is not None
    return ('--prompt "a red boat on a lake" --count 4' if told else "--count 64"), True


def plan_command(
    teacher: Teacher = None,
    method: Method = None,
    calls: Calls = None,
    budget: Budget = None,
    preset: Preset = None,
    prompts: Prompts = None,
    data: Data = None,
    out: Out = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    config: Config = None,
    settings: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Tell what a distillation would cost, from a few of its steps.

    Takes the options of `onefold distill`; nothing is kept or written.
    """
    words = {**options(locals()), "calls": read_calls(calls)}
    values = gather(words, config, settings, {"teacher": NEEDS_TEACHER}, "onefold plan digits8 --calls 4 --budget 200k")
    from onefold.distilling import plan

    outlook = plan(**values, tell=tell)
    if as_json:
        say_json(outlook.as_dict())
    else:
        say(outlook.line)


def methods_command(
    name: Annotated[str | None, typer.Argument(help="A method, for its settings.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the methods, or the settings of one."""
    from onefold.methods import find
    from onefold.methods import table as all_methods

    if name is not None:
        find(name)
    known = all_methods()
    if as_json:
        say_json(known if name is None else known[name])
    elif name is None:
        say(table(("method", "what it is"), [(key, value["description"]) for key, value in known.items()]))
        say(f"\nThe settings of one: {program()} methods {next(iter(known))}")
    else:
        say(settings_table([(row["name"], row["default"], row["description"]) for row in known[name]["settings"]]))
        for preset, values in known[name]["presets"].items():
            said = ", ".join(f"{key}={'null' if value is None else value}" for key, value in values.items())
            say(f"\n--preset {preset}: {said}")


def settings_table(rows: Sequence[tuple[str, str, str]]) -> str:
    """As wide as the terminal: what a setting means goes on in the next line."""
    beside = sum(2 + max(len(row[column]) for row in rows) for column in (0, 1))
    width = max(40, shutil.get_terminal_size((120, 24)).columns - beside)
    lines = []
    for name, default, meaning in rows:
        first, *more = textwrap.wrap(meaning, width) or [""]
        lines += [(name, default, first), *(("", "", line) for line in more)]
    return table(("setting", "default", "meaning"), lines)
