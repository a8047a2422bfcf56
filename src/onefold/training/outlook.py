"""What a run will cost, from its own first steps: time, memory and network calls."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onefold.training.budget import Budget

WARM, TIMED = 1, 4  # steps; the first pays for allocations and compilation


@dataclass(frozen=True)
class Outlook:
    """An image costs `calls` of each network, and as many backward passes of those that learn as its updates ask for."""

    batch_size: int
    images: int  # what the budget comes to
    seconds: float  # how long that takes
    seconds_per_batch: float
    calls: Mapping[str, float]
    memory: int  # bytes at the peak so far
    device: str

    @property
    def line(self) -> str:
        calls = " and ".join(f"{count:g} of the {name}" for name, count in self.calls.items())
        rate = self.batch_size / self.seconds_per_batch
        return (
            f"expected: {self.images:,} images in {readable(self.seconds)} ({rate:.3g} images/s, "
            f"{calls} calls each), {self.memory / 2**30:.2f} GiB at the peak on {self.device}"
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Watch:
    """Follows the first steps of a run; afterwards nothing is left of it."""

    def __init__(self, networks: Mapping[str, nn.Module], device: torch.device) -> None:
        self.device, self.rows = device, Counter[str]()
        self.steps, self.begin, self.seconds = 0, 0.0, 0.0
        self.hooks = [
            network.register_forward_pre_hook(self.counter(name), with_kwargs=True)
            for name, network in networks.items()
        ]

    def counter(self, name: str) -> Any:
        def count(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            rows = next(len(value) for value in (*given, *named.values()) if isinstance(value, Tensor) and value.ndim)
            self.rows[name] += rows

        return count

    def tick(self) -> bool:
        """After a step; True once, when enough was seen."""
        self.steps += 1
        if self.steps == WARM:
            synchronise(self.device)
            self.begin = time.perf_counter()
            self.rows.clear()
        if self.steps != WARM + TIMED:
            return False
        synchronise(self.device)
        self.seconds = time.perf_counter() - self.begin
        for hook in self.hooks:
            hook.remove()
        return True

    def outlook(self, budget: Budget, batch_size: int, processes: int) -> Outlook:
        each = self.seconds / TIMED
        steps = -(-budget.images // batch_size) if budget.images is not None else int((budget.seconds or 0) / each)
        own = batch_size * TIMED / processes
        return Outlook(
            batch_size=batch_size,
            images=steps * batch_size,
            seconds=steps * each if budget.images is not None else budget.seconds or 0.0,
            seconds_per_batch=each,
            calls={name: rows / own for name, rows in self.rows.items()},
            memory=peak_memory(self.device),
            device=str(self.device),
        )


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Of the device where it counts its own, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def readable(seconds: float) -> str:
    if seconds < 120:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} minutes" if seconds < 7200 else f"about {seconds / 3600:.1f} hours"
