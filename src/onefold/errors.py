"""Errors that are the user's to mend: one sentence with the value, the expectation and the remedy."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Sequence
from typing import Any

MOST_LETTERS = 2000  # of a sentence, which may quote what a file says


class UserError(Exception):
    """A mistake in the input. The command line prints it without a traceback and exits with code 2."""

    def __init__(self, sentence: object = "") -> None:
        super().__init__(printable(str(sentence)))


class DivergedError(UserError):
    """A training that went to infinity, as settings may make it."""


def printable(text: str) -> str:
    """On one line, not longer than is read, and without control characters: terminals obey them, whoever wrote the file."""
    if len(text) > MOST_LETTERS:
        text = f"{text[: MOST_LETTERS // 2]} ... {text[-MOST_LETTERS // 2 :]}"
    text = " ".join(text.splitlines())
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` when something close is known, otherwise what is known."""
    known, name = sorted(known), name[:100]  # the search takes long for what is long
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are: {', '.join(known)}"


def check_choice(what: str, value: Any, known: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{what} is {value!r}{suggest(str(value), known)}")


def whole_number(what: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise UserError(f"{what} is {value!r}; it must be a whole number of 1 or more")
    return number


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def root(error: BaseException) -> BaseException:
    """Where a chain of errors began; libraries raise sentences of their own over it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
