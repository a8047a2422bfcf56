"""What every distillation shares: a student that begins as its teacher, and how it is looked at and saved."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Self

import torch
from PIL.Image import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from onefold import seeds
from onefold.conditions import Prompts, divided, texts_hash
from onefold.denoiser import Denoiser
from onefold.errors import UserError, suggest
from onefold.grids import TUNED, Grid
from onefold.losses import root_mean_square
from onefold.networks.lora import ATTENTION, Lora
from onefold.pictures import COLUMNS, labelled_rows
from onefold.process import Tabled
from onefold.progress import Progress
from onefold.sampling import grid_for, sample
from onefold.settings import command_line
from onefold.solvers import AFS
from onefold.student import Student
from onefold.training.contract import Draw, Networks, told
from onefold.training.folder import RunFolder
from onefold.training.settings import RunSettings
from onefold.version import versions

CONTROL = ("euler", "dpmpp2m", "unipc2", "ipndm3")  # on the process's usual grid and on one tuned to the teacher
MOST_TUNED = 32  # calls; with more of them every grid is fine
FINE: Mapping[str, Any] = {
    "solver": "dpmpp3m_exact",
    "calls": 64,
}  # the teacher at its best, as far as validation needs it


class DistillSettings(RunSettings):
    """Settings of every `onefold distill`."""

    teacher: str = Field(
        description="the model to make fast: bundled name, folder, name on the hub, EDM .pkl or package.module:function"
    )
    method: str = Field("sfd", description="how; `onefold methods` tells them apart")
    preset: str | None = Field(
        None, description="published settings under this name; what is given besides comes first"
    )
    calls: int = Field(4, ge=1, le=10_000, description="network calls of the student")
    prompts: str | list[str] | None = Field(
        None,
        description="for models of texts: a file with one a line (or Prompts.save's), of which a tenth is kept to look at",
    )
    guidance: float = Field(1.0, description="guidance folded into what the teacher shows; 1 leaves it out")
    lora: int = Field(
        0,
        ge=0,
        description="rank of the adapters that learn instead of the network, whose weights teacher and student share; 0 trains all weights",
    )
    lora_targets: list[str] = Field(
        list(ATTENTION), description="the layers that get adapters, by the ends of their names; attention, if not told"
    )
    watched: int = Field(
        64, ge=1, description="images from fixed noise on which the distance to the teacher is measured"
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @property
    def counts(self) -> list[int]:
        """All numbers of calls that the student is to know."""
        return [self.calls]

    def stages(self) -> Sequence[Self]:
        """Runs that lead to the result one after the other, each from the last one's student; the last is this one."""
        return [self]

    @model_validator(mode="before")
    @classmethod
    def fill_in(cls, values: Any) -> Any:
        """Several numbers of calls are the largest and the others; what a preset sets comes after what is given."""
        if isinstance(values.get("calls"), (list, tuple)):
            values = {**values, **cls.several(list(values["calls"]))}
        name = values.get("preset")
        if name is None:
            return values
        if not cls.presets:
            raise UserError(f"preset is {name!r}, but this method has no published settings under a name; leave it out")
        if not isinstance(name, str) or name not in cls.presets:
            raise UserError(f"unknown preset {name!r}{suggest(str(name), cls.presets)}")
        return {**cls.presets[name], **values}

    @classmethod
    def several(cls, counts: list[Any]) -> dict[str, Any]:
        if len(counts) == 1:
            return {"calls": counts[0]}
        raise UserError(
            f"calls is {counts}, but this method makes a student of one number of calls; give one, or take method sfd"
        )

    @model_validator(mode="after")
    def adapt_something(self) -> Self:
        if not self.lora and self.lora_targets != list(ATTENTION):
            raise UserError(
                "lora_targets are given, but no layer gets adapters with lora=0; set lora to a rank, say 16"
            )
        return self


class Distillation:
    """A student beside its teacher. Methods add `updates` and `learning_rate`, and their optimisers."""

    optimizers: dict[str, torch.optim.Optimizer]

    def __init__(self, teacher: Denoiser, grid: Grid, afs: AFS | None, settings: DistillSettings) -> None:
        check_range(teacher, grid)
        check_guidance(teacher, settings.guidance)
        teacher.check_told()
        self.told, shown = teacher.replace(), teacher.prompts
        self.prompts_fingerprint = None if shown is None else shown.fingerprint
        if teacher.prompts is not None:  # what is looked at is not learned
            self.told.prompts, shown = held_out(teacher.prompts, settings.watched)
        self.teacher, self.grid, self.afs, self.settings = (
            teacher.replace(guidance=1.0, prompts=shown),
            grid,
            afs,
            settings,
        )
        self.target = teacher.replace(guidance=settings.guidance, prompts=shown)  # what the student should become
        self.standard = self.target  # what it is measured against
        self.student = self.begin()
        network = self.student.module
        self.networks: dict[str, nn.Module] = {"student": network}
        self.frozen: dict[str, nn.Module] = {"teacher": teacher.module}
        averaging = settings.ema_half_life is not None or settings.ema_share is not None
        self.averaged: tuple[str, ...] = ("student",) if averaging else ()
        self.notes = (network.note,) if isinstance(network, Lora) else ()
        self.reference: Tensor | None = None
        self.drawn: dict[int, Tensor] = {}  # by the number of calls, as all that is shown
        self.control: dict[int, dict[str, Tensor]] = {}

    def begin(self) -> Denoiser:
        """The student as it is before its training."""
        return self.teacher.replace(network=begun_as(self.teacher.module, self.settings))

    @property
    def calls(self) -> int:
        return self.grid.calls - (self.afs is not None)

    @property
    def grids(self) -> dict[int, Grid]:
        """Of every number of calls that the student learns."""
        return {self.calls: self.grid}

    @property
    def turns(self) -> int:
        return 1

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same when an interrupted run goes on, beside its settings."""
        return {
            "teacher": self.teacher.card.get("sha256"),
            "grid": {str(calls): grid.to_dict() for calls, grid in self.grids.items()},
            "prompts": self.prompts_fingerprint,
        }

    def make_ready(self, folder: Path | None, progress: Progress) -> None:
        """What has to be there before the first batch; folder is the run's, and None for a rehearsal, which keeps nothing."""

    def concerns(self) -> Sequence[str]:
        """What a user should hear after a validation."""
        return ()

    def prepare(self, draw: Draw) -> dict[str, Tensor]:
        """Fresh noise z, and a class or prompt for each row: all that a method without data needs."""
        labels = draw.labels(self.told.choices) if self.told.choices else None
        return {"z": draw.noise(self.teacher.shape), **told(self.told.conditions(labels))}

    def sampler(self, networks: Networks) -> Student:
        """To be looked at, without a recipe."""
        return Student(self.student.replace(network=networks["student"]), self.grid, self.afs, {})

    def as_student(self, networks: Networks, cost: Mapping[str, Any] | None = None) -> Student:
        """With its recipe; with its cost comes the evidence."""
        recipe = {
            "method": self.settings.method,
            "command": self.command,
            "settings": self.settings.model_dump(mode="json"),
            "teacher": {"name": self.teacher.name, "sha256": self.teacher.card.get("sha256")},
            "cost": dict(cost or {}),
            "evidence": self.evidence(networks, self.calls) if cost else {},
            **(self.evidence_by_calls(networks) if cost else {}),
            "published": self.published(),
            **({} if self.told.prompts is None else {"trained_on": texts_hash(self.told.prompts.texts)}),
            "versions": versions(),
        }
        student = self.sampler(networks)
        picture = self.picture(networks) if cost else None
        network, adapter = networks["student"], None
        if isinstance(network, Lora):
            # only in the teacher's own form is it a student like any other
            part = getattr(self.teacher.form, "network", "unet")
            student, adapter = self.sampler({"student": network.merged()}), partial(network.save_adapter, part=part)
        student.denoiser.name = Path(self.settings.out).name
        return replace(student, recipe=recipe, picture=picture, adapter=adapter)

    @property
    def command(self) -> str:
        """The command that makes this student again."""
        return command_of(self.settings)

    def published(self) -> str | None:
        """What the paper reports where the settings are its own, to stand beside the result."""
        return None

    def teacher_at_its_best(self) -> Tensor:
        """Drawn once: the images that the student's are measured against, from the same noise."""
        if self.reference is None:
            self.reference = self.sampled(**self.fine_way)
        return self.reference

    @property
    def fine_way(self) -> dict[str, Any]:
        return {**FINE, "calls": calls_at_most(self.standard, FINE["calls"])}

    def sampled(self, model: Denoiser | None = None, count: int | None = None, **how: Any) -> Tensor:
        """Of a model, if not told that which the student is measured against, from the noise that is watched."""
        seed, at_once = self.settings.seed, self.at_once
        images: Tensor = sample(
            model or self.standard, count or self.settings.watched, seed=seed, batch_size=at_once, **how
        )
        return images

    @property
    def at_once(self) -> int:
        """Images that are looked at together: of latents and texts no more than training holds at a time."""
        share = self.settings.batch_size // self.settings.micro_batches
        return 64 if self.teacher.codec is None else max(1, min(64, share))

    @torch.no_grad()
    def validate(self, networks: Networks) -> dict[str, float]:
        network = networks["student"]
        training = network.training
        student, seed = self.sampler({"student": network.eval()}), self.settings.seed
        self.drawn = {
            calls: student.sample(self.settings.watched, seed=seed, calls=calls, batch_size=self.at_once)
            for calls in student.counts
        }
        network.train(training)
        distances = {calls: self.distance(images) for calls, images in self.drawn.items()}
        each = {f"distance_of_{calls}": distance for calls, distance in distances.items()}
        return {"distance_to_teacher": fmean(distances.values()), **(each if len(each) > 1 else {})}

    def student_images(self, networks: Networks, calls: int) -> Tensor:
        """What `validate` drew last; a run that was finished before has not drawn yet."""
        if not self.drawn:
            self.validate(networks)
        return self.drawn[calls]

    def picture(self, networks: Networks) -> Image:
        """Teacher, its best solver at as many calls and the student, the same noise in each column."""
        return labelled_rows([(label, images[:COLUMNS]) for label, images in self.rows(networks)])

    def rows(self, networks: Networks) -> list[tuple[str, Tensor]]:
        rows = [(f"teacher\n{self.fine_way['calls']} calls", self.teacher_at_its_best())]
        for calls in self.settings.counts:
            best, control = self.best_control(calls)
            rows += [
                (f"teacher\n{in_calls(calls * (1 + (self.settings.guidance != 1)))}, {best}", control),
                (f"student\n{in_calls(calls)}", self.student_images(networks, calls)),
            ]
        return rows

    def best_control(self, calls: int) -> tuple[str, Tensor]:
        """The teacher with the good solver, on its usual or a tuned grid, that comes nearest to its fine solution in as many
        steps; each is a network call, and two with guidance."""
        if calls not in self.control:
            self.control[calls] = {name: self.sampled(**way) for name, way in self.controls(calls).items()}
        return min(self.control[calls].items(), key=lambda item: self.distance(item[1]))

    def controls(self, calls: int) -> dict[str, dict[str, Any]]:
        """How the teacher is sampled beside the student, by name."""
        names = ("auto", TUNED) if calls <= MOST_TUNED else ("auto",)
        grids = {name: grid_for(self.standard, name, calls, end="zero", afs=None) for name in names}
        return {
            solver + f" on {name}" * (name == TUNED): {"solver": solver, "grid": grid}
            for solver, (name, grid) in product(CONTROL, grids.items())
        }

    def distance(self, images: Tensor) -> float:
        return root_mean_square(images, self.teacher_at_its_best())

    def evidence(self, networks: Networks, calls: int) -> dict[str, Any]:
        """Beside the student, its control: the teacher with good solvers at the same number of calls."""
        best, _ = self.best_control(calls)
        return {
            "measure": "RMSE to the teacher's fine solution, same noise",
            "images": self.settings.watched,
            "student": self.distance(self.student_images(networks, calls)),
            "best_solver": best,
            "solvers": {solver: self.distance(images) for solver, images in self.control[calls].items()},
        }

    def evidence_by_calls(self, networks: Networks) -> dict[str, Any]:
        """The same for each number of calls, where there are several."""
        counts = self.settings.counts
        return {"by_calls": {str(n): self.evidence(networks, n) for n in counts}} if len(counts) > 1 else {}

    def save(self, folder: Path, networks: Networks, cost: Mapping[str, Any]) -> None:
        self.as_student(networks, cost).save(folder)


def command_of(chosen: DistillSettings) -> str:
    """The command that makes such a student."""
    counts = ",".join(map(str, chosen.counts))
    words = ["onefold", "distill", chosen.teacher, "--method", chosen.method, "--calls", counts]
    words += ["--preset", chosen.preset] if chosen.preset else []
    said = {"teacher", "method", "calls", "preset", "also"} & type(chosen).model_fields.keys()
    options = ("prompts", "data", "budget", "batch_size", "seed", "precision")
    return command_line(words, chosen, options, said, {"device"})


def calls_at_most(teacher: Denoiser, calls: int) -> int:
    """A teacher that knows some whole times alone can make no more calls than it has of them."""
    process = teacher.process
    limited = not teacher.continuous_time and isinstance(process, Tabled)
    return min(calls, len(process.sigmas)) if limited else calls  # type: ignore[attr-defined]


def in_calls(calls: int) -> str:
    return f"{calls} call{'s' * (calls != 1)}"


def held_out(prompts: Prompts, watched: int) -> tuple[Prompts, Prompts]:
    """(to learn from, to look at)"""
    learned, shown = map(set, divided(prompts.texts, watched))
    rows = list(enumerate(prompts.texts))
    first = prompts.part([row for row, text in rows if text in learned])
    return first, prompts.part([row for row, text in rows if text in shown])


def begun_as(network: nn.Module, settings: DistillSettings) -> nn.Module:
    """What learns: a copy of all weights, or an adapter over these very ones, which at first changes nothing."""
    if not settings.lora:
        return copy.deepcopy(network).requires_grad_(True)
    seed = seeds.mix(settings.seed, seeds.ADAPTER)
    return Lora(network, settings.lora, targets=settings.lora_targets, seed=seed)


def begun_with(settings: DistillSettings) -> Grid | None:
    """The grid of the run that is to go on, as its newest checkpoint tells; None where nothing has begun."""
    known = RunFolder(Path(settings.out)).checkpoints.identity().get("grid", {}).get(str(settings.calls))
    return None if known is None else Grid.from_dict(known)


def check_range(teacher: Denoiser, grid: Grid) -> None:
    """The levels at which networks are called must be levels that the teacher knows."""
    process, top, lowest = teacher.process, float(grid.sigmas[0]), float(grid.sigmas[-2])
    if top > process.sigma_max * (1 + 1e-6) or lowest < process.sigma_min * (1 - 1e-6):
        raise UserError(
            f"the grid calls the network from sigma {top:.6g} down to {lowest:.6g}, but {teacher.name!r} knows "
            f"{process.sigma_max:.6g} to {process.sigma_min:.6g}; give levels inside, or leave sigma_min and sigma_max out"
        )
    if math.isinf(top) and teacher.prediction == "eps":
        raise UserError(
            f"the grid starts at sigma = inf, where the eps-prediction of {teacher.name!r} says nothing about the image; "
            "set sigma_max to a finite level"
        )


def check_guidance(teacher: Denoiser, guidance: float) -> None:
    if guidance != 1.0 and not (teacher.choices and teacher.nothing):
        raise UserError(
            f"guidance is {guidance:g}, but {teacher.name!r} knows no images without a condition to be guided away from; leave it at 1"
        )
