"""Denoisers: every adapter gives the same clean image; guidance, counting, precision; the exact teachers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from onefold.denoiser import Denoiser, Gaussian, GaussianMixture
from onefold.errors import UserError
from onefold.grids import logsnr
from onefold.process import EDM, VE, ContinuousVP, DiscreteVP, Flow, Process, beta_table, from_x0, zero_terminal_snr

DOUBLE = torch.float64
ALPHAS = (1 - beta_table("linear")).cumprod(0)
PROCESSES: dict[str, Process] = {
    "discrete": DiscreteVP(ALPHAS),
    "zero-snr": DiscreteVP(zero_terminal_snr(ALPHAS)),
    "vp": ContinuousVP(),
    "edm": EDM(),
    "ve": VE(),
    "flow": Flow(),
}
ADAPTERS = [
    (name, kind)
    for name, kinds in {
        "discrete": ("eps", "v", "x0"),
        "zero-snr": ("eps", "v", "x0"),
        "vp": ("eps", "v", "x0"),
        "edm": ("edm",),
        "ve": ("eps", "x0"),
        "flow": ("flow",),
    }.items()
    for kind in kinds
]
MEAN = torch.tensor([0.4, -0.7, 0.1], dtype=DOUBLE)
STD = torch.tensor([0.5, 0.2, 0.9], dtype=DOUBLE)
TEACHER = Gaussian(MEAN, STD)


def levels_of(process: Process) -> Tensor:
    return torch.logspace(math.log10(process.sigma_min), math.log10(process.sigma_top), 50, dtype=DOUBLE)


def exact_network(process: Process, kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The Gaussian as a network: told z and its own time, it answers in its own parametrisation. Of the time it makes the
    nearest of the 50 levels, so that what is measured is the adapter's arithmetic and not the rounding of a time."""
    known = levels_of(process)
    times = process.time(known)

    def network(z: Tensor, time: Tensor) -> Tensor:
        nearest = (time.double().unsqueeze(1) - times).abs().argmin(1)
        assert bool(((time.double() - times[nearest]).abs() < 1e-4 * (1 + times[nearest].abs())).all())
        sigma = known[nearest]
        a, b = (value.unsqueeze(1) for value in process.scales(sigma))
        x0 = TEACHER.closed_form(z.double() / a, sigma)
        return from_x0(kind, x0, z.double(), a, b, process.sigma_data).to(z.dtype)  # type: ignore[arg-type]

    return network


def states(process: Process, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A state at each of the 50 levels, and the clean image expected of it in float64."""
    sigma = levels_of(process)
    noise = torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    x = (MEAN + STD * noise.flip(0) + sigma.unsqueeze(1) * noise).to(dtype)
    return x, sigma, TEACHER.closed_form(x.double(), sigma)


@pytest.mark.parametrize(("name", "kind"), ADAPTERS)
def test_all_adapters_give_the_same_image_in_float64(name: str, kind: str) -> None:
    process = PROCESSES[name]
    denoise = Denoiser(exact_network(process, kind), process, prediction=kind, shape=(3,))  # type: ignore[arg-type]
    x, sigma, expected = states(process, DOUBLE)
    assert float((denoise(x, sigma) - expected).abs().max()) < 1e-6
    one_by_one = torch.cat([denoise(x[i : i + 1], float(sigma[i])) for i in range(50)])
    assert torch.allclose(one_by_one, denoise(x, sigma), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "kind"), ADAPTERS)
def test_all_adapters_give_the_same_image_in_float32(name: str, kind: str) -> None:
    """An eps-network's error is magnified by sigma; all others stay at the rounding of numbers of order 1."""
    process = PROCESSES[name]
    denoise = Denoiser(exact_network(process, kind), process, prediction=kind, shape=(3,))  # type: ignore[arg-type]
    x, sigma, expected = states(process, torch.float32)
    given = denoise(x, sigma)
    assert given.dtype == torch.float32
    bound = 1e-6 * (sigma.clamp(min=1) if kind == "eps" else torch.ones(50, dtype=DOUBLE))
    assert bool(((given.double() - expected).abs().amax(1) < bound).all())


@pytest.mark.parametrize(("name", "kind"), [("zero-snr", "v"), ("zero-snr", "x0"), ("flow", "flow")])
def test_at_inf_the_input_is_the_noise_and_the_image_the_mean(name: str, kind: str) -> None:
    process = PROCESSES[name]
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    told: list[Tensor] = []

    def network(seen: Tensor, time: Tensor) -> Tensor:
        told.extend([seen, time])
        a, b = process.scales(torch.full((4, 1), math.inf))
        return from_x0(kind, MEAN.expand(4, 3), seen.double(), a, b).float()  # type: ignore[arg-type]

    denoise = Denoiser(network, process, prediction=kind, shape=(3,))  # type: ignore[arg-type]
    assert torch.allclose(denoise(z, math.inf).double(), MEAN.expand(4, 3), rtol=0, atol=1e-6)
    assert torch.equal(told[0], z)
    assert told[1].tolist() == [float(process.time(torch.tensor(math.inf)))] * 4


def test_a_batch_may_mix_inf_and_finite_levels() -> None:
    process = PROCESSES["flow"]
    denoise = Denoiser(lambda z, time: z * time.unsqueeze(1) / 1000, process, prediction="flow", shape=(3,))
    x = torch.randn(2, 3, dtype=DOUBLE)
    both = denoise(x, torch.tensor([math.inf, 1.0]))
    assert torch.allclose(both, torch.cat([denoise(x[:1], math.inf), denoise(x[1:], 1.0)]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "kind"), [("zero-snr", "eps"), ("flow", "eps"), ("edm", "edm"), ("vp", "v"), ("ve", "x0")]
)
def test_inf_is_refused_where_it_means_nothing(name: str, kind: str) -> None:
    denoise = Denoiser(lambda z, time: z, PROCESSES[name], prediction=kind, shape=(3,))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="start the grid at"):
        denoise(torch.randn(2, 3), math.inf)


def test_prediction_must_fit_the_process() -> None:
    with pytest.raises(UserError, match="does not fit EDM"):
        Denoiser(lambda z, time: z, EDM(), prediction="flow", shape=(3,))


# --- guidance and counting --------------------------------------------------------------------------------------------


def labelled_mixture() -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, 1.0]])
    return GaussianMixture(means, torch.tensor([0.2, 0.3, 0.4]), torch.tensor([0.5, 0.3, 0.2]), labels=[0, 1, 1])


def test_guidance_is_the_formula_and_counts_two_calls() -> None:
    plain = labelled_mixture()
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    cond = {"labels": torch.tensor([0, 1, 0, 1, 0, 1])}
    with_label, without = plain(x, 0.7, cond), plain(x, 0.7)
    assert plain.calls == 2
    guided = plain.replace(guidance=3.0)
    assert torch.allclose(guided(x, 0.7, cond), without + 3 * (with_label - without), rtol=0, atol=1e-12)
    assert (guided.calls, plain.calls) == (2, 2)
    # a level for each image, or a single level in a tensor, mean the same
    for sigma in (torch.full((6,), 0.7), torch.tensor([0.7], dtype=DOUBLE)):
        assert torch.allclose(guided(x, sigma, cond), guided(x, 0.7, cond), rtol=0, atol=1e-6)


def test_without_guidance_or_condition_one_call() -> None:
    teacher = labelled_mixture()
    x = torch.zeros(2, 2)
    teacher(x, 1.0, {"labels": torch.tensor([0, 1])})
    assert teacher.calls == 1
    guided = teacher.replace(guidance=2.0)
    guided(x, 1.0)
    assert guided.calls == 1


def test_guidance_needs_a_null_condition() -> None:
    denoise = Denoiser(lambda z, time, labels: z, EDM(), prediction="edm", shape=(2,), classes=3, guidance=2.0)
    with pytest.raises(UserError, match="guidance must be 1"):
        denoise(torch.zeros(2, 2), 1.0, {"labels": torch.tensor([0, 1])})


def test_conditions_without_a_null_value_stay_in_both_halves() -> None:
    seen: dict[str, list[int]] = {}

    def network(z: Tensor, time: Tensor, labels: Tensor, step: Tensor) -> Tensor:
        seen.update(labels=labels.tolist(), step=step.tolist())
        return z

    denoise = Denoiser(network, EDM(), prediction="edm", shape=(2,), null={"labels": 9}, guidance=2.0)
    denoise(torch.zeros(2, 2), 1.0, {"labels": torch.tensor([0, 1]), "step": torch.tensor([4, 4])})
    assert seen == {"labels": [0, 1, 9, 9], "step": [4, 4, 4, 4]}


def test_replace_copies_counts_afresh_and_knows_its_attributes() -> None:
    teacher = labelled_mixture()
    teacher(torch.zeros(1, 2), 1.0)
    other = teacher.replace(guidance=2.0, name="other")
    assert (other.calls, other.guidance, other.name, teacher.guidance) == (0, 2.0, "other", 1.0)
    with pytest.raises(UserError, match="did you mean 'guidance'"):
        teacher.replace(guidence=2.0)


# --- what the network is given ----------------------------------------------------------------------------------------


def test_integer_networks_get_whole_times_and_refuse_others() -> None:
    process = PROCESSES["discrete"]
    told: list[Tensor] = []

    def network(z: Tensor, time: Tensor) -> Tensor:
        told.append(time)
        return z

    denoise = Denoiser(network, process, prediction="eps", shape=(1,), continuous_time=False)
    grid = logsnr(process, 7).snap(process)
    for sigma in grid.sigmas[:-1]:
        denoise(torch.zeros(2, 1), float(sigma))
    assert all(time.dtype == torch.int64 for time in told)
    assert [int(time[0]) + 1 for time in told] == list(reversed(grid.phi or ()))
    with pytest.raises(UserError, match="snap"):
        denoise(torch.zeros(2, 1), float(process.sigmas[100] * process.sigmas[101]) ** 0.5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_the_network_runs_in_low_precision(precision: str) -> None:
    inside: list[torch.dtype] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, z: Tensor, time: Tensor) -> Tensor:
            assert z.dtype == torch.float32
            inside.append((out := self.layer(z)).dtype)
            return out

    denoise = Denoiser(Net(), VE(), prediction="x0", shape=(3,), precision=precision)  # type: ignore[arg-type]
    assert denoise(torch.randn(2, 3), 1.0).dtype == torch.float32
    assert inside == [{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]]


def test_a_closed_form_has_nothing_to_train() -> None:
    with pytest.raises(UserError, match="no trainable network"):
        _ = TEACHER.module


# --- the exact teachers -----------------------------------------------------------------------------------------------


def test_mixture_denoiser_is_the_posterior_mean() -> None:
    """Against the integral of x0 p(x0) N(x; x0, sigma^2) by the trapezium rule, exact to rounding for smooth densities."""
    means, stds, weights = [-1.0, 0.4, 1.1], [0.3, 0.2, 0.5], [0.2, 0.5, 0.3]
    teacher = GaussianMixture(torch.tensor(means).unsqueeze(1), torch.tensor(stds), torch.tensor(weights))
    x0 = torch.linspace(-8, 8, 20001, dtype=DOUBLE)
    density = sum(
        w / s * torch.exp(-((x0 - m) ** 2) / (2 * s**2)) for m, s, w in zip(means, stds, weights, strict=True)
    )
    for sigma in (0.05, 0.3, 2.0, 40.0):
        x = torch.tensor([[-1.5 * sigma], [0.2], [sigma + 1]], dtype=DOUBLE)
        mass = density * torch.exp(-((x - x0) ** 2) / (2 * sigma**2))
        expected = (mass * x0).sum(1) / mass.sum(1)
        assert torch.allclose(teacher(x, sigma).squeeze(1), expected, rtol=0, atol=1e-6)


def test_mixture_of_points_and_the_limits_of_sigma() -> None:
    points = GaussianMixture(torch.tensor([[-1.0], [1.0]]))
    x = torch.tensor([[0.3]], dtype=DOUBLE)
    assert float(points(x, 0.5)) == pytest.approx(math.tanh(0.3 / 0.25), abs=1e-12)
    teacher = labelled_mixture()
    mean = torch.tensor([-0.5 + 0.3, 0.15 + 0.2], dtype=DOUBLE)
    z = torch.randn(2, 2, dtype=DOUBLE)
    assert torch.allclose(teacher(z, math.inf), mean.expand(2, 2), rtol=0, atol=1e-7)
    of_class = teacher(z, math.inf, {"labels": torch.tensor([0, 1])})
    expected = torch.tensor([[-1.0, 0.0], [0.6, 0.7]], dtype=DOUBLE)
    assert torch.allclose(of_class, expected, rtol=0, atol=1e-7)


def test_label_restricts_the_mixture() -> None:
    teacher = labelled_mixture()
    alone = GaussianMixture(teacher.means[1:], teacher.stds[1:], teacher.weights[1:])
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    assert torch.allclose(
        teacher(x, 0.8, {"labels": torch.ones(5, dtype=torch.long)}), alone(x, 0.8), rtol=0, atol=1e-12
    )


def test_mixture_draws_its_own_distribution() -> None:
    teacher = labelled_mixture()
    samples, chosen = teacher.draw(20000, torch.Generator().manual_seed(0))
    share = torch.bincount(chosen, minlength=3) / 20000
    error = (teacher.weights * (1 - teacher.weights) / 20000).sqrt()
    assert bool(((share - teacher.weights).abs() < 4 * error).all())
    for k in range(3):
        own = samples[chosen == k]
        assert bool(((own.mean(0) - teacher.means[k]).abs() < 4 * teacher.stds[k] / len(own) ** 0.5).all())
        assert torch.allclose(own.std(0), teacher.stds[k], rtol=4 / (2 * len(own)) ** 0.5)


def test_mixture_checks_its_parts() -> None:
    with pytest.raises(UserError, match="needs 2 weights"):
        GaussianMixture(torch.zeros(2, 1), 1.0, torch.ones(3))


def test_gaussian_flow_solves_the_ode() -> None:
    """d x / d sigma = (x - D) / sigma along the flow, the derivative taken by autograd."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)

    def along(sigma: Tensor) -> Tensor:
        return TEACHER.flow(x, 80.0, sigma)  # type: ignore[arg-type]

    for level in (40.0, 1.0, 0.05):
        here = torch.tensor(level, dtype=DOUBLE)
        state, slope = torch.autograd.functional.jvp(along, here, torch.ones_like(here))
        assert torch.allclose(slope, (state - TEACHER(state, level)) / level, rtol=1e-9, atol=1e-12)


def test_gaussian_flow_starts_from_unit_noise_at_inf() -> None:
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    far = 1e9
    assert torch.allclose(TEACHER.flow(z, math.inf, 0.0), TEACHER.flow(MEAN + far * z, far, 0.0), rtol=0, atol=1e-6)
