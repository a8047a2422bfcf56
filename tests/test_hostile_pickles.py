"""Pickles made to run code, to fill the memory or to break the reader: none runs anything, each ends in one sentence."""

from __future__ import annotations

import copyreg
import functools
import pickle
import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from edm_pickles import write
from onefold.errors import UserError
from onefold.networks.edm import build_edm
from onefold.teachers.edm import read_checkpoint
from onefold.teachers.pickles import MOST_OPERATIONS

NETWORK: dict[str, Any] = {
    "img_resolution": 4,
    "in_channels": 1,
    "out_channels": 1,
    "model_channels": 4,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
}
PERSISTENT = ("torch_utils.persistence", "_reconstruct_persistent_obj")
DICT = ("torch.nn.modules.container", "ModuleDict")


# A small assembler of pickles


@dataclass(frozen=True)
class Call:
    name: tuple[str, str]
    arguments: Any


@dataclass(frozen=True)
class New:
    name: tuple[str, str]
    state: Any


@dataclass(frozen=True)
class Raw:
    code: bytes


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(name: tuple[str, str]) -> bytes:
    return f"c{name[0]}\n{name[1]}\n".encode()


def code(value: Any) -> bytes:
    match value:
        case Raw():
            return value.code
        case Call():
            return named(value.name) + code(value.arguments) + b"R"
        case New():
            return named(value.name) + b")\x81" + code(value.state) + b"b"
        case dict():
            return b"}(" + b"".join(code(part) for pair in value.items() for part in pair) + b"u"
        case list():
            return b"](" + b"".join(map(code, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(code, value)) + b"t"
        case bytes():
            return b"\x8e" + struct.pack("<Q", len(value)) + value
        case str():
            return text(value)
        case bool() | None:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            return b"\x8a" + bytes([16]) + value.to_bytes(16, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
    raise TypeError(value)


def program(value: Any) -> bytes:
    return b"\x80\x04" + code(value) + b"."


def persistent(kind: str, state: Any, source: Any = "") -> Call:
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": kind, "state": state}
    return Call(PERSISTENT, (meta,))


def storage(
    count: int, *, kind: tuple[str, str] = ("torch", "FloatStorage"), label: Any = None, data: bytes = b""
) -> bytes:
    """The bytes that `torch.save` writes for a storage."""
    label = ("storage", Raw(named(kind)), "0", "cpu", count, None) if label is None else label
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, Raw(code(label) + b"Q"), ["0"]]
    return b"".join(map(program, parts)) + struct.pack("<q", count) + (data or bytes(4 * max(count, 0)))


def tensor(held: Any, size: tuple[int, ...], stride: tuple[int, ...] | None = None, offset: Any = 0) -> Call:
    stride = contiguous(size) if stride is None else stride
    held = Call(("torch.storage", "_load_from_bytes"), (held,)) if isinstance(held, bytes) else held
    return Call(("torch._utils", "_rebuild_tensor_v2"), (held, offset, size, stride, False, {}))


def contiguous(size: tuple[int, ...]) -> tuple[int, ...]:
    steps = [1]
    for length in reversed(size[1:]):
        steps.insert(0, steps[0] * length)
    return tuple(steps[: len(size)])


@functools.cache
def shapes(**changes: Any) -> dict[str, tuple[int, ...]]:
    network = build_edm("SongUNet", {**NETWORK, **changes})
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


@functools.cache
def zeros() -> Raw:
    return Raw(code({name: tensor(storage(torch.Size(size).numel()), size) for name, size in shapes().items()}))


def checkpoint(tensors: Any = None, **more: Any) -> dict[str, Any]:
    """A whole checkpoint with all tensors under one roof, zero unless given."""
    tensors = zeros() if tensors is None else tensors
    model = {"_parameters": tensors, "_buffers": {}, "_modules": {}, "_init_args": (), "_init_kwargs": NETWORK, **more}
    state = {
        "sigma_min": 0.0,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "_modules": {"model": persistent("SongUNet", model)},
    }
    return {"ema": persistent("EDMPrecond", state)}


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[str]:
    """What every payload tries to do; looked for after each test."""
    bird = tmp_path / "canary"
    yield f"touch {bird}"
    assert not bird.exists()


def refused(tmp_path: Path, content: bytes, said: str = "") -> str:
    path = tmp_path / "hostile.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert str(path) in message
    return message


def test_the_assembler_writes_checkpoints_that_load(tmp_path: Path) -> None:
    """Otherwise the tests below would show nothing."""
    (tmp_path / "good.pkl").write_bytes(program(checkpoint()))
    teacher = read_checkpoint(tmp_path / "good.pkl")
    assert all(not tensor.any() for tensor in teacher.module.state_dict().values())
    assert pickle.loads(program({"a": [1, (2.5, None, True)]})) == {"a": [1, (2.5, None, True)]}


# Code

NAMES = [
    *(("builtins", name) for name in ("eval", "exec", "getattr", "setattr", "__import__", "open", "compile", "type")),
    *(("os", name) for name in ("system", "popen", "execv", "path.os.system", "")),
    *(("operator", name) for name in ("attrgetter", "methodcaller", "itemgetter")),
    *(("copyreg", name) for name in ("_reconstructor", "__newobj__", "add_extension")),
    *(("torch", name) for name in ("load", "save", "_C", "jit.load", "FloatStorage", "os.system")),
    *((module, "system") for module in ("posix", "nt", "commands", "torch_utils.persistence", "dnnlib.util")),
    *((module, "loads") for module in ("pickle", "_pickle", "marshal", "dill", "cloudpickle")),
    ("__builtin__", "eval"),
    ("subprocess", "Popen"),
    ("subprocess", "check_output"),
    ("functools", "partial"),
    ("functools", "reduce"),
    ("codecs", "decode"),
    ("_codecs", "encode"),
    ("pty", "spawn"),
    ("runpy", "run_path"),
    ("runpy", "_run_code"),
    ("torch.hub", "load"),
    ("torch.serialization", "load"),
    ("torch.storage", "torch.load"),
    ("torch.storage", "_load_from_bytes.__globals__"),
    ("torch._utils", "_rebuild_tensor_v2.__class__"),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"),
    ("torch.nn.modules.module", "Module"),
    ("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__"),
    ("torch_utils.persistence", "_src_to_module"),
    ("collections", "OrderedDict.fromkeys"),
    ("collections", "namedtuple"),
    ("numpy", "load"),
    ("numpy.testing._private.utils", "runstring"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("importlib", "import_module"),
    ("types", "FunctionType"),
    ("ctypes", "CDLL"),
    ("webbrowser", "open"),
    ("timeit", "timeit"),
    ("bdb", "Bdb.run"),
    ("__main__", "x\ty"),
    ("os\x1b[2J", "system"),
    ("", ""),
]
FORMS: dict[str, Callable[[tuple[str, str], bytes], bytes]] = {
    "REDUCE": lambda name, argument: named(name) + argument + b"\x85R",
    "INST": lambda name, argument: b"(" + argument + b"i" + named(name)[1:],
    "OBJ": lambda name, argument: b"(" + named(name) + argument + b"o",
    "NEWOBJ": lambda name, argument: named(name) + argument + b"\x85\x81",
    "NEWOBJ_EX": lambda name, argument: named(name) + argument + b"\x85}\x92",
    "BUILD": lambda name, argument: named(name) + b"}" + argument + argument + b"sb",
    "STACK_GLOBAL": lambda name, argument: text(name[0]) + text(name[1]) + b"\x93" + argument + b"\x85R",
    "memo": lambda name, argument: (
        text(name[0]) + b"q\x00" + text(name[1]) + b"\x9400h\x00h\x01\x93q\x05" + b"0h\x05" + argument + b"\x85R"
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_no_name_is_called_in_any_form(form: str, tmp_path: Path, canary: str) -> None:
    known = ("torch", "FloatStorage"), ("torch.nn.modules.module", "Module")
    for name in NAMES:
        payload = FORMS[form](name, text(canary))
        inside = checkpoint(hook=Raw(payload))
        for content in (b"\x80\x04" + payload + b".", program({"ema": Raw(payload)}), program(inside)):
            message = refused(tmp_path, content)
            assert "no EDM checkpoint needs" in message
            if form != "INST" and form != "OBJ" and name not in known:
                assert repr(name[0]) in message
                assert repr(name[1]) in message


def test_known_names_do_only_what_they_are_for(tmp_path: Path, canary: str) -> None:
    """Names of the table, called with what is not theirs, or used for another's purpose."""
    table = [
        PERSISTENT,
        DICT,
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch.storage", "_load_from_bytes"),
        ("collections", "OrderedDict"),
        ("builtins", "set"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "scalar"),
        ("dnnlib.util", "EasyDict"),
    ]
    values = [
        (),
        (None,),
        ("os",),
        (canary,),
        ({},),
        ([],),
        (b"x",),
        (1, 2),
        ({"type": "class"},),
        [],
        {},
        None,
        1,
        "x",
    ]
    for name, value in product(table, values):
        for wrapped in (Call(name, value), New(name, value), Raw(named(name) + code(value) + b"\x81")):
            refused(tmp_path, program({"ema": wrapped}))
            refused(tmp_path, program(wrapped))


@pytest.mark.parametrize("key", ["__setstate__", "__class__", "__dict__", "__reduce__", "state", "kind", "__getattr__"])
def test_states_are_data(key: str, tmp_path: Path, canary: str) -> None:
    for value in (canary, {"x": canary}, [canary], None):
        state = {key: value, "__setstate__": canary}
        for target in (New(DICT, state), persistent("EDMPrecond", state)):
            refused(tmp_path, program({"ema": target}))
        for made in (b"}", b"]", named(DICT), text("x"), code(persistent("EDMPrecond", {})), code(New(DICT, {}))):
            refused(
                tmp_path,
                program({"ema": Raw(made + code(state) + b"b")}),
                "no EDM checkpoint needs a change" if 0 else "",
            )
        refused(tmp_path, program({"ema": Raw(named(DICT) + b")\x81" + code((None, state)) + b"b")}))


def test_extensions_and_outside_objects(tmp_path: Path, canary: str) -> None:
    copyreg.add_extension("os", "system", 0x70)
    try:
        for extension in (b"\x82\x70", b"\x83\x70\x00", b"\x84\x70\x00\x00\x00"):
            refused(tmp_path, b"\x80\x04" + extension + text(canary) + b"\x85R.", "EXT")
    finally:
        copyreg.remove_extension("os", "system", 0x70)
    refused(tmp_path, b"\x80\x04Pos.system\n.", "PERSID")
    refused(tmp_path, b"\x80\x04" + code(("storage", "x")) + b"Q.", "outside of the file")
    refused(tmp_path, b"\x80\x05\x97.", "NEXT_BUFFER")
    refused(tmp_path, b"\x80\x04S'os'\n.", "STRING")
    refused(tmp_path, b"\x80\x04\xff.", "0xff")


def test_source_texts_are_never_run(tmp_path: Path, canary: str) -> None:
    source = f"import os\nos.system({canary!r})\nraise SystemExit\n"
    for more in ("", "#" * 10_000):
        good = checkpoint()
        meta = {**good["ema"].arguments[0], "module_src": source + more}
        (tmp_path / "good.pkl").write_bytes(program({"ema": Call(PERSISTENT, (meta,))}))
        read_checkpoint(tmp_path / "good.pkl")


def test_pickles_inside_are_read_as_strictly(tmp_path: Path, canary: str) -> None:
    evil = FORMS["REDUCE"](("os", "system"), text(canary))
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    for count in range(4):
        stored = b"".join(map(program, parts[:count])) + program(Raw(evil))
        refused(tmp_path, program({"ema": tensor(stored, (1,))}), "'os' 'system'")
    for label in (Raw(evil), ("storage", Raw(evil), "0", "cpu", 1, None), ("module", Raw(evil), "source", "x")):
        refused(tmp_path, program({"ema": tensor(storage(1, label=label), (1,))}), "'os' 'system'")
    nested = tensor(storage(1, label=Call(("torch.storage", "_load_from_bytes"), (b"x",))), (1,))
    refused(tmp_path, program({"ema": nested}), "'torch.storage'")
    refused(tmp_path, program({"ema": tensor(b"PK\x03\x04" + bytes(100), (1,))}), "zip")


# Memory and time


@pytest.fixture
def small_memory() -> Iterator[None]:
    """Python's own memory stays small; torch's is counted by the reader."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize(
    "content",
    [
        b"\x8e" + struct.pack("<Q", 1 << 60),
        b"\x8d" + struct.pack("<Q", 1 << 60) + b"abc",
        b"\x96" + struct.pack("<Q", 1 << 60),
        b"B" + b"\xff" * 4,
        b"X" + b"\xff" * 4,
        b"\x8b" + struct.pack("<i", (1 << 31) - 1),
        b"\x8b" + struct.pack("<i", -5),
        b"\x95" + struct.pack("<Q", (1 << 63) - 1),
        b"r" + b"\xff" * 4,
        b"Nr" + b"\xff" * 4 + b".",
        b"j" + b"\xff" * 4 + b".",
        b"I" + b"9" * 5000 + b"\n.",
        b"L" + b"9" * 50 + b"x\n.",
        b"F" + b"9" * 400 + b"e\n.",
        b"Np" + b"9" * 60 + b"\n.",
        b"g-1\n.",
        b"c" + b"a" * 100_000 + b"\n",
        b"X\x02\x00\x00\x00\xff\xfe.",
        b"0.",
        b"1.",
        b"(.",
        b"t.",
        b"}(Nu.",
        b"](\x8c\x01au.",
        b"N)R.",
        b"a.",
        b")}N\x86s.",
        b"",
        b"\x80",
        b"\x80\x09.",
        b".",
    ],
)
def test_wrong_lengths_and_orders(content: bytes, tmp_path: Path) -> None:
    start = b"" if content[:1] == b"\x80" or not content else b"\x80\x04"
    refused(tmp_path, start + content)
    refused(tmp_path, start + b"}\x8c\x03ema" + content)


@pytest.mark.parametrize(
    "deep",
    [
        b"]" * 100_000 + b"a" * 99_999,
        b")" + b"\x85" * 100_000,
        b"}" + b"N}" * 20_000 + b"s" * 20_000,
        b"]" + b"\x94]h\x00a" * 20_000,
        b"(" * 20_000 + b"N" + b"l" * 20_000,
        (named(DICT) + b")\x81}\x8c\x08_modules}\x8c\x01a") * 5_000 + b"N" + b"ssb" * 5_000,
    ],
)
def test_depth(deep: bytes, tmp_path: Path) -> None:
    refused(tmp_path, program(Raw(deep)))
    refused(tmp_path, program(checkpoint(_init_kwargs={"dropout": Raw(deep)})))
    refused(tmp_path, program(checkpoint(_modules={"a": Raw(deep)})))
    refused(tmp_path, program({Raw(deep): 1}), "")
    refused(tmp_path, program(Call(PERSISTENT, Raw(deep))))


def test_keys_are_names(tmp_path: Path) -> None:
    """Hashing deep tuples overflows the stack, and numbers can be chosen to collide."""
    for key in (Raw(b")" + b"\x85" * 100_000), 1 << 61, 0.5, b"x", Raw(b"]")):
        refused(tmp_path, program({key: 1}), "key")
        refused(tmp_path, program(Raw(b"}" + code(key) + b"Ns")), "key")
        refused(tmp_path, program(Raw(b"(" + code(key) + b"Nd")), "key")


@pytest.mark.usefixtures("small_memory")
def test_laughs(tmp_path: Path) -> None:
    """Structures of 2^60 paths, made of 60 memorised pieces."""
    lists = b"]\x94" + b"".join(b"](h" + bytes([n]) + b"h" + bytes([n]) + b"e\x94" for n in range(60))
    modules = b"}\x94" + b"".join(
        named(DICT) + b")\x81}\x8c\x08_modules}(\x8c\x01ah" + bytes([n]) + b"\x8c\x01bh" + bytes([n]) + b"usb\x94"
        for n in range(60)
    )
    refused(tmp_path, program(Raw(lists)))
    refused(tmp_path, program(checkpoint(_init_kwargs={"dropout": Raw(lists)})))
    itself = Raw(named(DICT) + b")\x81\x94}\x8c\x08_modules}\x8c\x01ah\x00ssb")
    refused(tmp_path, program(checkpoint(_modules={"a": itself})), "contain each other")
    twice = Raw(b"}(" + text("a") + named(DICT) + b")\x81}b\x94" + text("b") + b"h\x00u")
    refused(tmp_path, program(checkpoint(_modules=twice)), "contain each other")
    refused(tmp_path, program(checkpoint(_modules={"a": Raw(modules)})))


def test_too_many_instructions(tmp_path: Path) -> None:
    refused(tmp_path, b"\x80\x04" + b"N0" * (MOST_OPERATIONS // 2 + 10) + b".", "instructions")
    refused(tmp_path, b"\x80\x04]" + b"2" * (MOST_OPERATIONS + 10) + b".", "instructions")


@pytest.mark.parametrize(
    "wrong",
    [
        tensor(storage(4), (5,)),
        tensor(storage(4), (4,), (2,)),
        tensor(storage(4), (1,), offset=4),
        tensor(storage(4), (1,), offset=-1),
        tensor(storage(4), (1 << 40,), (0,)),
        tensor(storage(4), (1 << 47, 1 << 47), (0, 0)),
        tensor(storage(4), (-4,)),
        tensor(storage(4), (2, 2), (-1, 1)),
        tensor(storage(4), (4,), ()),
        tensor(storage(4), (1,) * 2000, (1,) * 2000),
        tensor(storage(4), (1,), offset="0"),
        tensor(storage(1 << 40, data=bytes(4)), (1,)),
        tensor(storage(-1), (1,)),
        tensor(storage(1 << 60, data=bytes(4)), (1,)),
        tensor(storage(4, kind=("torch", "load")), (4,)),
        tensor(storage(4, label=("storage", Raw(named(("torch", "FloatStorage"))), "1", "cpu", 4, None)), (4,)),
        tensor(storage(4, label=("storage", Raw(named(("torch", "FloatStorage"))), "0", "cpu", 4, (0, 1))), (4,)),
        tensor(storage(4)[:-1], (4,)),
        tensor(storage(4)[8:], (4,)),
        tensor(storage(4).replace(b"\x88", b"\x89"), (4,)),
        tensor({}, (4,)),
        tensor(None, (4,)),
        Call(("torch._utils", "_rebuild_tensor_v2"), ()),
        Call(("torch._utils", "_rebuild_parameter"), ({}, True, {})),
        {},
        7,
        persistent("Linear", {}),
    ],
)
@pytest.mark.usefixtures("small_memory")
def test_wrong_tensors(wrong: Any, tmp_path: Path) -> None:
    refused(tmp_path, program(checkpoint({"map_layer0.weight": wrong})))


def test_tensors_cannot_share_their_bytes(tmp_path: Path) -> None:
    """All from one storage would be many times the file."""
    wide = shapes(model_channels=32)
    most = max(torch.Size(size).numel() for size in wide.values())
    held = Raw(code(Call(("torch.storage", "_load_from_bytes"), (storage(most),))) + b"\x94")
    tensors = {name: tensor(held if n == 0 else Raw(b"h\x00"), size) for n, (name, size) in enumerate(wide.items())}
    content = checkpoint(tensors, _init_kwargs={**NETWORK, "model_channels": 32})
    refused(tmp_path, program(content), "more bytes than the file")


# Wrong records


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {"ema": None},
        {"ema": {}},
        {"G_ema": persistent("Generator", {})},
        {"ema": persistent("Generator", {})},
        {"ema": persistent("SongUNet", {})},
        {"ema": persistent("EDMPrecond", {})},
        {"ema": persistent("EDMPrecond", {"_modules": {"model": None}})},
        {"ema": persistent("EDMPrecond", {"_modules": ["model"]})},
        {"ema": persistent("EDMPrecond", {"_modules": {"model": persistent("os.system", {})}})},
        {"ema": persistent("EDMPrecond", {"_modules": {"model": persistent("SongUNet", {"_init_kwargs": 3})}})},
        {"ema": Call(PERSISTENT, ({"type": "function", "class_name": "x", "state": {}},))},
        {"ema": Call(PERSISTENT, ({"type": "class", "class_name": {}, "state": {}},))},
        {"ema": Call(PERSISTENT, ({"type": "class", "class_name": "x", "state": None},))},
        checkpoint({}),
        checkpoint(_init_kwargs={}),
        checkpoint(_init_kwargs={**NETWORK, "model_channels": "x" * 200}),
        checkpoint(_init_kwargs={**NETWORK, "model_channels": 1 << 60}),
        checkpoint(_init_kwargs={**NETWORK, "num_blocks": 1 << 40}),
        checkpoint(_init_kwargs={**NETWORK, "num_blocks": 64}),
        checkpoint(_init_kwargs={**NETWORK, "unknown\n": 1}),
        checkpoint(_init_kwargs={**NETWORK, "channel_mult": [[1]]}),
        checkpoint(_init_kwargs={**NETWORK, 3: 4}),
        checkpoint(_init_args=(1,) * 200),
        checkpoint(_init_args=[4]),
        checkpoint(_parameters=3),
        checkpoint(_parameters={3: tensor(storage(1), (1,))}),
        checkpoint(_parameters={"a" * 200: tensor(storage(1), (1,))}),
    ],
)
def test_wrong_records(content: Any, tmp_path: Path) -> None:
    refused(tmp_path, program(content))


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), -1.0, "a", [1], None, 1 << 120, Raw(b"}")])
def test_wrong_ranges(value: Any, tmp_path: Path) -> None:
    good = checkpoint()["ema"].arguments[0]
    for name in ("sigma_max", "sigma_data"):
        state = {**good["state"], name: value}
        refused(tmp_path, program({"ema": persistent("EDMPrecond", state)}))


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(tmp_path / "none.pkl")
    torch.save({"ema": torch.zeros(3)}, tmp_path / "zip.pt")
    with pytest.raises(UserError, match=r"zip\.pt .* a zip file of torch\.save"):
        read_checkpoint(tmp_path / "zip.pt")


# Damage


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("genuine")
    wrapped = {"kind": "EDMPrecond", "sigma_min": 0.0, "sigma_max": float("inf"), "sigma_data": 0.5}
    network = {"kind": "SongUNet", **NETWORK}
    write([{"path": str(folder / "good.pkl"), "network": network, "preconditioning": wrapped}], folder)
    return (folder / "good.pkl").read_bytes()


def test_cut_off_anywhere(genuine: bytes, tmp_path: Path) -> None:
    for part in range(200):
        refused(tmp_path, genuine[: part * len(genuine) // 200])
    refused(tmp_path, genuine[:-1])


def test_random_damage_is_told_or_harmless(genuine: bytes, tmp_path: Path) -> None:
    """Half of it anywhere, half in the first part, where structure is denser than numbers."""
    draw, path, told = random.Random(0), tmp_path / "damaged.pkl", 0
    for count in range(300):
        damaged = bytearray(genuine)
        for _ in range(1 + count % 3):
            damaged[draw.randrange(len(genuine) if count % 2 else 12_000)] = draw.randrange(256)
        path.write_bytes(damaged)
        with suppress(UserError):
            read_checkpoint(path)
            told -= 1
        told += 1
    assert 50 < told < 300
