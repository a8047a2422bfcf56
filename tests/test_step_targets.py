"""What one student step should give: `step_target` against steps written out, and how the six weights compare predictions."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from onefold.denoiser import Denoiser, Gaussian, GaussianMixture
from onefold.errors import UserError
from onefold.methods.chain import weights
from onefold.process import EDM, DiscreteVP, Flow, Prediction, beta_table, from_x0
from onefold.solvers import SOLVERS, euler_step
from onefold.targets import denoised_target, step_target

RING = torch.stack([torch.tensor([math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)]) for k in range(8)]).double()
MIXTURE = GaussianMixture(RING, 0.2, labels=[k % 2 for k in range(8)])
GAUSSIAN = Gaussian(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.3]))
ROWS = torch.tensor(
    [[9.0, 4.0, 2.5, 1.0], [3.0, 2.0, 1.2, 0.9], [0.4, 0.2, 0.15, 0.0], [math.inf, 30.0, 5.0, 2.0]]
).double()
LABELS = {"labels": torch.tensor([0, 1, -1, 0])}
LINEAR = DiscreteVP.from_betas(beta_table("linear"))


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def states(levels: Tensor) -> Tensor:
    """One row a level: data and noise, or noise alone."""
    data, _ = MIXTURE.draw(len(levels), torch.Generator().manual_seed(1))
    z, sigma = noise(len(levels)), levels[:, :1]
    return torch.where(sigma.isinf(), z, data + sigma.nan_to_num(posinf=0.0) * z)


def landing(x: Tensor, denoised: Tensor, levels: Tensor) -> Tensor:
    """Where one step of each row ends."""
    steps = zip(x, denoised, levels[:, 0].tolist(), levels[:, -1].tolist(), strict=True)
    return torch.stack([euler_step(*step) for step in steps])


def walked(x: Tensor, levels: list[float], cond: Any) -> Tensor:
    """The K steps of DDIM, one row alone."""
    for sigma, to in pairwise(levels):
        x = euler_step(x, MIXTURE.denoise(x, sigma, cond), sigma, to)
    return x


def only(row: int) -> dict[str, Tensor]:
    return {name: value[row : row + 1] for name, value in LABELS.items()}


# --- the target -------------------------------------------------------------------------------------------------------


def test_one_step_lands_where_the_steps_land() -> None:
    """Rows with levels of their own, among them one from inf and one into 0; and the inverse of the step says the same."""
    x = states(ROWS)
    target = step_target(MIXTURE, x, ROWS, cond=LABELS)
    ends = torch.cat([walked(x[n : n + 1], ROWS[n].tolist(), only(n)) for n in range(len(ROWS))])
    assert torch.allclose(landing(x, target, ROWS), ends, rtol=0, atol=1e-12)
    inverse = [denoised_target(x[n], ends[n], float(ROWS[n, 0]), float(ROWS[n, -1])) for n in range(len(ROWS))]
    assert torch.allclose(target, torch.stack(inverse), rtol=0, atol=1e-10)
    assert not torch.allclose(target, MIXTURE.denoise(x, ROWS[:, 0], LABELS), atol=0.01)


@pytest.mark.parametrize("second_order", [False, True])
def test_one_part_is_the_teacher_s_own_image(second_order: bool) -> None:
    """Invariant 15: as a call, and by the formula that accumulates, which a step of no length leads through."""
    x, levels = states(ROWS), ROWS[:, :2]
    own = MIXTURE.denoise(x, levels[:, 0], LABELS)
    assert torch.equal(step_target(MIXTURE, x, levels, cond=LABELS, second_order=second_order), own)
    halted = torch.cat([levels, levels[:, 1:]], 1)
    assert torch.allclose(step_target(MIXTURE, x, halted, cond=LABELS), own, rtol=0, atol=1e-10)


@pytest.mark.parametrize("second_order", [False, True])
def test_each_row_is_as_if_it_were_alone(second_order: bool) -> None:
    x = states(ROWS)
    together = step_target(MIXTURE, x, ROWS, cond=LABELS, second_order=second_order)
    for n in range(len(ROWS)):
        alone = step_target(MIXTURE, x[n : n + 1], ROWS[n : n + 1], cond=only(n), second_order=second_order)
        assert torch.allclose(together[n], alone[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_the_second_order_is_the_solver_s(parts: int) -> None:
    """DPM-Solver++ (2M) on the interval, when it is not the solver's last: there alone it takes a step of first order above 0."""
    for top, bottom in ((40.0, 6.0), (2.0, 0.3), (1.0, 0.0), (math.inf, 4.0)):
        inner = torch.logspace(math.log10(min(top, 90.0)), math.log10(max(bottom, 0.05)), parts + 1).double().tolist()
        levels = [top, *inner[1:-1], bottom]
        further = [*levels, bottom / 2] if bottom else levels
        row = torch.tensor([levels], dtype=torch.float64)
        x = states(row)
        _, every = SOLVERS["dpmpp2m"](MIXTURE, x, further, cond=only(2), trajectory=True)
        target = step_target(MIXTURE, x, row, cond=only(2), second_order=True)
        assert torch.allclose(landing(x, target, row), every[parts], rtol=0, atol=1e-10)
        if 0 < bottom and parts > 2:
            plain = step_target(MIXTURE, x, row, cond=only(2))
            assert not torch.allclose(plain, target, atol=1e-4)


@pytest.mark.parametrize(("second_order", "order"), [(False, 1), (True, 2)])
@pytest.mark.parametrize(("top", "bottom"), [(20.0, 1.0), (1.5, 0.2)])
def test_many_parts_are_the_teacher_s_flow(second_order: bool, order: int, top: float, bottom: float) -> None:
    """Invariant 15, with the exact solution: the error falls with the order of the steps, to nothing."""
    x = GAUSSIAN.means[0] + (GAUSSIAN.stds[0] ** 2 + top**2).sqrt() * noise(16)
    end, errors = GAUSSIAN.flow(x, top, bottom), []
    for parts in (32, 64, 128):
        line = torch.logspace(math.log10(top), math.log10(bottom), parts + 1, dtype=torch.float64)
        levels = torch.cat([torch.tensor([top]).double(), line[1:-1], torch.tensor([bottom]).double()]).expand(16, -1)
        target = step_target(GAUSSIAN, x, levels, cond={}, second_order=second_order)
        errors.append(float((landing(x, target, levels) - end).norm(dim=1).mean()))
    assert [upper / lower for upper, lower in pairwise(errors)] == pytest.approx([2**order] * 2, rel=0.1)
    assert errors[-1] < 0.02**order


def test_many_parts_from_no_signal_into_none_of_the_noise() -> None:
    """From inf to 0 a student of one step is the whole flow."""
    x, parts = noise(16), 1000
    line = torch.logspace(3, -4, parts - 1, dtype=torch.float64)
    levels = torch.cat([torch.tensor([math.inf]), line, torch.tensor([0.0])]).double().expand(16, -1)
    target = step_target(GAUSSIAN, x, levels, cond={}, second_order=True)
    assert torch.allclose(target, GAUSSIAN.flow(x, math.inf, 0.0), rtol=0, atol=2e-3)


def test_a_target_costs_a_call_a_part_and_no_graph() -> None:
    x = states(ROWS).requires_grad_(True)
    MIXTURE.calls = 0
    assert not step_target(MIXTURE, x, ROWS, cond=LABELS).requires_grad and MIXTURE.calls == 3


def test_single_precision_keeps_targets_of_the_highest_levels() -> None:
    """Where states are of size 1000, a difference of states would keep three digits less."""
    levels = torch.tensor([[2000.0, 1500.0, 1200.0, 1000.0]] * 64).double()
    x = 2000 * noise(64)
    exact = step_target(MIXTURE, x, levels, cond={})
    single = step_target(MIXTURE, x.float(), levels, cond={})
    assert single.dtype == torch.float32
    assert float((single - exact).abs().max()) < 1e-6


# --- weights ----------------------------------------------------------------------------------------------------------

KEPT = LINEAR.sigmas[[15, 255, 511, 767, 999]].flip(0)  # from the highest level down


def alphas() -> tuple[Tensor, Tensor]:
    """A'_t and A'_(t-1), from t = T' down."""
    kept = 1 / (1 + KEPT**2)
    return kept, torch.cat([kept[1:], torch.ones(1, dtype=torch.float64)])


def told(prediction: Prediction, process: Any = LINEAR) -> Denoiser:
    return Denoiser(lambda z, time: z, process, prediction=prediction, shape=(2,))


def test_weights_by_their_formulas() -> None:
    """1.6: |d eps|^2 = A / (1 - A) |d x0|^2, |d x0|^2 = (1 - A) |d v|^2, and g_t of the bound, on the error of x0."""
    a, before = alphas()
    snr = a / (1 - a)
    ratio = a / before
    bound = (1 - ratio[:-1]) / (2 * ratio[:-1] * (1 - before[:-1]))
    g = torch.cat([bound, 1 / (2 * a[-1:])])
    expected = {
        "eps": snr,
        "x0": torch.ones(5).double(),
        "v": 1 / (1 - a),
        "truncated": torch.maximum(snr, torch.ones(5).double()),
        "elbo": g * snr,
    }
    for kind, wanted in expected.items():
        found = weights(kind, told("v"), KEPT)  # type: ignore[arg-type]
        assert found.dtype == torch.float64 and torch.allclose(found, wanted, rtol=1e-9), kind
    assert snr.min() < 1 < snr.max()


@pytest.mark.parametrize(
    ("prediction", "process"),
    [("eps", LINEAR), ("v", LINEAR), ("x0", LINEAR), ("flow", Flow()), ("edm", EDM()), ("edm", EDM(floor=0.002))],
)
def test_weights_turn_errors_of_images_into_those_of_outputs(prediction: Prediction, process: Any) -> None:
    """Invariant 10: for networks of every prediction, and under the name of each that the process knows."""
    x0, other, eps = noise(5, 1), noise(5, 2), noise(5, 3)
    error = (x0 - other).square().mean(1)
    a, b = (scale.unsqueeze(1) for scale in process.scales(KEPT))
    z = a * x0 + b * eps

    def apart(kind: Prediction) -> Tensor:
        outputs = [from_x0(kind, image, z, a, b, process.sigma_data, process.floor) for image in (x0, other)]
        return (outputs[0] - outputs[1]).square().mean(1)

    teacher = told(prediction, process)
    assert torch.allclose(weights("output", teacher, KEPT) * error, apart(prediction), rtol=1e-9)
    for kind in {"eps", "x0", "v"} & set(process.predictions):
        assert torch.allclose(weights(kind, teacher, KEPT) * error, apart(kind), rtol=1e-9)  # type: ignore[arg-type]


def test_weights_at_a_level_without_signal() -> None:
    levels = torch.tensor([math.inf, 2.0, 0.5]).double()
    found = {kind: weights(kind, told("v"), levels)[0].item() for kind in ("x0", "v", "truncated", "output")}  # type: ignore[arg-type]
    assert found == {"x0": 1, "v": 1, "truncated": 1, "output": 1}
    assert weights("elbo", told("v"), levels).tolist() == pytest.approx([0.125, 1.875, 2.5])


def test_weights_of_another_name() -> None:
    with pytest.raises(UserError, match="unknown weight 'snr'"):
        weights("snr", told("v"), KEPT)  # type: ignore[arg-type]
