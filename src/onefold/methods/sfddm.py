"""SFDDM: Single-Fold Distillation for Diffusion Models (Hong et al. 2024, arXiv 2405.14961).

The student is a diffusion model of T' steps of its own. Its chain is the teacher's, observed at the steps phi_1 < ... < phi_T' only,
A'_t = A_{phi_t}, and at every step it learns the teacher's prediction for the same noisy input:

    L = E_t E_{x_0, e} g_t | eps_teacher(x'_t, phi_t) - eps_student(x'_t, t) |^2,   x'_t = sqrt(A'_t) x_0 + sqrt(1 - A'_t) e

One fold leads to any T' and any phi. What minimises L is the teacher itself in T' DDIM steps on the same phi, never better. So the
default goes beyond the paper: with `parts` = K > 1, the student learns the one step that lands where K teacher steps land.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from onefold import seeds
from onefold.conditions import Conditions
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.grids import TUNED, Grid, times_of
from onefold.losses import Loss, distance
from onefold.methods.base import begun_as, begun_with
from onefold.methods.chain import Chain, ChainSettings, Weight
from onefold.methods.phi import fine_steps, kept_grid
from onefold.networks.features import layer_of, with_features
from onefold.networks.folding import fold_to_index, index_table
from onefold.networks.variants import fresh, resized
from onefold.process import Indexed, indexed
from onefold.training.contract import Update

LAST = "conv_out"  # of the U-Nets of diffusers
READS_TIME = re.compile(
    r"(^|\.)(time_proj|time_embedding|timestep_embedder|map_layer\d)\."
)  # of U-Nets, transformers, EDM networks
PAPER: dict[str, Any] = {
    "phi": "uniform",
    "time": "index",
    "begin": "teacher",
    "parts": 1,
    "states": "data",
    "loss": "l2",
    "weight": "output",
    "feature_weight": 0.0,
    "lr": 3e-5,
    "time_lr": 300.0,
    "batch_size": 16,
    "ema_half_life": None,
    "ema_share": None,
}
# Rate, batch and budget of the paper are not known to us; these are from a search. In the published code all weights begin at random.
OFFICIAL: dict[str, Any] = {
    **PAPER,
    "phi": "start",
    "begin": "random",
    "loss": "l1",
    "feature_weight": 1.0,
    "lr": 2e-4,
    "time_lr": 1.0,
    "schedule": "constant",
    "batch_size": 50,
    "dropout": True,
}


class SFDDMSettings(ChainSettings):
    """Settings of SFDDM."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": PAPER, "official": OFFICIAL}

    phi: str | list[Any] = Field(
        "auto",
        description="the teacher's steps that are kept: uniform (as published), start (as in the published code), logsnr, karras, quadratic, "
        "gits, concentrated:0.4, scattered, or a rising list of 1-based steps; auto is the process's usual",
    )
    levels: int | None = Field(
        None,
        ge=2,
        description="steps of the table into which a teacher without one is divided, say 1000; null for the others",
    )
    loss: Loss = Field(
        "pseudo_huber", description="pseudo_huber, l2 (as published), l1 (as in the published code) or huber"
    )
    weight: Weight = Field(
        "x0",
        description="error of which prediction is compared: x0, output (the network's own, as published), eps, v; truncated is max(SNR, 1) on x0, "
        "elbo the bound's own weight",
    )
    parts: int = Field(
        4,
        ge=1,
        description="K: teacher steps in one student step; 1 is the paper, more is ours and what makes it better than its teacher's DDIM",
    )
    time: Literal["index", "teacher"] = Field(
        "index",
        description="what the student's network is told: its own index t (as published), or the teacher's time at phi_t",
    )
    begin: Literal["auto", "folded", "teacher", "table", "random"] = Field(
        "auto",
        description="its first weights: folded is the teacher with its time solved again, so that index t means phi_t; teacher is as it is; "
        "table is that with a row of its own for each index, which learns many steps faster; auto is folded for time=index",
    )
    time_lr: float = Field(
        1.0,
        gt=0,
        description="factor on the rate of the layers that read the time, which must be learnt anew where begin=teacher meets time=index",
    )
    widths: list[int] | None = Field(
        None,
        description="channels at each resolution of a smaller or larger student, which begins at random; null: the teacher's",
    )
    layers: int | None = Field(None, ge=1, description="residual blocks at each resolution of such a student")
    feature_weight: float = Field(
        0.0, ge=0, description="of the L1 distance of features inside both networks (published code: 1)"
    )
    features: str = Field(LAST, description="the layer whose input is compared then, the same name in both networks")

    @model_validator(mode="after")
    def fit_together(self) -> Self:
        other = self.widths is not None or self.layers is not None
        if other and self.begin in ("folded", "teacher", "table"):
            raise UserError(
                f"begin={self.begin} takes the teacher's weights, which do not fit other widths or layers; leave begin at auto, or widths and layers out"
            )
        if self.lora and (other or self.time == "index" or self.begin == "random"):
            raise UserError(
                "lora trains beside the teacher's own weights and time; set time=teacher, and leave begin, widths and layers out"
            )
        if self.time == "teacher" and self.begin in ("folded", "table"):
            raise UserError(
                f"begin={self.begin} is for time=index; the teacher's time is known already, use begin=teacher"
            )
        if not self.feature_weight and self.features != LAST:
            raise UserError(f"features={self.features} are compared with feature_weight above 0 only; set it, say to 1")
        if self.feature_weight and self.compile:
            raise UserError(
                "features are seen through hooks, which compiled networks do not have; set compile=false or feature_weight=0"
            )
        if self.feature_weight and self.lora:
            raise UserError("features are compared inside whole networks, not adapters; set feature_weight=0 or lora=0")
        if self.feature_weight and self.guidance != 1:
            raise UserError("guidance makes the teacher's features two; set feature_weight=0 or guidance=1")
        return self

    @property
    def beginning(self) -> str:
        if self.begin != "auto":
            return self.begin
        if self.widths is not None or self.layers is not None:
            return "random"
        return "folded" if self.time == "index" else "teacher"


class SFDDM(Chain):
    """SFDDM: one fold to a diffusion model of any number of steps, which leaves as a plain DDIM or DDPM pipeline."""

    settings: SFDDMSettings

    def __init__(self, teacher: Denoiser, settings: SFDDMSettings) -> None:
        chosen = settings
        # a tuned grid asks the teacher, and another device might tune it another way
        begun = begun_with(chosen) if chosen.phi == TUNED else None
        guided = teacher.replace(guidance=chosen.guidance)
        grid = begun or kept_grid(guided, chosen.phi, chosen.calls, levels=chosen.levels, seed=chosen.seed)
        super().__init__(teacher, fine_steps(teacher, grid, settings.parts), settings.parts, grid, settings)
        if settings.time_lr != 1 and len(self.optimizers["main"].param_groups) == 1:
            self.notes = (
                *self.notes,
                f"no layer reads the time by a known name, so time_lr={settings.time_lr:g} has no use here",
            )
        if settings.feature_weight:
            self.add_features(settings.features)
        self.notes = (*self.notes, *remarks(settings, self.solver))

    def begin(self) -> Denoiser:
        chosen, seed = self.settings, seeds.mix(self.settings.seed, seeds.NETWORK)
        network = begun_network(self.teacher, self.strided, chosen, seed)
        card = {**self.teacher.card, "parameters": sum(p.numel() for p in network.parameters())}
        if chosen.time == "teacher":
            return self.teacher.replace(network=network, card=card)
        levels = self.strided.sigmas[:-1].flip(0)
        if bool(levels.isinf().all()):
            raise UserError(
                "the only step that is kept has no signal, so a student told its own index has no table of levels; set time=teacher"
            )
        process = indexed(self.teacher.process, levels)
        if isinstance(process, Indexed):  # no scheduler's config has a place for it
            card["levels"] = ["inf" if level == float("inf") else level for level in process.sigmas.tolist()]
        return self.teacher.replace(network=network, process=process, continuous_time=False, card=card)

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """What reads the time may learn faster."""
        if self.settings.time_lr == 1:
            return super().groups(network)
        reads = [p for name, p in network.named_parameters() if READS_TIME.search(name)]
        if not reads:
            return super().groups(network)
        known = set(map(id, reads))
        rest = [p for p in network.parameters() if id(p) not in known]
        return [{"params": rest}, {"params": reads, "scale": self.settings.time_lr}]

    def own_grid(self) -> Grid:
        strided = self.strided
        times = times_of(self.student.process, strided.sigmas)
        return replace(strided, times=times)

    # -- features --------------------------------------------------------------------------------------------------

    def add_features(self, name: str) -> None:
        """A linear map where the widths differ; it learns with the student and is not part of it."""
        if self.examples is None:
            raise UserError(
                "features are compared on noised data, and none is given; give data, or set feature_weight=0"
            )
        teacher, student = (channels_of(layer_of(model.module, name), name) for model in (self.teacher, self.student))
        if teacher != student:
            with seeds.drawing(seeds.mix(self.settings.seed, seeds.NETWORK)):
                projection = nn.Conv2d(student, teacher, 1)
            self.networks["projection"] = projection
            self.optimizers["main"].add_param_group({"params": list(projection.parameters())})

    def update(self, x: Tensor, level: Tensor, cond: Conditions) -> Update:
        if not self.settings.feature_weight:
            return super().update(x, level, cond)
        target, wanted = with_features(self.teacher.module, self.settings.features, lambda: self.aim(x, level, cond))
        output, found = with_features(
            self.student.module, self.settings.features, lambda: self.student.denoise(x, self.levels[level], cond)
        )
        found = self.networks["projection"](found) if "projection" in self.networks else found
        apart = distance("l1", found, wanted.detach(), "mean")
        loss = self.compare(output, target, level)
        return Update(loss + self.settings.feature_weight * apart, logs={"loss_output": loss, "loss_features": apart})


def channels_of(layer: nn.Module, name: str) -> int:
    if not isinstance(layer, nn.Conv2d):
        raise UserError(
            f"features={name} is a {type(layer).__name__}; name a Conv2d, whose input are features in two dimensions"
        )
    return layer.in_channels


def begun_network(teacher: Denoiser, strided: Grid, chosen: SFDDMSettings, seed: int) -> nn.Module:
    if chosen.widths is not None or chosen.layers is not None:
        return resized(teacher.module, chosen.widths, chosen.layers, seed).requires_grad_(True)
    match chosen.beginning:
        case "random":
            return fresh(teacher.module, seed).requires_grad_(True)
        case "table":
            return index_table(teacher.module, len(strided.sigmas) - 1).requires_grad_(True)
        case "folded":
            times = teacher.process.time(strided.sigmas[:-1].flip(0))
            return fold_to_index(teacher.module, times.tolist()).requires_grad_(True)
    return begun_as(teacher.module, chosen)


def remarks(settings: SFDDMSettings, solver: str) -> list[str]:
    """What a user should know before the work begins."""
    said = []
    copied = settings.beginning == "folded" or (settings.time == "teacher" and settings.beginning == "teacher")
    ddim = solver == "euler" or settings.data is not None  # of noised data one step is DDIM's by any solver
    if settings.parts > 1:
        said.append(
            f"targets: {settings.parts} teacher steps in each of the student's, our extension of SFDDM; parts=1 is the paper's"
        )
    if settings.parts == 1 and copied and ddim and settings.guidance == 1:
        said.append(
            "the loss is zero from the start: the student begins as its teacher in as many DDIM steps, and that is all that SFDDM can reach; "
            "set parts=4 to go beyond it"
        )
    return said
