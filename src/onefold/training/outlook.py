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
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from onefold.progress import duration
from onefold.training.budget import Budget

WARM, TIMED = 1, 4  # steps, at least; the first pays for allocations and compilation


@dataclass(frozen=True)
class Outlook:
    """An image costs `calls` of each network, and as many backward passes of those that learn as its updates ask for."""

    batch_size: int
    images: int  # what the budget comes to
    seconds: float  # how long that takes, pictures and validation aside
    seconds_per_batch: float
    calls: Mapping[str, float]
    forwards: float  # what an image costs in the teacher's forward passes, as `Watch` counts them
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
    """Follows the first steps of a run, each inside `with watch:`, after which nothing of it stays at the networks.

    Beside its calls it counts work in forward passes of the first network, the teacher where there is one: a network that learns costs three
    (its backward pass two), one that hands gradients on two, and a smaller network its share of the parameters.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], device: torch.device, rows_a_step: float, turns: int = 1
    ) -> None:
        self.networks, self.device, self.rows_a_step = dict(networks), device, rows_a_step
        self.rows, self.passes, self.hooks = Counter[str](), Counter[str](), list[RemovableHandle]()
        self.steps, self.begin, self.seconds = 0, 0.0, 0.0
        self.timed = -(-TIMED // turns) * turns  # whole rounds, where the steps of a round differ
        self.warm, self.warm_passes = Counter[str](), Counter[str]()
        self.sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in self.networks.items()}

    def __enter__(self) -> Self:
        for name, network in self.networks.items() if self.steps < WARM + self.timed else ():
            self.hooks.append(network.register_forward_pre_hook(self.counter(name), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        if self.hooks:
            self.steps += 1
        while self.hooks:
            self.hooks.pop().remove()

    def counter(self, name: str) -> Any:
        def count(network: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            tensors = [value for value in (*given, *named.values()) if isinstance(value, Tensor)]
            rows = next(len(value) for value in tensors if value.ndim)
            self.rows[name] += rows
            self.passes[name] += rows * passes(network, tensors)

        return count

    def tick(self) -> bool:
        """Between the steps; True once, when enough were seen."""
        if self.seconds:
            return False
        if self.steps == WARM and not self.begin:
            synchronise(self.device)
            self.begin, self.warm, self.warm_passes = time.perf_counter(), self.rows.copy(), self.passes.copy()
        if self.steps < WARM + self.timed:
            return False
        synchronise(self.device)
        self.seconds = time.perf_counter() - self.begin
        return True

    @property
    def calls(self) -> dict[str, float]:
        """Of each network, for an image."""
        return self.per_image(self.rows, self.warm)

    @property
    def forwards(self) -> float:
        """Of all networks, for an image."""
        unit = next(iter(self.sizes.values()), 0) or 1
        each = self.per_image(self.passes, self.warm_passes)
        return sum(count * self.sizes[name] / unit for name, count in each.items())

    def per_image(self, counted: Counter[str], warm: Counter[str]) -> dict[str, float]:
        """Of a run that ends before enough was seen, what all of it took."""
        left_out, steps = (warm, self.timed) if self.seconds else (Counter[str](), max(self.steps, 1))
        return {name: (rows - left_out[name]) / (steps * self.rows_a_step) for name, rows in counted.items()}

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


def passes(network: nn.Module, given: Sequence[Tensor]) -> int:
    """Of one call, in its forward passes: a backward pass to the weights is about two, and one to what it was given alone another."""
    if not torch.is_grad_enabled():
        return 1
    if any(parameter.requires_grad for parameter in network.parameters()):
        return 3
    return 2 if any(tensor.requires_grad for tensor in given) else 1


def synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def peak_memory(device: torch.device) -> int:
    """Of the device where it counts its own, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
