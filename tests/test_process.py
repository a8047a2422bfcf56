"""Noise processes: scales, times, tables, priors and the conversions between what networks predict."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from onefold.errors import UserError
from onefold.process import (
    EDM,
    PREDICTIONS,
    VE,
    ContinuousVP,
    DiscreteVP,
    Flow,
    Process,
    beta_table,
    from_x0,
    to_x0,
    zero_terminal_snr,
)

DOUBLE = torch.float64


def alphas(schedule: str = "linear", steps: int = 1000) -> Tensor:
    return (1 - beta_table(schedule, steps)).cumprod(0)


def zero_snr() -> DiscreteVP:
    return DiscreteVP(zero_terminal_snr(alphas()))


PROCESSES: dict[str, Process] = {
    "edm": EDM(),
    "ve": VE(),
    "ve-sigma": VE(time="sigma"),
    "vp": ContinuousVP(),
    "vp-scaled": ContinuousVP(time_scale=999.0),
    "discrete": DiscreteVP(alphas()),
    "discrete-cosine": DiscreteVP(alphas("squaredcos_cap_v2")),
    "discrete-zero-snr": zero_snr(),
    "flow": Flow(),
}


@pytest.fixture(params=PROCESSES)
def process(request: pytest.FixtureRequest) -> Process:
    return PROCESSES[request.param]


def some_levels(process: Process, count: int = 50) -> Tensor:
    return torch.logspace(math.log10(process.sigma_min), math.log10(process.sigma_top), count, dtype=DOUBLE)


def test_time_and_sigma_are_inverse(process: Process) -> None:
    levels = some_levels(process)
    assert torch.allclose(process.sigma(process.time(levels)), levels, rtol=1e-9, atol=0)


def test_time_rises_with_sigma(process: Process) -> None:
    assert bool((process.time(some_levels(process)).diff() > 0).all())


def test_everything_is_float64_and_keeps_its_shape(process: Process) -> None:
    levels = some_levels(process, 6).reshape(2, 3)
    for value in (
        process.alpha(levels),
        process.time(levels),
        process.sigma(process.time(levels)),
        *process.scales(levels),
    ):
        assert value.dtype == DOUBLE
        assert value.shape == (2, 3)


@pytest.mark.parametrize("name", ["vp", "discrete", "discrete-zero-snr"])
def test_vp_networks_see_unit_variance(name: str) -> None:
    a, b = PROCESSES[name].scales(some_levels(PROCESSES[name]))
    assert torch.allclose(a**2 + b**2, torch.ones(50, dtype=DOUBLE), rtol=1e-14)


def test_flow_networks_see_a_line_between_data_and_noise() -> None:
    process = PROCESSES["flow"]
    time = torch.linspace(0.001, 0.999, 50, dtype=DOUBLE)
    a, b = process.scales(process.sigma(1000 * time))
    assert torch.allclose(a, 1 - time, rtol=1e-12)
    assert torch.allclose(b, time, rtol=1e-12)


def test_edm_input_has_unit_variance_for_data_of_sigma_data() -> None:
    process = EDM(sigma_data=0.7)
    a, b = process.scales(some_levels(process))
    assert torch.allclose((0.7 * a) ** 2 + b**2, torch.ones(50, dtype=DOUBLE), rtol=1e-14)


@pytest.mark.parametrize("name", ["discrete-zero-snr", "flow"])
def test_at_inf_the_network_sees_noise_alone(name: str) -> None:
    process = PROCESSES[name]
    assert process.sigma_max == math.inf
    a, b = process.scales(math.inf)
    assert (float(a), float(b)) == (0.0, 1.0)
    last = process.time(torch.tensor(math.inf, dtype=DOUBLE))
    assert float(last) == {"discrete-zero-snr": 999.0, "flow": 1000.0}[name]
    assert float(process.sigma(last)) == math.inf
    assert math.isfinite(process.sigma_top)


def test_ve_has_no_level_inf() -> None:
    with pytest.raises(UserError, match="finite"):
        VE().scales(math.inf)


@pytest.mark.parametrize("steps", [1, 2, 1000, 1024])
def test_tables_of_any_length(steps: int) -> None:
    process = DiscreteVP(alphas("linear", steps))
    index = torch.arange(steps, dtype=DOUBLE)
    assert torch.equal(process.sigmas, ((1 - process.alphas_cumprod) / process.alphas_cumprod).sqrt())
    assert torch.allclose(process.time(process.sigmas), index, rtol=0, atol=1e-9)
    assert torch.allclose(process.sigma(index), process.sigmas, rtol=1e-12, atol=0)
    assert (process.sigma_min, process.sigma_max) == (float(process.sigmas[0]), float(process.sigmas[-1]))


def test_table_clamps_beyond_its_ends() -> None:
    process = DiscreteVP(alphas())
    beyond = torch.tensor([0.0, process.sigma_min / 3, process.sigma_max * 3], dtype=DOUBLE)
    assert process.time(beyond).tolist() == [0, 0, 999]
    ends = process.sigma(torch.tensor([-5.0, 999.5, 1000.0, 2000.0]))
    assert torch.allclose(ends, torch.tensor([process.sigma_min] + [process.sigma_max] * 3, dtype=DOUBLE), rtol=1e-14)


def test_table_is_linear_in_log_sigma_between_entries() -> None:
    process = DiscreteVP(alphas())
    middle = process.sigma(torch.tensor([10.25], dtype=DOUBLE))
    expected = process.sigmas[10] ** 0.75 * process.sigmas[11] ** 0.25
    assert torch.allclose(middle, expected, rtol=1e-12)


def test_zero_terminal_snr_top_is_the_last_level_with_signal() -> None:
    process = zero_snr()
    assert process.sigma_top == float(process.sigmas[998])
    assert float(process.time(torch.tensor(process.sigma_top, dtype=DOUBLE))) == pytest.approx(998, abs=1e-9)
    assert process.sigma(torch.tensor([998.0, 998.9, 999.0], dtype=DOUBLE))[2] == math.inf


@pytest.mark.parametrize(
    "table", [[], [0.0], [0.5, 0.5], [0.4, 0.6], [1.0, 0.5], [0.5, -0.1], [math.nan], [0.9, math.nan, 0.1]]
)
def test_bad_tables_are_refused(table: list[float]) -> None:
    with pytest.raises(UserError):
        DiscreteVP(table)


def test_continuous_vp_is_the_exponential_of_the_integrated_beta() -> None:
    """alpha^2 = exp(-integral of beta), and the trapezium rule is exact for a line."""
    process = ContinuousVP(beta_min=0.1, beta_max=20.0)
    for t in (0.001, 0.3, 1.0):
        line = torch.tensor([0.1, 0.1 + t * 19.9], dtype=DOUBLE)
        signal = torch.exp(-torch.trapezoid(line, dx=t))
        a = process.alpha(process.sigma(torch.tensor(t, dtype=DOUBLE)))
        assert float(a**2) == pytest.approx(float(signal), rel=1e-12)


@pytest.mark.parametrize("name", ["vp", "discrete", "discrete-cosine"])
def test_vp_prior_is_unit_noise_in_network_coordinates(name: str) -> None:
    process = PROCESSES[name]
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    a, _ = process.scales(process.sigma_max)
    assert torch.allclose(a * process.prior(z), z, rtol=1e-12)
    assert process.prior_scale(process.sigma_max) == pytest.approx(math.sqrt(1 + process.sigma_max**2), rel=1e-12)


@pytest.mark.parametrize("name", ["edm", "ve"])
def test_exploding_priors_are_sigma_times_noise(name: str) -> None:
    process = PROCESSES[name]
    z = torch.ones(2)
    assert torch.equal(process.prior(z), process.sigma_max * z)
    assert torch.equal(process.prior(z, 3.0), 3 * z)


@pytest.mark.parametrize("name", ["flow", "discrete-zero-snr"])
def test_prior_at_inf_is_the_noise_itself(name: str) -> None:
    z = torch.randn(4)
    assert torch.equal(PROCESSES[name].prior(z), z)


def test_training_levels_stay_in_range_and_rise(process: Process) -> None:
    u = torch.cat([torch.linspace(0, 0.999, 500, dtype=DOUBLE), torch.tensor([1 - 2.0**-53], dtype=DOUBLE)])
    levels = process.training_sigma(u)
    assert bool((levels >= process.sigma_min).all())
    highest = (
        process.sigma_max if isinstance(process, Flow) else process.sigma_top
    )  # a table has nothing between top and inf
    assert bool((levels <= highest).all())
    assert bool(torch.isfinite(levels).all())
    assert bool((levels.diff() >= 0).all())


def test_training_densities() -> None:
    """Where the density is known in closed form, its distribution function is linear in u."""
    u = torch.linspace(0.01, 0.99, 99, dtype=DOUBLE)
    angle = torch.atan(ContinuousVP().training_sigma(u))
    assert torch.allclose(angle.diff(), angle.diff().mean().expand(98), rtol=1e-9)
    chance = torch.special.ndtr((EDM().training_sigma(u).log() + 1.2) / 1.2)
    assert torch.allclose(chance.diff(), chance.diff().mean().expand(98), rtol=1e-6)
    time = Flow().time(Flow().training_sigma(u))
    assert torch.allclose(time, 1000 * u, rtol=1e-12)


def test_training_levels_of_one_entry() -> None:
    process = DiscreteVP([0.5])
    assert process.training_sigma(torch.tensor([0.0, 0.7])).tolist() == [1.0, 1.0]


def scales_for(kind: str, sigma: float) -> tuple[Tensor, Tensor, float]:
    """Scales of a process that trains networks of this kind."""
    process: Process = {"v": ContinuousVP(), "flow": Flow(), "edm": EDM()}.get(kind, VE())
    return *process.scales(sigma), process.sigma_data


@pytest.mark.parametrize("sigma", [0.02, 0.5, 1.0, 14.6, 80.0])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_conversions_undo_the_definitions(kind: str, sigma: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x0, eps = torch.randn(2, 64, generator=generator, dtype=DOUBLE)
    a, b, data = scales_for(kind, sigma)
    z = a * x0 + b * eps
    skip, out = data**2 / (sigma**2 + data**2), sigma * data / math.sqrt(sigma**2 + data**2)
    defined = {
        "x0": x0,
        "eps": eps,
        "v": a * eps - b * x0,
        "flow": eps - x0,
        "edm": (x0 - skip * z / a) / out,  # D = c_skip x + c_out F
    }[kind]
    assert torch.allclose(to_x0(kind, defined, z, a, b, data), x0, rtol=0, atol=1e-11)  # type: ignore[arg-type]
    assert torch.allclose(from_x0(kind, x0, z, a, b, data), defined, rtol=0, atol=1e-11)  # type: ignore[arg-type]


def test_squared_errors_of_the_predictions_at_equal_input() -> None:
    """|d eps|^2 = A |d v|^2, |d x0|^2 = (1 - A) |d v|^2 and |d eps|^2 = A / (1 - A) |d x0|^2, A = alpha^2."""
    process = ContinuousVP()
    generator = torch.Generator().manual_seed(4)
    one, two, z = torch.randn(3, 32, generator=generator, dtype=DOUBLE)
    for sigma in (0.1, 1.0, 20.0):
        a, b = process.scales(sigma)
        dv, deps = ((from_x0(k, one, z, a, b) - from_x0(k, two, z, a, b)).square().sum() for k in ("v", "eps"))
        dx0 = (one - two).square().sum()
        assert torch.allclose(deps, a**2 * dv, rtol=1e-10)
        assert torch.allclose(dx0, (1 - a**2) * dv, rtol=1e-10)
        assert torch.allclose(deps, a**2 / (1 - a**2) * dx0, rtol=1e-10)


def test_unknown_names_are_refused() -> None:
    x = torch.zeros(1)
    with pytest.raises(UserError, match="did you mean 'eps'"):
        to_x0("epz", x, x, x, x)  # type: ignore[arg-type]
    with pytest.raises(UserError):
        from_x0("noise", x, x, x, x)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="did you mean 'linear'"):
        beta_table("linaer")


def test_zero_terminal_snr_keeps_the_first_level() -> None:
    table = alphas("scaled_linear")
    shifted = zero_terminal_snr(table)
    assert float(shifted[-1]) == 0
    assert float(shifted[0]) == pytest.approx(float(table[0]), rel=1e-12)
    assert bool((shifted.diff() < 0).all())


def test_betas_give_the_same_process_as_their_product() -> None:
    assert torch.equal(DiscreteVP.from_betas(beta_table("linear")).sigmas, DiscreteVP(alphas()).sigmas)
