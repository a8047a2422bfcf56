"""Solvers: order, exactness on problems with closed solutions, counts of calls, AFS, starts at inf, precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from onefold import solvers
from onefold.denoiser import Denoiser, Gaussian, GaussianMixture
from onefold.errors import UserError
from onefold.grids import explicit, karras, subsequence, uniform
from onefold.process import EDM, ContinuousVP, DiscreteVP, Flow, beta_table, from_x0, zero_terminal_snr
from onefold.seeds import ImageNoise
from onefold.solvers import SOLVERS, count_calls, get_solver, lagrange_weights, step_order, steps_for

DOUBLE = torch.float64
DETERMINISTIC = [name for name, solver in SOLVERS.items() if not solver.stochastic]
SINGLE = [name for name, solver in SOLVERS.items() if solver.calls_per_step == 1]
MIXTURE = GaussianMixture(
    torch.tensor([[-1.0], [0.3], [1.2]]), torch.tensor([0.1, 0.3, 0.2]), torch.tensor([0.3, 0.3, 0.4])
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def zeros() -> Tensor:
    return torch.zeros(1, dtype=DOUBLE)


def noise_for(x: Tensor) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(7)
    return lambda: torch.randn(x.shape, generator=generator, dtype=DOUBLE)


# --- order ------------------------------------------------------------------------------------------------------------


def power_grid(steps: int) -> Tensor:
    return karras(EDM(), steps, end="sigma_min", sigma_min=0.006).sigmas


@pytest.fixture(scope="module")
def reference() -> Tensor:
    """Fourth order on a grid so fine that doubling it moves the result by 1e-9."""
    return SOLVERS["ab4"](MIXTURE.denoise, 80 * normal(32, 1), power_grid(3000))


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("euler", 1.0),
        ("dpmpp1s", 1.0),
        ("ddim", 1.0),
        ("heun", 2.0),
        ("dpm2", 2.0),
        ("dpmpp2m", 2.0),
        ("dpmpp3m", 2.04),  # the published update is of second order only
        ("dpmpp3m_exact", 3.1),
        ("unipc2", 3.0),  # the corrector raises the order by one
        ("ipndm1", 1.0),
        ("ipndm2", 2.0),
        ("ipndm3", 2.0),  # weights of even steps on an uneven grid
        ("ipndm4", 2.0),
        ("ab2", 1.96),
        ("ab3", 2.9),
        ("ab4", 3.9),
    ],
)
def test_order_of_convergence(name: str, order: float, reference: Tensor) -> None:
    x = 80 * normal(32, 1)
    coarse, fine = ((SOLVERS[name](MIXTURE.denoise, x, power_grid(n)) - reference).square().mean() for n in (192, 384))
    assert math.log2(math.sqrt(float(coarse / fine))) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_solver_approaches_the_closed_solution(name: str) -> None:
    teacher = Gaussian(torch.tensor([0.3, -0.5]), torch.tensor([0.5, 0.2]))
    x = 80 * normal(8, 2)
    given = SOLVERS[name](teacher.denoise, x, power_grid(384))
    error = float((given - teacher.flow(x, 80.0, 0.006)).abs().max())
    assert error < (2e-2 if name in ("euler", "ddim", "dpmpp1s", "ipndm1") else 4e-4)


# --- exactness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [0.0, 0.3])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_constant_image_is_reached_exactly(name: str, end: float) -> None:
    """With D = m the solution is m + (sigma / sigma_0) (x - m), a straight line for every solver."""
    x, image = 50 * normal(4, 3), normal(3, seed=1)
    levels = [50.0, 20.0, 9.0, 2.0, 1.5, 0.7, end]
    _, states = SOLVERS[name](lambda x, s, c: image.expand_as(x), x, levels, trajectory=True)
    assert len(states) == len(levels)
    for level, state in zip(levels, states, strict=True):
        assert torch.allclose(state, image + level / 50 * (x - image), rtol=0, atol=1e-12)


LEVELS = [20.0, 13.0, 10.0, 5.0, 3.5, 2.0, 1.6, 0.9, 0.5]


@pytest.mark.parametrize("highest", [2, 3, 4])
def test_adams_bashforth_integrates_polynomials_exactly(highest: int) -> None:
    """With noise p(sigma) of degree below the order, each step after the start-up adds the integral of p."""
    p = [0.7, -0.3, 0.05, -0.002][:highest]

    def integral(sigma: float) -> float:
        return sum(c * sigma ** (k + 1) / (k + 1) for k, c in enumerate(p))

    def denoise(x: Tensor, sigma: float, cond: object) -> Tensor:
        return x - sigma * sum(c * sigma**k for k, c in enumerate(p))

    _, states = SOLVERS[f"ab{highest}"](denoise, zeros(), LEVELS, trajectory=True)
    errors = [
        float(states[i + 1] - states[i]) - (integral(LEVELS[i + 1]) - integral(LEVELS[i]))
        for i in range(len(LEVELS) - 1)
    ]
    assert all(abs(error) < 1e-9 for error in errors[highest - 1 :])
    assert abs(errors[0]) > 1e-3  # the first step is Euler's


def test_even_steps_have_the_known_adams_bashforth_weights() -> None:
    for weights in solvers.UNIFORM_WEIGHTS:
        assert sum(weights) == pytest.approx(1)
        levels = [3.0 + k for k in range(len(weights))]
        assert lagrange_weights(levels, 2.0) == pytest.approx(weights)


def test_third_order_steps_integrate_parabolas_in_log_sigma() -> None:
    """With D = c0 + c1 l + c2 l^2, l = -ln sigma, the exact step has a closed form. The exact variant makes it; the
    published one misses -phi3 times the bend c2 h^2."""
    c0, c1, c2 = 0.2, -0.4, 0.3

    def denoise(x: Tensor, sigma: float, cond: object) -> Tensor:
        level = -math.log(sigma)
        return torch.full_like(x, c0 + c1 * level + c2 * level**2)

    def exact(x: float, s: float, t: float) -> float:
        # sigma (x / sigma)' = -D / sigma, and the integral of e^l (c0 + c1 l + c2 l^2) is e^l times a parabola
        def primitive(sigma: float) -> float:
            level = -math.log(sigma)
            return (c0 - c1 + 2 * c2 + (c1 - 2 * c2) * level + c2 * level**2) / sigma

        return t * (x / s + primitive(t) - primitive(s))

    for name in ("dpmpp3m_exact", "dpmpp3m"):
        _, states = SOLVERS[name](denoise, zeros(), LEVELS, trajectory=True)
        values = [float(state) for state in states]
        for i in range(2, len(LEVELS) - 3):
            h = math.log(LEVELS[i] / LEVELS[i + 1])
            phi3 = ((math.exp(-h) - 1) / h + 1) / h - 0.5
            missing = 0.0 if name == "dpmpp3m_exact" else phi3 * c2 * h**2
            assert values[i + 1] - exact(values[i], LEVELS[i], LEVELS[i + 1]) == pytest.approx(missing, abs=1e-12)


def test_heun_and_dpm2_are_their_textbook_forms() -> None:
    x, s, t = normal(4, 1), 3.0, 1.2
    slope = lambda x, sigma: (x - MIXTURE(x, sigma)) / sigma  # noqa: E731
    first = slope(x, s)
    trapezium = x + (t - s) * (first + slope(x + (t - s) * first, t)) / 2
    assert torch.allclose(SOLVERS["heun"](MIXTURE.denoise, x, [s, t]), trapezium, rtol=0, atol=1e-12)
    middle = math.sqrt(s * t)
    midpoint = x + (t - s) * slope(x + (middle - s) * first, middle)
    assert torch.allclose(SOLVERS["dpm2"](MIXTURE.denoise, x, [s, t]), midpoint, rtol=0, atol=1e-12)


def test_four_names_of_the_first_order() -> None:
    """Euler = DPM-Solver++ 1 = iPNDM 1 = DDIM at every state, each from its own formula."""
    process, levels = ContinuousVP(), karras(ContinuousVP(), 12).sigmas
    x = process.prior(normal(4, 1))
    _, states = SOLVERS["euler"](MIXTURE.denoise, x, levels, trajectory=True)
    for name in ("dpmpp1s", "ipndm1", "ddim"):
        _, others = SOLVERS[name](MIXTURE.denoise, x, levels, trajectory=True)
        assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(states, others, strict=True))
    # slopes in sigma; 1 - e^-h in log sigma; and DDIM in the network's coordinates
    slope, expo, z = x, x, float(process.alpha(levels[0])) * x
    for s, t, state in zip(levels.tolist(), levels[1:].tolist(), states[1:], strict=False):
        slope = slope + (t - s) * (slope - MIXTURE(slope, s)) / s
        expo = t / s * expo + (1 - t / s) * MIXTURE(expo, s)
        a, a_next = (1 / math.sqrt(1 + level**2) for level in (s, t))
        x0 = MIXTURE(z / a, s)
        eps = (z - a * x0) / math.sqrt(1 - a**2)
        z = a_next * x0 + math.sqrt(1 - a_next**2) * eps
        for other in (slope, expo, z / a_next):
            assert torch.allclose(other, state, rtol=0, atol=1e-6)


def test_euler_with_the_true_image_stays_on_its_line() -> None:
    x0, eps = normal(2, 5), normal(2, 5, seed=1)
    _, states = SOLVERS["euler"](lambda x, s, c: x0, x0 + 9 * eps, [9.0, 2.0, 0.1, 0.0], trajectory=True)
    for level, state in zip([9.0, 2.0, 0.1, 0.0], states, strict=True):
        assert torch.allclose(state, x0 + level * eps, rtol=0, atol=1e-14)
    assert torch.equal(states[-1], x0)


# --- the DDIM family --------------------------------------------------------------------------------------------------


def moments_of_a_step(eta: float, s: float, t: float) -> tuple[float, float, float]:
    """x_t = on_image * D + on_state * x + spread * z of one step, measured with unit inputs."""

    def step(image: float, x: float, z: float) -> float:
        given = SOLVERS["ddim"](
            lambda state, sigma, cond: torch.full_like(state, image),
            torch.full((1,), x, dtype=DOUBLE),
            [s, t],
            noise=lambda: torch.full((1,), z, dtype=DOUBLE),
            eta=eta,
        )
        return float(given)

    return step(1, 0, 0), step(0, 1, 0), step(0, 0, 1)


def test_eta_one_is_the_posterior_of_the_student_process() -> None:
    """mu = sqrt(A') b / (1 - A) x0 + sqrt(a) (1 - A') / (1 - A) x_t, variance b (1 - A') / (1 - A), with a = A / A', b = 1 - a."""
    process = DiscreteVP.from_betas(beta_table("linear"))
    levels = subsequence(process, 10).sigmas[:-1].tolist()
    for s, t in [*pairwise(levels), (levels[-1], 0.0)]:
        A, A_next = 1 / (1 + s**2), 1 / (1 + t**2)
        a, b = A / A_next, 1 - A / A_next
        image, state, spread = moments_of_a_step(1.0, s, t)
        root, root_next = math.sqrt(A), math.sqrt(A_next)  # from states of the process to x = state / root
        assert image * root_next == pytest.approx(math.sqrt(A_next) * b / (1 - A), rel=1e-9)
        assert state * root_next / root == pytest.approx(math.sqrt(a) * (1 - A_next) / (1 - A), rel=1e-9)
        assert (spread * root_next) ** 2 == pytest.approx(b * (1 - A_next) / (1 - A), rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.8, 1.0])
def test_every_eta_keeps_the_marginal(eta: float) -> None:
    """From x0 + s eps to x0 + t eps' with unit eps': the image has weight 1 and the variances add up to t^2."""
    s, t = 3.0, 1.1
    image, state, spread = moments_of_a_step(eta, s, t)
    assert image + state == pytest.approx(1, rel=1e-12)
    assert (state * s) ** 2 + spread**2 == pytest.approx(t**2, rel=1e-12)
    assert spread == pytest.approx(eta * t * math.sqrt(1 - (t / s) ** 2), rel=1e-12)


def test_ancestral_is_ddim_with_eta_one() -> None:
    x, levels = 10 * normal(5, 1), [10.0, 4.0, 1.0, 0.2, 0.0]
    ancestral = SOLVERS["ancestral"](MIXTURE.denoise, x, levels, noise=noise_for(x))
    assert torch.equal(ancestral, SOLVERS["ddim"](MIXTURE.denoise, x, levels, noise=noise_for(x), eta=1.0))
    assert not torch.allclose(ancestral, SOLVERS["euler"](MIXTURE.denoise, x, levels), atol=1e-3)


def test_ancestral_sampling_keeps_the_distribution() -> None:
    """For a Gaussian each step is linear: the law of the result follows from the recursion of its variance."""
    std, levels = 0.5, karras(EDM(), 20).sigmas
    teacher = Gaussian(torch.zeros(1), std)
    x = 80 * normal(20000, 1)
    given = SOLVERS["ancestral"](teacher.denoise, x, levels, noise=noise_for(x))
    variance = 80.0**2
    for s, t in pairwise(levels.tolist()):
        gain, keep = std**2 / (std**2 + s**2), (t / s) ** 2
        variance = (gain + keep * (1 - gain)) ** 2 * variance + t**2 * (1 - keep)
    assert float(given.std()) == pytest.approx(math.sqrt(variance), rel=4 / math.sqrt(2 * 20000))


def test_noise_is_taken_in_the_states_dtype_and_once_a_step() -> None:
    drawn: list[Tensor] = []
    source = ImageNoise(0, [4, 5], (1,))

    def noise() -> Tensor:
        drawn.append(source().double())
        return drawn[-1]

    x = 10 * source()
    given = SOLVERS["ancestral"](MIXTURE.denoise, x, [10.0, 4.0, 1.0, 0.0], noise=noise)
    assert given.dtype == x.dtype == torch.float32
    assert len(drawn) == 2  # none in the step to 0


@pytest.mark.parametrize("settings", [{"solver": "ancestral"}, {"solver": "ddim", "eta": 0.5}])
def test_stochastic_solvers_need_noise(settings: dict[str, Any]) -> None:
    name = settings.pop("solver")
    with pytest.raises(UserError, match="give noise="):
        SOLVERS[name](MIXTURE.denoise, normal(2, 1), [2.0, 1.0, 0.0], **settings)


# --- what all solvers share -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
def test_states_input_and_repetition(name: str) -> None:
    x, levels = 80 * normal(3, 1), karras(EDM(), 6).sigmas
    before = x.clone()
    final, states = SOLVERS[name](MIXTURE.denoise, x, levels, noise=noise_for(x), trajectory=True)
    assert len(states) == 7
    assert states[0] is x
    assert states[-1] is final
    assert torch.equal(x, before)
    assert torch.equal(SOLVERS[name](MIXTURE.denoise, x, levels.tolist(), noise=noise_for(x)), final)
    assert bool(torch.isfinite(final).all())


@pytest.mark.parametrize("name", SOLVERS)
def test_the_condition_reaches_every_call(name: str) -> None:
    seen: list[object] = []
    cond = {"labels": torch.tensor([1])}

    def denoise(x: Tensor, sigma: float, cond: object) -> Tensor:
        seen.append(cond)
        return torch.zeros_like(x)

    SOLVERS[name](denoise, normal(1, 1), [3.0, 1.0, 0.0], cond=cond, noise=zeros)
    assert seen
    assert all(given is cond for given in seen)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_last_step_to_zero_is_the_denoised_image(name: str) -> None:
    """All but the Adams-Bashforth family, which is as good at 0 as elsewhere, end on D of the last state."""
    calls: list[Tensor] = []

    def denoise(x: Tensor, sigma: float, cond: object) -> Tensor:
        calls.append(MIXTURE(x, sigma))
        return calls[-1]

    x = 5 * normal(3, 1)
    final = SOLVERS[name](denoise, x, [5.0, 2.0, 0.7, 0.2, 0.0], noise=noise_for(x))
    extrapolates = name.startswith(("ab", "ipndm")) and name != "ipndm1"
    assert torch.allclose(final, calls[-1], rtol=0, atol=1e-12) != extrapolates


@pytest.mark.parametrize("levels", [[], [1.0], [1.0, 1.0], [1.0, 2.0], [1.0, -0.1], [1.0, math.nan], [2.0, math.inf]])
def test_levels_must_fall(levels: list[float]) -> None:
    with pytest.raises(UserError, match="falling strictly"):
        SOLVERS["euler"](MIXTURE.denoise, zeros(), levels)


def test_unknown_names_and_settings() -> None:
    with pytest.raises(UserError, match="did you mean 'euler'"):
        get_solver("eular")
    with pytest.raises(UserError, match="did you mean 'eta'"):
        SOLVERS["ddim"](MIXTURE.denoise, zeros(), [1.0, 0.0], etta=1.0)
    with pytest.raises(UserError, match="no setting 'eta'"):
        SOLVERS["heun"](MIXTURE.denoise, zeros(), [1.0, 0.0], eta=1.0)
    with pytest.raises(UserError, match="between 0"):
        SOLVERS["ddim"](MIXTURE.denoise, zeros(), [1.0, 0.0], eta=1.5)
    with pytest.raises(UserError, match="afs is 'vpp'"):
        SOLVERS["euler"](MIXTURE.denoise, zeros(), [1.0, 0.0], afs="vpp")  # type: ignore[call-overload]


def test_every_solver_is_described_and_found() -> None:
    for name, solver in SOLVERS.items():
        assert solver.name == name
        assert len(solver.description) > 10
        assert get_solver(name) is solver is getattr(solvers, name)


def test_gradients_flow_through_a_roll_out() -> None:
    gain = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    final = SOLVERS["euler"](lambda x, s, c: gain * x, torch.ones(1, dtype=DOUBLE), [4.0, 2.0, 1.0])
    final.sum().backward()
    # x_1 = ((1 + gain) / 2)^2, two steps with r = 1/2
    assert float(gain.grad) == pytest.approx(0.75)  # type: ignore[arg-type]


# --- orders at the ends -----------------------------------------------------------------------------------------------


def test_orders_rise_and_fall() -> None:
    assert [step_order(i, 12, 3) for i in range(12)] == [1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 2, 1]
    assert [step_order(i, 4, 2) for i in range(4)] == [1, 2, 2, 1]
    assert [step_order(i, 1, 3) for i in range(1)] == [1]


@pytest.mark.parametrize(("name", "highest"), [("dpmpp2m", 2), ("dpmpp3m", 3)])
def test_steps_use_as_many_images_as_their_order(name: str, highest: int) -> None:
    """A change of the image at one call is felt by the steps of order above one that look back on it."""
    steps = 12
    levels = karras(EDM(), steps, end="sigma_min").sigmas

    def steps_made(changed: int) -> list[float]:
        calls = iter(range(steps))
        _, states = SOLVERS[name](
            lambda x, s, c: torch.full_like(x, float(next(calls) == changed)), zeros(), levels, trajectory=True
        )
        r = levels[1:] / levels[:-1]
        return [float(states[i + 1] - r[i] * states[i]) for i in range(steps)]  # the image's own part of each step

    used = [[abs(part) > 1e-12 for part in steps_made(changed)] for changed in range(steps)]
    for step in range(steps):
        assert sum(used[changed][step] for changed in range(steps)) == step_order(step, steps, highest)


# --- counting ---------------------------------------------------------------------------------------------------------


def counted(name: str, steps: int, end: str, afs: str | None, from_inf: bool) -> int:
    teacher = MIXTURE.replace()
    levels = [math.inf if from_inf else 2.0**steps] + [2.0 ** (steps - i) for i in range(1, steps)]
    levels.append(0.0 if end == "zero" else 0.5)
    x = normal(2, 1)
    SOLVERS[name](teacher.denoise, x, levels, noise=noise_for(x), afs=afs)  # type: ignore[call-overload]
    return teacher.calls


@pytest.mark.parametrize("from_inf", [False, True])
@pytest.mark.parametrize("afs", [None, "ve", "vp"])
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("name", ["euler", "ancestral", "dpmpp3m", "unipc2", "ab4", "ipndm4", "heun", "dpm2"])
def test_calls_are_those_that_are_counted(name: str, end: Any, afs: Any, from_inf: bool) -> None:
    for steps in range(1, 7):
        assert counted(name, steps, end, afs, from_inf) == count_calls(name, steps, end, afs, from_inf=from_inf)


def test_published_counts() -> None:
    """N for one call a step, 2 N for two; a final step to 0 saves one, an analytic first step exactly one."""
    for name in SINGLE:
        assert counted(name, 5, "sigma_min", None, False) == counted(name, 5, "zero", None, False) == 5
        assert counted(name, 5, "zero", "ve", False) == 4
    for name in ("heun", "dpm2"):
        assert counted(name, 5, "sigma_min", None, False) == 10
        assert counted(name, 5, "zero", None, False) == 9
        assert counted(name, 5, "zero", "vp", False) == 8


def test_guidance_doubles_the_calls() -> None:
    teacher = GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.2, labels=[0, 1])
    cond = {"labels": torch.tensor([0, 1])}
    for guidance, calls in ((1.0, 5), (3.0, 10)):
        guided = teacher.replace(guidance=guidance)
        SOLVERS["dpmpp2m"](guided.denoise, normal(2, 1), karras(EDM(), 5).sigmas, cond=cond)
        assert guided.calls == calls


@pytest.mark.parametrize("from_inf", [False, True])
@pytest.mark.parametrize("afs", [None, "ve"])
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_steps_for_makes_the_most_of_the_calls(name: str, end: Any, afs: Any, from_inf: bool) -> None:
    for calls in range(2, 12):
        steps = steps_for(name, calls, end, afs, from_inf=from_inf)
        assert counted(name, steps, end, afs, from_inf) <= calls < counted(name, steps + 1, end, afs, from_inf)


def test_steps_for_refuses_the_impossible() -> None:
    assert steps_for("heun", 1) == 1
    assert steps_for("heun", 1, "sigma_min", "ve") == 1
    with pytest.raises(UserError, match="heun cannot make a step with 1 call"):
        steps_for("heun", 1, "sigma_min")
    with pytest.raises(UserError, match="one network call at least"):
        steps_for("euler", 0)


# --- the analytic first step ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "factor"), [(2, 0.038914), (3, 0.136684), (4, 0.237602), (5, 0.324594), (6, 0.396670)]
)
def test_published_shrink_factors(steps: int, factor: float) -> None:
    def no_call(x: Tensor, sigma: float, cond: object) -> Tensor:
        raise AssertionError("the analytic step called the network")

    first_two = power_grid(steps)[:2]
    x = normal(4, 3)
    given = SOLVERS["euler"](no_call, x, first_two, afs="vp")
    assert torch.allclose(given, factor * x, rtol=0, atol=1e-6 * float(x.abs().max()))
    assert torch.equal(SOLVERS["euler"](no_call, 2 * x, first_two, afs="vp"), 2 * given)


def test_analytic_steps_are_euler_steps() -> None:
    x = 80 * normal(4, 3)
    formulas: dict[str, Callable[[Tensor, float], Tensor]] = {
        "ve": lambda x, s: torch.zeros_like(x),
        "vp": lambda x, s: x * (1 - s / math.sqrt(1 + s**2)),
    }
    for afs, formula in formulas.items():
        for s, t in ((80.0, 10.9), (14.6, 3.0), (0.5, 0.1)):
            given = SOLVERS["euler"](MIXTURE.denoise, x, [s, t], afs=afs)  # type: ignore[call-overload]
            assert torch.allclose(given, x + (t - s) / s * (x - formula(x, s)), rtol=1e-11)


@pytest.mark.parametrize("sigma", [10.0, 14.6, 80.0])
def test_both_analytic_forms_agree_to_their_known_difference(sigma: float) -> None:
    x = torch.ones(1, dtype=DOUBLE)
    direction = {
        afs: (x - SOLVERS["euler"](MIXTURE.denoise, x, [sigma, 1.0], afs=afs)) / (sigma - 1)  # type: ignore[call-overload]
        for afs in ("ve", "vp")
    }
    difference = float(direction["ve"] / direction["vp"]) - 1
    assert difference == pytest.approx(1 / (2 * sigma**2), rel=1 / sigma**2)


def test_ve_analytic_step_from_the_ve_start_is_sigma_times_noise() -> None:
    grid = karras(ContinuousVP(), 4, start="ve")
    z = normal(3, 1)
    _, states = SOLVERS["euler"](
        MIXTURE.denoise, grid.start_state(ContinuousVP(), z), grid.sigmas, afs="ve", trajectory=True
    )
    assert torch.allclose(states[1], grid.sigmas[1] * z, rtol=1e-14)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_only_the_first_call_is_analytic(name: str) -> None:
    """Replaced by the network's own answer, the analytic step changes nothing."""
    x, levels = 80 * normal(3, 1), karras(EDM(), 5).sigmas
    zero_then_network = iter([True])

    def first_is_zero(x: Tensor, sigma: float, cond: object) -> Tensor:
        return torch.zeros_like(x) if next(zero_then_network, False) else MIXTURE(x, sigma)

    given = SOLVERS[name](MIXTURE.denoise, x, levels, afs="ve")
    assert torch.allclose(given, SOLVERS[name](first_is_zero, x, levels), rtol=0, atol=1e-12)


def test_analytic_step_has_no_gradient_of_the_network() -> None:
    weight = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    _, states = SOLVERS["euler"](lambda x, s, c: weight * x, normal(2, 1), [9.0, 3.0, 0.0], afs="vp", trajectory=True)
    assert not states[1].requires_grad
    assert states[2].requires_grad


# --- from inf ---------------------------------------------------------------------------------------------------------


def flow_network(teacher: Gaussian) -> Denoiser:
    process = Flow()

    def network(z: Tensor, time: Tensor) -> Tensor:
        sigma = process.sigma(time.double())
        a, b = (value.unsqueeze(1) for value in process.scales(sigma))
        x0 = teacher.closed_form(z if bool(torch.isinf(sigma).all()) else z / a, sigma)
        return from_x0("flow", x0, z, a, b)

    return Denoiser(network, process, prediction="flow", shape=(2,))


def test_euler_from_inf_is_the_flow_models_own_euler() -> None:
    """z' = z + (t' - t) v in the network's coordinates, from pure noise at t = 1 to the image at t = 0."""
    teacher = Gaussian(torch.tensor([0.4, -0.3]), torch.tensor([0.5, 0.8]))
    denoise = flow_network(teacher)
    z = normal(6, 2)
    grid = uniform(Flow(), 8)
    _, states = SOLVERS["euler"](denoise, z, grid.sigmas, trajectory=True)
    times = torch.linspace(1, 0, 9, dtype=DOUBLE)
    for i in range(8):
        z = z + (times[i + 1] - times[i]) * denoise.call(denoise.network, z, 1000 * times[i].expand(6), {})
        assert torch.allclose((1 - times[i + 1]) * states[i + 1], z, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_starts_at_inf(name: str) -> None:
    """One step x1 = D(z, inf) + sigma_1 z, then the solver's own steps from sigma_1."""
    teacher = Gaussian(torch.tensor([0.4, -0.3]), torch.tensor([0.5, 0.8]), process=Flow())
    z = normal(5, 2)
    levels = [math.inf, 30.0, 5.0, 1.0, 0.2, 0.0]
    given, states = SOLVERS[name](teacher.denoise, z, levels, noise=noise_for(z), trajectory=True)
    assert torch.equal(states[0], z)
    assert torch.allclose(states[1], teacher.means[0] + 30 * z, rtol=0, atol=1e-6)
    assert torch.equal(given, SOLVERS[name](teacher.denoise, states[1], levels[1:], noise=noise_for(z)))
    one = SOLVERS[name](teacher.denoise, z, [math.inf, 0.0], noise=noise_for(z))
    assert torch.allclose(one, teacher.means[0].expand(5, 2), rtol=0, atol=1e-6)


def test_fine_steps_from_inf_reach_the_closed_solution() -> None:
    teacher = Gaussian(torch.tensor([0.4, -0.3]), torch.tensor([0.5, 0.8]), process=Flow())
    z = normal(5, 2)
    levels = explicit([math.inf, *torch.logspace(3, -3, 200, dtype=DOUBLE).tolist()]).sigmas
    given = SOLVERS["dpmpp2m"](teacher.denoise, z, levels)
    assert torch.allclose(given, teacher.flow(z, math.inf, 0.0), rtol=0, atol=2e-3)


@pytest.mark.parametrize("afs", ["ve", "vp"])
def test_the_analytic_step_from_inf_is_noise_alone(afs: Any) -> None:
    z = normal(3, 1)
    _, states = SOLVERS["euler"](MIXTURE.denoise, z, [math.inf, 7.0, 0.0], afs=afs, trajectory=True)
    assert torch.equal(states[1], 7 * z)


# --- precision --------------------------------------------------------------------------------------------------------


FAR = DiscreteVP(zero_terminal_snr(DiscreteVP.from_betas(beta_table("linear")).alphas_cumprod))
FAR_TEACHER = Gaussian(torch.tensor([0.4, -0.3]), torch.tensor([0.5, 0.8]))


def denoise_exactly(x: Tensor, sigma: float, cond: object = None) -> Tensor:
    return FAR_TEACHER(x.double(), sigma).to(x.dtype)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_single_precision_holds_at_levels_in_the_thousands(name: str) -> None:
    """From sigma = 15,000 the noise is 15,000 times the image; the result keeps the image's own last digits."""
    levels = karras(FAR, 20, sigma_max=FAR.sigma_top).sigmas
    x = (levels[0] * normal(64, 2)).float()
    exact = SOLVERS[name](denoise_exactly, x.double(), levels)
    single = SOLVERS[name](denoise_exactly, x, levels)
    assert single.dtype == torch.float32
    assert float((single.double() - exact).abs().max()) < 4e-6


@pytest.mark.parametrize("name", ["euler", "dpmpp2m", "dpmpp3m", "unipc2"])
def test_single_precision_holds_over_long_steps(name: str) -> None:
    """Where x + (t - s) (x - D) / s has lost four digits of the image."""
    levels = [FAR.sigma_top, 2.0, 0.0]
    x = (levels[0] * normal(64, 2)).float()
    exact = SOLVERS[name](denoise_exactly, x.double(), levels)
    assert float((SOLVERS[name](denoise_exactly, x, levels).double() - exact).abs().max()) < 2e-6
    plain = x
    for s, t in pairwise(levels):
        plain = plain + (t - s) * ((plain - denoise_exactly(plain, s)) / s)
    euler = SOLVERS["euler"](denoise_exactly, x.double(), levels)
    assert float((plain.double() - euler).abs().max()) > 1e-4
