"""Functions of the user's own, by the name that the user gives: `package.module:function`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from onefold.errors import UserError, first_line, suggest

FORM = "package.module:function"


def is_function_name(source: str) -> bool:
    return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", source) is not None


def find_function(source: str, what: str) -> Callable[..., Any]:
    """`what` it is wanted for is said where it cannot be had."""
    if not is_function_name(source):
        raise UserError(f"{what} {source!r} is no name of a function, expected {FORM}; mend it")
    module_name, _, name = source.partition(":")
    module = import_module(f"{what} {source!r}", module_name)
    known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"module {module_name!r} has no function {name!r}{suggest(name, known)}")
    return function


def import_module(what: str, name: str) -> ModuleType:
    """From the current folder too, as `python -m` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if name == missing or name.startswith(f"{missing}."):
            remedy = f"looked in {here} and where Python looks; mend the name, or run it from the module's folder"
        else:
            remedy = f"which module {name!r} imports; install it"
        raise UserError(f"{what} needs module {missing!r}, which is missing; {remedy}") from error
    except Exception as error:  # a user's module may raise anything
        raise UserError(f"{what}: module {name!r} does not import ({first_line(error)}); mend it") from error
