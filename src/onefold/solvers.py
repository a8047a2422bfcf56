"""Solvers: from noise to image along a list of falling levels.

Each solver is a small generator of successive states of dx/dsigma = (x - D(x, sigma)) / sigma. The steps are written as
Euler's, r x + (1 - r) D with r = next / current, plus corrections of higher order, which stays exact in single precision
at sigma in the thousands. What all of them share (the start at inf, an analytic first step, trajectories, checks) is
in `Solver.__call__`:

    x = SOLVERS["dpmpp2m"](denoise, x, grid.sigmas, cond=cond)
    x, states = SOLVERS["euler"](denoise, x, grid.sigmas, trajectory=True)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, overload

import numpy as np
import torch
from torch import Tensor

from onefold.conditions import Conditions
from onefold.errors import UserError, suggest
from onefold.grids import End
from onefold.seeds import NoiseSource

AFS = Literal["ve", "vp"]
Evaluate = Callable[[Tensor, float], Tensor]
Core = Callable[..., Iterator[Tensor]]


class Denoise(Protocol):
    def __call__(self, x: Tensor, sigma: float, cond: Conditions | None, /) -> Tensor: ...


@dataclass(frozen=True)
class Solver:
    """A solver and what is known about it; call it like a function."""

    name: str
    description: str
    core: Core
    calls_per_step: int = 1  # 2, but one in a step to sigma = 0 and in the step from inf
    stochastic: bool = False  # needs noise whatever its settings
    takes_noise: bool = False
    settings: tuple[str, ...] = ()  # further keywords

    @overload
    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        *,
        cond: Conditions | None = None,
        noise: NoiseSource | None = None,
        trajectory: Literal[False] = False,
        afs: AFS | None = None,
        **settings: Any,
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        *,
        cond: Conditions | None = None,
        noise: NoiseSource | None = None,
        trajectory: Literal[True],
        afs: AFS | None = None,
        **settings: Any,
    ) -> tuple[Tensor, list[Tensor]]: ...

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        *,
        cond: Conditions | None = None,
        noise: NoiseSource | None = None,
        trajectory: bool = False,
        afs: AFS | None = None,
        **settings: Any,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """x: the state at sigmas[0], or unit noise where that is inf. `noise` returns fresh unit noise like x. `afs`
        replaces the first network call by an analytic one. With `trajectory` also all states, the start included."""
        for key in settings.keys() - set(self.settings):
            raise UserError(f"solver {self.name!r} has no setting {key!r}{suggest(key, self.settings)}")
        if self.takes_noise:
            settings["noise"] = noise

        def evaluate(state: Tensor, sigma: float) -> Tensor:
            return denoise(state, sigma, cond)

        first = evaluate if afs is None else analytic_first(evaluate, afs)
        states = [x]
        for state in run(self.core, first, x, falling(sigmas), settings):
            states = [*states, state] if trajectory else [state]
        return (states[-1], states) if trajectory else states[-1]


SOLVERS: dict[str, Solver] = {}


def solver(name: str, description: str, **known: Any) -> Callable[[Core], Solver]:
    """Enter a core into the registry."""

    def enter(core: Core) -> Solver:
        SOLVERS[name] = Solver(name, description, core, **known)
        return SOLVERS[name]

    return enter


def get_solver(name: str) -> Solver:
    if name not in SOLVERS:
        raise UserError(f"unknown solver {name!r}{suggest(name, SOLVERS)}")
    return SOLVERS[name]


def run(
    core: Core, evaluate: Evaluate, x: Tensor, sigmas: list[float], settings: Mapping[str, Any]
) -> Iterator[Tensor]:
    """The core, after the step that any solver makes from inf: Euler's limit x1 = D(z, inf) + sigma_1 z, z being x."""
    if math.isinf(sigmas[0]):
        x = euler_step(x, evaluate(x, sigmas[0]), sigmas[0], sigmas[1])
        sigmas = sigmas[1:]
        yield x
    if len(sigmas) > 1:
        yield from core(evaluate, x, sigmas, **settings)


def analytic_first(evaluate: Evaluate, afs: AFS) -> Evaluate:
    """The first denoised image from a formula, later ones from the network."""
    if afs not in ("ve", "vp"):
        raise UserError(f"afs is {afs!r}; it must be 've' (D = 0), 'vp' (the published form) or None")
    first = True

    def either(x: Tensor, sigma: float) -> Tensor:
        nonlocal first
        if not first:
            return evaluate(x, sigma)
        first = False
        return analytic_denoised(x, sigma, afs)

    return either


def analytic_denoised(x: Tensor, sigma: float, afs: AFS) -> Tensor:
    """ve: D = 0, all of x is noise. vp: D = x (1 - sigma / sqrt(1 + sigma^2)), exact to first order for data of variance 1/2;
    at inf both are 0."""
    if afs == "ve" or math.isinf(sigma):
        return torch.zeros_like(x)
    root = math.sqrt(1 + sigma**2)
    return x / (root * (root + sigma))  # = 1 - sigma / root, without the cancellation


def falling(sigmas: Tensor | Sequence[float]) -> list[float]:
    levels = [float(level) for level in (sigmas.tolist() if isinstance(sigmas, Tensor) else sigmas)]
    if len(levels) < 2 or not all(upper > lower for upper, lower in pairwise(levels)) or not levels[-1] >= 0:
        shown = ", ".join(f"{level:.6g}" for level in levels[:8])
        raise UserError(
            f"sigmas must be two levels or more, falling strictly to 0 or above, not [{shown}]; use a Grid's sigmas"
        )
    return levels


# --- first order ------------------------------------------------------------------------------------------------------


def euler_step(x: Tensor, denoised: Tensor, sigma: float, to: float) -> Tensor:
    """r x + (1 - r) D with r = to / sigma; from inf, where x is unit noise, its limit D + to x."""
    if math.isinf(sigma):
        return denoised + to * x
    r = to / sigma
    return r * x + (1 - r) * denoised


@solver("euler", "first order; the same as DDIM and DPM-Solver++ 1")
def euler(evaluate: Evaluate, x: Tensor, sigmas: list[float]) -> Iterator[Tensor]:
    for sigma, to in pairwise(sigmas):
        x = euler_step(x, evaluate(x, sigma), sigma, to)
        yield x


@solver("dpmpp1s", "DPM-Solver++ of order 1, another name of euler")
def dpmpp1s(evaluate: Evaluate, x: Tensor, sigmas: list[float]) -> Iterator[Tensor]:
    yield from euler.core(evaluate, x, sigmas)


@solver("ddim", "the DDIM family: eta=0 is euler, eta=1 ancestral sampling", takes_noise=True, settings=("eta",))
def ddim(
    evaluate: Evaluate, x: Tensor, sigmas: list[float], *, noise: NoiseSource | None = None, eta: float = 0.0
) -> Iterator[Tensor]:
    """x_t = D + sqrt(t^2 - up^2) eps + up z with eps = (x - D) / s and up = eta t sqrt(1 - t^2 / s^2). At eta = 1 this is the
    posterior q(x_t | x_s, x0 = D), which is DDPM's with the small fixed variance."""
    if not 0 <= eta <= 1:
        raise UserError(f"eta is {eta}; it must lie between 0 (deterministic) and 1 (ancestral)")
    if eta > 0 and noise is None:
        raise UserError(
            f"this solver draws noise (eta={eta:g}) and got none; give noise=, a callable returning noise like x"
        )
    for sigma, to in pairwise(sigmas):
        up = eta * to * math.sqrt(1 - (to / sigma) ** 2)
        x = euler_step(x, evaluate(x, sigma), sigma, math.sqrt(to**2 - up**2))
        if up > 0 and noise is not None:
            x = x + up * noise().to(x)
        yield x


@solver("ancestral", "DDPM's ancestral sampling, ddim with eta=1", stochastic=True, takes_noise=True)
def ancestral(
    evaluate: Evaluate, x: Tensor, sigmas: list[float], *, noise: NoiseSource | None = None
) -> Iterator[Tensor]:
    yield from ddim.core(evaluate, x, sigmas, noise=noise, eta=1.0)


# --- second order, two calls a step -----------------------------------------------------------------------------------


@solver("heun", "second order, two calls a step (EDM's)", calls_per_step=2)
def heun(evaluate: Evaluate, x: Tensor, sigmas: list[float]) -> Iterator[Tensor]:
    """Trapezium: the slopes at both ends differ by (D - D') / t, since Euler's step keeps (x - D) / s."""
    for sigma, to in pairwise(sigmas):
        denoised = evaluate(x, sigma)
        x = euler_step(x, denoised, sigma, to)
        if to > 0:
            x = x + (sigma - to) / (2 * to) * (evaluate(x, to) - denoised)
        yield x


@solver("dpm2", "DPM-Solver-2: second order, midpoint in log sigma, two calls a step", calls_per_step=2)
def dpm2(evaluate: Evaluate, x: Tensor, sigmas: list[float]) -> Iterator[Tensor]:
    """The slope of the whole step taken at sqrt(s t)."""
    for sigma, to in pairwise(sigmas):
        denoised = evaluate(x, sigma)
        step = euler_step(x, denoised, sigma, to)
        if to > 0:
            middle = math.sqrt(sigma * to)
            ahead = evaluate(euler_step(x, denoised, sigma, middle), middle)
            step = step + (sigma - to) / middle * (ahead - denoised)
        x = step
        yield x


# --- multistep in log sigma: DPM-Solver++ and UniPC -------------------------------------------------------------------
#
# With h = ln(s / t) and v in [0, 1] the share of the step, the exact step is r x + integral of h e^(h (v - 1)) D(v) dv.
# Its moments for D = 1, v, v^2 are 1 - r, phi2 and -2 phi3, where phi1 = e^-h - 1, phi2 = phi1 / h + 1, phi3 = phi2 / h - 1/2.

History = list[tuple[float, Tensor]]  # (sigma, denoised), oldest first


def step_order(step: int, steps: int, highest: int) -> int:
    """Rising at the start, falling to 1 at the end ("lower_order_final"): 1, 2, 3, ..., 3, 2, 1."""
    return step + 1 if step + 1 < highest else min(highest, steps - step)


def phi2_phi3(h: float) -> tuple[float, float]:
    phi2 = math.expm1(-h) / h + 1
    return phi2, phi2 / h - 0.5


def dpmpp_step(x: Tensor, history: History, to: float, weight3: float = 1.0) -> Tensor:
    """One step of the order that the history allows; `weight3` multiplies the third-order term."""
    (sigma, denoised), *older = reversed(history)
    x = euler_step(x, denoised, sigma, to)
    if not older:
        return x
    h = math.log(sigma / to)
    r0 = math.log(older[0][0] / sigma) / h
    slope = (denoised - older[0][1]) / r0
    if len(older) == 1:
        return x + 0.5 * (1 - to / sigma) * slope
    r1 = math.log(older[1][0] / older[0][0]) / h
    bend = (slope - (older[0][1] - older[1][1]) / r1) / (r0 + r1)  # a divided difference: half the second derivative
    phi2, phi3 = phi2_phi3(h)
    return x + phi2 * (slope + r0 * bend) - weight3 * phi3 * bend


def dpmpp(evaluate: Evaluate, x: Tensor, sigmas: list[float], highest: int, weight3: float = 1.0) -> Iterator[Tensor]:
    history: History = []
    for step, (sigma, to) in enumerate(pairwise(sigmas)):
        history = [*history[1 - highest :], (sigma, evaluate(x, sigma))]
        order = step_order(step, len(sigmas) - 1, highest) if to > 0 else 1
        x = dpmpp_step(x, history[-order:], to, weight3)
        yield x


@solver("dpmpp2m", "DPM-Solver++ 2M: second order, one call a step")
def dpmpp2m(evaluate: Evaluate, x: Tensor, sigmas: list[float]) -> Iterator[Tensor]:
    yield from dpmpp(evaluate, x, sigmas, highest=2)


@solver("dpmpp3m", "DPM-Solver++ 3M as published: three levels, in truth second order")
def dpmpp3m(evaluate: Evaluate, x: Tensor, sigmas: list[float]) -> Iterator[Tensor]:
    yield from dpmpp(evaluate, x, sigmas, highest=3)


@solver("dpmpp3m_exact", "DPM-Solver++ 3M with the weight that makes it third order")
def dpmpp3m_exact(evaluate: Evaluate, x: Tensor, sigmas: list[float]) -> Iterator[Tensor]:
    """The published update gives the bend half of its moment, -2 phi3."""
    yield from dpmpp(evaluate, x, sigmas, highest=3, weight3=2.0)


def unic_step(x: Tensor, history: History, ahead: Tensor, to: float) -> Tensor:
    """UniPC's corrector: the step once more, now knowing the denoised image at its end."""
    (sigma, denoised), *older = reversed(history)
    rise = ahead - denoised
    x = euler_step(x, denoised, sigma, to)
    if not older:
        return x + 0.5 * (1 - to / sigma) * rise
    h = math.log(sigma / to)
    r0 = math.log(older[0][0] / sigma) / h
    bend = (rise - (denoised - older[0][1]) / r0) / (1 + r0)  # of the parabola through v = -r0, 0, 1
    phi2, phi3 = phi2_phi3(h)
    return x + phi2 * (rise - bend) - 2 * phi3 * bend


@solver("unipc2", "UniPC of order 2 (bh2, predicts the image): one call a step")
def unipc2(evaluate: Evaluate, x: Tensor, sigmas: list[float]) -> Iterator[Tensor]:
    """The predictor is 2M's step; each network call also corrects the step that led to it. States are the predictor's."""
    history: History = []
    order, before = 1, x
    for step, (sigma, to) in enumerate(pairwise(sigmas)):
        denoised = evaluate(x, sigma)
        if history:
            x = unic_step(before, history[-order:], denoised, sigma)
        history = [*history[-1:], (sigma, denoised)]
        order = step_order(step, len(sigmas) - 1, 2) if to > 0 else 1
        before = x
        x = dpmpp_step(x, history[-order:], to)
        yield x


# --- multistep in sigma: Adams-Bashforth on the noise -----------------------------------------------------------------

UNIFORM_WEIGHTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def uniform_weights(levels: list[float], _to: float) -> Sequence[float]:
    return UNIFORM_WEIGHTS[len(levels) - 1]


def lagrange_weights(levels: list[float], to: float) -> Sequence[float]:
    """Shares of the step that integrate the polynomial through the levels: the integral over [0, 1] of each Lagrange basis
    polynomial, levels[0] being 0 and `to` 1."""
    places = [(level - levels[0]) / (to - levels[0]) for level in levels]
    weights = []
    for k, place in enumerate(places):
        others = places[:k] + places[k + 1 :]
        basis = np.atleast_1d(np.poly(others)) / math.prod(place - other for other in others)
        weights.append(float(np.polyval(np.polyint(basis), 1.0)))
    return weights


def adams_bashforth(
    evaluate: Evaluate,
    x: Tensor,
    sigmas: list[float],
    highest: int,
    weights: Callable[[list[float], float], Sequence[float]],
) -> Iterator[Tensor]:
    """Euler with the newest noise e = (x - D) / s, plus the weighted differences of the older ones from it.

    A step r x + (1 - r) D + c changes the noise by (D + c - D') / t. Kept in this form the differences are exact at large
    sigma, where the noises themselves agree in all their digits.
    """
    older: list[tuple[float, Tensor]] = []  # (sigma, its noise less the newest), newest first
    reached: tuple[float, Tensor] | None = None  # (sigma, D + c) of the last step
    for sigma, to in pairwise(sigmas):
        denoised = evaluate(x, sigma)
        if reached is not None:
            rise = (reached[1] - denoised) / sigma
            older = [(reached[0], -rise), *((level, off - rise) for level, off in older)][: highest - 1]
        shares = weights([sigma, *(level for level, _ in older)], to)
        correction = torch.zeros_like(x)
        for share, (_, off) in zip(shares[1:], older, strict=True):
            correction = correction + (to - sigma) * share * off
        x = euler_step(x, denoised, sigma, to) + correction
        reached = sigma, denoised + correction
        yield x


def enter_adams_bashforth(name: str, description: str, highest: int, weights: Callable[..., Sequence[float]]) -> Solver:
    def core(evaluate: Evaluate, x: Tensor, sigmas: list[float]) -> Iterator[Tensor]:
        yield from adams_bashforth(evaluate, x, sigmas, highest, weights)

    return solver(name, description)(core)


ipndm1, ipndm2, ipndm3, ipndm4 = (
    enter_adams_bashforth(
        f"ipndm{k}", f"iPNDM of order {k}: Adams-Bashforth, weights of even steps", k, uniform_weights
    )
    for k in (1, 2, 3, 4)
)
ab2, ab3, ab4 = (
    enter_adams_bashforth(f"ab{k}", f"Adams-Bashforth of order {k}, weights of the steps made", k, lagrange_weights)
    for k in (2, 3, 4)
)


# --- counting ---------------------------------------------------------------------------------------------------------


def count_calls(
    solver: str | Solver, steps: int, end: End = "zero", afs: AFS | None = None, *, from_inf: bool = False
) -> int:
    """Network calls that a solver makes for a grid of `steps` steps."""
    known = get_solver(solver) if isinstance(solver, str) else solver
    single = 0 if known.calls_per_step == 1 else min(steps, int(end == "zero") + int(from_inf))
    return known.calls_per_step * steps - single - int(afs is not None)


def steps_for(
    solver: str | Solver, calls: int, end: End = "zero", afs: AFS | None = None, *, from_inf: bool = False
) -> int:
    """The most steps that fit into a number of network calls: the `calls` to make a grid with."""
    if calls < 1:
        raise UserError(f"calls is {calls}; a sample needs one network call at least")
    steps = max(
        (n for n in range(1, calls + 2) if count_calls(solver, n, end, afs, from_inf=from_inf) <= calls), default=0
    )
    if not steps:
        name = solver if isinstance(solver, str) else solver.name
        raise UserError(
            f"{name} cannot make a step with {calls} call; give calls=2 or use a solver with one call a step"
        )
    return steps
