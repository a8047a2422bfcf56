"""Sampling: image i depends on (seed, i) only, and calls are what they cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from onefold.denoiser import Gaussian, GaussianMixture
from onefold.errors import UserError
from onefold.grids import karras
from onefold.process import DiscreteVP, Flow, beta_table, zero_terminal_snr
from onefold.sampling import labels_for, sample
from onefold.seeds import ImageNoise, generator, integer, mix, uniform
from onefold.solvers import SOLVERS
from onefold.teachers import load_teacher


@pytest.fixture(scope="module")
def digits() -> Any:
    return load_teacher("digits8", device="cpu")


@pytest.mark.parametrize("solver", ["euler", "ancestral", "dpmpp3m"])
def test_an_image_depends_on_its_seed_and_number_only(digits: Any, solver: str) -> None:
    settings: dict[str, Any] = {"solver": solver, "calls": 5, "seed": 3}
    whole = sample(digits, 7, batch_size=7, **settings)
    for size in (1, 3, 64):
        assert torch.allclose(sample(digits, 7, batch_size=size, **settings), whole, atol=1e-5)
    assert torch.allclose(sample(digits, 2, first=5, **settings), whole[5:], atol=1e-5)
    assert not torch.allclose(sample(digits, 7, **{**settings, "seed": 4}), whole, atol=1e-2)


def test_noise_and_labels_are_bitwise_functions_of_seed_and_number(digits: Any) -> None:
    whole = ImageNoise(9, range(6), (1, 8, 8))
    first, second = whole(), whole()
    for index in range(6):
        alone = ImageNoise(9, [index], (1, 8, 8))
        assert torch.equal(alone()[0], first[index]) and torch.equal(alone()[0], second[index])
    assert not torch.equal(first, second)
    labels = labels_for(digits, 9, range(1000))
    assert torch.equal(labels[500:510], labels_for(digits, 9, range(500, 510)))
    assert torch.bincount(labels).min() > 60  # every class gets its share


def test_streams_of_numbers_are_apart() -> None:
    """Neighbouring names give unrelated draws; a collision here would repeat images."""
    names = [(a, b, c) for a in range(20) for b in range(5) for c in range(200)]
    assert len({mix(*name) for name in names}) == len(names)
    assert mix(1, 2) != mix(2, 1) and mix(0) != mix(0, 0)
    values = torch.tensor([uniform(7, index) for index in range(20_000)], dtype=torch.float64)
    assert abs(float(values.mean()) - 0.5) < 0.01 and abs(float(values.var()) - 1 / 12) < 0.002
    assert {integer(3, 5, index) for index in range(50)} == {0, 1, 2}
    z = torch.stack([torch.randn(64, generator=generator(0, index)) for index in range(500)])
    neighbours = (z[:-1] * z[1:]).mean()
    assert abs(float(neighbours)) < 4 / math.sqrt(64 * 499)


@pytest.mark.parametrize("afs", [None, "ve", "vp"])
@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
def test_no_more_calls_than_asked_for(solver: str, afs: Any, end: Any) -> None:
    teacher = GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.2)
    for calls in (2, 5, 8):
        teacher.calls = 0
        try:
            sample(teacher, 3, solver=solver, calls=calls, afs=afs, end=end)
        except UserError:
            assert calls == 2  # two calls may not be enough for a step of two and the start
            continue
        assert calls - (SOLVERS[solver].calls_per_step - 1) <= teacher.calls <= calls


def test_guidance_costs_double_and_follows_the_class(digits: Any) -> None:
    digits.calls = 0
    guided = digits.replace(guidance=2.0)
    images = sample(guided, 4, calls=6, labels=[3])
    assert guided.calls == 12
    assert torch.allclose(images, sample(digits, 4, calls=6, labels=[3], guidance=2.0), atol=1e-6)
    assert not torch.allclose(images, sample(digits, 4, calls=6, labels=[3]), atol=1e-2)


@pytest.mark.parametrize("afs", [None, "ve", "vp"])
def test_a_gaussian_is_sampled_exactly_enough(afs: Any) -> None:
    """The samples are the closed-form flow of their own noise."""
    teacher = Gaussian(torch.tensor([0.3, -0.2]), torch.tensor([0.5, 0.1]))
    images = sample(teacher, 5, solver="ab4", calls=120, grid="karras", end="sigma_min", afs=afs)
    z = ImageNoise(0, range(5), (2,))()
    assert torch.allclose(images, teacher.flow(80.0 * z, 80.0, 0.002), atol=5e-3)


@pytest.mark.parametrize("afs", [None, "ve", "vp"])
def test_an_analytic_first_step_from_infinity(afs: Any) -> None:
    """At inf D = 0 in both forms: x1 = sigma_1 z, and one call less."""
    teacher = Gaussian(torch.tensor([0.0]), 0.5, process=Flow())
    images = sample(teacher, 2000, solver="euler", calls=60, afs=afs, batch_size=2000)
    assert teacher.calls <= 60
    assert abs(float(images.mean())) < 0.05 and abs(float(images.std()) - 0.5) < 0.05


@pytest.mark.parametrize("grid", ["karras", "uniform", "logsnr"])
def test_sampling_starts_at_infinity_where_the_process_does(grid: str) -> None:
    for process in (Flow(), DiscreteVP(zero_terminal_snr((1 - beta_table("linear")).cumprod(0)))):
        teacher = Gaussian(torch.tensor([2.0]), 0.5, process=process)
        images = sample(teacher, 2000, solver="dpmpp2m", calls=40, grid=grid, batch_size=2000)
        assert abs(float(images.mean()) - 2.0) < 0.05 and abs(float(images.std()) - 0.5) < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"calls": 0}, "calls is 0"),
        ({"solver": "dpmp3m"}, "did you mean 'dpmpp"),
        ({"grid": "karas"}, "did you mean 'karras'"),
        ({"labels": [10]}, "from 0 to 9"),
        ({"labels": []}, "from 0 to 9"),
        ({"batch_size": 0}, "batch_size"),
        ({"afs": "x"}, "afs"),
    ],
)
def test_wrong_requests_get_one_sentence(digits: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        sample(digits, 2, **settings)
    assert "\n" not in str(error.value)


def test_labels_for_a_teacher_without_classes_are_refused() -> None:
    teacher = Gaussian(torch.zeros(2), 1.0)
    with pytest.raises(UserError, match="no classes"):
        sample(teacher, 2, labels=[1])
    guided = teacher.replace(guidance=2.0, null={})
    with pytest.raises(UserError, match="guidance must be 1"):
        guided(torch.zeros(1, 2), 1.0, {"labels": torch.zeros(1, dtype=torch.long)})


def test_a_grid_says_everything(digits: Any) -> None:
    """A given grid is used as it is, whatever calls are asked for."""
    grid = karras(digits.process, 3)
    digits.calls = 0
    sample(digits, 2, solver="euler", grid=grid, calls=50)
    assert digits.calls == 3
    levels = grid.sigmas.tolist()
    assert torch.allclose(
        sample(digits, 2, solver="euler", grid=levels), sample(digits, 2, solver="euler", grid=grid), atol=1e-6
    )


def test_guidance_needs_something_to_leave_out() -> None:
    teacher = Gaussian(torch.zeros(2), 1.0)
    teacher.null = {}
    for guidance, message in ((7.0, "guidance must be 1"), (float("nan"), "finite"), (float("inf"), "finite")):
        with pytest.raises(UserError, match=message):
            sample(teacher, 2, guidance=guidance)


def test_calls_of_guidance_are_counted_where_people_look(digits: Any) -> None:
    digits.calls = 0
    sample(digits, 2, calls=5, labels=[1], guidance=2.0)
    assert digits.calls == 10


def test_a_solver_takes_its_own_settings(digits: Any) -> None:
    quiet = sample(digits, 2, solver="ddim", calls=4, eta=0.0)
    assert torch.allclose(quiet, sample(digits, 2, solver="euler", calls=4), atol=1e-6)
    assert not torch.allclose(quiet, sample(digits, 2, solver="ddim", calls=4, eta=1.0), atol=1e-2)
    with pytest.raises(UserError, match="no setting 'etta'"):
        sample(digits, 2, solver="ddim", etta=1.0)


def test_an_exact_teacher_takes_levels_of_any_kind_at_once() -> None:
    teacher = Gaussian(torch.tensor([0.3]), 0.5, process=Flow())
    x = torch.tensor([[1.0], [2.0], [0.1]])
    mixed = teacher(x, torch.tensor([math.inf, 1.0, 1e-30]))
    alone = [teacher(x[k : k + 1], level)[0] for k, level in enumerate((math.inf, 1.0, 1e-30))]
    assert torch.allclose(mixed, torch.stack(alone)) and float(mixed[0, 0]) == pytest.approx(0.3)
    points = GaussianMixture(torch.tensor([[-1.0], [1.0]]))  # data of two points: std 0
    assert points(torch.tensor([[0.9]]), 1e-30).tolist() == [[1.0]]
