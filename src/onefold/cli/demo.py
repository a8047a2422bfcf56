"""onefold demo: what good solvers reach with a bundled teacher, in a table and a picture."""

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
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("demo"),
    count: Annotated[int, typer.Option(min=1, help="How many images to compare.")] = 16,
    seed: Annotated[int, typer.Option(help="Names the noise that all solvers start from.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps; auto says why.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, fp16 or auto; fp32 makes the numbers comparable.")
    ] = "fp32",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer solvers and a coarser reference.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Show what good solvers reach at 4, 8 and 16 calls."""
    must_be_writable(out)
    from onefold.demo import run
    from onefold.progress import terminal_progress
    from onefold.teachers import load_teacher

    model = load_teacher(teacher, device=device, precision=precision, tell=tell)
    with terminal_progress("comparing solvers", unit="calls") as progress:
        demo = run(model, count=count, seed=seed, out=out, quick=quick, progress=progress)
    if as_json:
        say_json(demo.as_dict())
    else:
        show(demo, teacher, "" if model.classes is None else f" --labels 0-{model.classes - 1}")


def show(demo: Demo, teacher: str, classes: str) -> None:
    say(
        f"{demo.count} images of {teacher} from the same noise: distance (RMSE, pixels in [-1, 1]) to the teacher's own fine\n"
        f"solution ({demo.reference}), accurate to {demo.accuracy:.4f} ({demo.check}). * is the best of a column;\nheun makes two calls a step, and its steps are too long for few calls.\n"
    )
    header = ["solver", "grid", *(f"{calls} calls" for calls in demo.calls)]
    say(table(header, demo.cells(), right=range(2, len(header))))
    say(f"\nThe pictures: {demo.picture} ({demo.seconds:.0f} s in all)")
    best = demo.best(sorted(demo.calls)[1])
    how = f"--calls {best.calls} --solver {best.solver} --grid {best.grid}"
    say(
        "\nTry next:\n"
        f"  {program()} sample {shlex.quote(teacher)} --count 100{classes} {how} --out hundred.png\n"
        f"  {program()} distill digits8 --calls 4 --budget 2m --out runs/digits4\n"
        f"  {program()} teachers\n"
        f"  {program()} teach digits --budget 2m --out runs/digits    (your own images: a folder in place of digits)"
    )
