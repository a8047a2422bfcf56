"""SFD's second stage (Zhou et al., NeurIPS 2024): a student of few calls becomes one of a single call.

The first stage's student is the teacher, and walks as it is deployed, step by step, its analytic first step included. The new
student begins with its weights; from the same noise it comes to a level in the middle without a call, and makes one:

    x = AFS(z, sigma_m),   y = r x + (1 - r) D(x, sigma_m),   r = sigma_N / sigma_m,   L = | y - y* | + w d(y, y*)

y* is where the first stage's student ends, d a perceptual distance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator
from torch import Tensor

from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.files import read_json
from onefold.grids import Grid
from onefold.imports import is_function_name
from onefold.losses import distance, root_mean_square
from onefold.methods.stages import added
from onefold.methods.trajectory import Trajectory, TrajectorySettings
from onefold.perceptual import make_perceptual
from onefold.recipes import check_recipe
from onefold.solvers import AFS, analytic_denoised, euler_step
from onefold.student import RECIPE, Student
from onefold.targets import rollout
from onefold.teachers import load_teacher
from onefold.training.contract import Batch, Networks, Update

PAPER = {
    "budget": "2M",
    "batch_size": 128,
    "level": "auto",
    "loss": "l1",
    "reduction": "sum",
    "perceptual": "lpips",
    "perceptual_weight": 1.0,
    "lr": 5e-4,
    "schedule": "drop",
    "lr_drop": 0.1,
    "warmup": 0.0,
    "dropout": True,
    "clip": 0.0,
    "ema_half_life": None,
    "ema_share": None,
}
STAGES = "stages"
OF_PERCEPTUAL = ("perceptual_weight", "perceptual_level", "perceptual_layers", "lpips_weights")
# preset -> (FID, A100 hours of this stage alone), Tables 2 and 3; the rate and the budget for ImageNet are not known to us
PUBLISHED = {"paper_cifar10": (5.83, 4.88), "paper_imagenet64": (12.89, 6.86)}


class SecondSettings(TrajectorySettings):
    """Settings of the second stage."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper_cifar10": PAPER, "paper_imagenet64": PAPER}

    method: str = Field("sfd_second", description="how; `onefold methods` tells them apart")
    calls: int = Field(1, description="network calls of the student: one")
    lr: float = Field(3e-4, gt=0, description="of Adam; published is ten times the first stage's, 5e-4")
    level: float | Literal["auto"] = Field(
        "auto",
        description="the noise level of the one call, one of the first stage's; auto is the middle one of its steps (as published), or its first where no analytic step comes before",
    )
    perceptual: Literal["none", "teacher", "lpips"] = Field(
        "none",
        description="a distance beside the loss: none, features of the first stage's own teacher (any images and latents), or lpips (as published, for pixels; needs lpips_weights)",
    )
    perceptual_weight: float = Field(
        1.0, gt=0, description="of the perceptual distance, where the loss is a mean over pixels (published: 1)"
    )
    perceptual_level: float = Field(0.1, gt=0, description="with perceptual=teacher: the noise level of its features")
    perceptual_layers: list[str] | None = Field(
        None, description="with perceptual=teacher: the layers, by named_modules(); null is the usual ones of its kind"
    )
    lpips_weights: str | None = Field(None, description="with perceptual=lpips: its .safetensors (docs/perceptual.md)")
    root: str | None = Field(
        None, description="the first stage's teacher, to be measured against; null is the one that its recipe names"
    )

    @field_validator("calls")
    @classmethod
    def one_call(cls, calls: int) -> int:
        if calls != 1:
            raise UserError(
                f"the second stage gives a student of one call, not {calls}; for more of them take method sfd"
            )
        return calls

    @model_validator(mode="after")
    def something_to_weigh(self) -> Self:
        fields = type(self).model_fields
        said = [name for name in OF_PERCEPTUAL if getattr(self, name) != fields[name].default]
        if said and self.perceptual == "none":
            raise UserError(f"{said[0]} is given, but perceptual is none; set perceptual=teacher or lpips")
        return self


@dataclass(frozen=True)
class FirstStage:
    """How the teacher is sampled, as its folder says, and how it came about."""

    grid: Grid
    afs: AFS | None
    recipe: Mapping[str, Any]

    @property
    def settings(self) -> Mapping[str, Any]:
        known: Mapping[str, Any] = self.recipe.get("settings", {})
        return known

    @property
    def root(self) -> str:
        name = self.settings.get("root") or self.settings.get("teacher")
        if not isinstance(name, str) or not name:
            raise UserError("the first stage does not say what its teacher was; give it with root")
        return name

    @property
    def guidance(self) -> float:
        return float(self.settings.get("guidance", 1.0))

    @property
    def calls(self) -> int:
        return self.grid.calls - (self.afs is not None)

    @property
    def cost(self) -> dict[str, Any]:
        spent: dict[str, Any] = self.recipe.get("cost", {})
        return added({}, spent, STAGES, self.calls) if spent else {}

    @property
    def way(self) -> dict[str, Any]:
        return {"solver": "euler", "grid": self.grid, "afs": self.afs}


class SecondStage(Trajectory):
    """SFD's second stage: a student of SFD or SFD-v becomes one of a single call."""

    settings: SecondSettings

    def __init__(self, teacher: Denoiser, settings: SecondSettings) -> None:
        self.first = first_stage(teacher)
        if settings.guidance != 1.0:
            raise UserError(
                f"guidance is {settings.guidance:g}, but the student of the first stage has its own folded in; leave it at 1"
            )
        super().__init__(teacher, one_call_grid(self.first, settings.level), self.first.afs, settings)
        root = root_teacher(teacher, self.first, settings.root)
        self.standard = root.replace(guidance=self.first.guidance, prompts=self.teacher.prompts)
        self.frozen = {**self.frozen, "root": root.module}
        self.perceptual = make_perceptual(
            settings.perceptual,
            denoiser=root,
            sigma=settings.perceptual_level,
            layers=settings.perceptual_layers,
            lpips_weights=settings.lpips_weights,
        )
        self.first_images: Tensor | None = None

    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "root": self.standard.card.get("sha256")}

    def updates(self, batch: Batch) -> Iterator[Update]:
        cond = batch.conditions
        start = self.first.grid.start_state(self.teacher.process, batch["z"])
        target = rollout(self.teacher, start, self.first.grid, 1, solver="euler", cond=cond, afs=self.first.afs)[-1]
        output = self.one_call(start, cond)
        off = distance(self.settings.loss, output, target, self.settings.reduction)
        if self.perceptual is None:
            yield Update(off, logs={"loss": off})
            return
        seen = self.perceptual(output, target, cond)
        yield Update(off + self.perceptual_scale * seen, logs={"loss": off, "perceptual": seen})

    def one_call(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        *before, sigma, to = self.grid.sigmas.tolist()
        if self.afs:
            x = euler_step(x, analytic_denoised(x, before[0], self.afs), before[0], sigma)
        return euler_step(x, self.student.denoise(x, sigma, cond), sigma, to)

    @property
    def perceptual_scale(self) -> float:
        """Beside a sum over an image, the weight of what it would be beside a mean."""
        settings, dimensions = self.settings, math.prod(self.teacher.shape)
        whole = math.sqrt(dimensions) if settings.loss == "pseudo_huber" else dimensions
        return settings.perceptual_weight * (whole if settings.reduction == "sum" else 1)

    # -- what it is looked at beside -------------------------------------------------------------------------------

    def first_stage_images(self) -> Tensor:
        if self.first_images is None:
            self.first_images = self.sampled(self.teacher, **self.first.way)
        return self.first_images

    def validate(self, networks: Networks) -> dict[str, float]:
        numbers = super().validate(networks)
        to_first = root_mean_square(self.student_images(networks, 1), self.first_stage_images())
        return {**numbers, "distance_to_first_stage": to_first}

    def rows(self, networks: Networks) -> list[tuple[str, Tensor]]:
        fine, *others = super().rows(networks)
        return [fine, (f"first stage\n{self.first.calls} calls", self.first_stage_images()), *others]

    def as_student(self, networks: Networks, cost: Mapping[str, Any] | None = None) -> Student:
        """Its teacher is the first stage's, and its cost that of both."""
        before = self.first.recipe
        student = super().as_student(networks, added(self.first.cost, cost, STAGES, 1) if cost else None)
        settings = {
            **student.recipe["settings"],
            "guidance": self.first.guidance,
            "root": self.settings.root or self.first.root,
        }
        stage = {"method": before["method"], "sha256": self.teacher.card.get("sha256")}
        if cost:
            stage["distance"] = self.distance(self.first_stage_images())
        recipe = {**student.recipe, "settings": settings, "teacher": before["teacher"], "first_stage": stage}
        return replace(student, recipe=recipe)

    def published(self) -> str | None:
        if self.settings.preset is None:
            return None
        fid, hours = PUBLISHED[self.settings.preset]
        return f"FID {fid} after {hours} A100 hours beside the first stage's ({self.settings.preset}; the paper's own teacher)"


def first_stage(teacher: Denoiser) -> FirstStage:
    path = None if teacher.home is None else teacher.home / RECIPE
    if path is None or not path.is_file():
        raise UserError(
            f"{teacher.name!r} is no student, and the second stage begins with one of the first; distil one with method sfd "
            "and give its run folder"
        )
    facts = read_json(path)
    first = FirstStage(*check_recipe(facts, path), facts)
    if first.calls < 2:
        raise UserError(f"{teacher.name!r} makes one call already; give a student of more calls")
    return first


def one_call_grid(first: FirstStage, level: float | Literal["auto"]) -> Grid:
    """The start, the level of the one call and the end, all of them the first stage's."""
    sigmas = first.grid.sigmas
    able = range(1, first.grid.calls) if first.afs else range(1)  # without an analytic step nothing leads to another
    if level == "auto":
        chosen = first.grid.calls // 2 if first.afs else 0
    else:
        chosen = min(able, key=lambda index: abs(float(sigmas[index]) - level))
        if not math.isclose(float(sigmas[chosen]), level, rel_tol=1e-3):
            raise UserError(
                f"level is {level:g}, which is none that the one call can have; the first stage's are "
                f"{', '.join(f'{float(sigmas[index]):.4g}' for index in able)}"
            )
    return first.grid.part([*range(able.start), chosen, first.grid.calls])


def root_teacher(teacher: Denoiser, first: FirstStage, given: str | None) -> Denoiser:
    """The first stage's own teacher, which must be that one."""
    name, wanted = given or first.root, first.recipe["teacher"].get("sha256")
    if not given and is_function_name(name):
        raise UserError(
            f"the first stage's teacher is {name!r}, a function of your own, and nothing that a file names is imported; give it "
            f"with root: --set root={name}"
        )
    try:
        root = load_teacher(name, device=str(teacher.device), precision=teacher.precision)
    except UserError as error:
        raise UserError(
            f"the first stage's teacher {name!r} is needed to measure against: {error}; give it with root"
        ) from None
    if wanted is not None and root.card.get("sha256") not in (None, wanted):
        raise UserError(
            f"{name!r} is not the teacher of {teacher.name!r}: their weights differ; give that one with root"
        )
    return root
