"""onefold teachers: what comes with the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from onefold.cli.common import program, say, say_json, table
from onefold.progress import clock_time


def register(app: typer.Typer) -> None:
    app.command("teachers")(teachers_command)


def teachers_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the complete cards as JSON.")] = False,
) -> None:
    """List the teachers that come with the package."""
    from onefold.teachers import bundled

    cards = bundled()
    if as_json:
        say_json(cards)
        return
    header = ("name", "images", "classes", "parameters", "noise", "taught with")
    say(table(header, [row(name, card) for name, card in cards.items()], right=(2, 3)))
    if cards:
        say(f"\nPictures of one: {program()} sample {next(iter(cards))} --count 64 --out pictures.png")


def row(name: str, card: Mapping[str, Any]) -> tuple[str, ...]:
    data, cost = card["data"], card["cost"]
    return (
        name,
        " x ".join(str(size) for size in card["shape"]),
        str(card["classes"] or "-"),
        f"{card['parameters']:,}",
        f"{card['process']}, predicts {card['prediction']}",
        f"{data['count']:,} images ({Path(data['source']).name}), {cost['images']:,} shown in {clock_time(cost['seconds'])}",
    )
