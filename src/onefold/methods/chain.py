"""What SFDDM and progressive distillation share: at each of its levels, the student learns the one step that lands where its
teacher's K smaller steps land from the same state.

    x_t -> teacher, K steps -> x*_{t-1};    D*: the denoised image with which one step from x_t gives x*_{t-1};
    L = E_t E_x | s_t (D_student(x_t) - D*) |,    s_t^2 the weight of the squared error of the denoised image

With K = 1, D* is the teacher's own denoised image. States are noised data, or lie on the teacher's own way from noise to image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from onefold.conditions import Conditions
from onefold.denoiser import Denoiser, spread
from onefold.errors import UserError, suggest
from onefold.grids import Grid
from onefold.losses import Loss, distance, root_mean_square
from onefold.methods.base import Distillation, DistillSettings
from onefold.methods.examples import Examples
from onefold.posterior import elbo_weights
from onefold.process import to_x0
from onefold.solvers import get_solver
from onefold.targets import denoised_target, rollout, step_target
from onefold.training.contract import HOST, Batch, Draw, Networks, Update, told

Weight = Literal["output", "eps", "x0", "v", "truncated", "elbo"]
STRIDED = "euler on the same levels"
LEVEL, ROW = HOST + "level", HOST + "row"


class ChainSettings(DistillSettings):
    """Settings of methods that learn the steps of a chain."""

    batch_size: int = Field(
        16, ge=1, description="images (or the teacher's trajectories) a batch, over all processes and micro-batches"
    )
    data: str | None = Field(
        None,
        description="images to noise, cropped and scaled down to the teacher's size: a folder, an .npz, hf:NAME, digits or teacher:NAME",
    )
    flip: bool = Field(False, description="mirror half of the images")
    states: Literal["auto", "data", "teacher"] = Field(
        "auto",
        description="what the student sees: noised data, or the teacher's own trajectories, which need none; auto is data where some is given",
    )
    solver: str = Field(
        "auto",
        description="of the teacher's steps: euler (DDIM), or with noised data dpmpp2m, on trajectories any; auto is dpmpp2m with data, otherwise ipndm3",
    )
    loss: Loss = Field("l2", description="l2, l1, huber or pseudo_huber")
    weight: Weight = Field(
        "truncated",
        description="error of which prediction is compared: output (the network's own), eps, x0, v; truncated is max(SNR, 1) on x0, elbo the bound's own weight",
    )
    dropout: bool = Field(False, description="keep the network's dropout active in training")
    lr: float = Field(3e-4, gt=0, description="of Adam")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="of the learning rate; the last two fall to 0"
    )
    clip: float = Field(0.0, ge=0, description="largest gradient norm; 0 does not clip")

    def rate(self, progress: float) -> float:
        falling = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
        return self.lr * falling[self.schedule]


class Chain(Distillation):
    """A student whose T' steps each learn the teacher's `parts` steps in the same interval."""

    settings: ChainSettings

    def __init__(self, teacher: Denoiser, fine: Grid, parts: int, grid: Grid, settings: ChainSettings) -> None:
        self.strided, self.fine, self.parts = grid, fine, parts  # of the teacher
        super().__init__(teacher, grid, None, settings)
        self.grid = self.own_grid()
        from_data = uses_data(settings)
        self.solver = chosen_solver(settings, parts, from_data=from_data)
        self.levels = grid.sigmas[:-1]  # from the highest down, as all that is indexed by a level here
        self.parts_of_steps = fine.sigmas.unfold(0, parts + 1, parts)
        self.scales = weights(settings.weight, self.teacher, self.levels).sqrt()
        self.examples: Examples | None = None
        if from_data:
            self.examples = Examples(
                self.told, str(settings.data), batch_size=settings.batch_size, seed=settings.seed, flip=settings.flip
            )
            self.notes = (*self.notes, *remarks_on(self.examples, settings.guidance))
        network = self.networks["student"]
        network.train(settings.dropout)
        self.optimizers = {"main": torch.optim.Adam(self.groups(network), lr=settings.lr)}

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Parameters, by how fast they learn."""
        return [{"params": list(network.parameters())}]

    @property
    def shown(self) -> Denoiser:
        """Whose steps are learned."""
        return self.target

    def own_grid(self) -> Grid:
        """The same levels, by the names that the student's network has for them."""
        return self.strided

    def prepare(self, draw: Draw) -> dict[str, Tensor]:
        if self.examples is None:
            return {**super().prepare(draw), ROW: torch.tensor(draw.rows)}
        images, numbers = self.examples.batch(draw)
        level = (draw.stratified() * len(self.levels)).long()
        told_of = told(self.told.conditions(numbers))
        return {"images": images, "z": draw.noise(self.teacher.shape), LEVEL: level, **told_of}

    def updates(self, batch: Batch) -> Iterator[Update]:
        yield from self.along_trajectories(batch) if self.examples is None else self.from_data(batch, self.examples)

    def from_data(self, batch: Batch, examples: Examples) -> Iterator[Update]:
        level, z = batch[LEVEL], batch["z"]
        sigma = self.levels[level]
        infinite = spread(torch.isinf(sigma).double(), z).bool()
        noised = examples.clean(batch["images"]) + spread(sigma.nan_to_num(posinf=0.0), z) * z
        yield self.update(torch.where(infinite, z, noised), level, batch.conditions)

    def update(self, x: Tensor, level: Tensor, cond: Conditions) -> Update:
        """From any states, each at its own level."""
        denoised = self.student.denoise(x, self.levels[level], cond)
        return Update(self.compare(denoised, self.aim(x, level, cond), level))

    def aim(self, x: Tensor, level: Tensor, cond: Conditions) -> Tensor:
        second_order = self.solver == "dpmpp2m"
        return step_target(self.shown, x, self.parts_of_steps[level], cond=cond, second_order=second_order)

    def along_trajectories(self, batch: Batch) -> Iterator[Update]:
        """T' updates a batch, each with all levels among its rows: as many pairs as noised data would give, for the same calls."""
        cond, rows, steps = batch.conditions, batch[ROW], len(self.levels)
        start = self.strided.start_state(self.shown.process, batch["z"])
        states = torch.stack(rollout(self.shown, start, self.fine, self.parts, solver=self.solver, cond=cond))
        sigmas = self.strided.sigmas.tolist()
        targets = torch.stack(
            [denoised_target(states[n], states[n + 1], sigmas[n], sigmas[n + 1]) for n in range(steps)]
        )
        for turn in range(steps):
            level = (rows + turn) % steps
            x, target = (of_rows(every, level) for every in (states, targets))
            loss = self.compare(self.student.denoise(x, self.levels[level], cond), target, level)
            yield Update(loss, ema=turn == steps - 1)

    def compare(self, denoised: Tensor, target: Tensor, level: Tensor) -> Tensor:
        scale = spread(self.scales[level], denoised)
        return distance(self.settings.loss, scale * denoised, scale * target, "mean")

    def learning_rate(self, _optimizer: str, _images: int, progress: float) -> float:
        return self.settings.rate(progress)

    # -- what it is looked at beside -------------------------------------------------------------------------------

    def controls(self, calls: int) -> dict[str, dict[str, Any]]:
        """And the teacher in as many DDIM steps on these very levels: what a perfect student of K = 1 is."""
        return {STRIDED: {"solver": "euler", "grid": self.strided}, **super().controls(calls)}

    def strided_images(self) -> Tensor:
        self.best_control(self.calls)
        return self.control[self.calls][STRIDED]

    def validate(self, networks: Networks) -> dict[str, float]:
        to_fine = super().validate(networks)
        drawn = self.student_images(networks, self.calls)
        strided = {"distance_to_strided": root_mean_square(drawn, self.strided_images())}
        return {**strided, **to_fine} if self.parts == 1 else {**to_fine, **strided}

    def rows(self, networks: Networks) -> list[tuple[str, Tensor]]:
        fine, *others = super().rows(networks)
        return [fine, (f"teacher\nDDIM, {self.calls} steps", self.strided_images()), *others]


def uses_data(settings: ChainSettings) -> bool:
    if settings.states == "data" and settings.data is None:
        raise UserError(
            "states=data needs images; give data, for instance --data digits, or states=teacher, which needs none"
        )
    if settings.states == "teacher" and settings.data is not None:
        raise UserError(f"states=teacher needs no data, and {settings.data!r} is given; leave one of them out")
    if settings.data is None and settings.flip:
        raise UserError("flip mirrors data, and none is given; give data, or leave flip out")
    return settings.data is not None


def remarks_on(examples: Examples, guidance: float) -> list[str]:
    """Data whose classes are not the teacher's teaches nothing of a class."""
    if not examples.without_class:
        return []
    if guidance != 1:
        raise UserError(
            f"guidance is {guidance:g}, but the data has other classes than the teacher or none, so nothing is guided; "
            "give data with these classes, or leave it out, and states are the teacher's own"
        )
    return [
        "the data has no classes of the teacher's, so the student sees images without a class alone; leave it out to teach it all of them"
    ]


def chosen_solver(settings: ChainSettings, parts: int, *, from_data: bool) -> str:
    """One step has no use for more than Euler."""
    if settings.solver == "auto":
        return "euler" if parts == 1 else "dpmpp2m" if from_data else "ipndm3"
    solver = get_solver(settings.solver)
    if solver.stochastic or solver.calls_per_step > 1:
        raise UserError(
            f"solver {solver.name!r} adds noise or makes two calls a step, and one call a step is learned from; use ipndm3"
        )
    if from_data and solver.name not in ("euler", "dpmpp2m"):
        raise UserError(
            f"solver {solver.name!r} goes on from its own earlier steps, and noised data has none; use dpmpp2m or euler, or states=teacher"
        )
    return solver.name


def of_rows(states: Tensor, level: Tensor) -> Tensor:
    """(levels, rows, ...) -> (rows, ...): of each row the state at its level."""
    return states[level, torch.arange(len(level))]


def weights(kind: Weight, teacher: Denoiser, sigmas: Tensor) -> Tensor:
    """On the squared error of the denoised image, for levels in any order; SNR = 1 / sigma^2."""
    snr = 1 / sigmas**2
    match kind:
        case "eps":
            return snr
        case "x0":
            return torch.ones_like(sigmas)
        case "v":
            return 1 + snr
        case "truncated":
            return snr.clamp(min=1.0)
        case "elbo":
            return elbo_weights(sigmas.flip(0)).flip(0)
        case "output":
            return 1 / slope(teacher, sigmas) ** 2
    raise UserError(f"unknown weight {kind!r}{suggest(str(kind), get_args(Weight))}")


def slope(teacher: Denoiser, sigmas: Tensor) -> Tensor:
    """d x0 / d output of the network's prediction: -b for v, -b / a for eps."""
    process = teacher.process
    a, b = process.scales(sigmas)
    one, none = (torch.full_like(sigmas, value) for value in (1.0, 0.0))
    return to_x0(teacher.prediction, one, none, a, b, process.sigma_data, process.floor).abs()
