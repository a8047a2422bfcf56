"""What the commands share: how errors, tables and JSON are printed, and values are read."""

from __future__ import annotations

import errno
import json
import shutil
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onefold.errors import UserError, first_line, suggest
from onefold.progress import process_rank

FAILED, MISTAKE, INTERRUPTED = 1, 2, 130
REMEDIES = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EACCES: "change the permissions, or choose another place",
    errno.EPERM: "change the permissions, or choose another place",
    errno.EROFS: "choose a place that can be written to",
}


def say(text: str = "") -> None:
    """For people, on stdout; the first of several processes speaks for all."""
    if not process_rank():
        print(text)


def say_json(value: object) -> None:
    say(json.dumps(value, indent=2, default=str))


def tell(sentence: str) -> None:
    """For people while the work goes on, on stderr."""
    if not process_rank():
        print(sentence, file=sys.stderr, flush=True)


def say_error(sentence: str) -> None:
    rank = process_rank()
    print("" if rank is None else f"[rank {rank}] ", f"Error: {sentence}", sep="", file=sys.stderr, flush=True)


def explain(error: Exception, words: Sequence[str], *, debug: bool) -> int:
    """Prints one sentence for an error and returns the exit code it deserves."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, UserError):
        say_error(str(error))
    elif hasattr(error, "format_message"):  # typer's own errors, which several of its versions keep in different places
        say_error(usage_sentence(error, words))
    elif isinstance(error, OSError) and error.strerror:
        say_error(system_sentence(error))
    elif type(error).__name__ == "Stopped":  # the engine's, after it saved; named so that torch is not imported here
        tell(str(error))
        return INTERRUPTED
    elif type(error).__name__ == "OutOfMemoryError":
        say_error(
            f"the device has no memory left; use more --set micro_batches (or --batch-size smaller), or --device cpu ({first_line(error)})"
        )
    else:
        where = "" if debug else "; run it again with --debug to see where, and please report it"
        say_error(f"unexpected {type(error).__name__}: {first_line(error)}{where}")
        return FAILED
    return MISTAKE


def usage_sentence(error: Any, words: Sequence[str]) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "onefold"
    if context and type(error).__name__ == "NoSuchOption":
        known = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
        sentence = f"no such option {error.option_name!r}{suggest(error.option_name, known)}"
    else:
        message = error.format_message().rstrip(".")
        sentence = message[:1].lower() + message[1:] + value_given(error, words)
    return f"{sentence} (see `{command} --help`)"


def value_given(error: Any, words: Sequence[str]) -> str:
    """`, not 'x'`: typer says what an option takes but not what it got, so it is looked up in the line."""
    for name in getattr(getattr(error, "param", None), "opts", ()):
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if word == name and following:
                return f", not {following!r}"
            if word.startswith(f"{name}="):
                return f", not {word.partition('=')[2]!r}"
    return ""


def system_sentence(error: OSError) -> str:
    what, path = str(error.strerror), f" ({error.filename})" if error.filename else ""
    remedy = REMEDIES.get(error.errno or 0, "check the path and the disk, or choose another place")
    return f"{what[:1].lower()}{what[1:]}{path}; {remedy}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Aligned columns, the same in a terminal and in a file; `right` names the columns with numbers."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    right = set(right)
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def program() -> str:
    """How this very onefold is started from here: by its name when that is found, otherwise by its path."""
    installed = Path(sysconfig.get_path("scripts")) / "onefold"
    found = shutil.which("onefold")
    if not installed.exists():
        return f"{Path(sys.executable).name} -m onefold"
    if found and Path(found).resolve() == installed.resolve():
        return "onefold"
    inside = installed.is_relative_to(Path.cwd())
    return str(installed.relative_to(Path.cwd()) if inside else installed)


def read_numbers(text: str | None, option: str) -> list[int] | None:
    """`0,1,2` or `0-9` or both."""
    if text is None:
        return None
    numbers: list[int] = []
    for word in text.split(","):
        first, dash, last = word.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(f"{option} {text!r} is not a list of whole numbers; write for instance 0,1,2 or 0-9")
        numbers += range(int(first), int(last if dash else first) + 1)
    if not numbers:
        raise UserError(f"{option} {text!r} names no number; write ranges from low to high, for instance 0-9")
    return numbers


def given(settings: Mapping[str, object]) -> dict[str, object]:
    """Only what the user gave: everything else keeps the default of the API."""
    return {key: value for key, value in settings.items() if value is not None}


def must_be_new(paths: Iterable[Path], *, overwrite: bool, option: str = "--out") -> None:
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        others = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UserError(f"{existing[0]}{others} exists already; choose another {option} or add --overwrite")
