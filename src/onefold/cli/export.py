"""onefold export: a student as an ordinary diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onefold.cli.common import say, say_json
from onefold.files import must_be_writable


def register(app: typer.Typer) -> None:
    app.command("export")(export_command)


def export_command(
    student: Annotated[
        str,
        typer.Argument(
            help="A run folder of `onefold distill`, or its student/; or an EDM checkpoint (.pkl), to convert.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The new folder.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Export a student as a folder that plain diffusers loads and samples.

    A student of several numbers of calls becomes a folder for each of them, 2-calls and so on. The export is loaded and
    compared with the student before it is put in its place. An EDM checkpoint becomes a folder
    of safetensors and JSON, which onefold loads; nothing inside of the checkpoint is executed.
    """
    must_be_writable(out.parent)
    if student.endswith(".pkl"):
        convert(student, out, as_json=as_json)
        return
    from onefold.student import load_student

    exported = load_student(student, device="cpu", precision="fp32").export(out)
    if as_json:
        say_json(exported.as_dict())
        return
    kind = f"{exported.pipeline} with {exported.scheduler}" if exported.scheduler else "its own pipeline.py"
    folders = ", ".join(exported.by_calls.values())
    each = f"{folders} are diffusers folders, one for each number of calls"
    what = each if folders else f"{exported.folder} is a diffusers folder"
    say(
        f"{what} ({kind}); images equal the student's to "
        f"{exported.largest_difference:.0e}.\nHow to load and sample it: {Path(exported.folder) / 'README.md'}"
    )
    if exported.custom:
        say(f"It needs trust_remote_code=True, since {exported.custom}.")


def convert(checkpoint: str, out: Path, *, as_json: bool) -> None:
    from onefold.teachers.edm import convert as convert_checkpoint

    teacher = convert_checkpoint(checkpoint, out)
    if as_json:
        say_json({"folder": str(out), "teacher": repr(teacher)})
    else:
        say(f"{out} holds {teacher!r} as safetensors and JSON; use it wherever a teacher is asked for")
