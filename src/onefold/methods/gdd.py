"""GDD and GDD-I: a diffusion model is one GAN fine-tuning away from one call (Zheng and Yang, arXiv 2405.20750 and 2506.09376).

The generator is the teacher itself, evaluated once at its highest noise level, and learns from a discriminator alone:

    G(z, c) = D_student(prior(z); sigma_max, c),    L_G = E softplus(-l(G(z, c), c))
    L_D = E softplus(l(G(z, c), c)) + E softplus(-l(x, c)) + lambda E | l(x, c) - l(x + s eta, c) |^2,    x the data

It is not asked to end where its teacher ends from the same noise, which one call cannot do as well, only that its images are
distributed as the data. GDD-I trains norms, embeddings, skips and attention alone, about a sixth of the weights. Published are
discriminators on image networks. By default ours sees the frozen teacher's features of re-noised images, l(x, c) =
head(features(x + sigma n; sigma, c)), for which nothing but the teacher is needed. Without data it learns from the teacher's images.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from onefold import seeds
from onefold.adversarial import mean_convention
from onefold.data import ImageData, teacher_data
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.files import read_json
from onefold.grids import Grid
from onefold.methods.adversary import Adversary, AdversarySettings
from onefold.methods.base import Distillation, calls_at_most
from onefold.methods.examples import Examples, fitting
from onefold.methods.gauge import Gauge, extractor_for, make_gauge
from onefold.networks.freeze import freeze, rule_named
from onefold.progress import Progress
from onefold.sampling import grid_for
from onefold.solvers import euler_step
from onefold.student import Student
from onefold.training.contract import Batch, Draw, Networks, Update, told

DRAWN, SPENT = "teacher_images.npz", "teacher_images.json"  # in the run folder of a student without data
DRAW_SOLVER, DRAW_CALLS = "ipndm3", 20  # how those images are drawn
COLLAPSED = 0.5  # of the diversity that it once had

PAPER: dict[str, Any] = {
    "freeze": "gdd_i",
    "adversarial": "non_saturating",
    "penalty": "r1",
    "penalty_every": 16,
    "ema_half_life": 500_000,
    "ema_share": 0.05,
    "clip": 0.0,
}
VGG, DEIT, LITE = "vgg16_bn", "deit_base_distilled_patch16_224", "tf_efficientnet_lite0"
LOGITS = {VGG: 484, DEIT: 64, LITE: 64}  # of an image


def published(networks: Sequence[str], budget: str, batch: int, lr: float, lr_discriminator: float) -> dict[str, Any]:
    """Of four GPUs, whose losses were sums over a quarter of the batch."""
    weight = mean_convention(1e-4, [LOGITS[name] for name in networks], batch // 4)
    how = {"budget": budget, "batch_size": batch, "lr": lr, "lr_discriminator": lr_discriminator}
    return {**PAPER, **how, "discriminator": "timm:" + "+".join(networks), "penalty_weight": round(weight, 6)}


PRESETS = {
    "paper_cifar10": published([VGG, LITE], "5M", 256, 1e-4, 1e-4),
    "paper_64": published([DEIT, LITE], "10M", 256, 2e-5, 4e-5),
    "paper_imagenet64": published([DEIT, LITE], "10M", 512, 8e-6, 4e-5),
    "offline": {
        "discriminator": "teacher",
        "noise": "lognormal",
        "noise_median": 0.3,
        "adversarial": "non_saturating",
        "penalty": "approximate",
        "penalty_weight": 10.0,
        "penalty_shift": 0.02,
        "lr": 1e-4,
        "lr_discriminator": 1e-4,
        "schedule": "constant",
    },
}
# preset -> FID with one call
PUBLISHED = {
    "paper_cifar10": "1.54 (CIFAR-10 without classes)",
    "paper_64": "0.85 (FFHQ)",
    "paper_imagenet64": "1.16 (ImageNet 64)",
}


class GDDSettings(AdversarySettings):
    """Settings of GDD."""

    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    calls: int = Field(1, ge=1, description="network calls of the student; published is one")
    data: str | None = Field(
        None,
        description="real images, cropped and scaled down to the teacher's size: a folder, an .npz, hf:NAME or digits; null: images drawn from the teacher",
    )
    flip: bool = Field(False, description="mirror half of the images")
    drawn: int = Field(5000, ge=2, description="without data: how many images are drawn from the teacher")
    freeze: str | list[str] = Field(
        "none",
        description="what keeps the teacher's weights: none (GDD), gdd_i (GDD-I: convolutions of blocks and attention's last), gdd_i_qkv, gdd_i_skip, a list of "
        "endings of layers' names, or package.module:function",
    )
    lr: float = Field(
        4e-4,
        gt=0,
        description="of the generator's Adam; 4e-4 suits about a million parameters, published are 1e-4 (CIFAR-10), 2e-5 and 8e-6 (ImageNet 64)",
    )
    schedule: Literal["constant", "linear"] = Field(
        "constant", description="of both learning rates: constant (as published), or linear to 0"
    )
    clip: float = Field(0.0, ge=0, description="largest gradient norm; 0 does not clip")
    ema_half_life: float | None = Field(
        None, gt=0, description="half-life of the averaged weights in images; null leaves it to ema_share"
    )
    judged: int = Field(500, ge=2, description="images from fixed noise whose distance to the data is watched")
    extractor: str = Field(
        "auto",
        description="for that distance, as `onefold evaluate` knows them; auto is that of the teacher's own statistics, or pixels where it has none",
    )
    extractor_weights: str | None = Field(None, description="file or folder of an extractor that needs one")

    @field_validator("freeze", mode="before")
    @classmethod
    def by_name(cls, rule: Any) -> Any:
        """A function becomes the name that finds it again."""
        return name_of(rule) if callable(rule) else rule

    @model_validator(mode="after")
    def fit_together(self) -> Self:
        if self.lora and self.freeze != "none":
            raise UserError("lora trains beside frozen weights already; leave freeze at none, or lora out")
        if self.data is not None and self.guidance != 1:
            raise UserError(
                f"guidance is {self.guidance:g}, but real images show none; leave it at 1, or leave the data out, and the teacher's images are guided"
            )
        if self.data is None and self.flip:
            raise UserError("flip mirrors data, and none is given; give data, or leave flip out")
        if self.data is not None and self.drawn != type(self).model_fields["drawn"].default:
            raise UserError(
                "drawn is how many images the teacher gives without data, and data is given; leave one of them out"
            )
        return self


class GDD(Distillation):
    """GDD and GDD-I: one call, by a discriminator alone, from real images or the teacher's own."""

    settings: GDDSettings

    def __init__(self, teacher: Denoiser, settings: GDDSettings) -> None:
        if teacher.encode_texts is not None:
            raise UserError(
                f"method gdd compares with images of the same conditions, and {teacher.name!r} is told texts, which no images come with; take method sfd"
            )
        super().__init__(teacher, grid_of_calls(teacher, settings.calls), None, settings)
        network = self.networks["student"].eval()
        self.frozen_line: str | None = None
        if settings.freeze != "none":
            self.frozen_line = freeze(network, rule_named(settings.freeze)).line
            self.notes = (*self.notes, self.frozen_line)
        self.adversary = Adversary(self.teacher, settings)
        self.networks["discriminator"] = self.adversary.module
        learning = [p for p in network.parameters() if p.requires_grad]
        self.optimizers = {
            "main": torch.optim.Adam(learning, lr=settings.lr, betas=(0.0, 0.99)),
            "discriminator": self.adversary.optimizer(),
        }
        self.examples: Examples | None = None
        self.extractor = extractor_for(self.standard, settings.extractor, settings.extractor_weights)
        self.gauge: Gauge | None = None
        self.value: float | None = None  # of the last validation
        self.beside: dict[int, dict[str, Any]] = {}  # by the number of calls
        self.most_diverse, self.said = 0.0, list[str]()
        if settings.data is not None:
            self.take(fitting(self.told, settings.data))
        else:
            calls = settings.drawn * cost_of_drawing(self.target)
            self.notes = (
                *self.notes,
                f"without data: {settings.drawn:,} images are drawn from the teacher first, {calls:,} calls",
            )

    @property
    def identity(self) -> dict[str, Any]:
        known = {} if self.settings.data is None or self.examples is None else self.examples.stream.data.description
        return {**super().identity, "data": known.get("fingerprint")}

    @property
    def turns(self) -> int:
        return math.lcm(self.settings.calls, self.settings.penalty_every if self.settings.penalty == "r1" else 1)

    # -- what it learns from ---------------------------------------------------------------------------------------

    def make_ready(self, folder: Path | None, progress: Progress) -> None:
        """Without data, the teacher's images; of a rehearsal a batch of them."""
        if self.settings.data is None:
            count = self.settings.drawn if folder else self.settings.batch_size
            self.take(drawn_from(self.target, count, self.settings.seed, folder, progress))

    def take(self, data: ImageData) -> None:
        chosen = self.settings
        self.examples = Examples(self.told, data, batch_size=chosen.batch_size, seed=chosen.seed, flip=chosen.flip)
        if self.examples.without_class:
            raise UserError(
                f"{self.teacher.name!r} is told one of {self.teacher.classes} classes with each image, and the data has {data.classes or 'none'}, so nothing "
                "would teach it what a class looks like; give data with these classes, or leave it out"
            )

    def data_rows(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """Real images, and the numbers of what they show."""
        assert self.examples is not None
        return self.examples.batch(draw)

    def prepare(self, draw: Draw) -> dict[str, Tensor]:
        images, numbers = self.data_rows(draw)
        z = torch.stack([draw.noise(self.teacher.shape), draw.noise(self.teacher.shape, 1)], 1)
        return {"images": images, "z": z, **self.adversary.prepare(draw), **told(self.told.conditions(numbers))}

    # -- its turns -------------------------------------------------------------------------------------------------

    def updates(self, batch: Batch) -> Iterator[Update]:
        """The generator's turn, the discriminator's, and of R1 every so many steps."""
        real, adversary = self.real(batch), self.adversary
        made = self.generate(batch["z"][:, 0], batch)
        yield Update(adversary.convince(made, real, batch))
        with torch.no_grad():
            made = self.generate(batch["z"][:, 1], batch)
        loss, logs = adversary.tell_apart(real, made, batch)
        yield Update(loss, "discriminator", logs, ema=False)
        if adversary.smooths(batch.step):
            penalty = adversary.smooth(real, batch)
            yield Update(penalty, "discriminator", {"penalty": penalty.detach()}, ema=False)

    def real(self, batch: Batch) -> Tensor:
        """As the network's own clean states."""
        return batch["images"] if self.examples is None else self.examples.clean(batch["images"])

    def generate(self, z: Tensor, batch: Batch) -> Tensor:
        """The denoised image of one of its calls, each in turn; the state before it comes from the calls before."""
        turn, sigmas, cond = batch.step % self.settings.calls, self.grid.sigmas.tolist(), batch.conditions
        x = self.grid.start_state(self.teacher.process, z)
        with torch.no_grad():
            for sigma, to in pairwise(sigmas[: turn + 1]):
                x = euler_step(x, self.student.denoise(x, sigma, cond), sigma, to)
        return self.student.denoise(x, sigmas[turn], cond)

    def learning_rate(self, optimizer: str, _images: int, progress: float) -> float:
        chosen = self.settings
        rate = chosen.lr if optimizer == "main" else chosen.lr_discriminator * self.adversary.lazy
        return rate * (1 - progress if chosen.schedule == "linear" else 1.0)

    # -- how it fares ----------------------------------------------------------------------------------------------

    def measure(self) -> Gauge:
        assert self.examples is not None
        if self.gauge is None:
            # what is drawn without guidance stands for the data, and the statistics beside the teacher are of that
            home = self.teacher.home if self.settings.data is None and self.settings.guidance == 1 else None
            self.gauge = make_gauge(self.extractor, self.examples.stream.data, home)
        return self.gauge

    @torch.no_grad()
    def validate(self, networks: Networks) -> dict[str, float]:
        """First the distance to the data, which decides what is best."""
        gauge, student = self.measure(), self.sampler({"student": networks["student"].eval()})
        images = student.sample(self.settings.judged, seed=self.settings.seed, batch_size=self.at_once)
        diversity, self.value = gauge.diversity(images), gauge(images)
        self.watch_over(diversity)
        return {gauge.key: self.value, "diversity": diversity, **super().validate(networks)}

    def watch_over(self, diversity: float) -> None:
        """A generator whose images become one another is told in time."""
        self.said = []
        if diversity < COLLAPSED * self.most_diverse:
            self.said.append(
                f"warning: images are {diversity:.2f} times as far apart as the data's, and were {self.most_diverse:.2f} before: the generator collapses; "
                "lower lr, raise penalty_weight, or go on from best/"
            )
        self.most_diverse = max(self.most_diverse, diversity)

    def concerns(self) -> Sequence[str]:
        return self.said

    def controls(self, calls: int) -> dict[str, dict[str, Any]]:
        """One step is the same with all of them."""
        ways = super().controls(calls)
        return ways if calls > 1 else {"euler": ways["euler"]}

    def evidence(self, networks: Networks, calls: int) -> dict[str, Any]:
        """The distance to the data of the student, of its teacher with good solvers at as many calls, and of that at its best."""
        gauge, count = self.measure(), self.settings.judged
        if self.value is None:  # a run that was finished before
            self.validate(networks)
        if calls not in self.beside:
            scores = {name: gauge(self.sampled(count=count, **way)) for name, way in self.controls(calls).items()}
            best = gauge(self.sampled(count=count, solver=DRAW_SOLVER, calls=draw_calls(self.standard)))
            cost = cost_of_drawing(self.standard)
            self.beside[calls] = {
                "best_solver": min(scores, key=lambda name: scores[name]),
                "solvers": scores,
                "teacher": {"solver": DRAW_SOLVER, "calls": cost, "value": best},
            }
        return {"measure": gauge.about, "images": count, "student": self.value, **self.beside[calls]}

    def as_student(self, networks: Networks, cost: Mapping[str, Any] | None = None) -> Student:
        """What drawing the images cost is a part of its cost."""
        spent = Path(self.settings.out) / SPENT
        if cost and self.settings.data is None and spent.is_file():
            before = read_json(spent)
            calls = {**cost["calls"], "teacher": cost["calls"].get("teacher", 0) + before["calls"]}
            seconds, forwards = round(cost["seconds"] + before["seconds"], 1), cost["forwards"] + before["calls"]
            cost = {**cost, "calls": calls, "forwards": forwards, "seconds": seconds}
        student = super().as_student({"student": networks["student"]}, cost)
        return replace(student, recipe={**student.recipe, **({"frozen": self.frozen_line} if self.frozen_line else {})})

    def published(self) -> str | None:
        found = PUBLISHED.get(self.settings.preset or "")
        return None if found is None else f"FID {found} of the paper's own GDD-I, with its own teacher"


def grid_of_calls(teacher: Denoiser, calls: int) -> Grid:
    """The usual one. Where that ends at the lowest level, at which a call changes nothing that is seen, one of a call more without it."""
    grid = grid_for(teacher, "auto", calls, end="zero", afs=None)
    if calls == 1 or float(grid.sigmas[-2]) > 2 * teacher.process.sigma_min:
        return grid
    return grid_for(teacher, "auto", calls + 1, end="zero", afs=None).part([*range(calls), calls + 1])


def draw_calls(teacher: Denoiser) -> int:
    return calls_at_most(teacher, DRAW_CALLS)


def cost_of_drawing(teacher: Denoiser) -> int:
    """Network calls of an image: guidance makes two of one."""
    return draw_calls(teacher) * (1 + (teacher.guidance != 1))


def drawn_from(teacher: Denoiser, count: int, seed: int, folder: Path | None, progress: Progress) -> ImageData:
    """A teacher's images from noise of their own, kept in the run folder with what they cost."""
    apart, calls = seeds.mix(seed, seeds.NOISE) >> 1, draw_calls(teacher)
    cache, spent = (None, None) if folder is None else (folder / DRAWN, folder / SPENT)
    begin = time.monotonic()
    data = teacher_data(teacher, count, solver=DRAW_SOLVER, calls=calls, seed=apart, cache=cache, progress=progress)
    if spent is not None and not spent.exists():
        network_calls = count * cost_of_drawing(teacher)
        spent.write_text(json.dumps({"calls": network_calls, "seconds": round(time.monotonic() - begin, 1)}) + "\n")
    return data


def name_of(rule: Callable[[nn.Module], Iterable[str]]) -> str:
    module, name = getattr(rule, "__module__", None), getattr(rule, "__qualname__", "")
    if not module or not name.isidentifier():
        raise UserError(
            f"freeze is the function {name or rule!r}, which has no name at the top of a module, so no settings file could find it again; define it there"
        )
    return f"{module}:{name}"
