"""Noise processes: how a network's own coordinates and time relate to sigma.

Every model is a denoiser in variance-exploding coordinates, x = x0 + sigma * eps. A process says what a network saw of
such a state in training, z = a * x = a * x0 + b * eps with a = alpha(sigma) and b = a * sigma, and which time it was
told. All of it is float64 on the CPU; tensors keep their shape.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from onefold.errors import UserError, suggest

Prediction = Literal["eps", "x0", "v", "flow", "edm"]
PREDICTIONS: tuple[Prediction, ...] = ("eps", "x0", "v", "flow", "edm")


def as_sigma(sigma: float | Sequence[float] | Tensor) -> Tensor:
    return torch.as_tensor(sigma, dtype=torch.float64, device="cpu")


class Process(ABC):
    """Scale and time of a network's input at noise level sigma."""

    sigma_min: float
    sigma_max: float  # where sampling starts; inf when the last state holds no signal at all
    predictions: tuple[Prediction, ...] = ("eps", "x0")
    sigma_data: float = 1.0  # of EDM's preconditioning
    floor: float = 0.0  # the level at which it is the identity: 0, or the lowest of a consistency model

    @property
    def sigma_top(self) -> float:
        """The largest finite level worth a step."""
        return self.sigma_max

    @abstractmethod
    def alpha(self, sigma: Tensor) -> Tensor:
        """a: the network sees a * x."""

    @abstractmethod
    def time(self, sigma: Tensor) -> Tensor:
        """The network's own time at a noise level."""

    @abstractmethod
    def sigma(self, time: Tensor) -> Tensor:
        """The noise level at a network time."""

    def scales(self, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of z = a * x0 + b * eps; (0, 1) at sigma = inf."""
        sigma = as_sigma(sigma)
        a = self.alpha(sigma)
        return a, torch.where(torch.isinf(sigma), torch.ones_like(a), a * torch.where(torch.isinf(sigma), 0.0, sigma))

    def prior(self, z: Tensor, sigma: float | None = None) -> Tensor:
        """The start from unit noise. At sigma = inf the state itself is infinite, so its network coordinates, z, are given."""
        sigma = self.sigma_max if sigma is None else sigma
        return z if math.isinf(sigma) else self.prior_scale(sigma) * z

    def prior_scale(self, sigma: float) -> float:
        """Networks that see unit variance at the start get just that: a * scale = 1."""
        return 1.0 / float(self.alpha(as_sigma(sigma)))

    def training_sigma(self, u: Tensor) -> Tensor:
        """Noise levels to train at, from uniform numbers: log sigma symmetric about 0, the cosine density tan(pi u / 2)."""
        low, high = (math.atan(s) for s in (self.sigma_min, self.sigma_max))
        return torch.tan(low + (high - low) * u).clamp(self.sigma_min, self.sigma_top)


class Tabled(Process):
    """A network that was told the 0-based index of one of T levels. A last level may be inf (zero-terminal SNR)."""

    sigmas: Tensor  # rising

    def set_table(self, sigmas: Tensor) -> None:
        finite = sigmas[torch.isfinite(sigmas)]
        if not len(finite):
            raise UserError("a table of noise levels has none with signal; at least one entry must be finite")
        self.sigmas, self.log_sigmas = sigmas, finite.log()
        self.sigma_min, self.sigma_max = float(sigmas[0]), float(sigmas[-1])

    @property
    def sigma_top(self) -> float:
        return float(self.sigmas[len(self.log_sigmas) - 1])

    def time(self, sigma: Tensor) -> Tensor:
        """Linear in log sigma between the table's entries, clamped to them."""
        time = interpolate(sigma.log(), self.log_sigmas, torch.arange(len(self.log_sigmas), dtype=torch.float64))
        return torch.where(torch.isinf(sigma), float(len(self.sigmas) - 1), time)

    def sigma(self, time: Tensor) -> Tensor:
        index = torch.arange(len(self.log_sigmas), dtype=torch.float64)
        sigma = interpolate(time.to(torch.float64), index, self.log_sigmas).exp()
        return torch.where(time >= len(self.sigmas) - 1, self.sigma_max, sigma)


class DiscreteVP(Tabled):
    """Variance preserving with a table of levels: a = 1 / sqrt(1 + sigma^2), time = 0-based index into the table.

    A zero in the last place (zero-terminal SNR) is the level inf.
    """

    predictions = ("eps", "x0", "v")

    def __init__(self, alphas_cumprod: Sequence[float] | Tensor) -> None:
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device="cpu").flatten()
        falling = len(table) > 0 and bool((table.diff() < 0).all()) and float(table[-1]) >= 0 and float(table[0]) < 1
        if not falling:
            raise UserError("alphas_cumprod must fall strictly from below 1 to 0 or more; check the scheduler's betas")
        self.alphas_cumprod = table
        self.set_table(((1 - table) / table).sqrt())

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor) -> DiscreteVP:
        return cls((1 - torch.as_tensor(betas, dtype=torch.float64, device="cpu")).cumprod(0))

    def alpha(self, sigma: Tensor) -> Tensor:
        return 1.0 / (1.0 + sigma**2).sqrt()


class ContinuousVP(Process):
    """Variance preserving with beta(t) linear in t: sigma(t)^2 = exp(t^2 (beta_max - beta_min) / 2 + t beta_min) - 1."""

    predictions = ("eps", "x0", "v")

    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, *, t_min: float = 1e-3, time_scale: float = 1.0
    ) -> None:
        self.beta_min, self.beta_slope, self.time_scale = beta_min, beta_max - beta_min, time_scale
        ends = self.sigma(torch.tensor([t_min, 1.0], dtype=torch.float64) * time_scale)
        self.sigma_min, self.sigma_max = float(ends[0]), float(ends[1])

    def alpha(self, sigma: Tensor) -> Tensor:
        return 1.0 / (1.0 + sigma**2).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        log = torch.log1p(sigma**2)
        # the positive root of beta_slope t^2 / 2 + beta_min t = log, in the form that does not cancel
        return self.time_scale * 2 * log / (self.beta_min + (self.beta_min**2 + 2 * self.beta_slope * log).sqrt())

    def sigma(self, time: Tensor) -> Tensor:
        t = time.to(torch.float64) / self.time_scale
        return torch.expm1(t**2 * self.beta_slope / 2 + t * self.beta_min).sqrt()


class EDM(Process):
    """Karras et al. 2022: a = c_in = 1 / sqrt(sigma^2 + sigma_data^2), time = ln(sigma) / 4, start at sigma_max * z.

    Consistency models (Song et al. 2023) are the same with c_skip and c_out of a `floor`, and another scale of the time.
    """

    predictions = ("eps", "x0", "edm")

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        *,
        floor: float = 0.0,
        time_scale: float = 1.0,
    ) -> None:
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data
        self.floor, self.time_scale = floor, time_scale

    def alpha(self, sigma: Tensor) -> Tensor:
        return 1.0 / (sigma**2 + self.sigma_data**2).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return self.time_scale * sigma.log() / 4

    def sigma(self, time: Tensor) -> Tensor:
        return (4 * time.to(torch.float64) / self.time_scale).exp()

    def prior_scale(self, sigma: float) -> float:
        return sigma

    def training_sigma(self, u: Tensor) -> Tensor:
        """ln sigma ~ N(-1.2, 1.2^2), cut to the range."""
        edges = (torch.tensor([self.sigma_min, self.sigma_max], dtype=torch.float64).log() + 1.2) / 1.2
        low, high = torch.special.ndtr(edges)
        log_sigma: Tensor = 1.2 * torch.special.ndtri(low + (high - low) * u) - 1.2
        return log_sigma.exp().clamp(self.sigma_min, self.sigma_max)


class VE(Process):
    """Variance exploding without any scaling: a = 1, time = ln(sigma / 2) as in the NCSN++ networks, or sigma itself."""

    def __init__(
        self, sigma_min: float = 0.02, sigma_max: float = 100.0, time: Literal["log", "sigma"] = "log"
    ) -> None:
        self.sigma_min, self.sigma_max, self.log_time = sigma_min, sigma_max, time == "log"

    def alpha(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def time(self, sigma: Tensor) -> Tensor:
        return (sigma / 2).log() if self.log_time else sigma

    def sigma(self, time: Tensor) -> Tensor:
        time = time.to(torch.float64)
        return 2 * time.exp() if self.log_time else time

    def prior_scale(self, sigma: float) -> float:
        return sigma

    def scales(self, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        if torch.isinf(as_sigma(sigma)).any():
            raise UserError(
                "a variance-exploding network has no input at sigma = inf; start the grid at a finite level"
            )
        return super().scales(sigma)


class Flow(Process):
    """Rectified flow: z = (1 - t) x0 + t eps, so sigma = t / (1 - t), a = 1 / (1 + sigma), and t = 1 is sigma = inf."""

    predictions = ("eps", "x0", "flow")

    def __init__(self, time_scale: float = 1000.0, sigma_min: float = 1e-3, sigma_top: float = 80.0) -> None:
        self.time_scale, self.sigma_min, self.sigma_max, self.top = time_scale, sigma_min, math.inf, sigma_top

    @property
    def sigma_top(self) -> float:
        return self.top

    def alpha(self, sigma: Tensor) -> Tensor:
        return 1.0 / (1.0 + sigma)

    def time(self, sigma: Tensor) -> Tensor:
        return self.time_scale * torch.where(torch.isinf(sigma), 1.0, sigma / (1 + sigma))

    def sigma(self, time: Tensor) -> Tensor:
        t = time.to(torch.float64) / self.time_scale
        return t / (1 - t)

    def training_sigma(self, u: Tensor) -> Tensor:
        return self.sigma(u * self.time_scale).clamp(min=self.sigma_min)


class Indexed(Tabled):
    """The coordinates of another process, of which some levels are kept and told by their index."""

    def __init__(self, process: Process, sigmas: Sequence[float] | Tensor) -> None:
        sigmas = as_sigma(sigmas).flatten()
        if not len(sigmas) or not bool((sigmas.diff() > 0).all()) or not float(sigmas[0]) > 0:
            raise UserError(f"a table of noise levels must rise strictly from above 0, not {sigmas.tolist()[:8]}")
        self.whole = process
        self.predictions, self.sigma_data, self.floor = process.predictions, process.sigma_data, process.floor
        self.set_table(sigmas)

    def alpha(self, sigma: Tensor) -> Tensor:
        return self.whole.alpha(sigma)

    def scales(self, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        return self.whole.scales(sigma)

    def prior_scale(self, sigma: float) -> float:
        return self.whole.prior_scale(sigma)


def indexed(process: Process, sigmas: Tensor) -> Tabled:
    """The process of a student that knows these rising levels only, by their index: variance preserving models stay such."""
    if isinstance(process, DiscreteVP):
        places = torch.searchsorted(process.sigmas, sigmas)
        inside = process.sigmas[places.clamp(max=len(process.sigmas) - 1)]
        if torch.equal(inside, sigmas):  # entries of its table keep their alphas to the last bit
            return DiscreteVP(process.alphas_cumprod[places])
    if isinstance(process, (DiscreteVP, ContinuousVP)):
        return DiscreteVP(1 / (1 + sigmas**2))
    return Indexed(process.whole if isinstance(process, Indexed) else process, sigmas)


def interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear through (xs, ys), xs increasing, clamped at both ends; exact at the nodes."""
    if len(xs) == 1:
        return ys[0].expand(x.shape).clone()
    right = torch.searchsorted(xs, x.contiguous()).clamp(1, len(xs) - 1)
    share = ((x - xs[right - 1]) / (xs[right] - xs[right - 1])).clamp(0, 1)
    return torch.lerp(ys[right - 1], ys[right], share)


def to_x0(
    kind: Prediction, output: Tensor, z: Tensor, a: Tensor, b: Tensor, sigma_data: float = 1.0, floor: float = 0.0
) -> Tensor:
    """The clean image that a network's output stands for, given its input z = a x0 + b eps."""
    match kind:
        case "x0":
            return output
        case "eps":
            return (z - b * output) / a
        case "v":  # v = a eps - b x0 with a^2 + b^2 = 1
            return a * z - b * output
        case "flow":  # velocity eps - x0 with a + b = 1
            return z - b * output
        case "edm":  # c_skip x + c_out F, written with a = c_in
            skip, out = edm_scales(a, b, sigma_data, floor)
            return skip * z + out * output
    raise UserError(f"unknown prediction type {kind!r}{suggest(str(kind), PREDICTIONS)}")


def from_x0(
    kind: Prediction, x0: Tensor, z: Tensor, a: Tensor, b: Tensor, sigma_data: float = 1.0, floor: float = 0.0
) -> Tensor:
    """The output a network would have to give for x0 at input z: the inverse of `to_x0`, and the target of training."""
    match kind:
        case "x0":
            return x0
        case "eps":
            return (z - a * x0) / b
        case "v":
            return (a * z - x0) / b
        case "flow":
            return (z - x0) / b
        case "edm":
            skip, out = edm_scales(a, b, sigma_data, floor)
            return (x0 - skip * z) / out
    raise UserError(f"unknown prediction type {kind!r}{suggest(str(kind), PREDICTIONS)}")


def edm_scales(a: Tensor, b: Tensor, sigma_data: float, floor: float) -> tuple[Tensor, Tensor]:
    """x0 = skip z + out F. With s = sigma - floor: skip = sigma_data^2 / (a (s^2 + sigma_data^2)), out = a s sigma_data."""
    if not floor:
        return sigma_data**2 * a, sigma_data * b
    s = b / a - floor
    return sigma_data**2 / (a * (s**2 + sigma_data**2)), sigma_data * a * s


def beta_table(schedule: str, steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """The named beta schedules of the field, in float64; diffusers knows all but "sigmoid_alpha" by these names."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    match schedule:
        case "linear":
            return ramp * (end - start) + start
        case "scaled_linear":
            return (ramp * (math.sqrt(end) - math.sqrt(start)) + math.sqrt(start)).square()
        case "sigmoid":
            return torch.sigmoid(12 * ramp - 6) * (end - start) + start
        case "sigmoid_alpha":  # of SFDDM's runs: A itself is a sigmoid, from 1 to 0
            edge = torch.sigmoid(3 - 6 * torch.linspace(0, 1, steps + 1, dtype=torch.float64))
            return falling_betas(edge - edge[-1])
        case "squaredcos_cap_v2":
            angle = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2
            return falling_betas(torch.cos(angle) ** 2)
    known = ("linear", "scaled_linear", "sigmoid", "sigmoid_alpha", "squaredcos_cap_v2")
    raise UserError(f"unknown beta schedule {schedule!r}{suggest(schedule, known)}")


def falling_betas(edge: Tensor) -> Tensor:
    """Betas whose alphas_cumprod follow a curve from edge[0] down to 0, cut where it would end."""
    return (1 - edge[1:] / edge[:-1]).clamp(max=0.999)


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale sqrt(alphas_cumprod) so that the last level holds no signal and the first stays (Lin et al. 2023)."""
    root = alphas_cumprod.to(torch.float64).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root.square()
