"""onefold demo: from a bundled teacher to a shipped student in minutes, in a picture and a table."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onefold.cli.common import program, say, say_json, table, tell
from onefold.files import must_be_writable

if TYPE_CHECKING:
    from onefold.demo import Demo


def register(app: typer.Typer) -> None:
    app.command("demo")(demo_command)


def demo_command(
    teacher: Annotated[str, typer.Option(help="A bundled teacher's name, or a folder with a model.")] = "fashion28",
    calls: Annotated[int, typer.Option(min=1, help="Network calls of the student.")] = 4,
    budget: Annotated[str, typer.Option(help="How long to distil: time (30s, 4m) or images (5k).")] = "3.5m",
    out: Annotated[Path, typer.Option(help="Folder for the picture, the run and the export.")] = Path("demo"),
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
    demo = run(model, out=out, calls=calls, budget=budget, count=count, seed=seed, watch=terminal_progress, tell=tell)
    if as_json:
        say_json(demo.as_dict())
    else:
        show(demo, teacher)


def show(demo: Demo, teacher: str) -> None:
    rows = [(row.who, row.how, str(row.calls), f"{row.distance:.4f}", f"{row.typical:.4f}") for row in demo.rows]
    student = demo.student_row
    verdict = (
        f"With {student.calls} calls the student is {demo.ratio:.2f} times nearer to its teacher than the best solver "
        f"({demo.typical_ratio:.2f} times in the median)."
        if demo.ratio > 1
        else f"Within this budget the student did not come nearer to its teacher than the best solver ({demo.ratio:.2f})."
    )
    say(
        f"\n{demo.count} images of {teacher} from the same noise: distance (RMSE, pixels in [-1, 1]) to its fine solution"
    )
    say(
        f"({demo.reference}), which is accurate to {demo.accuracy:.4f}; over all images, and the median of the images' own.\n"
    )
    say(table(("", "", "calls", "distance", "median"), rows, right=(2, 3, 4)))
    say(f"\n{verdict}\n")
    export, student_folder = shlex.quote(demo.export), shlex.quote(demo.student)
    say(
        f"The picture:   {demo.picture}\n"
        f"The student:   {demo.student}  ({demo.trained['images']:,} trajectories, {demo.trained['seconds']:.0f} s)\n"
        f"For diffusers: {demo.export}  (README.md there says how)\n"
        f"\nAll of it took {demo.seconds / 60:.1f} minutes. Try next:\n"
        f"  {program()} sample {student_folder} --count 100 --out hundred.png\n"
        f"  {program()} distill {shlex.quote(teacher)} --calls 2 --budget 10m --out runs/two\n"
        f"  {program()} plan {shlex.quote(teacher)} --calls 1 --budget 100k\n"
        f"  {program()} export {student_folder} --out my-student    (as it is in {export})"
    )
