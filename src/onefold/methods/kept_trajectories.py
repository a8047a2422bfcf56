"""The teacher's trajectories on disk, for runs that differ in what the student does with them.

A file for each batch, named after its step and rows; the folder is named after all that decides what lies in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from onefold.errors import UserError, first_line
from onefold.files import atomic_file


class KeptTrajectories:
    """States by batch. What was not kept yet is None."""

    def __init__(self, folder: str | Path, facts: Mapping[str, Any]) -> None:
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(folder).expanduser() / name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cache is {str(folder)!r}, which cannot be written ({first_line(error)}); give another folder, or leave it out"
            ) from None

    def place(self, step: int, rows: range) -> Path:
        return self.folder / f"{step:07}-{rows.start}-{rows.stop}.safetensors"

    def read(self, step: int, rows: range) -> Tensor | None:
        """(rows, states, *shape)."""
        path = self.place(step, rows)
        if not path.is_file():
            return None
        try:
            states = load_file(path)["states"]
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"{path} of the cache is damaged ({first_line(error)}); delete it") from None
        if len(states) != len(rows):
            raise UserError(f"{path} of the cache holds {len(states)} trajectories instead of {len(rows)}; delete it")
        return states

    def write(self, step: int, rows: range, states: Sequence[Tensor]) -> None:
        with atomic_file(self.place(step, rows)) as draft:
            save_file({"states": torch.stack([state.cpu() for state in states], 1)}, draft)
