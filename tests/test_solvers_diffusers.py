"""The same model on the same levels, step by step, by our solvers and by diffusers' schedulers.

The schedulers hold float32 tables and some bring samples to float32. To compare to 1e-6 and better, each scheduler's
module is run with float32 standing for float64: its arithmetic is untouched.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from onefold.denoiser import GaussianMixture
from onefold.grids import Grid, karras, logsnr, subsequence
from onefold.process import EDM, DiscreteVP, beta_table, from_x0, zero_terminal_snr
from onefold.solvers import SOLVERS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

DOUBLE = torch.float64
SHAPE = (3, 2, 2)
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TABLE = DiscreteVP.from_betas(beta_table("scaled_linear", start=0.00085, end=0.012))


def mixture() -> GaussianMixture:
    generator = torch.Generator().manual_seed(11)
    means = torch.randn(3, *SHAPE, generator=generator, dtype=DOUBLE) / 2
    return GaussianMixture(means, torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.5, 0.3, 0.2]))


MODEL = mixture()
NOISE = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(12), dtype=DOUBLE)


class Doubled:
    """A module in which float32 is float64."""

    def __init__(self, module: Any, wide: Any) -> None:
        self.module, self.float32 = module, wide

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


Make = Callable[..., Any]


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Make:
    """scheduler("ddim", "DDIMScheduler", **config), all of it in float64."""
    pytest.importorskip("diffusers")

    def make(file: str, name: str, **config: Any) -> Any:
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{file}")
        monkeypatch.setattr(module, "torch", Doubled(torch, torch.float64))
        monkeypatch.setattr(module, "np", Doubled(np, np.float64), raising=False)
        return getattr(module, name)(**config)

    return make


def network(z: Tensor, sigma: float, prediction: str) -> Tensor:
    """The mixture as a VP network at a level."""
    a = 1 / math.sqrt(1 + sigma**2)
    kind: Any = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}[prediction]
    a_and_b = torch.tensor([a, a * sigma], dtype=DOUBLE)
    return from_x0(kind, MODEL(z / a, sigma), z, *a_and_b)


def drive(stock: Any, z: Tensor, sigmas: Tensor, prediction: str = "epsilon", **step: Any) -> list[Tensor]:
    """All states of a scheduler that works in VP coordinates, as x = z / alpha. `sigmas` has the end too."""
    states = [z]
    for time, sigma in zip(stock.timesteps, sigmas[:-1].tolist(), strict=True):
        z = stock.step(network(z, sigma, prediction), time, z, **step).prev_sample
        states.append(z)
    return [state * math.sqrt(1 + sigma**2) for state, sigma in zip(states, sigmas.tolist(), strict=True)]


def same(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-6) -> bool:
    """Equal relative to the level: 1e-6 at states of order 1."""
    assert all(state.dtype == DOUBLE for state in theirs)
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(ours, theirs, strict=True))


def start(sigmas: Tensor) -> Tensor:
    """The VP start: unit noise in network coordinates."""
    return math.sqrt(1 + float(sigmas[0]) ** 2) * NOISE


# --- DDIM and DDPM ----------------------------------------------------------------------------------------------------


def ddim(scheduler: Make, prediction: str, **config: Any) -> Any:
    return scheduler(
        "ddim",
        "DDIMScheduler",
        **BETAS,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type=prediction,
        **config,
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 4, 10, 50])
def test_euler_is_ddim(scheduler: Make, steps: int, prediction: str) -> None:
    stock = ddim(scheduler, prediction)
    stock.set_timesteps(steps)
    sigmas = subsequence(TABLE, steps).sigmas
    assert [int(time) + 1 for time in stock.timesteps] == list(reversed(subsequence(TABLE, steps).phi or ()))
    _, ours = SOLVERS["euler"](MODEL.denoise, start(sigmas), sigmas, trajectory=True)
    assert same(ours, drive(stock, NOISE, sigmas, prediction), 1e-9)


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_ddim_family_is_ddims(scheduler: Make, eta: float) -> None:
    stock = ddim(scheduler, "epsilon")
    stock.set_timesteps(20)
    sigmas = subsequence(TABLE, 20).sigmas
    theirs = drive(stock, NOISE, sigmas, eta=eta, generator=torch.Generator().manual_seed(5))
    own = torch.Generator().manual_seed(5)
    _, ours = SOLVERS["ddim"](
        MODEL.denoise,
        start(sigmas),
        sigmas,
        eta=eta,
        noise=lambda: torch.randn(NOISE.shape, generator=own, dtype=DOUBLE),
        trajectory=True,
    )
    assert same(ours, theirs, 1e-9)


@pytest.mark.parametrize("steps", [5, 1000])
def test_ancestral_is_ddpm_with_the_small_variance(scheduler: Make, steps: int) -> None:
    """Their variance is floored at 1e-20, which leaves 1e-10 of noise in the last step of a sub-sequence."""
    stock = scheduler(
        "ddpm", "DDPMScheduler", **BETAS, timestep_spacing="trailing", clip_sample=False, variance_type="fixed_small"
    )
    stock.set_timesteps(steps)
    sigmas = subsequence(TABLE, steps).sigmas
    theirs = drive(stock, NOISE, sigmas, generator=torch.Generator().manual_seed(5))
    own = torch.Generator().manual_seed(5)
    _, ours = SOLVERS["ancestral"](
        MODEL.denoise,
        start(sigmas),
        sigmas,
        noise=lambda: torch.randn(NOISE.shape, generator=own, dtype=DOUBLE),
        trajectory=True,
    )
    assert same(ours, theirs, 1e-7)


def test_where_ddim_leaves_the_trailing_grid(scheduler: Make) -> None:
    """When N does not divide T, DDIM steps to time t - T // N, which is not the next time of its own list."""
    stock = ddim(scheduler, "epsilon")
    stock.set_timesteps(6)
    times = stock.timesteps.tolist()
    assert times == [step - 1 for step in reversed(subsequence(TABLE, 6).phi or ())]
    theirs, ours = (
        Grid(subsequence(TABLE, phi).sigmas).sigmas for phi in ([times[0] - 1000 // 6 + 1, 1000], [times[1] + 1, 1000])
    )
    z = stock.step(network(NOISE, float(ours[0]), "epsilon"), times[0], NOISE).prev_sample
    for levels, agrees in ((theirs, True), (ours, False)):
        _, states = SOLVERS["euler"](MODEL.denoise, start(levels), levels, trajectory=True)
        assert same([states[1]], [z * math.sqrt(1 + float(levels[1]) ** 2)], 1e-9) == agrees


# --- Euler, Heun, EDM -------------------------------------------------------------------------------------------------


def exploding(stock: Any, x: Tensor, prediction: str = "epsilon") -> list[Tensor]:
    """All states of a scheduler that works on x itself and scales the model's input."""
    states = [x]
    for i, time in enumerate(stock.timesteps):
        sigma = float(stock.sigmas[i])
        output = network(stock.scale_model_input(x, time), sigma, prediction)
        x = stock.step(output, time, x).prev_sample
        states.append(x)
    return states


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 4, 7, 30])
def test_euler_is_euler_discrete(scheduler: Make, steps: int, prediction: str) -> None:
    stock = scheduler(
        "euler_discrete",
        "EulerDiscreteScheduler",
        **BETAS,
        timestep_spacing="trailing",
        prediction_type=prediction,
    )
    stock.set_timesteps(steps)
    sigmas = subsequence(TABLE, steps).sigmas
    assert torch.allclose(stock.sigmas, sigmas, rtol=1e-11, atol=0)
    x = float(sigmas[0]) * NOISE
    _, ours = SOLVERS["euler"](MODEL.denoise, x, sigmas, trajectory=True)
    assert same(ours, exploding(stock, x, prediction), 1e-9)


@pytest.mark.parametrize(("schedule", "option"), [(karras, "use_karras_sigmas"), (logsnr, "use_exponential_sigmas")])
def test_named_schedules_are_those_of_euler_discrete(
    scheduler: Make, schedule: Callable[..., Grid], option: str
) -> None:
    stock = scheduler(
        "euler_discrete", "EulerDiscreteScheduler", **BETAS, timestep_spacing="linspace", **{option: True}
    )
    stock.set_timesteps(8)
    grid = schedule(TABLE, 8)
    assert torch.allclose(stock.sigmas, grid.sigmas, rtol=1e-10, atol=0)
    assert grid.times is not None
    assert torch.allclose(stock.timesteps, grid.times, rtol=0, atol=1e-8)  # sigma to time, linear in log sigma


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_heun_is_heun_discrete(scheduler: Make, steps: int) -> None:
    stock = scheduler("heun_discrete", "HeunDiscreteScheduler", **BETAS, timestep_spacing="trailing")
    stock.set_timesteps(steps)
    sigmas = subsequence(TABLE, steps).sigmas
    x = float(sigmas[0]) * NOISE
    teacher = mixture()
    _, ours = SOLVERS["heun"](teacher.denoise, x, sigmas, trajectory=True)
    states = exploding(stock, x)  # theirs shows the Euler half of each step too
    assert same(ours, [states[0], *states[2::2], states[-1]] if steps > 1 else states, 1e-9)
    assert teacher.calls == len(stock.timesteps)


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_euler_is_edm_euler(scheduler: Make, final: str) -> None:
    """EDM's preconditioning on its own levels. Their final_sigmas_type="sigma_min" repeats the last level, a step of length
    0 after a call; our end="sigma_min" reaches sigma_min in N calls. Their start, sqrt(sigma_max^2 + 1) z, is not ours."""
    stock = scheduler("edm_euler", "EDMEulerScheduler", final_sigmas_type=final)
    stock.set_timesteps(7)
    grid = karras(EDM(), 7)
    assert torch.allclose(stock.sigmas[:-1], grid.sigmas[:-1], rtol=1e-11)
    assert float(stock.sigmas[-1]) == pytest.approx(0 if final == "zero" else 0.002, rel=1e-7)
    x = EDM().prior(NOISE)
    assert stock.init_noise_sigma == pytest.approx(math.sqrt(80**2 + 1))
    _, ours = SOLVERS["euler"](MODEL.denoise, x, grid.sigmas, trajectory=True)
    states = [x]
    for time, sigma in zip(stock.timesteps, grid.sigmas[:-1].tolist(), strict=True):
        a, b = EDM().scales(sigma)
        z = stock.scale_model_input(x, time)
        assert torch.allclose(z, a * x, rtol=1e-9)
        output = from_x0("edm", MODEL(x, sigma), z, a, b, 0.5)
        x = stock.step(output, time, x).prev_sample
        states.append(x)
    if final == "zero":
        assert same(ours, states)
    else:
        assert same(ours[:-1], states[:-1])
        assert torch.allclose(states[-1], states[-2], rtol=0, atol=1e-8)


# --- multistep --------------------------------------------------------------------------------------------------------


def multistep(scheduler: Make, file: str, name: str, order: int, **config: Any) -> Any:
    return scheduler(
        file,
        name,
        **BETAS,
        solver_order=order,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
        lower_order_final=True,
        **config,
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("solver", "order"), [("dpmpp1s", 1), ("dpmpp2m", 2), ("dpmpp3m", 3)])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10])
def test_dpmpp_is_dpm_solver_multistep(scheduler: Make, steps: int, solver: str, order: int, prediction: str) -> None:
    stock = multistep(
        scheduler, "dpmsolver_multistep", "DPMSolverMultistepScheduler", order, prediction_type=prediction
    )
    stock.set_timesteps(steps)
    sigmas = subsequence(TABLE, steps).sigmas
    assert torch.allclose(stock.sigmas, sigmas, rtol=1e-11, atol=0)
    _, ours = SOLVERS[solver](MODEL.denoise, start(sigmas), sigmas, trajectory=True)
    assert same(ours, drive(stock, NOISE, sigmas, prediction), 1e-9)


def test_where_3m_differs_from_15_steps_on(scheduler: Make) -> None:
    """We lower the order of the last step but one at every N, as published; diffusers does so below 15 steps only."""
    stock = multistep(scheduler, "dpmsolver_multistep", "DPMSolverMultistepScheduler", 3)
    stock.set_timesteps(20)
    sigmas = subsequence(TABLE, 20).sigmas
    _, ours = SOLVERS["dpmpp3m"](MODEL.denoise, start(sigmas), sigmas, trajectory=True)
    theirs = drive(stock, NOISE, sigmas)
    assert same(ours[:-2], theirs[:-2], 1e-9)
    assert not same(ours[-2:-1], theirs[-2:-1], 1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20])
def test_unipc_is_unipc_multistep(scheduler: Make, steps: int, prediction: str) -> None:
    stock = multistep(scheduler, "unipc_multistep", "UniPCMultistepScheduler", 2, prediction_type=prediction)
    stock.set_timesteps(steps)
    sigmas = subsequence(TABLE, steps).sigmas
    _, ours = SOLVERS["unipc2"](MODEL.denoise, start(sigmas), sigmas, trajectory=True)
    assert same(ours, drive(stock, NOISE, sigmas, prediction), 1e-8)


def test_ipndm_agrees_on_its_own_process_from_the_second_level(scheduler: Make) -> None:
    """diffusers' IPNDM runs on a process of its own, sigma = sin^2(pi u / 2), alpha^2 = 1 - sigma^2, u = 1 to 0, whatever
    the model's table. It starts at alpha = 0, where eps = z for any v-prediction: that step is x1 = sigma_1 z, but it stays
    in its history, while our solvers begin their history at the first finite level. Started there, all states agree."""
    stock = scheduler("ipndm", "IPNDMScheduler")
    stock.set_timesteps(9)
    stock.betas = stock.betas.double()
    stock.alphas = (1 - stock.betas**2).sqrt()
    levels = stock.betas / stock.alphas
    assert float(levels[0]) > 1e6
    assert not any(torch.isclose(TABLE.sigmas, level, rtol=1e-5).any() for level in levels[1:-1])

    stock.set_begin_index(1)
    z = NOISE
    theirs = [z / stock.alphas[1]]
    for i, time in enumerate(stock.timesteps[1:].tolist(), 1):
        a, b = stock.alphas[i], stock.betas[i]
        v = from_x0("v", MODEL(z / a, float(levels[i])), z, a, b)
        z = stock.step(v, time, z).prev_sample
        theirs.append(z / stock.alphas[i + 1])
    _, ours = SOLVERS["ipndm4"](MODEL.denoise, theirs[0], levels[1:], trajectory=True)
    assert same(ours, theirs, 1e-7)


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_beta_tables_are_those_of_the_schedulers(scheduler: Make, schedule: str) -> None:
    stock = scheduler("ddpm", "DDPMScheduler", beta_schedule=schedule)
    tolerance = 1e-10 if stock.betas.dtype == DOUBLE else 1e-5  # their sigmoid stays in float32
    assert torch.allclose(beta_table(schedule), stock.betas.double(), rtol=tolerance, atol=0)
    table = DiscreteVP.from_betas(beta_table(schedule)).alphas_cumprod
    assert torch.allclose(table, stock.alphas_cumprod.double(), rtol=tolerance, atol=0)


def test_zero_terminal_snr_is_that_of_the_schedulers(scheduler: Make) -> None:
    stock = ddim(scheduler, "v_prediction", rescale_betas_zero_snr=True)
    ours = zero_terminal_snr(TABLE.alphas_cumprod)
    assert torch.allclose(ours, stock.alphas_cumprod, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_from_inf_ddim_agrees_at_zero_terminal_snr(scheduler: Make, steps: int) -> None:
    """v-prediction, starting where the state holds no signal: DDIM in network coordinates, ours from inf."""
    stock = ddim(scheduler, "v_prediction", rescale_betas_zero_snr=True)
    stock.set_timesteps(steps)
    process = DiscreteVP(zero_terminal_snr(TABLE.alphas_cumprod))
    sigmas = subsequence(process, steps).sigmas
    assert sigmas[0] == math.inf
    _, ours = SOLVERS["euler"](MODEL.denoise, NOISE, sigmas, trajectory=True)
    z = NOISE
    for i, (time, sigma) in enumerate(zip(stock.timesteps, sigmas[:-1].tolist(), strict=True)):
        a, b = process.scales(sigma)
        v = from_x0("v", MODEL(z if math.isinf(sigma) else z / a, sigma), z, a, b)
        z = stock.step(v, time, z).prev_sample
        after, _ = process.scales(sigmas[i + 1])
        assert torch.allclose(z, after * ours[i + 1], rtol=0, atol=1e-6)
