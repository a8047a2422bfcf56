"""onefold advise: which method pays for a budget, from what was measured."""

from __future__ import annotations

from typing import Annotated

import typer

from onefold.cli.common import given, say, say_json, table, tell
from onefold.cli.running import Data, Device, Precision, Prompts

SHOWN = 6  # rows of the table


def register(app: typer.Typer) -> None:
    app.command("advise")(advise_command)


def advise_command(
    teacher: Annotated[
        str,
        typer.Argument(
            help="A bundled teacher's name, a folder with a model, an EDM .pkl, or a name on the Hugging Face hub."
        ),
    ],
    calls: Annotated[int, typer.Option(help="Network calls of the student.")] = 4,
    budget: Annotated[str, typer.Option(help="How long it may train: 30s, 10m or 2h.")] = "30m",
    data: Data = None,
    goal: Annotated[
        str, typer.Option(help="data: images like the data; teacher: those that the teacher makes of the same noise.")
    ] = "data",
    prompts: Prompts = None,
    device: Device = None,
    precision: Precision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Recommend a method and its settings for a number of calls and a time.

    From measurements of every method on the bundled teachers, at this device's pace.
    """
    from onefold.bench.advise import advise, heading, line, order

    words = {"data": data, "prompts": prompts, "device": device, "precision": precision}
    advice = advise(teacher, calls=calls, budget=budget, goal=goal, tell=tell, **given(words))  # type: ignore[arg-type]
    if as_json:
        say_json(advice.as_dict())
        return
    columns = ("method", "sees images", "forward passes", "distance to the data", "RMSE to the teacher")
    say(heading(advice))
    say()
    say(table(columns, [line(option) for option in advice.options[:SHOWN]], right=(2, 3, 4)))
    say(order(advice))
    say()
    for reason in advice.reasons:
        say(f"{reason[:1].upper()}{reason[1:]}.")
    for warning in advice.warnings:
        say(f"Mind: {warning}.")
    several = " (the first run only leads to the second)" if len(advice.commands) > 1 else ""
    say(f"\nRun it{several}:\n" + "\n".join(advice.commands))
