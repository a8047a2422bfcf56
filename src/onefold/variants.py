"""One student, several numbers of calls: for each the levels it walks, and the few tensors in which its network differs.

What tells a network how many steps there are stays the same from noise to image, so for a given number it is part of the
layers' biases: of each further number, a student keeps those, and is in all else one network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from onefold.errors import UserError, first_line
from onefold.files import must_be_plain, sha256
from onefold.grids import Grid
from onefold.weights import must_be_finite

FILE = "calls.safetensors"
BETWEEN = "/"  # the number of calls and a tensor's name


@dataclass(frozen=True)
class Variant:
    """What a student of another number of calls has of its own."""

    grid: Grid
    tensors: Mapping[str, Tensor]  # by their names in the network


def twin(network: nn.Module) -> nn.Module:
    """The same modules again, over the same weights. Buffers are its own, since training may change them."""
    return copy.deepcopy(network, {id(weight): weight for weight in network.parameters()})


@torch.no_grad()
def with_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network with some of its weights replaced; it shares the others with the one that is given."""
    changed = twin(network)
    for name, value in tensors.items():
        place, _, weight = name.rpartition(".")
        before = changed.get_parameter(name)
        new = value.to(before).clone()
        setattr(changed.get_submodule(place), weight, nn.Parameter(new, requires_grad=before.requires_grad))
    return changed


def packed(variants: Mapping[int, Variant]) -> bytes:
    """As the file that a student's folder has of them."""
    named = {
        f"{calls}{BETWEEN}{name}": value.detach().cpu().contiguous()
        for calls, variant in variants.items()
        for name, value in variant.tensors.items()
    }
    return save(named)


def load_variants(grids: Mapping[int, Grid], network: nn.Module, path: Path, wanted: object) -> dict[int, Variant]:
    """Those of a student's file, which must fit its network and have the wanted checksum."""
    try:
        must_be_plain(path)
        named, found_hash = load_file(path), sha256(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} holds what the student's numbers of calls differ in, and cannot be read ({first_line(error)}); restore it"
        ) from None
    if found_hash != wanted:
        raise UserError(f"{path} does not match its checksum; it is damaged or was edited, restore it")
    found: dict[int, dict[str, Tensor]] = {calls: {} for calls in grids}
    known: dict[str, Any] = dict(network.named_parameters())
    for key, value in named.items():
        number, _, name = key.partition(BETWEEN)
        calls = int(number) if number.isascii() and number.isdigit() else None
        if calls not in found or name not in known or known[name].shape != value.shape:
            raise UserError(f"{path} holds {key!r}, which does not fit the student's network and grids; restore it")
        found[calls][name] = value
    must_be_finite(named, path)
    names = set[str]().union(*found.values())
    for calls, tensors in found.items():
        if not tensors or tensors.keys() != names:
            raise UserError(
                f"{path} lacks {min(names - tensors.keys(), default='tensors')} for {calls} calls; restore it"
            )
    return {calls: Variant(grid, found[calls]) for calls, grid in grids.items()}
