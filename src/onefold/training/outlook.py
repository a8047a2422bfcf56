"""What a run will cost, from its own first steps: time, memory and network calls."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from onefold.progress import duration
from onefold.training.budget import Budget
from onefold.training.work import Work, rows_of

WARM, TIMED = 1, 4  # steps, at least; the first pays for allocations and compilation


@dataclass(frozen=True)
class Outlook:
    """An image costs `calls` of each network, and as many backward passes of those that learn as its updates ask for."""

    batch_size: int
    images: int  # what the budget comes to
    seconds: float  # how long that takes, pictures and validation aside
    seconds_per_batch: float
    calls: Mapping[str, float]
    forwards: float  # the work on an image, in forward passes of the teacher
    memory: int  # bytes at the peak so far
    device: str
    stages: Sequence[Outlook] = ()  # of runs that follow each other, each one's own

    @property
    def line(self) -> str:
        if self.stages:
            each = "\n".join(f"stage {number}, {stage.line}" for number, stage in enumerate(self.stages, 1))
            return f"{each}\nall {len(self.stages)} stages: {self.images:,} images in about {duration(self.seconds)}"
        calls = " and ".join(f"{count:g} of the {name}" for name, count in self.calls.items())
        rate = self.batch_size / self.seconds_per_batch
        return (
            f"expected: {self.images:,} images in about {duration(self.seconds)}, validation aside ({rate:.3g} images/s, "
            f"{calls} calls each, as much as {self.forwards:.3g} forward passes), {self.memory / 2**30:.2f} GiB at the peak on {self.device}"
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def in_all(stages: Sequence[Outlook]) -> Outlook:
    """Of all together; what an image or a batch costs is the mean over the images."""
    if len(stages) == 1:
        return stages[0]
    images = sum(stage.images for stage in stages)
    shares = [stage.images / max(images, 1) for stage in stages]
    return replace(
        stages[0],
        images=images,
        seconds=sum(stage.seconds for stage in stages),
        seconds_per_batch=sum(share * stage.seconds_per_batch for share, stage in zip(shares, stages, strict=True)),
        calls={
            name: sum(share * stage.calls[name] for share, stage in zip(shares, stages, strict=True))
            for name in stages[0].calls
        },
        forwards=sum(share * stage.forwards for share, stage in zip(shares, stages, strict=True)),
        memory=max(stage.memory for stage in stages),
        stages=tuple(stages),
    )


class Watch:
    """Follows the first steps of a run, each inside `with watch:`, after which nothing of it stays at the networks."""

    def __init__(
        self, networks: Mapping[str, nn.Module], device: torch.device, rows_a_step: float, turns: int = 1
    ) -> None:
        self.networks, self.device, self.rows_a_step = dict(networks), device, rows_a_step
        self.rows, self.work, self.hooks = Counter[str](), Work(networks), list[RemovableHandle]()
        self.steps, self.begin, self.seconds = 0, 0.0, 0.0
        self.timed = -(-TIMED // turns) * turns  # whole rounds, where the steps of a round differ
        self.warm, self.warm_work = Counter[str](), 0.0

    def __enter__(self) -> Self:
        if self.steps < WARM + self.timed:
            for name, network in self.networks.items():
                self.hooks.append(network.register_forward_pre_hook(self.counter(name), with_kwargs=True))
            self.hooks += self.work.hooks()
        return self

    def __exit__(self, *_: object) -> None:
        if self.hooks:
            self.steps += 1
        while self.hooks:
            self.hooks.pop().remove()

    def counter(self, name: str) -> Any:
        def count(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.rows[name] += rows_of(given, named)

        return count

    def tick(self) -> bool:
        """Between the steps; True once, when enough were seen."""
        if self.seconds:
            return False
        if self.steps == WARM and not self.begin:
            synchronise(self.device)
            self.begin, self.warm, self.warm_work = time.perf_counter(), self.rows.copy(), self.work.forwards
        if self.steps < WARM + self.timed:
            return False
        synchronise(self.device)
        self.seconds = time.perf_counter() - self.begin
        return True

    @property
    def calls(self) -> dict[str, float]:
        """Of each network, for an image."""
        return {name: self.per_image(rows, self.warm[name]) for name, rows in self.rows.items()}

    @property
    def forwards(self) -> float:
        """The work on an image, in forward passes of the teacher."""
        return self.per_image(self.work.forwards, self.warm_work)

    def per_image(self, counted: float, warm: float) -> float:
        """Of a run that ends before enough was seen, what all of it took."""
        left_out, steps = (warm, self.timed) if self.seconds else (0, max(self.steps, 1))
        return (counted - left_out) / (steps * self.rows_a_step)

    def outlook(self, budget: Budget, batch_size: int) -> Outlook:
        each = self.seconds / self.timed
        steps = -(-budget.images // batch_size) if budget.images is not None else int((budget.seconds or 0) / each)
        return Outlook(
            batch_size=batch_size,
            images=steps * batch_size,
            seconds=steps * each if budget.images is not None else budget.seconds or 0.0,
            seconds_per_batch=each,
            calls=self.calls,
            forwards=self.forwards,
            memory=peak_memory(self.device),
            device=str(self.device),
        )


def synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def peak_memory(device: torch.device) -> int:
    """Of the device where it counts its own, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
