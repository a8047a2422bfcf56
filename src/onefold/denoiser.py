"""Denoiser: network + process + conditions -> x0, and the exact teachers.

`denoise(x, sigma, cond)` takes a state in variance-exploding coordinates and returns the expected clean image. At
sigma = inf, where such a state is infinite, x is the network's own input: unit noise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from onefold.codec import Codec
from onefold.conditions import Conditions, Prompts, is_encoded, load_prompts, read_texts, stand_in
from onefold.errors import UserError, suggest
from onefold.process import EDM, Prediction, Process, as_sigma, to_x0

Precision = Literal["fp32", "bf16", "fp16"]
PROPERTIES = {"name", "card", "home", "form", "codec", "prompts", "encode_texts"}  # that not every denoiser has
AUTOCAST: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def call_plainly(network: Callable[..., Tensor], z: Tensor, time: Tensor, cond: Conditions) -> Tensor:
    return network(z, time, **cond)


class Form(Protocol):
    """How a model lies in a folder, so that a student can lie there like its teacher."""

    def write(self, denoiser: Denoiser, draft: Path) -> str:
        """All of it with this one's network and process; returns a fingerprint of the network's weights."""


class Denoiser:
    """A network in its own coordinates and time, seen as x0 = denoise(x, sigma, cond).

    `call(network, z, time, cond)` is the whole adapter of a model family. `calls` counts the network evaluations that
    were really made: guidance makes two of one.
    """

    name: str = "unnamed"
    home: Path | None = None  # the folder it came from
    card: Mapping[str, Any] = {}
    form: Form | None = None
    codec: Codec | None = None  # of a model of latents
    prompts: Prompts | None = None  # of a model of texts
    encode_texts: Callable[[tuple[str, ...], torch.device], Prompts] | None = None  # how it reads them

    def __init__(
        self,
        network: Callable[..., Any],
        process: Process,
        *,
        prediction: Prediction,
        shape: Sequence[int],
        call: Callable[[Any, Tensor, Tensor, Conditions], Tensor] = call_plainly,
        classes: int | None = None,
        null: Mapping[str, int] | None = None,
        guidance: float = 1.0,
        precision: Precision = "fp32",
        continuous_time: bool = True,
    ) -> None:
        if prediction not in process.predictions:
            raise UserError(
                f"prediction {prediction!r} does not fit {type(process).__name__}{suggest(prediction, process.predictions)}"
            )
        self.network, self.process, self.prediction, self.call = network, process, prediction, call
        self.shape, self.classes, self.null = tuple(shape), classes, dict(null or {})
        self.guidance, self.precision, self.continuous_time = guidance, precision, continuous_time
        self.calls = 0

    def __repr__(self) -> str:
        classes = f", {self.classes} classes" if self.classes else ""
        return f"<{self.name}: {'x'.join(map(str, self.shape))}{classes}, {type(self.process).__name__}, predicts {self.prediction}>"

    @property
    def module(self) -> nn.Module:
        """The network as something that can be trained and saved."""
        if not isinstance(self.network, nn.Module):
            raise UserError(f"teacher {self.name!r} has no trainable network; give one with weights")
        return self.network

    @property
    def device(self) -> torch.device:
        parameter = next(self.network.parameters(), None) if isinstance(self.network, nn.Module) else None
        return torch.device("cpu") if parameter is None else parameter.device

    def to(self, device: torch.device | str) -> Self:
        if isinstance(self.network, nn.Module):
            self.network.to(device)
        if self.codec is not None:
            self.codec.module.to(device)
        if self.prompts is not None:
            self.prompts = self.prompts.to(device)
        return self

    @property
    def choices(self) -> int | None:
        """How many conditions there are to draw from: classes or prompts; None where nothing is told."""
        return self.classes if self.prompts is None else len(self.prompts)

    def conditions(self, numbers: Tensor | None) -> dict[str, Tensor]:
        """What the network is told for classes or prompts of these numbers."""
        if numbers is None:
            return {}
        return {"labels": numbers} if self.prompts is None else self.prompts.rows(numbers)

    @property
    def nothing(self) -> Mapping[str, int | Tensor]:
        """What stands for no condition; empty where the network knows none."""
        return self.null if self.prompts is None else self.prompts.nothing

    def with_prompts(self, source: str | Path | Sequence[str]) -> Self:
        """The same model told these texts: a list, a file with one a line, or a file that `Prompts.save` wrote. The encoder
        runs once, and is not kept."""
        if self.encode_texts is None:
            raise UserError(f"{self.name!r} is told no texts; leave the prompts out")
        if is_encoded(source):
            prompts = load_prompts(Path(source).expanduser())
        else:
            prompts = self.encode_texts(read_texts(source), self.device)
        return self.replace(prompts=prompts.to(self.device))

    def check_told(self) -> None:
        """Asked before the work: a model of texts has some."""
        if self.encode_texts is not None and self.prompts is None:
            raise UserError(
                f"{self.name!r} is told a text with each image and has none yet; give prompts: --prompts FILE with one a line, or prompts=[...]"
            )

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.shape if self.codec is None else self.codec.shape

    def images(self, x: Tensor) -> Tensor:
        """Of clean states: themselves, or what their latents stand for."""
        return x if self.codec is None else self.codec.images(x)

    def replace(self, **changes: Any) -> Self:
        """The same denoiser with other attributes, e.g. another network or guidance; calls are counted afresh."""
        unknown = changes.keys() - vars(self).keys() - PROPERTIES
        if unknown:
            raise UserError(f"a denoiser has no {min(unknown)!r}{suggest(min(unknown), vars(self))}")
        other = copy.copy(self)
        other.__dict__.update(changes, calls=0)
        return other

    def denoise(self, x: Tensor, sigma: float | Tensor, cond: Conditions | None = None) -> Tensor:
        sigma, cond = as_sigma(sigma), dict(cond or {})
        if self.guidance == 1.0 or not cond:
            self.calls += 1
            return self.evaluate(x, sigma, cond)
        nothing = self.nothing
        if not nothing:
            raise UserError(
                f"teacher {self.name!r} was not trained without its condition; guidance must be 1, not {self.guidance}"
            )
        # One pass over both halves; still two network calls an image.
        self.calls += 2
        free = {key: stand_in(value, nothing[key]) if key in nothing else value for key, value in cond.items()}
        both = {key: torch.cat([value, free[key]]) for key, value in cond.items()}
        twice = sigma if sigma.numel() == 1 else torch.cat([sigma, sigma])
        guided, plain = self.evaluate(torch.cat([x, x]), twice, both).chunk(2)
        return plain + self.guidance * (guided - plain)

    __call__ = denoise

    def evaluate(self, x: Tensor, sigma: Tensor, cond: Conditions) -> Tensor:
        """One network evaluation. Coefficients are float64 until they meet the state; only the network runs in low precision."""
        infinite = bool(torch.isinf(sigma).any())
        if infinite and self.prediction == "eps":
            raise UserError(
                "an eps-prediction at sigma = inf says nothing about the image; start the grid at a finite level"
            )
        if infinite and math.isfinite(self.process.sigma_max):
            raise UserError(
                f"this network was trained up to sigma = {self.process.sigma_max:.6g}, not inf; start the grid at that level"
            )
        a, b = (coefficient(value, x) for value in self.process.scales(sigma))
        z = torch.where((a > 0).to(x.device), a * x, x) if infinite else a * x
        output = self.run(z, self.network_time(sigma, x), cond)
        return to_x0(self.prediction, output.to(x.dtype), z, a, b, self.process.sigma_data, self.process.floor)

    def run(self, z: Tensor, time: Tensor, cond: Conditions) -> Tensor:
        if self.precision == "fp32":
            return self.call(self.network, z, time, cond)
        with torch.autocast(z.device.type, AUTOCAST[self.precision]):
            return self.call(self.network, z, time, cond)

    def network_time(self, sigma: Tensor, x: Tensor) -> Tensor:
        time = self.process.time(sigma)
        if self.continuous_time:
            return per_sample(time, x, torch.float64 if x.dtype == torch.float64 else torch.float32)
        whole = time.round()
        if bool(((time - whole).abs() > 1e-3).any()):
            raise UserError(
                f"sigma {float(sigma.max()):.6g} lies between the whole times this network takes; snap the grid with grid.snap(process)"
            )
        return per_sample(whole, x, torch.int64)


def coefficient(value: Tensor, like: Tensor) -> Tensor:
    """One for all samples stays a number on the CPU, which any device takes without a copy; one a sample goes along."""
    return value.reshape(()).to(like.dtype) if value.numel() == 1 else spread(value, like)


def per_sample(value: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """(N,) on the state's device; a single value is written there, not copied."""
    if value.numel() == 1:
        return torch.full((len(like),), value.item(), dtype=dtype, device=like.device)
    return value.to(dtype).to(like.device)


def spread(value: Tensor, like: Tensor) -> Tensor:
    """A coefficient (one, or one a sample) in the state's dtype and device, ready to multiply it."""
    # cast before moving: some devices have no float64
    return value.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype).to(like.device)


class GaussianMixture(Denoiser):
    """Data from a mixture of Gaussians, whose denoiser is closed form: the ground truth of the test suite.

    means (K, *shape); stds (K,) or (K, *shape); weights (K,). `labels` gives the class of each component, and the
    condition `labels` then restricts the mixture to that class.
    """

    name = "gaussian-mixture"

    def __init__(
        self,
        means: Tensor,
        stds: Tensor | float = 0.0,
        weights: Tensor | None = None,
        *,
        labels: Sequence[int] | None = None,
        process: Process | None = None,
    ) -> None:
        means = torch.as_tensor(means, dtype=torch.float64)
        count = len(means)
        stds = torch.as_tensor(stds, dtype=torch.float64)
        self.means = means
        self.stds = spread_components(stds, means).clone()
        weights = torch.ones(count) if weights is None else weights
        self.weights = (
            torch.as_tensor(weights, dtype=torch.float64) / torch.as_tensor(weights, dtype=torch.float64).sum()
        )
        self.component_labels = None if labels is None else torch.as_tensor(labels)
        if len(self.weights) != count or (labels is not None and len(labels) != count):
            raise UserError(f"a mixture of {count} means needs {count} weights and labels, not {len(self.weights)}")
        classes = None if labels is None else int(max(labels)) + 1
        super().__init__(
            self.closed_form,
            process or EDM(),
            prediction="x0",
            shape=means.shape[1:],
            classes=classes,
            null={"labels": -1},
        )

    def evaluate(self, x: Tensor, sigma: Tensor, cond: Conditions) -> Tensor:
        return self.closed_form(x, sigma, **cond)

    def closed_form(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """sum_k r_k (m_k + s_k^2 / (s_k^2 + sigma^2) (x - m_k)), r_k the posterior weights; at inf the prior's mean."""
        means, stds = self.means.to(x), self.stds.to(x)
        logs = self.log_weights(len(x), labels).to(x)
        sigma = spread(sigma, x).unsqueeze(1)
        known = torch.isfinite(sigma)
        variance = stds**2 + torch.where(known, sigma, 1.0) ** 2  # (N or 1, K, *shape)
        variance = variance.clamp(min=torch.finfo(x.dtype).tiny)
        off = torch.where(known, x.unsqueeze(1) - means, 0.0)
        log_density = -0.5 * (off**2 / variance + variance.log()).flatten(2).sum(2)
        log_density = torch.where(known.flatten(1).any(1, keepdim=True), log_density, 0.0)
        posterior = (logs + log_density).softmax(1)
        return torch.einsum("nk,nk...->n...", posterior, means + stds**2 / variance * off)

    def log_weights(self, count: int, labels: Tensor | None) -> Tensor:
        logs = self.weights.log().expand(count, -1)
        if labels is None or self.component_labels is None:
            return logs
        wanted = labels.cpu().unsqueeze(1)
        return logs.masked_fill((wanted >= 0) & (wanted != self.component_labels), -math.inf)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Samples of the data itself and the component each came from."""
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(count, *self.shape, generator=generator, dtype=torch.float64)
        return self.means[chosen] + self.stds[chosen] * z, chosen


def spread_components(stds: Tensor, means: Tensor) -> Tensor:
    """stds (), (K,) or (K, *shape) as (K, *shape)."""
    if stds.ndim <= 1:
        stds = stds.reshape(-1, *[1] * (means.ndim - 1))
    return stds.expand_as(means)


class Gaussian(GaussianMixture):
    """One Gaussian: its probability-flow ODE has a closed solution too."""

    name = "gaussian"

    def __init__(self, mean: Tensor, std: Tensor | float, *, process: Process | None = None) -> None:
        mean = torch.as_tensor(mean, dtype=torch.float64)
        std = torch.as_tensor(std, dtype=torch.float64)
        super().__init__(mean.unsqueeze(0), std.unsqueeze(0) if std.ndim else std, process=process)

    def flow(self, x: Tensor, sigma: float, to: float) -> Tensor:
        """x at level `sigma` carried along the ODE to level `to`: m + sqrt((s^2 + to^2) / (s^2 + sigma^2)) (x - m)."""
        mean, variance = self.means[0].to(x), self.stds[0].to(x) ** 2
        if math.isinf(sigma):  # x is unit noise there
            return mean + (variance + to**2).sqrt() * x
        return mean + ((variance + to**2) / (variance + sigma**2)).sqrt() * (x - mean)
