"""Checkpoints: safetensors and JSON with checksums, written beside and renamed, the last good one always there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from onefold.errors import UserError, first_line
from onefold.files import atomic_folder, must_be_plain, read_text, sha256
from onefold.weights import Damaged, read_tensors

FORMAT = 1
KEPT = 2  # so that a damaged one has a forerunner
TENSORS, FACTS = "state.safetensors", "state.json"
MOST_BYTES = 64 * 2**20  # of the facts


class Checkpoints:
    """The folder checkpoints/: one sub-folder a checkpoint, named by its step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> list[Path]:
        """Finished checkpoints, newest first; a draft that was cut off is not one."""
        if not self.folder.is_dir():
            return []
        return sorted((p for p in self.folder.iterdir() if re.fullmatch(r"step-\d{10}", p.name)), reverse=True)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:010d}"

    def read(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return read(self.path(step))

    def identity(self) -> dict[str, Any]:
        """What the newest checkpoint whose facts are whole belongs to; nothing where there is none."""
        for path in self.all():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                return dict(read_facts(path)["identity"])
        return {}

    def write(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        target = self.path(step)
        try:
            with atomic_folder(target) as draft:
                save_file(apart(tensors), draft / TENSORS)
                facts = {"format": FORMAT, "step": step, "sha256": sha256(draft / TENSORS), **facts}
                text = json.dumps(facts, indent=1)
                envelope = {"facts": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
                (draft / FACTS).write_text(json.dumps(envelope))
        except UserError as error:
            kept = f"{self.all()[0].name} is intact" if self.all() else "there is no earlier checkpoint"
            raise UserError(f"{error}; {kept}") from error
        for old in self.all()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def read_newest(self, tell: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole. A damaged one is told of and passed over; damaged all, an error."""
        found, damaged = self.all(), []
        for path in found:
            try:
                content = read(path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, Damaged) as error:
                tell(f"checkpoint {path} is damaged ({first_line(error)}); falling back to the one before it")
                damaged.append(path)
                continue
            for worthless in damaged:  # or it would count as one of the kept
                shutil.rmtree(worthless, ignore_errors=True)
            return content
        if found:
            raise UserError(
                f"all {len(found)} checkpoints in {self.folder} are damaged; delete the folder to start again, or restore a copy"
            )
        return None


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, and each in memory of its own: tied weights are written twice and stay tied by the network."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        result[name] = plain.clone() if plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    return result


def read_facts(path: Path) -> dict[str, Any]:
    envelope = json.loads(read_text(path / FACTS, MOST_BYTES))
    text = envelope["facts"]
    if hashlib.sha256(text.encode()).hexdigest() != envelope["sha256"]:
        raise ValueError(f"{FACTS} does not match its checksum")
    facts: dict[str, Any] = json.loads(text)
    for name, kind in (("step", int), ("journal_bytes", int), ("identity", dict)):
        if name in facts and type(facts[name]) is not kind:
            raise TypeError(f"{FACTS} says {name} {facts[name]!r}")
    if facts["format"] != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {facts['format']}, this version reads {FORMAT}; use the version that wrote it"
        )
    return facts


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    facts = read_facts(path)
    must_be_plain(path / TENSORS)
    if sha256(path / TENSORS) != facts["sha256"]:
        raise ValueError(f"{TENSORS} does not match its checksum")
    return read_tensors(path / TENSORS)[0], facts


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """The state of an optimiser as flat tensors; plain numbers in float64, so that they come back as they were."""
    flat = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if value is not None:
                tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
                flat[f"{prefix}{index}.{key}"] = tensor
    return flat


def restore_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor], prefix: str) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        if name.startswith(prefix):
            index, key = name[len(prefix) :].split(".", 1)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
