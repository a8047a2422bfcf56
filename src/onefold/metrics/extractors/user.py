"""A user's own function: images N C H W in [-1, 1] -> features N D, or (features, logits)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from onefold.data import to_float
from onefold.errors import UserError, first_line, suggest
from onefold.files import sha256
from onefold.metrics.extractors import USER, Extractor
from onefold.metrics.extractors.running import extraction, no_weights


def build(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """Its identity is its source file's: what else decides its features, such as weights it loads, it keeps to itself."""
    no_weights(name, weights)
    module_name, _, function_name = name.partition(":")
    words = [*module_name.split("."), function_name]
    if not all(word.isidentifier() for word in words):
        raise UserError(f"extractor {name!r} is no name of a function, expected {USER}; mend it")
    module = import_module(name, module_name)
    known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"module {module_name!r} has no function {function_name!r}{suggest(function_name, known)}")
    return Extractor(
        name=name,
        identity=sha256(source_of(name, module)),
        about=first_line_of(function) or "a function of your own",
        classes=None,
        extract=extraction(name, checked(name, function), device),
    )


def import_module(name: str, module_name: str) -> ModuleType:
    """From the current folder too, as `python -m` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if module_name == missing or module_name.startswith(f"{missing}."):
            remedy = f"looked in {here} and where Python looks; mend the name, or run it from the module's folder"
        else:
            remedy = f"which module {module_name!r} imports; install it"
        raise UserError(f"extractor {name!r} needs module {missing!r}, which is missing; {remedy}") from error
    except Exception as error:  # a user's module may raise anything
        raise UserError(
            f"extractor {name!r}: module {module_name!r} does not import ({first_line(error)}); mend it"
        ) from error


def source_of(name: str, module: ModuleType) -> Path:
    path = Path(getattr(module, "__file__", None) or "")
    if not path.is_file():
        raise UserError(f"extractor {name!r} comes from no file, so it cannot be told apart; write it to a .py file")
    return path


def checked(name: str, function: Callable[[Tensor], Any]) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
    """The function, with what it returns looked at."""

    def features(images: Tensor) -> tuple[Tensor, Tensor | None]:
        try:
            found = function(to_float(images))
        except Exception as error:  # a user's function may raise anything
            raise UserError(
                f"extractor {name!r} failed on images of shape {tuple(images.shape)} "
                f"({type(error).__name__}: {first_line(error)}); mend it, --debug shows where"
            ) from error
        vectors, logits = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        check_output(name, vectors, "features", len(images))
        if logits is not None:
            check_output(name, logits, "logits", len(images))
        return vectors, logits

    return features


def check_output(name: str, values: object, role: str, count: int) -> None:
    if not isinstance(values, Tensor):
        raise UserError(
            f"extractor {name!r} gave a {type(values).__name__}, expected features, or (features, logits), as torch "
            "tensors N D; mend it"
        )
    if values.ndim != 2 or len(values) != count or not values.shape[1]:
        raise UserError(
            f"extractor {name!r} gave {role} of shape {tuple(values.shape)} for {count} images, expected ({count}, D); mend it"
        )
    if not values.isfinite().all():
        raise UserError(f"extractor {name!r} gave {role} that are not finite; mend it")


def first_line_of(function: Callable[..., object]) -> str:
    return (function.__doc__ or "").strip().partition("\n")[0]
