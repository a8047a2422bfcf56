"""onefold teach: train a teacher of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from onefold.cli.common import program, say, say_json, table, tell
from onefold.cli.running import BatchSize, Budget, Config, Device, Out, Precision, Seed, Sets, gather


def register(app: typer.Typer) -> None:
    app.command("teach")(teach_command)


def teach_command(
    data: Annotated[
        str | None,
        typer.Argument(
            help="What to learn: a folder of images, an .npz file, digits, hf:NAME or teacher:NAME.", show_default=False
        ),
    ] = None,
    out: Out = None,
    budget: Budget = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    process: Annotated[str | None, typer.Option(help="Noise process: vp, edm or flow.", show_default=False)] = None,
    size: Annotated[int | None, typer.Option(help="Height and width of the images.", show_default=False)] = None,
    config: Config = None,
    settings: Sets = None,
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
    words = {"data": data, "out": out, "budget": budget, "batch_size": batch_size}
    words |= {"seed": seed, "device": device, "precision": precision, "process": process, "size": size}
    needs = {
        "data": "DATA (a folder of images, an .npz file, digits, hf:NAME or teacher:NAME)",
        "out": "--out (a run folder)",
    }
    values = gather(words, config, settings, needs, "onefold teach photos/ --out runs/photos --budget 30m")
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
