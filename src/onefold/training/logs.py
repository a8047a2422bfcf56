"""The log of a run: means over a window, kept on the device until a line is written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onefold.files import sync

Reduce = Callable[[Tensor], Tensor]


class Window:
    """Weighted sums of scalars since the last line; nothing is brought to the host before `means`."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor], weight: float = 1.0) -> None:
        for name, value in values.items():
            value = value.detach().to(torch.float32) * weight
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def share(self, reduce: Reduce) -> None:
        """Make all processes hold the mean of their sums."""
        if self.sums:
            names = sorted(self.sums)
            self.sums = dict(zip(names, reduce(torch.stack([self.sums[n] for n in names])).unbind(), strict=True))

    def means(self) -> dict[str, float]:
        if not self.sums:
            return {}
        names = sorted(self.sums)
        values = torch.stack([self.sums[name] for name in names]).tolist()
        means = {name: value / self.weights[name] for name, value in zip(names, values, strict=True)}
        self.sums, self.weights = {}, {}
        return means

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        return dict(self.sums), dict(self.weights)

    def restore(self, sums: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        self.sums, self.weights = {name: sums[name] for name in weights}, dict(weights)


class Journal:
    """metrics.jsonl: one line an event, cut back on resume to what the checkpoint has seen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def write(self, row: Mapping[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(finite(row), allow_nan=False) + "\n")

    def sync(self) -> None:
        if self.path.exists():
            sync(self.path)

    def cut(self, size: int) -> None:
        if self.size > size:
            os.truncate(self.path, size)


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null (a step that the scaler of fp16 skipped has such a gradient)."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
