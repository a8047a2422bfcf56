"""onefold teach: train a teacher of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from onefold.cli.common import given, program, say, say_json, table, tell
from onefold.errors import UserError
from onefold.settings import parse_assignments, read_yaml


def register(app: typer.Typer) -> None:
    app.command("teach")(teach_command)


def teach_command(
    data: Annotated[
        str | None,
        typer.Argument(
            help="What to learn: a folder of images, an .npz file, digits, hf:NAME or teacher:NAME.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; the same command goes on in it.", show_default=False)
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="How long: images (200k, 1.5M) or time (30s, 5m, 2h).", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step, over all processes.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Names every random draw of the run.", show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps; auto says why.", show_default=False)] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.", show_default=False)] = None,
    process: Annotated[str | None, typer.Option(help="Noise process: vp, edm or flow.", show_default=False)] = None,
    size: Annotated[int | None, typer.Option(help="Height and width of the images.", show_default=False)] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings; options come before it.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting; repeat it.", show_default=False),
    ] = None,
    list_settings: Annotated[
        bool, typer.Option("--settings", help="List every setting with its default, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result, or the settings, as JSON.")] = False,
) -> None:
    """Train a diffusion model on your images, to be a teacher.

    For every setting and its default: onefold teach --settings
    """
    if list_settings:
        show_settings(as_json=as_json)
        return
    words = {"data": data, "out": None if out is None else str(out), "budget": budget, "batch_size": batch_size}
    words |= {"seed": seed, "device": device, "precision": precision, "process": process, "size": size}
    values = (read_yaml(config) if config else {}) | given(words) | parse_assignments(settings or [])
    for name, example in (
        ("data", "DATA (a folder of images, an .npz file, digits, hf:NAME or teacher:NAME)"),
        ("out", "--out (a run folder)"),
    ):
        if name not in values:
            raise UserError(
                f"teach needs {example}; for instance `onefold teach photos/ --out runs/photos --budget 30m`"
            )
    train(values, as_json=as_json)


def train(values: dict[str, Any], *, as_json: bool) -> None:
    from onefold.progress import terminal_progress
    from onefold.settings import build
    from onefold.teaching import TeachSettings, teach

    settings = build(TeachSettings, values)
    with terminal_progress("teaching") as progress:
        teacher = teach(progress=progress, tell=tell, **settings.model_dump())
    folder = Path(settings.out) / "teacher"
    if as_json:
        say_json({"teacher": str(folder), "name": teacher.name, "shape": teacher.shape, "classes": teacher.classes})
        return
    say(
        f"The teacher is in {folder}. Pictures of it: {program()} sample {shlex.quote(str(folder))} --count 64 --out pictures.png"
    )


def show_settings(*, as_json: bool) -> None:
    """Every setting from the model that checks them, so that this list cannot fall behind."""
    from onefold.settings import described
    from onefold.teaching import TeachSettings

    if as_json:
        say_json(TeachSettings.model_json_schema()["properties"])
    else:
        say(table(("setting", "default", "meaning"), described(TeachSettings)))
