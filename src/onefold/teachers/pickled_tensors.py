"""What EDM checkpoints hold, in the language of `pickles`: persistence records, tensors and a few numbers.

A checkpoint's modules are "persistent objects": a class's source text (never looked at), its name, and the object's
state. Tensors are views of storages, each of which is a small file of `torch.save` inside the pickle's bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onefold.errors import UserError, first_line
from onefold.files import must_be_plain
from onefold.teachers.pickles import (
    MOST_OPERATIONS,
    NUMBER_TYPE,
    Allowance,
    Language,
    Machine,
    Name,
    Record,
    Source,
    Span,
    Unreadable,
)

MAGIC = 0x1950A86A20F9469CFC6C  # what torch.save wrote at the start before it wrote zip files
VERSION = 1001
MOST_DIMENSIONS = 8
STORAGES: dict[Name, torch.dtype] = {
    Name("torch", f"{kind}Storage"): dtype
    for kind, dtype in {
        "Float": torch.float32,
        "Double": torch.float64,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
NUMBERS = {"f8": "<d", "f4": "<f", "f2": "<e", "i8": "<q", "i4": "<i", "i2": "<h", "i1": "<b", "u1": "<B", "b1": "<?"}


@dataclass(frozen=True)
class Storage:
    """Numbers in the file: `count` of a type, from byte `start` on; not known where until the key is found."""

    dtype: torch.dtype
    count: int
    key: str
    start: int = 0


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor that is still in the file."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    @property
    def extent(self) -> int:
        """Numbers from the first to the last one used."""
        if 0 in self.size:
            return 0
        return 1 + sum((count - 1) * step for count, step in zip(self.size, self.stride, strict=True))


@dataclass(frozen=True)
class Checkpoint:
    """The content of a pickle, and the file that its tensors are still in."""

    content: Any
    handle: int
    allowance: Allowance

    def load(self, stored: Stored) -> Tensor:
        """The tensor in memory of its own; all together take no more than the file has."""
        dtype, extent = stored.storage.dtype, stored.extent
        self.allowance.take(extent * dtype.itemsize)
        flat = torch.empty(extent, dtype=dtype)
        if extent:
            start = stored.storage.start + stored.offset * dtype.itemsize
            read_into(self.handle, flat.view(torch.uint8).numpy().data, start)
        return flat.as_strided(stored.size, stored.stride).contiguous()


def read_into(handle: int, memory: memoryview, start: int) -> None:
    done = 0
    while done < len(memory):
        count = os.preadv(handle, [memory[done : done + (1 << 30)]], start + done)
        if not count:
            raise Unreadable(f"it is cut off at byte {start + done}")
        done += count


@contextmanager
def opened(path: Path) -> Iterator[Checkpoint]:
    """Reads a checkpoint; whatever is wrong with it becomes one sentence."""
    try:
        must_be_plain(path)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            allowance = Allowance(MOST_OPERATIONS, size)
            source = Source(file.fileno(), 0, size)
            refuse_zip(source)
            content = run(source, CHECKPOINT, allowance)
            yield Checkpoint(content, file.fileno(), allowance)
    except Unreadable as error:
        raise UserError(f"{path} does not load as an EDM checkpoint: {error.reason}; {error.remedy}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); give a .pkl file of an EDM network") from None


def refuse_zip(source: Source) -> None:
    """`pickle.dump` never writes one, not even for the tensors inside."""
    if source.starts_with(b"PK\x03\x04"):
        raise Unreadable("it is, or holds, a zip file of torch.save", "give a file that pickle.dump wrote")


# What names in a checkpoint stand for.
def wrong(what: str) -> Unreadable:
    return Unreadable(f"{what} in it is not in the known form")


def reconstruct(machine: Machine, arguments: tuple[Any, ...]) -> Record:  # noqa: ARG001
    """A persistent object: {type, version, module_src, class_name, state}. Its source text is not even decoded."""
    meta = arguments[0] if len(arguments) == 1 else None
    if type(meta) is not dict or meta.get("type") != "class":
        raise wrong("a persistence record")
    kind, state = meta.get("class_name"), meta.get("state")
    if type(kind) is not str or type(state) is not dict:
        raise wrong("a persistence record")
    return Record(kind, state)


def storage_from_bytes(machine: Machine, arguments: tuple[Any, ...]) -> Storage:
    """The old form of `torch.save`: four pickles (magic number, version, system, object), keys, then raw numbers."""
    span = arguments[0] if len(arguments) == 1 else None
    if type(span) is not Span:
        raise wrong("a tensor's storage")
    source = Source(machine.source.handle, span.start, span.start + span.length)
    refuse_zip(source)
    read = partial(run, source, allowance=machine.allowance)
    if (read(PLAIN), read(PLAIN)) != (MAGIC, VERSION):
        raise wrong("a tensor's storage")
    system, storage, keys = read(PLAIN), read(STORAGE), read(PLAIN)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise Unreadable("its numbers are not little-endian", "save it again on an ordinary machine")
    if type(storage) is not Storage or keys != [storage.key] or source.number("<q") != storage.count:
        raise wrong("a tensor's storage")
    source.skip(storage.count * storage.dtype.itemsize)
    return Storage(storage.dtype, storage.count, storage.key, source.at - storage.count * storage.dtype.itemsize)


def run(source: Source, language: Language, allowance: Allowance) -> Any:
    return Machine(source, language, allowance).run()


def storage_named(label: Any) -> Storage:
    """('storage', type, key, device, count, view); the device it was on does not matter."""
    if type(label) is not tuple or len(label) not in (5, 6) or label[0] != "storage" or label[5:] not in ((), (None,)):
        raise wrong("a tensor's storage")
    _, kind, key, _, count = label[:5]
    if type(kind) is not Name or type(key) is not str or type(count) is not int or not 0 <= count < 1 << 48:
        raise wrong("a tensor's storage")
    return Storage(STORAGES[kind], count, key)


def rebuild_tensor(machine: Machine, arguments: tuple[Any, ...]) -> Stored:  # noqa: ARG001
    """(storage, offset, size, stride, requires_grad, hooks, ...)"""
    storage, offset, size, stride = (*arguments, None, None, None, None)[:4]
    if type(storage) is not Storage or type(offset) is not int or not whole(size) or not whole(stride):
        raise wrong("a tensor")
    stored = Stored(storage, offset, size, stride) if len(size) == len(stride) <= MOST_DIMENSIONS else None
    if stored is None or offset < 0 or offset + stored.extent > storage.count:
        raise wrong("a tensor")
    count = 1
    for length in size:
        count *= length
    if count > stored.extent:  # a few numbers that are shown many times would fill the memory
        raise wrong("a tensor")
    return stored


def whole(lengths: Any) -> bool:
    return type(lengths) is tuple and all(type(length) is int and 0 <= length < 1 << 48 for length in lengths)


def rebuild_parameter(machine: Machine, arguments: tuple[Any, ...]) -> Stored:  # noqa: ARG001
    """(tensor, requires_grad, hooks)"""
    if not arguments or type(arguments[0]) is not Stored:
        raise wrong("a parameter")
    return arguments[0]


def empty_dict(machine: Machine, arguments: tuple[Any, ...]) -> dict[Any, Any]:  # noqa: ARG001
    if arguments:
        raise wrong("a dictionary")
    return {}


def members(machine: Machine, arguments: tuple[Any, ...]) -> list[Any]:  # noqa: ARG001
    if len(arguments) != 1 or type(arguments[0]) is not list:
        raise wrong("a set")
    return arguments[0]


def number_type(machine: Machine, arguments: tuple[Any, ...]) -> Record:  # noqa: ARG001
    code = arguments[0] if arguments else None
    if type(code) is not str or code not in NUMBERS:
        raise wrong("a number's type")
    return Record(NUMBER_TYPE, {"code": code})


def numpy_number(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    kind, span = arguments if len(arguments) == 2 else (None, None)
    if type(kind) is not Record or kind.kind != NUMBER_TYPE or kind.state is None or type(span) is not Span:
        raise wrong("a number")
    layout = NUMBERS[kind.state["code"]]
    if span.length != struct.calcsize(layout):
        raise wrong("a number")
    return Source(machine.source.handle, span.start, span.start + span.length).number(layout)


CONTAINERS = [Name("torch.nn.modules.container", kind) for kind in ("ModuleDict", "ModuleList", "Sequential")]
PLAIN = Language()
STORAGE = Language(words=frozenset(STORAGES), persistent=storage_named)
CHECKPOINT = Language(
    calls={
        Name("torch_utils.persistence", "_reconstruct_persistent_obj"): reconstruct,
        Name("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        Name("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        Name("torch.storage", "_load_from_bytes"): storage_from_bytes,
        Name("collections", "OrderedDict"): empty_dict,
        Name("builtins", "set"): members,
        Name("numpy", "dtype"): number_type,
        Name("numpy.core.multiarray", "scalar"): numpy_number,
        Name("numpy._core.multiarray", "scalar"): numpy_number,
    },
    classes={
        Name("dnnlib.util", "EasyDict"): dict,
        Name("collections", "OrderedDict"): dict,
        **{name: partial(Record, name.name) for name in CONTAINERS},
    },
)
