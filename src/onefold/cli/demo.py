"""onefold demo: what good solvers reach with a bundled teacher, in a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onefold.cli.common import must_be_writable, program, say, say_json, table

if TYPE_CHECKING:
    from onefold.demo import Demo


def register(app: typer.Typer) -> None:
    app.command("demo")(demo_command)


def demo_command(
    teacher: Annotated[str, typer.Option(help="A bundled teacher's name, or a folder with a model.")] = "fashion28",
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("demo"),
    count: Annotated[int, typer.Option(min=1, help="How many images to compare.")] = 16,
    seed: Annotated[int, typer.Option(help="Names the noise that all solvers start from.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer solvers and a coarser reference.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare good solvers at 4, 8 and 16 calls with the teacher's own fine solution."""
    must_be_writable(out)
    from onefold.demo import run
    from onefold.progress import terminal_progress
    from onefold.teachers import load_teacher

    model = load_teacher(teacher)
    with terminal_progress("comparing solvers", unit="calls") as progress:
        demo = run(model, count=count, seed=seed, out=out, quick=quick, progress=progress)
    if as_json:
        say_json(demo.as_dict())
    else:
        show(demo, teacher)


def show(demo: Demo, teacher: str) -> None:
    say(
        f"{demo.count} images of {teacher!r} from the same noise. Distance (RMSE of pixels in [-1, 1]) to the teacher's own\n"
        f"fine solution ({demo.reference}; {demo.check} differs from it by {demo.accuracy:.4f}); * is the best of its column.\n"
    )
    header = ["solver", *(f"{calls} calls" for calls in demo.calls)]
    say(table(header, demo.cells(), right=range(1, len(header))))
    say(f"\nThe picture of it: {demo.picture} ({demo.seconds:.0f} s in all)")
    calls = sorted(demo.calls)[len(demo.calls) // 2]
    say(
        "\nTry next:\n"
        f"  {program()} sample {teacher} --count 100 --labels 0-9 --calls {calls} --solver {demo.best(calls).solver} --out hundred.png\n"
        f"  {program()} teachers\n"
        f"  {program()} teach digits --budget 2m --out runs/digits    (your own images: a folder in place of digits)"
    )
