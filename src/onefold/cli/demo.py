"""onefold demo: from a bundled teacher to a shipped student in minutes, in a picture and a table."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onefold.cli.common import program, say, say_json, tell
from onefold.cli.evaluate import print_comparison
from onefold.files import must_be_writable

if TYPE_CHECKING:
    from onefold.demo import Demo


def register(app: typer.Typer) -> None:
    app.command("demo")(demo_command)


def demo_command(
    teacher: Annotated[str, typer.Option(help="A bundled teacher's name, or a folder with a model.")] = "fashion28",
    calls: Annotated[int, typer.Option(min=1, help="Network calls of the student.")] = 4,
    budget: Annotated[str, typer.Option(help="How long to distil: trajectories (5k) or time (30s, 4m).")] = "3k",
    out: Annotated[Path, typer.Option(help="Folder for the report, the run and the export.")] = Path("demo"),
    count: Annotated[int, typer.Option(min=1, help="How many images to compare.")] = 64,
    seed: Annotated[int, typer.Option(help="Names the noise of the comparison and of the training.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps; auto says why.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, fp16 or auto; fp32 makes the numbers comparable.")
    ] = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Distil a bundled model to 4 network calls, and compare it with good solvers."""
    must_be_writable(out)
    from onefold.demo import run
    from onefold.progress import terminal_progress
    from onefold.teachers import load_teacher

    model = load_teacher(teacher, device=device, precision=precision, tell=tell)
    words = shlex.join(["onefold", *sys.argv[1:]])
    demo = run(
        model,
        out=out,
        calls=calls,
        budget=budget,
        count=count,
        seed=seed,
        command=words,
        watch=terminal_progress,
        tell=tell,
    )
    if as_json:
        say_json(demo.as_dict())
    else:
        show(demo, teacher)


def show(demo: Demo, teacher: str) -> None:
    ratio, calls = demo.ratio("rmse"), demo.student_row["calls"]
    say()
    print_comparison(demo.comparison.results, calls)
    say(
        f"\nWith {calls} calls the student is {ratio:.2f} times nearer to its teacher than the best solver "
        f"({demo.ratio('median'):.2f} times in the median)."
        if ratio > 1
        else f"\nWithin this budget the student did not come nearer to its teacher than the best solver ({ratio:.2f}). "
        f"It saw {demo.trained['images']:,} trajectories; more bring it nearer: `--budget 6k`."
    )
    export, student = shlex.quote(demo.export), shlex.quote(demo.student)
    say(
        f"\nThe report:    {demo.comparison.report}  (open it in a browser)\n"
        f"The picture:   {demo.comparison.picture}\n"
        f"The student:   {demo.student}  ({demo.trained['images']:,} trajectories, {demo.trained['seconds']:.0f} s)\n"
        f"For diffusers: {demo.export}  (README.md there says how)\n"
        f"\nAll of it took {demo.seconds / 60:.1f} minutes. Try next:\n"
        f"  {program()} inspect my-model    (yours: a diffusers folder, a name on the hub, an EDM .pkl)\n"
        f"  {program()} advise my-model --calls 4 --budget 2h    (which method pays for it)\n"
        f"  {program()} compare {shlex.quote(teacher)} {student} --calls 2,4,8 --count 256\n"
        f"  {program()} sample {student} --count 100 --out hundred.png\n"
        f"  {program()} distill {shlex.quote(teacher)} --calls 2 --budget 10m --out runs/two\n"
        f"  {program()} plan {shlex.quote(teacher)} --calls 1 --budget 100k\n"
        f"  {program()} export {student} --out my-student    (as it is in {export})"
    )
