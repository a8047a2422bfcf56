"""A toy method for tests of the engine: two networks, two optimisers, closed forms where one can compute by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL.Image import Image
from torch import Tensor, nn

from onefold.conditions import Conditions
from onefold.methods.base import Distillation
from onefold.pictures import picture_grid
from onefold.progress import Progress
from onefold.training.contract import Batch, Draw, Networks, Update
from onefold.training.loop import Engine
from onefold.training.settings import RunSettings


class Duel:
    """`left` learns to map noise to its first entry, `right` to follow `left`; two updates a batch, one EMA."""

    averaged = ("left",)
    turns = 1

    def __init__(self, rate: float = 0.1, optimizer: type[torch.optim.Optimizer] = torch.optim.SGD) -> None:
        torch.manual_seed(0)
        self.networks: dict[str, nn.Module] = {"left": nn.Linear(4, 1).double(), "right": nn.Linear(4, 1).double()}
        self.optimizers = {
            "main": optimizer(self.networks["left"].parameters(), lr=rate),
            "right": optimizer(self.networks["right"].parameters(), lr=rate),
        }
        self.frozen: dict[str, nn.Module] = {}
        self.rate = rate
        self.seen: list[tuple[int, int]] = []

    def make_ready(self, folder: Path | None, progress: Progress) -> None:
        pass

    def concerns(self) -> Sequence[str]:
        return ()

    def prepare(self, draw: Draw) -> dict[str, Tensor]:
        return {"x": draw.noise((4,)).double()}

    def updates(self, batch: Batch) -> Iterator[Update]:
        x = batch["x"]
        self.seen.append((batch.step, len(x)))
        left = self.networks["left"](x)
        yield Update((left - x[:, :1]).square().mean())
        left = self.networks["left"](x).detach()
        loss = (self.networks["right"](x) - left).square().mean()
        yield Update(loss, optimizer="right", logs={"distance": loss.sqrt()}, ema=False)

    def learning_rate(self, _: str, images: int, progress: float) -> float:
        return self.rate if progress < 0.5 else self.rate / 10

    def validate(self, networks: Networks) -> dict[str, float]:
        return {"error": float((networks["left"].weight - torch.tensor([[1.0, 0, 0, 0]])).abs().max())}

    def picture(self, networks: Networks) -> Image:
        return picture_grid(networks["left"].weight.detach().reshape(1, 1, 2, 2))

    def save(self, folder: Path, networks: Networks, cost: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cost.json").write_text(json.dumps(cost))
        torch.save(networks["left"].state_dict(), folder / "left.pt")


def engine(out: Path, method: Any = None, precision: str = "fp32", **settings: Any) -> Engine:
    chosen = RunSettings(**{"out": str(out), "budget": "160", "batch_size": 16, "device": "cpu", "clip": 0, **settings})
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    return Engine(method or Duel(), chosen, chosen.model_dump(mode="json"), accelerator, precision=precision)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def inputs_seen(method: Distillation) -> list[Tensor]:
    """The student's inputs, filled as it is asked."""
    seen: list[Tensor] = []
    denoise = method.student.denoise

    def spy(x: Tensor, sigma: float | Tensor, cond: Conditions | None = None) -> Tensor:
        seen.append(x)
        return denoise(x, sigma, cond)

    method.student.denoise = spy  # type: ignore[method-assign]
    return seen
