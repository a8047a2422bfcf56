"""Distances to the teacher and paths between noises, against closed forms."""

import math

import pytest
import torch

from onefold.errors import UserError
from onefold.metrics.fidelity import feature_errors, psnr, rmse, squared_errors, typical
from onefold.metrics.interpolation import between, evenness


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rmse_is_over_all_pixels_and_its_spread_shrinks_with_the_images() -> None:
    images, reference = noise(400, 1, 3, 3), noise(400, 1, 3, 3, seed=1)
    value, spread = rmse(squared_errors(images, reference))
    assert value == pytest.approx(math.sqrt(float((images - reference).double().square().mean())), rel=1e-9)
    # each squared error is 2/9 chi^2(9): mean 2, standard deviation 2 sqrt(2/9); the root's slope is 1 / (2 sqrt 2)
    assert spread == pytest.approx(2 * math.sqrt(2 / 9) / math.sqrt(400) / (2 * math.sqrt(2)), rel=0.15)


def test_rmse_spread_is_that_of_repeated_experiments() -> None:
    values, spreads = zip(
        *(rmse(squared_errors(noise(50, 1, 2, 2, seed=s), noise(50, 1, 2, 2, seed=1000 + s))) for s in range(200)),
        strict=True,
    )
    true = float(torch.tensor(values).std())
    assert sum(spreads) / len(spreads) == pytest.approx(true, rel=0.15)


def test_median_spread_is_that_of_repeated_experiments() -> None:
    values, spreads = zip(*(typical(noise(200, seed=s).double().square()) for s in range(200)), strict=True)
    assert sum(spreads) / len(spreads) == pytest.approx(float(torch.tensor(values).std()), rel=0.2)


def test_one_image_has_no_spread() -> None:
    errors = squared_errors(noise(1, 1, 2, 2), noise(1, 1, 2, 2, seed=1))
    assert rmse(errors)[1] is None
    assert psnr(errors)[1] is None


def test_psnr_has_the_peak_of_images_from_minus_one_to_one() -> None:
    black, grey = -torch.ones(2, 1, 2, 2), -torch.ones(2, 1, 2, 2) + 0.2
    assert psnr(squared_errors(black, grey))[0] == pytest.approx(20.0, abs=1e-5)  # a tenth of the range: 20 dB
    assert 140 < psnr(squared_errors(black, black))[0] < 160  # finite: as good as single precision is


def test_feature_errors_are_squared_lengths() -> None:
    assert feature_errors(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)).tolist() == [25.0]


@pytest.mark.parametrize("kind", ["slerp", "linear"])
def test_paths_begin_and_end_exactly_at_the_given_noises(kind: str) -> None:
    begin, end = noise(3, 1, 4, 4), noise(3, 1, 4, 4, seed=1)
    frames = between(kind, begin, end, 7)  # type: ignore[arg-type]
    assert frames.shape == (3, 7, 1, 4, 4)
    assert torch.equal(frames[:, 0], begin)
    assert torch.equal(frames[:, -1], end)


def test_slerp_moves_at_an_even_angle_and_keeps_the_length_of_equal_ends() -> None:
    begin, end = noise(1, 64).double(), noise(1, 64, seed=1).double()
    end *= begin.norm() / end.norm()
    frames = between("slerp", begin, end, 9)[0]
    assert frames.norm(dim=1).tolist() == pytest.approx([float(begin.norm())] * 9, rel=1e-12)
    unit = frames / frames.norm(dim=1, keepdim=True)
    angles = (unit[1:] * unit[:-1]).sum(1).clamp(-1, 1).arccos()
    assert float(angles.max() - angles.min()) < 1e-9


def test_linear_is_the_straight_line() -> None:
    frames = between("linear", torch.zeros(1, 2), torch.tensor([[4.0, 8.0]]), 5)
    assert frames[0].tolist() == [[0, 0], [1, 2], [2, 4], [3, 6], [4, 8]]


def test_slerp_of_a_noise_with_itself_stays_there() -> None:
    begin = noise(1, 8)
    assert torch.allclose(between("slerp", begin, begin.clone(), 4), begin[:, None].expand(1, 4, 8))


def test_a_path_needs_two_frames() -> None:
    with pytest.raises(UserError, match="2 frames or more"):
        between("slerp", noise(1, 4), noise(1, 4), 1)


def test_a_straight_even_path_has_length_and_jump_one() -> None:
    images = between("linear", noise(2, 1, 3, 3), noise(2, 1, 3, 3, seed=1), 6)
    found = evenness(images)
    assert found is not None
    assert found.length == pytest.approx(1, rel=1e-6)
    assert found.jump == pytest.approx(1, rel=1e-5)


def test_a_path_that_stands_still_and_leaps_is_told() -> None:
    images = torch.tensor([[0.0, 0.0, 0.0, 0.0, 4.0]])[..., None]
    leap = evenness(images)
    assert leap is not None
    assert leap.jump == pytest.approx(4)  # one step of 4, the mean being 1
    around = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]]])
    corner = evenness(around)
    assert corner is not None
    assert corner.length == pytest.approx(7 / 5)


def test_a_path_that_leads_nowhere_has_no_evenness() -> None:
    assert evenness(torch.zeros(1, 3, 4)) is None
