"""Tensors in safetensors files: looked at in the header, which the library checks against the file, before any is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from onefold.errors import UserError, first_line
from onefold.files import must_be_plain


class Damaged(UserError):
    """A file that holds no tensors, whoever is to blame."""


@dataclass(frozen=True)
class Shape:
    dtype: str
    sides: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.sides)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    try:
        must_be_plain(path)
        with safe_open(path, "pt") as file:
            yield file
    except Exception as error:  # the library and torch each have their own
        raise Damaged(f"{path} holds no tensors that can be read ({first_line(error)}); restore it") from error


def shapes(paths: Iterable[Path]) -> dict[str, Shape]:
    """What files say they hold; nothing else is read of them."""
    found = {}
    for path in paths:
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118  (it is no mapping)
                part = file.get_slice(name)
                found[name] = Shape(part.get_dtype(), tuple(part.get_shape()))
    return found


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata)"""
    with opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def must_be_finite(tensors: Mapping[str, Tensor], place: Path | str = "the file") -> None:
    """Every image of a network with NaN is NaN; told here, where the reason is known."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            ends = torch.stack(tensor.detach().aminmax())  # in one pass, without a copy; NaN is an end too
            if not bool(ends.isfinite().all()):
                raise UserError(
                    f"{place} holds weights that are NaN or infinite, such as {name}: its training diverged, or the file is "
                    "damaged; get another copy"
                )
