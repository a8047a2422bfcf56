"""The chain over kept levels: its posteriors are the teacher's own steps together, and the bound weighs them so."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from onefold.errors import UserError
from onefold.kept import WAYS, kept_steps
from onefold.posterior import elbo_weights
from onefold.process import DiscreteVP, beta_table, from_x0, to_x0, zero_terminal_snr

LINEAR = DiscreteVP.from_betas(beta_table("linear", 1024))
PUBLISHED = DiscreteVP.from_betas(beta_table("sigmoid_alpha", 1024))
TABLES = {"linear": LINEAR, "published": PUBLISHED}


def signal(process: DiscreteVP, phi: tuple[int, ...]) -> list[float]:
    """A'_0 = 1, then A'_t = A_phi_t."""
    return [1.0, *process.alphas_cumprod[torch.tensor(phi) - 1].tolist()]


def posterior(before: float, now: float) -> tuple[float, float, float]:
    """q(x_(t-1) | x_t, x_0) from A'_(t-1) and A'_t: what multiplies x_0 and x_t, and the variance."""
    a = now / before
    b = 1 - a
    return (
        math.sqrt(before) * b / (1 - now),
        math.sqrt(a) * (1 - before) / (1 - now),
        b * (1 - before) / (1 - now),
    )


def composed(process: DiscreteVP, upper: int, lower: int) -> tuple[float, float, float]:
    """The teacher's own posteriors from step `upper` down to `lower`, one after another with the same x_0."""
    from_clean, from_noisy, variance = 0.0, 1.0, 0.0
    table = [1.0, *process.alphas_cumprod.tolist()]
    for step in range(upper, lower, -1):
        clean, noisy, own = posterior(table[step - 1], table[step])
        from_clean, from_noisy = clean + noisy * from_clean, noisy * from_noisy
        variance = own + noisy**2 * variance
    return from_clean, from_noisy, variance


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", TABLES)
def test_posteriors_keep_the_marginals(name: str, how: str) -> None:
    table = signal(TABLES[name], kept_steps(TABLES[name], 16, how))
    assert posterior(*table[:2])[2] == 0
    for before, now in pairwise(table):
        clean, noisy, variance = posterior(before, now)
        assert 0 < now / before < 1
        assert 0 <= variance <= 1 - now / before
        assert clean + noisy * math.sqrt(now) == pytest.approx(math.sqrt(before), rel=1e-12)
        assert noisy**2 * (1 - now) + variance == pytest.approx(1 - before, abs=1e-12)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", TABLES)
def test_a_posterior_is_the_teachers_steps_together(name: str, how: str) -> None:
    phi = (0, *kept_steps(TABLES[name], 8, how))
    table = signal(TABLES[name], phi[1:])
    for (lower, upper), (before, now) in zip(pairwise(phi), pairwise(table), strict=True):
        assert composed(TABLES[name], upper, lower) == pytest.approx(posterior(before, now), abs=1e-9)


# --- weights of the bound ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 4, 16, 128, 1024])
@pytest.mark.parametrize("name", TABLES)
def test_three_forms_of_the_weight(name: str, steps: int) -> None:
    """The weights on eps as they are derived, against ours on x0: |d eps|^2 = A / (1 - A) |d x0|^2."""
    process = TABLES[name]
    phi = kept_steps(process, steps, "uniform")
    table = signal(process, phi)
    weights = elbo_weights(process.sigmas[torch.tensor(phi) - 1]).tolist()
    assert weights[0] * (1 - table[1]) / table[1] == pytest.approx(1 / (2 * table[1]), rel=1e-10)
    for weight, (before, now) in zip(weights[1:], pairwise(table[1:]), strict=True):
        a, variance = now / before, posterior(before, now)[2]
        forms = [
            (1 - a) ** 2 / (2 * variance * a * (1 - now)),
            (1 - a) / (2 * a * (1 - before)),
            weight * (1 - now) / now,
        ]
        assert forms == pytest.approx([forms[0]] * 3, rel=1e-9)


def divergence(shift: float, variance: float) -> float:
    """KL of two Gaussians of one variance, integrated."""
    width = math.sqrt(variance)
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64) * width

    def log_density(mean: float) -> Tensor:
        return -((x - mean) ** 2) / (2 * variance) - math.log(width * math.sqrt(2 * math.pi))

    first, second = log_density(0.0), log_density(shift)
    return float(torch.trapezoid(first.exp() * (first - second), x))


@pytest.mark.parametrize("name", TABLES)
def test_weights_are_the_divergence_of_the_posteriors(name: str) -> None:
    process, off = TABLES[name], 0.3
    phi = kept_steps(process, 8, "quadratic")
    table = signal(process, phi)
    weights = elbo_weights(process.sigmas[torch.tensor(phi) - 1]).tolist()
    for t, (before, now) in enumerate(pairwise(table)):
        clean, _, variance = posterior(before, now)
        decoder = variance if t else 1 - now  # the published choice where the posterior is a point
        assert divergence(clean * off, decoder) == pytest.approx(weights[t] * off**2, rel=1e-8)


def test_weights_add_up_and_take_a_level_without_signal() -> None:
    sigmas = torch.tensor([0.5, 2.0, math.inf], dtype=torch.float64)
    assert elbo_weights(sigmas).tolist() == [2.5, 1.875, 0.125]
    assert elbo_weights(sigmas[2:]).tolist() == [0.5]
    dark = DiscreteVP(zero_terminal_snr(LINEAR.alphas_cumprod)).sigmas
    # the differences telescope: 1/2 + SNR_1 is left, less half of the last level's
    total = float(elbo_weights(dark).sum())
    assert total == pytest.approx(0.5 + float(dark[0]) ** -2, rel=1e-12)


@pytest.mark.parametrize("levels", [[2.0, 1.0], [1.0, 1.0], [0.0, 1.0], [1.0, math.nan], [-1.0, 2.0]])
def test_weights_need_rising_levels(levels: list[float]) -> None:
    with pytest.raises(UserError, match="rise from above 0"):
        elbo_weights(torch.tensor(levels, dtype=torch.float64))
    with pytest.raises(UserError, match="float64"):
        elbo_weights(torch.tensor([1.0, 2.0]))


def test_errors_of_one_prediction_in_terms_of_another() -> None:
    """Of each sample: |d eps|^2 = A |d v|^2, |d x0|^2 = (1 - A) |d v|^2, |d eps|^2 = A / (1 - A) |d x0|^2."""
    draws = torch.Generator().manual_seed(0)
    x0, other, noise = torch.randn(3, 5, 7, dtype=torch.float64, generator=draws)
    for sigma in PUBLISHED.sigmas[[0, 100, 512, 1000]].tolist():
        a, b = PUBLISHED.scales(sigma)
        z, kept = a * x0 + b * noise, float(a) ** 2
        gap = {}
        for kind in ("eps", "x0", "v"):
            first, second = from_x0(kind, x0, z, a, b), from_x0(kind, other, z, a, b)
            assert torch.allclose(to_x0(kind, second, z, a, b), other, rtol=1e-8, atol=1e-8)
            gap[kind] = (first - second).square().sum(1)
        assert torch.allclose(gap["eps"], kept * gap["v"], rtol=1e-9)
        assert torch.allclose(gap["x0"], (1 - kept) * gap["v"], rtol=1e-9)
        assert torch.allclose(gap["eps"], kept / (1 - kept) * gap["x0"], rtol=1e-9)
