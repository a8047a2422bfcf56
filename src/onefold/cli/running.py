"""The options of commands that run the engine, and how they become settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from onefold.cli.common import given
from onefold.errors import UserError
from onefold.settings import parse_assignments, read_yaml

Out = Annotated[Path | None, typer.Option(help="Run folder; the same command goes on in it.", show_default=False)]
Budget = Annotated[
    str | None, typer.Option(help="How long: images (200k, 1.5M) or time (30s, 5m, 2h); 30m.", show_default=False)
]
BatchSize = Annotated[int | None, typer.Option(help="Images a step, over all processes.", show_default=False)]
Seed = Annotated[int | None, typer.Option(help="Names every random draw of the run.", show_default=False)]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps; auto says why.", show_default=False)]
Precision = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.", show_default=False)]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings; options come before it.", show_default=False)]
Prompts = Annotated[
    str | None,
    typer.Option(help="For models of texts: a file with one prompt a line.", show_default=False),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="For methods that may see images: a folder, an .npz, hf:NAME, digits or teacher:NAME.", show_default=False
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting; repeat it.", show_default=False),
]


def gather(
    words: Mapping[str, Any], config: Path | None, assignments: list[str] | None, needs: Mapping[str, str], example: str
) -> dict[str, Any]:
    """Settings from a file, then options, then --set; what is needed and missing is named with an example."""
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in words.items()}
    values = (read_yaml(config) if config else {}) | given(plain) | parse_assignments(assignments or [])
    for name, what in needs.items():
        if name not in values:
            raise UserError(f"{example.split()[1]} needs {what}; for instance `{example}`")
    return values
