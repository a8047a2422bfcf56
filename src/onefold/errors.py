"""Errors that are the user's to mend: one sentence with the value, the expectation and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input. The command line prints it without a traceback and exits with code 2."""


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` when something close is known, otherwise what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are: {', '.join(known)}"


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def root(error: BaseException) -> BaseException:
    """Where a chain of errors began; libraries raise sentences of their own over it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
