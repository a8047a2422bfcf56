"""Methods: one paper, one file. The registry names them; nothing else has to be touched to add one.

`onefold.methods()` is the table of all: this package can be called, since it bears the public name.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any, cast

from onefold.errors import UserError, suggest

# name -> (module, class of the method, class of its settings); imported when asked for
METHODS: dict[str, tuple[str, str, str]] = {
    "sfd": ("onefold.methods.sfd", "SFD", "SFDSettings"),
    "sfd_second": ("onefold.methods.sfd_second", "SecondStage", "SecondSettings"),
    "sfddm": ("onefold.methods.sfddm", "SFDDM", "SFDDMSettings"),
    "gdd": ("onefold.methods.gdd", "GDD", "GDDSettings"),
    "progressive": ("onefold.methods.progressive", "Progressive", "ProgressiveSettings"),
    "consistency": ("onefold.methods.consistency", "Consistency", "ConsistencySettings"),
}


def find(name: Any) -> tuple[Any, Any]:
    """(method, settings) of a name."""
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"unknown method {name!r}{suggest(str(name), METHODS)}")
    module, method, settings = METHODS[name]
    loaded = import_module(module)
    return getattr(loaded, method), getattr(loaded, settings)


def table() -> dict[str, dict[str, Any]]:
    """Every method: its one-line description and its settings with defaults."""
    from onefold.settings import described

    found = {}
    for name in METHODS:
        method, settings = find(name)
        rows = [
            {"name": n, "default": name if n == "method" else d, "description": t} for n, d, t in described(settings)
        ]
        found[name] = {
            "description": (method.__doc__ or "").strip().splitlines()[0],
            "settings": rows,
            "presets": {name: dict(values) for name, values in settings.presets.items()},
        }
    return found


class Registry(ModuleType):
    def __call__(self) -> dict[str, dict[str, Any]]:
        return table()


sys.modules[__name__].__class__ = Registry
methods = cast(Registry, sys.modules[__name__])
