"""A discriminator as methods use it: what it sees, how it is trained, and what a generator hears from it.

It sees images at the noise levels of sigma (re-noised, where its features are those of a diffusion model), real and made ones at the
same levels with noise of their own, and both with the conditions of the real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from onefold import seeds
from onefold.adversarial import (
    Adversarial,
    approximate_r1,
    discriminator_loss,
    generator_loss,
    mean_of_heads,
    r1,
    share_right,
)
from onefold.conditions import Conditions
from onefold.denoiser import Denoiser, spread
from onefold.errors import UserError, suggest
from onefold.imports import FORM, is_function_name
from onefold.methods.base import DistillSettings
from onefold.networks.discriminator import Discriminator, Features, plain, shapes_of
from onefold.networks.features import DenoiserFeatures, unchanged
from onefold.networks.image_features import TIMM, image_features
from onefold.networks.variants import fresh
from onefold.process import Process, as_sigma
from onefold.training.contract import HOST, Batch, Draw

LEVEL = HOST + "sigma"
OF_FAKE, OF_REAL, SHIFT = "noise_of_made", "noise_of_real", "shift"
STREAM = 16  # where its streams of noise begin
KARRAS_TOP, RHO = 80.0, 7
OWN = ("teacher", "scratch", "random")

Noise = Literal["auto", "lognormal", "karras", "none"]
Penalty = Literal["approximate", "r1", "none"]


class AdversarySettings(DistillSettings):
    """Settings of methods with a discriminator."""

    log_every: int = Field(10, ge=1, description="steps between lines of metrics.jsonl: the game is to be watched")
    discriminator: str = Field(
        "teacher",
        description="what it looks through: teacher (the frozen teacher's features), random (such a network with random weights), scratch (nothing, it learns alone), "
        "timm:NAME or timm:NAME+NAME (image networks, as published; need discriminator_weights), or package.module:function",
    )
    discriminator_weights: list[str] | None = Field(
        None, description="with timm: a .safetensors for each network, or hub to download them"
    )
    discriminator_layers: list[str] | None = Field(
        None,
        description="with teacher or random: the layers it sees, by named_modules(); null is the usual ones of its kind",
    )
    discriminator_size: int = Field(
        224, ge=16, description="with timm: pixels of the shorter side that images are scaled up to"
    )
    width: int = Field(128, ge=8, description="channels of the discriminator's heads")
    classes_seen: bool = Field(True, description="heads hear the class too, where there are classes")
    noise: Noise = Field(
        "auto",
        description="levels of the noise on what it sees: lognormal, karras (even on its grid) or none; auto is lognormal with teacher and random, else none",
    )
    noise_median: float = Field(
        0.1, gt=0, description="with noise=lognormal: the level that half of them lie below (EDM's in training: 0.3)"
    )
    adversarial: Adversarial = Field(
        "non_saturating", description="loss: non_saturating (as published), hinge or relativistic"
    )
    penalty: Penalty = Field(
        "approximate",
        description="keeps it smooth on real images: approximate (R1 by a small shift of them), r1 (exact, as published), none",
    )
    penalty_weight: float = Field(10.0, ge=0, description="of the penalty")
    penalty_shift: float = Field(0.02, gt=0, description="standard deviation of the shift of the approximate penalty")
    penalty_every: int = Field(16, ge=1, description="r1 alone: every so many steps, with so many times its weight")
    lr_discriminator: float = Field(
        1e-3, gt=0, description="of the discriminator's Adam; published are 1e-4 (CIFAR-10) and 4e-5"
    )

    @model_validator(mode="after")
    def see_something(self) -> Self:
        chosen = self.discriminator
        if chosen not in OWN and not chosen.startswith(TIMM) and not is_function_name(chosen):
            raise UserError(
                f"discriminator is {chosen!r}, expected {', '.join(OWN)}, {TIMM}NAME or {FORM}{suggest(chosen, OWN)}"
            )
        image_network = self.discriminator not in OWN
        if image_network and self.noise not in ("auto", "none"):
            raise UserError(
                f"noise={self.noise} is for features of a diffusion model; image networks have seen none, leave it at auto"
            )
        if self.discriminator == "scratch" and self.noise not in ("auto", "none"):
            raise UserError(
                f"noise={self.noise}, but a discriminator from scratch is not told the level; leave noise at auto, or take discriminator=teacher"
            )
        if self.discriminator_layers is not None and self.discriminator not in ("teacher", "random"):
            raise UserError(
                f"discriminator_layers name layers of the teacher's network, and discriminator={self.discriminator} does not look through it; leave them out"
            )
        return self

    @model_validator(mode="after")
    def use_all_that_is_given(self) -> Self:
        fields, timm = type(self).model_fields, self.discriminator.startswith(TIMM)
        used = {
            "discriminator_weights": (timm, "timm's networks"),
            "discriminator_size": (timm, "timm's networks"),
            "noise_median": (self.noise_seen == "lognormal", "noise=lognormal"),
            "penalty_weight": (self.penalty != "none", "a penalty"),
            "penalty_shift": (self.penalty == "approximate", "penalty=approximate"),
            "penalty_every": (self.penalty == "r1", "penalty=r1"),
        }
        for name, (use, what) in used.items():
            if not use and getattr(self, name) != fields[name].default:
                raise UserError(f"{name} is given, but is for {what}, which is not chosen; leave it out")
        return self

    @property
    def noise_seen(self) -> Noise:
        if self.noise != "auto":
            return self.noise
        return "lognormal" if self.discriminator in ("teacher", "random") else "none"


class Adversary:
    """The discriminator of a run; `module` is what learns."""

    def __init__(self, teacher: Denoiser, settings: AdversarySettings) -> None:
        self.teacher, self.settings, self.process = teacher, settings, teacher.process
        features = features_of(teacher, settings)
        sigma = None if settings.noise_seen == "none" else self.sigmas(torch.full((1,), 0.5, dtype=torch.float64))
        labels = None if teacher.choices is None else torch.zeros(1, dtype=torch.int64, device=teacher.device)
        one = torch.zeros(1, *teacher.shape, device=teacher.device)
        shapes = shapes_of(features, one, sigma, teacher.conditions(labels))
        classes = teacher.classes if settings.classes_seen else None
        with seeds.drawing(seeds.mix(settings.seed, seeds.NETWORK, 1)):
            self.module = Discriminator(features, shapes, width=settings.width, classes=classes)

    # -- what it sees ----------------------------------------------------------------------------------------------

    def prepare(self, draw: Draw) -> dict[str, Tensor]:
        """Noise for all its turns of a batch."""
        shape, chosen, drawn = self.teacher.shape, self.settings, dict[str, Tensor]()
        if chosen.penalty == "approximate":
            drawn[SHIFT] = draw.noise(shape, STREAM)
        if chosen.noise_seen != "none":
            drawn[LEVEL] = self.sigmas(draw.stratified(STREAM))
            # the generator's turn and the discriminator's own
            drawn[OF_FAKE] = torch.stack([draw.noise(shape, STREAM + 1), draw.noise(shape, STREAM + 2)], 1)
            drawn[OF_REAL] = draw.noise(shape, STREAM + 3)
        return drawn

    def sigmas(self, u: Tensor) -> Tensor:
        """Levels from uniform numbers; of networks of whole times such as they know."""
        low, high = self.process.sigma_min, min(self.process.sigma_top, KARRAS_TOP)
        chosen = self.settings
        levels = karras(u, low, high) if chosen.noise_seen == "karras" else lognormal(u, chosen.noise_median, low, high)
        if self.teacher.continuous_time:
            return levels
        return self.process.sigma(self.process.time(levels).round())

    def judge(
        self, images: Sequence[Tensor], noise: Sequence[Tensor | None], sigma: Tensor | None, cond: Conditions
    ) -> list[list[Tensor]]:
        """Of each set of images the logits of each head, in one pass."""
        count = len(images)
        seen = torch.cat([renoised(x, n, sigma) for x, n in zip(images, noise, strict=True)])
        levels = None if sigma is None else sigma.repeat(count)
        logits = self.module(seen, levels, {name: torch.cat([value] * count) for name, value in cond.items()})
        return [list(parts) for parts in zip(*(each.chunk(count) for each in logits), strict=True)]

    # -- its losses ------------------------------------------------------------------------------------------------

    def convince(self, made: Tensor, real: Tensor, batch: Batch) -> Tensor:
        """The generator's loss. For its turn the discriminator's weights are constants."""
        sigma, noise, of_real = level_of(batch), of_fake(batch, 0), batch.tensors.get(OF_REAL)
        with unchanged(self.module):
            if self.settings.adversarial == "relativistic":
                fake, beside = self.judge([made, real], [noise, of_real], sigma, batch.conditions)
            else:
                (fake,), beside = self.judge([made], [noise], sigma, batch.conditions), None
            return generator_loss(self.settings.adversarial, fake, beside)

    def tell_apart(self, real: Tensor, made: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Its own loss, with the approximate penalty, and how it fares."""
        chosen, sigma, of_real = self.settings, level_of(batch), batch.tensors.get(OF_REAL)
        images, noise = [real, made], [of_real, of_fake(batch, 1)]
        if chosen.penalty == "approximate":
            images, noise = [*images, real + chosen.penalty_shift * batch[SHIFT]], [*noise, of_real]
        r, f, *shifted = self.judge(images, noise, sigma, batch.conditions)
        loss = discriminator_loss(chosen.adversarial, r, f)
        logs = {
            "logit_real": mean_of_heads(r).detach(),
            "logit_made": mean_of_heads(f).detach(),
            "accuracy": share_right(r, f),
        }
        if not shifted:
            return loss, logs
        apart = approximate_r1(r, shifted[0])
        return loss + chosen.penalty_weight * apart, {**logs, "penalty": apart.detach()}

    def smooth(self, real: Tensor, batch: Batch) -> Tensor:
        """R1 itself, as a turn of its own, with the weight of all steps that it stands for."""
        sigma, noise, cond = level_of(batch), batch.tensors.get(OF_REAL), batch.conditions
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            penalty = r1(lambda x: self.judge([x], [noise], sigma, cond)[0], real)
        return self.settings.penalty_every * self.settings.penalty_weight * penalty

    def smooths(self, step: int) -> bool:
        return self.settings.penalty == "r1" and step % self.settings.penalty_every == 0

    @property
    def lazy(self) -> float:
        """Exact R1 has every so many steps an update of its own; Adam's rate and memory are corrected for it (StyleGAN2)."""
        every = self.settings.penalty_every
        return every / (every + 1) if self.settings.penalty == "r1" else 1.0

    def optimizer(self) -> torch.optim.Adam:
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        return torch.optim.Adam(parameters, lr=self.settings.lr_discriminator, betas=(0.0, 0.99**self.lazy))


def features_of(teacher: Denoiser, settings: AdversarySettings) -> Features:
    chosen = settings.discriminator
    if chosen == "scratch":
        return plain
    if chosen in OWN:
        looked_through = teacher.replace(guidance=1.0)
        if chosen == "random":
            network = fresh(teacher.module, seeds.mix(settings.seed, seeds.NETWORK, 2)).to(teacher.device)
            looked_through = looked_through.replace(network=network.requires_grad_(False).eval())
        return denoiser_features(DenoiserFeatures(looked_through, settings.discriminator_layers), teacher.process)
    if teacher.codec is not None:
        raise UserError(
            f"discriminator={chosen} looks at pixels, and {teacher.name!r} gives latents; take discriminator=teacher"
        )
    return image_features(
        chosen,
        shape=teacher.shape,
        weights=settings.discriminator_weights,
        size=settings.discriminator_size,
        seed=seeds.mix(settings.seed, seeds.NETWORK, 3),
    ).to(teacher.device)


def denoiser_features(seen: DenoiserFeatures, process: Process) -> Features:
    """Without noise a network is asked at its lowest level."""

    def look(x: Tensor, sigma: Tensor | None, cond: Conditions) -> list[Tensor]:
        return seen(x, as_sigma(process.sigma_min) if sigma is None else sigma, cond)

    return look


def renoised(x: Tensor, noise: Tensor | None, sigma: Tensor | None) -> Tensor:
    return x if sigma is None or noise is None else x + spread(sigma, x) * noise


def level_of(batch: Batch) -> Tensor | None:
    return batch.tensors.get(LEVEL)


def of_fake(batch: Batch, turn: int) -> Tensor | None:
    noise = batch.tensors.get(OF_FAKE)
    return None if noise is None else noise[:, turn]


def lognormal(u: Tensor, median: float, low: float, high: float) -> Tensor:
    """As EDM's of training, where ln sigma ~ N(-1.2, 1.2^2), about another median if wished; cut to the range."""
    logs: Tensor = 1.2 * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))
    return (median * logs.exp()).clamp(low, high)


def karras(u: Tensor, low: float, high: float) -> Tensor:
    """Even on EDM's grid of rho = 7."""
    levels: Tensor = (high ** (1 / RHO) + u * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO
    return levels
