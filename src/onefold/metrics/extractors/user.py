"""A user's own function: images N C H W in [-1, 1] -> features N D, or (features, logits).

One with a parameter `weights` gets the path that the user gives for them, with every call.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from onefold.data import to_float
from onefold.errors import UserError, first_line
from onefold.files import sha256
from onefold.imports import find_function
from onefold.metrics.extractors import Extractor
from onefold.metrics.extractors.running import extraction, no_weights

WEIGHTS = "weights"  # the parameter


def build(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """Its identity is that of its source file, and of its weights: what else decides its features it keeps to itself."""
    function = find_function(name, "extractor")
    source = source_of(name, sys.modules[name.partition(":")[0]])
    if wants_weights(function) and (weights is not None or not has_own(function)):
        weights = weights_file(name, weights)
        function, about = partial(function, weights=weights), first_line_of(function)
        identity = hashlib.sha256(f"{sha256(source)} {sha256(weights)}".encode()).hexdigest()
    else:
        no_weights(name, weights)
        about, identity = first_line_of(function), sha256(source)
    return Extractor(
        name=name,
        identity=identity,
        about=about or "a function of your own",
        classes=None,
        extract=extraction(name, checked(name, function), device),
    )


def wants_weights(function: Callable[..., Any]) -> bool:
    try:
        return WEIGHTS in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some that are written in C do not say
        return False


def has_own(function: Callable[..., Any]) -> bool:
    return inspect.signature(function).parameters[WEIGHTS].default is not inspect.Parameter.empty


def weights_file(name: str, weights: Path | None) -> Path:
    if weights is None:
        raise UserError(f"extractor {name!r} wants a file of weights; give it with --weights FILE")
    if not weights.is_file():
        raise UserError(f"there is no file {str(weights)!r} with the weights of extractor {name!r}; mend --weights")
    return weights


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
