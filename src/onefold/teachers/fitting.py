"""A network is built only if its weights fill it, so that a config cannot ask for more than lies on the disk.

It is sketched first: built without memory for its tensors, and no further than there are weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from onefold.errors import UserError, first_line
from onefold.weights import Shape

SPARE = 64  # parameters that a constructor makes and replaces
TABLES = 64 * 2**20  # bytes of what is computed and not stored, such as positions


def must_fit(make: Callable[[], nn.Module], held: Mapping[str, Shape], kind: str, folder: Path) -> None:
    """Names and shapes are not compared one by one: libraries rename tensors of older versions, and look at that themselves."""
    try:
        with torch.device("meta"), at_most(2 * len(held) + SPARE):
            network = make()
    except Exception as error:  # constructors break in many ways on what a config may say
        raise UserError(f"{folder} does not load as a {kind} ({first_line(error)}); restore its config.json") from error
    wanted, numbers = sum(one.numel() for one in network.parameters()), sum(shape.numbers for shape in held.values())
    if wanted > numbers:
        raise UserError(
            f"{shortage(network, held, kind, folder)} ({wanted:,} numbers, {numbers:,} are there); restore it"
        )
    tables = sum(one.numel() * one.element_size() for one in network.buffers())
    if tables > TABLES + 4 * numbers:
        raise UserError(
            f"{folder} does not load as a {kind}: its config.json asks for tables of {tables:,} bytes beside {numbers:,} weights; "
            "restore it"
        )


def shortage(network: nn.Module, held: Mapping[str, Shape], kind: str, folder: Path) -> str:
    """Which tensor is missing, or smaller than the config says."""
    sides = {name: tuple(one.shape) for name, one in network.named_parameters()}
    missing = sorted(sides.keys() - held.keys())
    if missing:
        return f"{folder} lacks weights of a {kind}, such as {missing[0]}"
    name = next((name for name in sides if sides[name] != held[name].sides), "its weights")
    return f"{folder} does not load as a {kind}: its config.json asks for more than its weights hold, as in {name}"


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """No more parameters in what this thread builds."""
    ours, made = threading.get_ident(), 0

    def counted(*_: Any) -> None:
        nonlocal made
        made += threading.get_ident() == ours
        if made > count:
            raise ValueError("its config asks for more tensors than its weights hold")

    hook = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()
