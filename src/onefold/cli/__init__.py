"""The command line: a file a command group, each thin; parse, call the API, print.

No file here imports torch at the top, so that help is there at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import onefold
from onefold.cli import advise, align, demo, distill, evaluate, export, inspect, sample, teach, teachers
from onefold.cli.common import INTERRUPTED, explain, say_error

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (inspect, advise, distill, sample, evaluate, align, export, teach, teachers, demo):
    group.register(app)


@app.callback(invoke_without_command=True)
def onefold_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works after a command too.")
    ] = False,
) -> None:
    """Diffusion models in 1 to 8 network calls, with the evidence beside every result."""
    del debug  # taken out of the line by `main`, wherever it stands; declared here for the help
    if version:
        print(f"onefold {onefold.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code: 2 for a mistake of the user's, 130 for Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in given if word != "--debug"]
    try:
        code = app(words, prog_name="onefold", standalone_mode=False)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:  # noqa: BLE001  the one place where every error becomes a sentence
        return explain(error, words, debug=len(words) < len(given))
    if code == INTERRUPTED:
        say_error("interrupted; what is already written stays, and an unfinished run goes on with the same command")
    return code if isinstance(code, int) else 0
