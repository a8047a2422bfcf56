"""Sampling: image i depends on (seed, i) only, and calls are what they cost."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import pipelines
from onefold.clipping import dynamic
from onefold.codec import Codec
from onefold.denoiser import Denoiser, Gaussian, GaussianMixture
from onefold.errors import UserError
from onefold.grids import explicit, karras
from onefold.process import DiscreteVP, Flow, beta_table, zero_terminal_snr
from onefold.sampling import labels_for, sample
from onefold.seeds import ImageNoise, generator, integer, mix, uniform
from onefold.solvers import SOLVERS
from onefold.student import Student
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


# --- clipping ---------------------------------------------------------------------------------------------------------

BRIGHT = GaussianMixture(torch.tensor([[[[1.4, -1.2], [0.3, 0.9]]], [[[-1.5, 0.2], [1.1, -0.4]]]]), 0.3)
LEVELS = [20.0, 4.0, 1.0, 0.2, 0.0]


def by_hand(limit: Any, z: torch.Tensor) -> torch.Tensor:
    """DDIM as it is published: of the clipped image the noise is derived again, and both are put together one level lower."""
    x = LEVELS[0] * z
    for sigma, to in pairwise(LEVELS):
        image = limit(BRIGHT(x, sigma))
        x = image + to * (x - image) / sigma
    return x


def thresholded(images: torch.Tensor) -> torch.Tensor:
    clipped = []
    for image in images:
        s = max(1.0, float(np.quantile(image.abs().numpy(), 0.995)))
        clipped.append(image.clamp(-s, s) / s)
    return torch.stack(clipped)


@pytest.mark.parametrize(("clip", "limit"), [("static", lambda image: image.clamp(-1, 1)), ("dynamic", thresholded)])
def test_clipped_sampling_is_ddim_with_the_noise_derived_again(clip: Any, limit: Any) -> None:
    settings: dict[str, Any] = {"solver": "euler", "grid": LEVELS, "seed": 4}
    images = sample(BRIGHT, 6, clip=clip, **settings)
    z = ImageNoise(4, range(6), BRIGHT.shape)()
    assert torch.allclose(images, by_hand(limit, z), atol=1e-5)
    free = sample(BRIGHT, 6, **settings)
    assert images.abs().max() <= 1 and free.abs().max() > 1.2
    assert torch.allclose(free, by_hand(lambda image: image, z), atol=1e-5)


def test_dynamic_clipping_looks_at_each_image_alone_and_leaves_tame_ones() -> None:
    tame, wild = torch.linspace(-0.9, 0.9, 192).reshape(1, 3, 8, 8), torch.linspace(-3, 3, 192).reshape(1, 3, 8, 8)
    wild[0, 0, 0, 0] = 50.0  # an outlier is cut, not followed
    both = dynamic(torch.cat([tame, wild]))
    assert torch.equal(both[:1], tame) and torch.equal(both[1:], dynamic(wild))
    s = float(np.quantile(wild.abs().numpy(), 0.995))
    assert 1 < s < 6 and float(both[1, 0, 0, 0]) == pytest.approx(1)
    assert torch.allclose(both[1, 1], wild[0, 1] / s, rtol=1e-3)  # single precision places the quantile


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_every_solver_can_be_clipped(solver: str) -> None:
    """The last step gives the clipped image itself; a network that leaves the range comes back into it."""
    images = sample(BRIGHT, 3, solver=solver, calls=8, clip="static")
    assert images.abs().max() <= 1 + 1e-6
    assert not torch.allclose(images, sample(BRIGHT, 3, solver=solver, calls=8), atol=1e-2)


def test_clipping_is_ddims_of_diffusers(digits: Any) -> None:
    """Its scheduler with clip_sample and use_clipped_model_output, on the same network, levels and noise."""
    diffusers = pytest.importorskip("diffusers")
    stock = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=True, timestep_spacing="trailing")
    process = DiscreteVP.from_betas(beta_table("linear"))
    torch.manual_seed(0)
    network = pipelines.pixel_unet(1)
    model = Denoiser(
        lambda z, time: 3 * network(z, time).sample, process, prediction="v", shape=(1, 8, 8), continuous_time=False
    )
    stock.set_timesteps(5)
    sigmas = [float(process.sigmas[time]) for time in stock.timesteps]
    with torch.inference_mode():
        z = process.prior(ImageNoise(0, range(3), (1, 8, 8))(), sigmas[0]) / math.sqrt(1 + sigmas[0] ** 2)
        for time in stock.timesteps:
            output = 3 * network(z, time).sample
            z = stock.step(output, time, z, use_clipped_model_output=True).prev_sample
    # its last step ends at the table's first level, which is not clean: the clean image is what it has predicted there
    images = sample(model, 3, solver="euler", grid=[*sigmas, 0.0], clip="static")
    assert torch.allclose(images, z, atol=1e-4)
    assert not torch.allclose(sample(model, 3, solver="euler", grid=[*sigmas, 0.0]), images, atol=0.05)


def test_wrong_clips_are_refused(digits: Any) -> None:
    with pytest.raises(UserError, match="did you mean 'static'"):
        sample(digits, 2, clip="statik")  # type: ignore[call-overload]
    latents = BRIGHT.replace(codec=Codec(torch.nn.Identity(), (3, 4, 4), lambda x: x, lambda x: x))
    with pytest.raises(UserError, match="denoises latents, which have no range"):
        sample(latents, 2, clip="static")


# --- starts and states ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["euler", "ancestral", "heun"])
def test_the_seeds_own_noise_as_a_start_changes_no_bit(digits: Any, solver: str) -> None:
    """Also of what a stochastic solver draws later, batch by batch."""
    settings: dict[str, Any] = {"solver": solver, "calls": 5, "seed": 2, "first": 3, "batch_size": 2}
    z = ImageNoise(2, range(3, 8), digits.shape)()
    images = sample(digits, 5, **settings)
    assert torch.equal(sample(digits, 5, noise=z, **settings), images)
    assert torch.equal(sample(digits, 5, noise=z.double(), **settings), images)
    assert not torch.allclose(sample(digits, 5, noise=z.flip(0), **settings), images, atol=1e-2)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (np.zeros((2, 1, 8, 8), np.float32), r"noise is a ndarray, expected a tensor of shape \(2, 1, 8, 8\)"),
        (torch.zeros(3, 1, 8, 8), r"shape \(3, 1, 8, 8\), expected shape \(2, 1, 8, 8\)"),
        (torch.zeros(1, 8, 8), "one for each image"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.long), "expected floats"),
        (torch.full((2, 1, 8, 8), math.inf), "NaN or infinite"),
    ],
)
def test_wrong_noise_is_refused(digits: Any, noise: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample(digits, 2, noise=noise)


@pytest.mark.parametrize("solver", ["euler", "ancestral", "dpmpp2m"])
def test_states_lead_from_the_start_to_the_images(digits: Any, solver: str) -> None:
    grid = karras(digits.process, 4)
    settings: dict[str, Any] = {"solver": solver, "grid": grid, "seed": 6}
    images, states = sample(digits, 5, trajectory=True, batch_size=2, **settings)
    assert states.shape == (5, 5, 1, 8, 8)
    z = ImageNoise(6, range(5), digits.shape)()
    assert torch.equal(states[0], grid.start_state(digits.process, z))
    assert torch.equal(states[-1], images)
    assert torch.equal(images, sample(digits, 5, batch_size=2, **settings))


def test_states_of_latents_are_latents_and_their_images_decoded() -> None:
    latents = BRIGHT.replace(codec=Codec(torch.nn.Identity(), (1, 4, 4), lambda x: x, lambda x: x.repeat(1, 1, 2, 2)))
    images, states = sample(latents, 2, calls=3, trajectory=True)
    assert states.shape == (4, 2, 1, 2, 2)
    assert torch.equal(images, states[-1].repeat(1, 1, 2, 2))


def test_states_from_infinity_begin_with_the_noise() -> None:
    teacher = Gaussian(torch.zeros(3), 0.5, process=Flow())
    _, states = sample(teacher, 2, calls=3, trajectory=True)
    assert torch.equal(states[0], ImageNoise(0, range(2), (3,))())


# --- students ---------------------------------------------------------------------------------------------------------


def test_a_student_takes_the_same_options_and_steps_with_noise_of_its_own(digits: Any) -> None:
    grid = karras(digits.process, 3)
    student = Student(digits, grid, None, {})
    for eta in (0.5, 1.0):
        noisy = sample(digits, 3, solver="ddim", grid=grid, eta=eta)
        assert torch.equal(student.sample(3, eta=eta), noisy)
    assert torch.equal(student.sample(3, eta=0.0), sample(digits, 3, solver="euler", grid=grid))
    z = ImageNoise(8, range(3), digits.shape)()
    images, states = student.sample(3, noise=z, clip="static", trajectory=True)
    assert states.shape == (4, 3, 1, 8, 8) and torch.equal(states[-1], images) and images.abs().max() <= 1
    assert torch.equal(states[0], grid.start_state(digits.process, z))
    assert student.way["solver"] == "euler"
    for eta in (1.5, -0.1, math.nan):
        with pytest.raises(UserError, match="eta is"):
            student.sample(2, eta=eta)


def test_a_students_step_with_eta_one_draws_from_the_posterior() -> None:
    """Of q(x_t | x_s, x0) in the network's coordinates (A the cumulative alphas, a = A_s / A_t, b = 1 - a): mean
    sqrt(A_t) b / (1 - A_s) x0 + sqrt(a) (1 - A_t) / (1 - A_s) x_s, variance b (1 - A_t) / (1 - A_s)."""
    process = DiscreteVP.from_betas(beta_table("linear"))
    upper, lower = float(process.alphas_cumprod[700]), float(process.alphas_cumprod[300])
    s, t = (math.sqrt((1 - level) / level) for level in (upper, lower))
    exact = Gaussian(torch.full((1,), 0.7), 0.0, process=process)  # its denoised image is always 0.7
    student = Student(exact, explicit([s, t], end="sigma_min"), None, {})
    count, a = 5, upper / lower
    start = torch.linspace(-1, 1, count).unsqueeze(1)
    draws = ImageNoise(3, range(count), (1,))
    _, second = draws(), draws()
    _, states = student.sample(count, seed=3, noise=start, eta=1.0, trajectory=True)
    x_s, x_t = states[0] * math.sqrt(upper), states[1] * math.sqrt(lower)
    mean = math.sqrt(lower) * (1 - a) / (1 - upper) * 0.7 + math.sqrt(a) * (1 - lower) / (1 - upper) * x_s
    spread = math.sqrt((1 - a) * (1 - lower) / (1 - upper))
    assert torch.allclose(x_t, mean + spread * second, atol=1e-5)
