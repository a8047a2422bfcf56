"""What a method and the engine promise each other.

A method declares networks, optimisers and which networks have an EMA, draws its random numbers from a `Draw`, and
yields one `Update` for each optimiser update it wants. How many it yields, and in which order, depends on the step
counter alone, so that micro-batches can run in lockstep. It never yields inside a `with`, and it detaches what it
carries to the next update after the yield. The engine does everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

from onefold import seeds
from onefold.progress import Progress

TOLD = "told."  # begins the names of what networks are told beside the state
HOST = "host."  # begins the names of what stays on the CPU, such as the numbers of noise levels


def told(conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Conditions as tensors of a batch."""
    return {TOLD + name: value for name, value in conditions.items()}


@dataclass
class Update:
    """One wish for an optimiser update: a loss averaged over the micro-batch, and what to log (means too).

    `ema` marks the update after which the averages follow; mark one a batch.
    """

    loss: Tensor
    optimizer: str = "main"
    logs: Mapping[str, Tensor] = field(default_factory=dict)
    ema: bool = True


@dataclass(frozen=True)
class Draw:
    """Random numbers of some rows of one global batch: functions of (seed, step, row), whoever computes them."""

    seed: int
    step: int
    rows: range
    batch_size: int

    def noise(self, shape: tuple[int, ...], stream: int = 0) -> Tensor:
        draws = (seeds.generator(self.seed, seeds.NOISE, stream, self.step, row) for row in self.rows)
        return torch.stack([torch.randn(shape, generator=draw) for draw in draws])

    def uniform(self, stream: int = 0) -> Tensor:
        values = [seeds.uniform(self.seed, seeds.LEVEL, stream, self.step, row) for row in self.rows]
        return torch.tensor(values, dtype=torch.float64)

    def stratified(self, stream: int = 0) -> Tensor:
        """Uniform numbers, one in each of batch_size equal cells: far less variance of a batch's mean."""
        cells = torch.tensor(self.rows, dtype=torch.float64)
        return (cells + self.uniform(stream)) / self.batch_size

    def integers(self, bound: int, stream: int = 0) -> Tensor:
        return (self.uniform(stream) * bound).long()

    def labels(self, classes: int) -> Tensor:
        """A class for each row, apart from all other numbers."""
        return torch.tensor([seeds.integer(classes, self.seed, seeds.LABEL, self.step, row) for row in self.rows])


@dataclass
class Batch:
    """What `prepare` drew, on the device, with where the run stands."""

    step: int
    progress: float  # share of the budget used up
    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def conditions(self) -> dict[str, Tensor]:
        """What a denoiser is told beside the state."""
        return {name.removeprefix(TOLD): value for name, value in self.tensors.items() if name.startswith(TOLD)}


Networks = Mapping[str, nn.Module]


class Method(Protocol):
    """The engine's view of a method."""

    networks: dict[str, nn.Module]  # that learn, and are saved
    frozen: dict[str, nn.Module]  # that are only asked
    optimizers: dict[str, torch.optim.Optimizer]
    averaged: tuple[str, ...]  # names of networks that have an EMA

    @property
    def turns(self) -> int:
        """Batches after which what they cost repeats: 1 where all cost the same."""

    def make_ready(self, folder: Path | None, progress: Progress) -> None:
        """What has to be there before the first `prepare`: into the run folder, or for a rehearsal (None) with as little work
        as will do. The main process comes first, so that others find what it kept."""

    def prepare(self, draw: Draw) -> dict[str, Tensor]:
        """CPU tensors for these rows; runs ahead in a thread, so it must depend on nothing but `draw`."""

    def updates(self, batch: Batch) -> Iterator[Update]: ...

    def learning_rate(self, optimizer: str, images: int, progress: float, /) -> float: ...

    def validate(self, networks: Networks) -> dict[str, float]:
        """Numbers on fixed noise with the averaged networks; the first one decides which weights are best (lower)."""

    def concerns(self) -> Sequence[str]:
        """What a user should hear about what `validate` has just seen."""

    def picture(self, networks: Networks) -> Image:
        """Samples from fixed noise, for the run folder; `validate` has just been called."""

    def save(self, folder: Path, networks: Networks, cost: Mapping[str, Any]) -> None:
        """The result, as the folder a user loads."""
