"""From the records of an EDM checkpoint to plain values: which network, which preconditioning, which tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onefold.networks.edm import FAMILIES
from onefold.teachers.edm_process import KINDS
from onefold.teachers.pickled_tensors import Stored
from onefold.teachers.pickles import Record, Unreadable, shown

MOST_TENSORS = 20_000
DEEPEST = 8  # modules inside modules; checkpoints have 4
LONGEST = 100  # letters of a name
PLAIN = (type(None), bool, int, float, str)
OTHER_FILE = "give the .pkl of an EDM training run, with its averaged network under 'ema'"


@dataclass(frozen=True)
class Found:
    network: tuple[str, dict[str, Any]]  # class and constructor's arguments
    preconditioning: tuple[str, dict[str, Any]]
    tensors: dict[str, Stored]


def read_records(content: Any) -> Found:
    wrapped = content.get("ema") if type(content) is dict else content
    if type(wrapped) is not Record:
        raise Unreadable("it holds no network", OTHER_FILE)
    kind = known(wrapped, KINDS)
    network = table(wrapped, "_modules").get("model")
    if type(network) is not Record:
        raise Unreadable(f"its {kind} holds no network", OTHER_FILE)
    state = wrapped.state or {}
    fields = {name: plain(name, state[name]) for name in KINDS[kind].model_fields if name in state}
    return Found((known(network, FAMILIES), arguments(network)), (kind, fields), tensors(network))


def known(record: Record, kinds: Mapping[str, Any]) -> str:
    if record.kind not in kinds:
        raise Unreadable(f"it holds a {shown(record.kind)}, known are {', '.join(sorted(kinds))}", OTHER_FILE)
    return record.kind


def table(record: Record, name: str) -> dict[Any, Any]:
    value = (record.state or {}).get(name, {})
    if type(value) is not dict:
        raise Unreadable(f"{name} of its {shown(record.kind)} is a {type(value).__name__}, expected a dictionary")
    return value


def arguments(network: Record) -> dict[str, Any]:
    """What the network was built with; positions have the order of our fields."""
    given = (network.state or {}).get("_init_args", ())
    names = list(FAMILIES[network.kind][0].model_fields)
    if type(given) is not tuple or len(given) > len(names):
        raise Unreadable("its network's arguments are not in the known form")
    values = {**dict(zip(names, given, strict=False)), **table(network, "_init_kwargs")}
    return {name: plain(name, value) for name, value in values.items() if named(name)}


def named(name: Any) -> bool:
    if type(name) is not str or len(name) > LONGEST:
        raise Unreadable("a name in it is no short text")
    return True


def plain(name: str, value: Any) -> Any:
    """Numbers, short texts and lists of them."""
    entries = value if type(value) in (list, tuple) else [value]
    fits = len(entries) <= LONGEST and all(
        type(entry) in PLAIN and (type(entry) is not str or len(entry) <= LONGEST) for entry in entries
    )
    if not fits:
        raise Unreadable(f"its {shown(name)} is no plain value")
    return value


def tensors(network: Record) -> dict[str, Stored]:
    """Every parameter and buffer by its full name. A module stands in one place only, so the walk ends."""
    found: dict[str, Stored] = {}
    todo: list[tuple[tuple[str, ...], Record]] = [((), network)]
    seen: set[int] = set()
    while todo:
        path, record = todo.pop()
        if id(record) in seen or len(path) > DEEPEST:
            raise Unreadable("its modules contain each other")
        seen.add(id(record))
        for group in ("_parameters", "_buffers"):
            for name, value in table(record, group).items():
                if value is not None and named(name):
                    found[".".join((*path, name))] = checked(value, len(found))
        for name, child in table(record, "_modules").items():
            if child is not None and named(name):
                if type(child) is not Record:
                    raise Unreadable(f"its module {shown(name)} is a {type(child).__name__}")
                todo.append(((*path, name), child))
    return found


def checked(value: Any, count: int) -> Stored:
    if type(value) is not Stored or count > MOST_TENSORS:
        raise Unreadable("its tensors are not in the known form, or too many")
    return value
