"""Consistency models (Song et al., arXiv 2303.01469) from any teacher: every state of a trajectory is mapped to where it leads.

With x_t = x0 + t eps, the map from level t to the end e of its phase is the student's own Euler step there,

    f(x, t) = r x + (1 - r) D(x, t),  r = e / t,    so f(x, e) = 1 x + 0 D = x,  whatever D is

and L = E | s_t (f(x_t, t) - sg f'(x_r, r)) | with e <= r < t on the same trajectory, s_t^2 the weight. D stays the teacher's own
denoiser, so no preconditioning is asked of it, and a student that steps from e to e' by Euler samples by f exactly. One call has
one phase, which ends at the teacher's sigma_min; each of several has its own (multistep consistency models, Heek et al., arXiv 2403.06807), or with phases=false all have that end.

distillation: x_r comes from x_t by K steps of the teacher, on noised data or on its own trajectories; f' is the student or its average.
tuning: x_r = x0 + r eps with the same eps, no teacher, f' the student (easy consistency tuning, Geng et al., arXiv 2406.14548),

    r = t (1 - n(t) / 2^a),  n(t) = 1 + 8 sigmoid(-t)

The gap from t to r is halved again and again over the run: K halves, or a rises. At its widest f' hardly plays a part.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from onefold.conditions import Conditions
from onefold.denoiser import Denoiser, spread
from onefold.errors import UserError
from onefold.losses import Loss, distance
from onefold.methods.base import Distillation
from onefold.methods.chain import ChainSettings, chosen_solver, of_rows, remarks_on, uses_data, weights
from onefold.methods.examples import Examples
from onefold.methods.levels import discretised, log_normal, lower, noised, places, snapped, step, student_grid
from onefold.perceptual import Perceptual, make_perceptual
from onefold.solvers import get_solver
from onefold.targets import step_target
from onefold.training.contract import HOST, Batch, Draw, Update, told
from onefold.training.ema import tensors

PLACE = HOST + "place"  # in [0, 1), of each row among the levels


class ConsistencySettings(ChainSettings):
    """Settings of consistency distillation and tuning."""

    calls: int = Field(1, ge=1, le=10_000, description="network calls of the student")
    recipe: Literal["distillation", "tuning"] = Field(
        "distillation",
        description="distillation: from a level to the next by the teacher's steps, with data or without; tuning: by noising the same image less, which needs data",
    )
    grid: str = Field("auto", description="spacing of the student's levels: a named schedule")
    phases: bool = Field(
        True,
        description="each of several calls leads to the level of the next, so that they go down one trajectory; false: every one to the end (as published), and sampling adds fresh noise (eta=1)",
    )
    parts: int = Field(32, ge=1, description="distillation: levels in one step of the student")
    skip: int | None = Field(
        None,
        ge=1,
        description="distillation: teacher steps from a level to that of its target, at first; null is 8 with data, and without all to the end",
    )
    doublings: int | None = Field(
        None,
        ge=0,
        description="how often in a run the gap between the two is halved; null is 3 with data, 0 without",
    )
    reuse: int = Field(8, ge=1, description="without data: updates from each batch of the teacher's trajectories")
    called: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the rows at the very levels at which the student is called; null is 0.05 in tuning, otherwise 0.25",
    )
    level_mean: float = Field(-1.1, description="tuning: mean of the other rows' ln sigma (published: -1.1)")
    level_std: float = Field(2.0, gt=0, description="tuning: its standard deviation (published: 2)")
    target_half_life: float | None = Field(
        None,
        gt=0,
        description="half-life in images of the averaged student that gives the targets; null is the student itself",
    )
    loss: Loss = Field("pseudo_huber", description="l2, l1, huber or pseudo_huber")
    weight: Literal["output", "eps", "x0", "v", "truncated"] = Field(
        "truncated",
        description="error of which prediction is compared: x0 (the end itself), eps (1/t), v, output; truncated is max(1/t, 1)",
    )
    perceptual_weight: float = Field(
        0.0, ge=0, description="of the distance of the teacher's features, beside the loss; 0 leaves it out"
    )
    perceptual_level: float = Field(0.1, gt=0, description="the noise level of these features")

    @model_validator(mode="after")
    def fit_together(self) -> Self:
        if self.recipe == "distillation":
            if self.widest >> self.halvings == 0:
                raise UserError(
                    f"a gap of {self.widest} steps cannot be halved {self.halvings} times; give skip={2**self.halvings} or more, or fewer doublings"
                )
            return self
        if self.data is None:
            raise UserError(
                "recipe=tuning learns from images, and none are given; give data, for instance --data digits, or recipe=distillation"
            )
        if self.guidance != 1:
            raise UserError(
                f"guidance is {self.guidance:g}, but recipe=tuning never asks the teacher, so nothing is guided; leave it at 1, or take recipe=distillation"
            )
        if self.target_half_life is not None:
            raise UserError(
                "recipe=tuning takes its targets from the student itself; leave target_half_life out, or take recipe=distillation"
            )
        return self

    @property
    def widest(self) -> int:
        """K at first."""
        return self.skip or (self.parts if self.data is None else 8)

    @property
    def share(self) -> float:
        """Of the rows at called levels."""
        return self.called if self.called is not None else 0.05 if self.recipe == "tuning" else 0.25

    @property
    def halvings(self) -> int:
        if self.doublings is not None:
            return self.doublings
        return 0 if self.data is None else 3


class Consistency(Distillation):
    """Consistency distillation, or easy consistency tuning: every noisy state is mapped to the end of its trajectory."""

    settings: ConsistencySettings

    def __init__(self, teacher: Denoiser, settings: ConsistencySettings) -> None:
        super().__init__(teacher, student_grid(teacher, settings.grid, settings.calls), None, settings)
        self.levels = discretised(teacher, self.grid, settings.parts)
        lowest = self.levels[-1:]
        self.ends = torch.cat([self.grid.sigmas[1:-1], lowest]) if settings.phases else lowest
        self.examples: Examples | None = None
        if uses_data(settings):
            data, size = str(settings.data), settings.batch_size
            self.examples = Examples(self.told, data, batch_size=size, seed=settings.seed, flip=settings.flip)
            self.notes = (*self.notes, *remarks_on(self.examples, settings.guidance))
        from_data = self.examples is not None
        self.solver = chosen_solver(settings, settings.widest if from_data else settings.parts, from_data=from_data)
        self.perceptual: Perceptual | None = None
        if settings.perceptual_weight:
            self.perceptual = make_perceptual("teacher", self.teacher, sigma=settings.perceptual_level)
        network = self.networks["student"].train(settings.dropout)
        self.optimizers = {"main": torch.optim.Adam(network.parameters(), lr=settings.lr)}
        self.followed = -1  # the last step after which the targets' average was updated
        if settings.target_half_life is not None:
            self.networks["target"] = copy.deepcopy(network).requires_grad_(False)

    def prepare(self, draw: Draw) -> dict[str, Tensor]:
        place = {PLACE: draw.stratified()}
        if self.examples is None:
            return {**super().prepare(draw), **place}
        images, numbers = self.examples.batch(draw)
        z = draw.noise(self.teacher.shape)
        return {"images": images, "z": z, **place, **told(self.told.conditions(numbers))}

    def updates(self, batch: Batch) -> Iterator[Update]:
        if self.examples is None:
            yield from self.along_trajectories(batch)
        else:
            clean = self.examples.clean(batch["images"])
            tuned = self.settings.recipe == "tuning"
            yield self.tuned(clean, batch) if tuned else self.distilled(clean, batch)
        self.follow(batch.step)

    # -- pairs of states on one trajectory -------------------------------------------------------------------------

    def stage(self, progress: float) -> int:
        """How often the gap has been halved."""
        return min(int(progress * (self.settings.halvings + 1)), self.settings.halvings)

    def tuned(self, clean: Tensor, batch: Batch) -> Update:
        """The same image and noise at two levels."""
        called, call, others = self.divided(batch[PLACE])
        drawn = log_normal(self.teacher.process, self.settings.level_mean, self.settings.level_std, others)
        t = snapped(self.teacher, torch.where(called, self.grid.sigmas[call], drawn))
        r = torch.maximum(lower(self.teacher, t, 1 + self.stage(batch.progress)), self.end_of(t))
        z = batch["z"]
        return self.update(noised(clean, z, t), t, noised(clean, z, r), r, batch.conditions)

    def distilled(self, clean: Tensor, batch: Batch) -> Update:
        """From noised images, K of the teacher's steps."""
        first, last = self.pair(batch[PLACE], batch.progress)
        t, r = self.levels[first], self.levels[last]
        steps = int((last - first).max())
        passed = torch.minimum(first[:, None] + torch.arange(steps + 1), last[:, None])
        x, cond = noised(clean, batch["z"], t), batch.conditions
        second_order = self.solver == "dpmpp2m"
        aim = step_target(self.target, x, self.levels[passed], cond=cond, second_order=second_order)
        return self.update(x, t, step(x, aim, t, r), r, cond)

    def along_trajectories(self, batch: Batch) -> Iterator[Update]:
        """Several updates from the teacher's way, each with levels of all heights among its rows."""
        cond, reuse = batch.conditions, self.settings.reuse
        start = self.grid.start_state(self.teacher.process, batch["z"])
        with torch.no_grad():
            _, way = get_solver(self.solver)(self.target, start, self.levels, cond=cond, trajectory=True)
        states = torch.stack(way)
        for turn in range(reuse):
            first, last = self.pair((batch[PLACE] + turn / reuse) % 1, batch.progress)
            x, ahead = of_rows(states, first), of_rows(states, last)
            update = self.update(x, self.levels[first], ahead, self.levels[last], cond)
            yield Update(update.loss, ema=turn == reuse - 1)

    def pair(self, place: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Indices of a level for each row and of that which is K below it, or the phase's end."""
        called, call, others = self.divided(place)
        starts = places(self.levels, self.grid.sigmas[:-1])
        first = torch.where(called, starts[call], (others * (len(self.levels) - 1)).long())
        end = places(self.levels, self.end_of(self.levels[first]))
        return first, torch.minimum(first + (self.settings.widest >> self.stage(progress)), end)

    def divided(self, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which rows are at the student's own levels; of these which, and of the others where in [0, 1) they are."""
        share, calls = self.settings.share, self.calls
        call = (place / max(share, 1e-9) * calls).long().clamp(max=calls - 1)
        return place < share, call, ((place - share) / max(1 - share, 1e-9)).clamp(0, 1 - 1e-9)

    def end_of(self, level: Tensor) -> Tensor:
        """The highest end below each level, or the last."""
        return self.ends[(self.ends >= level[:, None]).sum(1).clamp(max=len(self.ends) - 1)]

    # -- the loss --------------------------------------------------------------------------------------------------

    def update(self, x: Tensor, t: Tensor, ahead: Tensor, r: Tensor, cond: Conditions) -> Update:
        """From two states of one trajectory, each row's at its own levels."""
        end = self.end_of(t)
        wanted = self.wanted(ahead, r, end, cond)
        found = step(x, self.student.denoise(x, t, cond), t, end)
        scale = spread(weights(self.settings.weight, self.teacher, t).sqrt(), x)
        loss = distance(self.settings.loss, scale * found, scale * wanted, "mean")
        if self.perceptual is not None:
            loss = loss + self.settings.perceptual_weight * self.perceptual(found, wanted, cond)
        return Update(loss)

    @torch.no_grad()
    def wanted(self, x: Tensor, level: Tensor, end: Tensor, cond: Conditions) -> Tensor:
        """With the dropout that the student is about to have."""
        model = self.student.replace(network=self.networks.get("target", self.networks["student"]))
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            return step(x, model.denoise(x, level, cond), level, end)

    @torch.no_grad()
    def follow(self, number: int) -> None:
        """The targets' average, once a batch however many micro-batches there are."""
        half_life = self.settings.target_half_life
        if half_life is None or self.followed == number:
            return
        self.followed = number
        change = 1 - 0.5 ** (self.settings.batch_size / half_life)
        for average, now in zip(tensors(self.networks["target"]), tensors(self.networks["student"]), strict=True):
            average.lerp_(now, change) if average.is_floating_point() else average.copy_(now)

    def learning_rate(self, _optimizer: str, _images: int, progress: float) -> float:
        return self.settings.rate(progress)
