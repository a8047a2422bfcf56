"""Tensors out of files of other people's, without running anything in them.

`.npz`: arrays by name. `.th`, `.pth`: what torch.save wrote before it wrote zip files, five pickles (magic number, version,
system, the object, the storages' keys) and then each storage's count and numbers, read by onefold's own machine for pickles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onefold.data import npz_keys, read_npz
from onefold.errors import UserError, first_line
from onefold.files import must_be_plain
from onefold.teachers.pickled_tensors import (
    MAGIC,
    PLAIN,
    STORAGES,
    VERSION,
    Checkpoint,
    Storage,
    Stored,
    empty_dict,
    rebuild_parameter,
    rebuild_tensor,
    refuse_zip,
    run,
    storage_named,
    wrong,
)
from onefold.teachers.pickles import MOST_OPERATIONS, Allowance, Language, Name, Source, Unreadable
from onefold.weights import must_be_finite

SAVED = Language(
    calls={
        Name("torch._utils", "_rebuild_tensor"): rebuild_tensor,
        Name("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        Name("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        Name("collections", "OrderedDict"): empty_dict,
    },
    words=frozenset(STORAGES),
    persistent=storage_named,
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Float32 by name."""
    try:
        must_be_plain(path)
        tensors = read_arrays(path) if path.suffix == ".npz" else read_saved(path)
    except Unreadable as error:
        raise UserError(f"{path} does not load as tensors of torch.save: {error.reason}; {error.remedy}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); give a file of weights") from None
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    must_be_finite(floats, path)
    return floats


def read_arrays(path: Path) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in read_npz(str(path), path, npz_keys(path)).items()}


def read_saved(path: Path) -> dict[str, Tensor]:
    """The tensors under `state_dict`, or of the whole object."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        source, allowance = Source(file.fileno(), 0, size), Allowance(MOST_OPERATIONS, size)
        refuse_zip(source)
        read = partial(run, source, allowance=allowance)
        if (read(PLAIN), read(PLAIN)) != (MAGIC, VERSION):
            raise wrong("the beginning")
        system, content, keys = read(PLAIN), read(SAVED), read(PLAIN)
        if type(system) is not dict or system.get("little_endian") is not True:
            raise Unreadable("its numbers are not little-endian", "save it again on an ordinary machine")
        state = content.get("state_dict", content) if type(content) is dict else content
        found = {name: one for name, one in state.items() if type(one) is Stored} if type(state) is dict else {}
        if not found or type(keys) is not list:
            raise Unreadable("it holds no tensors by name", "give the weights of a network")
        starts = places(source, keys, {one.storage.key: one.storage for one in found.values()})
        load = Checkpoint(content, file.fileno(), allowance).load
        return {name: load(placed(one, starts)) for name, one in found.items()}


def places(source: Source, keys: list[Any], storages: Mapping[str, Storage]) -> dict[str, int]:
    """Where the numbers of each storage begin; all of them are of storages that tensors name."""
    starts: dict[str, int] = {}
    for key in keys:
        storage = storages.get(key) if type(key) is str else None
        if storage is None or source.number("<q") != storage.count:
            raise wrong("a tensor's storage")
        starts[key] = source.skip(storage.count * storage.dtype.itemsize).start
    return starts


def placed(stored: Stored, starts: Mapping[str, int]) -> Stored:
    if stored.storage.key not in starts:
        raise wrong("a tensor's storage")
    return replace(stored, storage=replace(stored.storage, start=starts[stored.storage.key]))


def fill(network: nn.Module, tensors: Mapping[str, Tensor], name_of: Callable[[str], str], place: Path) -> list[str]:
    """Every weight of the network from a file, by the name it has there; returns what the file holds besides."""
    own = {key: one for key, one in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    names = {key: name_of(key) for key in own}
    for key, name in names.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != tuple(own[key].shape):
            raise UserError(
                f"{place} holds {name} of shape {found}, expected {tuple(own[key].shape)}; give the weights of a {type(network).__name__}"
            )
    network.load_state_dict({**network.state_dict(), **{key: tensors[name] for key, name in names.items()}})
    return sorted(tensors.keys() - set(names.values()))
