"""Metrics against scipy, closed forms, and brute force written down here a second time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from onefold.errors import UserError
from onefold.metrics import frechet, neighbours
from onefold.metrics.classes import class_accuracy, class_score
from onefold.metrics.frechet import floor, frechet_distance, jackknife
from onefold.metrics.kid import kernel_distance
from onefold.metrics.neighbours import Neighbours
from onefold.metrics.scores import METRICS, Evidence
from onefold.metrics.statistics import Moments, Statistics, load_statistics
from onefold.metrics.toys import mode_coverage, sliced_wasserstein


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(count: int, dimensions: int, seed: int, mix: int = 100) -> Tensor:
    """Features whose standard deviations fall from 1 to 0.01."""
    scales = torch.logspace(0, -2, dimensions, dtype=torch.float64)
    return random(count, dimensions, seed=seed) * scales @ random(dimensions, dimensions, seed=mix) + 0.1 * seed


def gaussian(covariance: Any, mean: Any = None, **known: Any) -> Statistics:
    covariance = torch.as_tensor(covariance, dtype=torch.float64)
    mean = torch.zeros(len(covariance)) if mean is None else torch.as_tensor(mean)
    return Statistics(mean.double(), covariance, **{"count": 0, "extractor": "", "provenance": {}} | known)


def seen(x: Tensor, **known: Any) -> Statistics:
    return Moments().add(x).statistics(**known)


def rotated(values: Tensor) -> Tensor:
    """A covariance with these eigenvalues, in directions that are the same for all."""
    q = torch.linalg.qr(random(len(values), len(values), seed=7)).Q
    return (q * values) @ q.T


# Frechet distance -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::scipy.linalg.LinAlgWarning")
@pytest.mark.parametrize(
    ("first", "second"),
    [(300, 300), (300, 20), (20, 300), (20, 20), (10, 30)],
    ids=["full rank", "first deficient", "second deficient", "both deficient", "ranks differ"],
)
def test_frechet_distance_equals_scipys_square_root(first: int, second: int) -> None:
    x, y = correlated(first, 40, seed=1).numpy(), correlated(second, 40, seed=2, mix=200).numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a) + np.trace(b) - 2 * np.trace(root).real
    ours = frechet_distance(seen(torch.from_numpy(x)), seen(torch.from_numpy(y)))
    full = min(first, second) > 40
    assert ours == pytest.approx(expected, rel=1e-10 if full else 1e-6)  # scipy's root of a singular matrix is rough


def test_frechet_distance_in_one_dimension() -> None:
    assert frechet_distance(gaussian([[4.0]], [1.0]), gaussian([[9.0]], [3.0])) == pytest.approx(
        (3 - 1) ** 2 + (3 - 2) ** 2
    )


@pytest.mark.parametrize("spread", [1, 6, 10, 14])
@pytest.mark.parametrize("rank", [60, 25])
def test_frechet_distance_of_commuting_covariances(spread: float, rank: int) -> None:
    """sum (sqrt a - sqrt b)^2, also where the eigenvalues span many magnitudes or end."""
    a = torch.logspace(0, -spread, 60, dtype=torch.float64) * (torch.arange(60) < rank)
    b = torch.cat([a[:rank].roll(1), a[rank:]])
    expected = float((a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(gaussian(rotated(a)), gaussian(rotated(b))) == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_of_single_directions() -> None:
    """tr sqrt(u u^T v v^T) = |u.v|"""
    u, v = random(30, seed=1), random(30, seed=2)
    expected = float(u @ u + v @ v - 2 * (u @ v).abs())
    assert frechet_distance(gaussian(torch.outer(u, u)), gaussian(torch.outer(v, v))) == pytest.approx(
        expected, rel=1e-12
    )


def test_frechet_distance_of_supports_that_do_not_meet() -> None:
    a, b = torch.arange(6.0), torch.tensor([5.0, 0, 0, 0, 0, 0])
    assert frechet_distance(gaussian(rotated(a.double())), gaussian(rotated(b.double()))) == pytest.approx(
        20, rel=1e-12
    )
    assert frechet_distance(gaussian(torch.zeros(3, 3)), gaussian(torch.eye(3))) == 3


@pytest.mark.parametrize("count", [2, 10, 40, 41, 500], ids=lambda count: f"{count} images in 40 dimensions")
def test_identical_sets_are_at_no_distance(count: int) -> None:
    x = correlated(count, 40, seed=1)
    one, other = seen(x), seen(x[torch.randperm(count, generator=torch.Generator().manual_seed(0))])
    assert 0 <= frechet_distance(one, one) <= 1e-12 * float(one.covariance.trace())
    assert 0 <= frechet_distance(one, other) <= 1e-12 * float(one.covariance.trace())


def test_the_square_sees_what_its_eigenvalues_lose() -> None:
    """Singular values below 1e-8 of the largest vanish in the rounding of M M^T."""
    values = torch.tensor([1.0, *[1e-10] * 50], dtype=torch.float64)
    left, right = (torch.linalg.qr(random(51, 51, seed=seed)).Q for seed in (1, 2))
    assert frechet.singular_value_sum((left * values) @ right) == pytest.approx(1 + 50e-10, rel=1e-12)


def test_statistics_that_cannot_be_compared() -> None:
    a, b = gaussian(torch.eye(3), extractor="inception"), gaussian(torch.eye(3), extractor="fashion-cnn")
    assert frechet_distance(a, gaussian(torch.eye(3))) == pytest.approx(0, abs=1e-14)  # what is unknown may be the same
    with pytest.raises(UserError, match="3 dimensions of inception and 3 dimensions of fashion-cnn"):
        frechet_distance(a, b)
    with pytest.raises(UserError, match="3 dimensions of inception and 4 dimensions of an unknown extractor"):
        frechet_distance(a, gaussian(torch.eye(4)))


# Floors and errors of the Frechet distance ------------------------------------------------------------------------------


def test_the_floor_of_a_gaussian_is_what_theory_says() -> None:
    """With covariance I: D / n of the mean and, to first order, |S - I|^2 / 4 = D (D + 1) / (4 n) of the covariance."""
    found = floor(gaussian(torch.eye(4), torch.arange(4.0)), 5000, draws=50)
    assert found.mean == pytest.approx((4 + 5) / 5000, rel=0.15)
    assert 0 < found.low < found.mean < found.high
    assert found.about == "50 sets of 5000 drawn from the Gaussian of the reference, which keeps no further real images"


def test_simulated_sets_have_the_covariance_of_the_reference() -> None:
    for rank in (5, 3):
        covariance = rotated(torch.arange(5, 0, -1).double() * (torch.arange(5) < rank))
        drawn = frechet.simulated(gaussian(covariance, torch.ones(5)), 50_000, 0, 0).statistics()
        assert drawn.count == 50_000
        assert torch.allclose(drawn.mean, torch.ones(5).double(), atol=0.05)
        assert torch.allclose(drawn.covariance, covariance, atol=0.15)


def test_the_floor_of_further_real_images() -> None:
    reference = seen(correlated(2000, 8, 1), features=correlated(900, 8, 1, mix=100).float())
    few, more = floor(reference, 50), floor(reference, 400)
    assert few.low < few.mean < few.high
    assert more.mean < few.mean
    assert few.about == "5 subsets of 50 of the 900 further real images"
    assert floor(reference, 50) == few
    assert floor(reference, 50, seed=1).mean != few.mean


@pytest.mark.parametrize(("count", "ending"), [(900, ""), (5000, ", as there are not 5000")])
def test_the_floor_where_further_images_do_not_suffice(count: int, ending: str) -> None:
    features = correlated(900, 8, 2).float()
    reference = seen(correlated(2000, 8, 1), features=features)
    found = floor(reference, count)
    assert found.low == found.mean == found.high == pytest.approx(frechet_distance(seen(features), reference), rel=1e-9)
    assert found.about == f"all 900 further real images{ending}"


def test_the_jackknife_of_a_mean() -> None:
    """Far from the reference the distance is d^2 = (mean - m)^2, so its error is 2 d s / sqrt(g), s the spread of means."""
    x, groups = random(400, 1, seed=3), 40
    parts = x.reshape(groups, -1, 1)
    error = jackknife([Moments().add(part) for part in parts], gaussian([[1.0]], [1e6]))
    spread = float(parts.mean(1).std())
    assert error == pytest.approx(2e6 * spread / math.sqrt(groups), rel=1e-4)
    assert error == pytest.approx(2e6 / math.sqrt(400), rel=0.35)  # what theory says of x; s is known to 1 / sqrt(2 g)


def test_what_floors_and_jackknives_cannot_do() -> None:
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        floor(gaussian(torch.eye(2)), 1)
    with pytest.raises(UserError, match="needs at least 2, got 1"):
        jackknife([Moments().add(random(5, 2))], gaussian(torch.eye(2)))


# Statistics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [7, 0, 60, 33], [99, 1]])
def test_moments_do_not_depend_on_batches(sizes: list[int]) -> None:
    """Also far from 0, where sums of squares would lose twelve digits."""
    x = random(100, 6) + 1e6
    one, several = Moments(), [Moments(), Moments(), Moments()]
    for index, batch in enumerate(x.split(sizes)):
        one.add(batch)
        several[index % 2].add(batch)
    merged = Moments().merge(several[2]).merge(several[1]).merge(several[0])
    for moments in (one, merged):
        found = moments.statistics()
        assert found.count == 100
        assert np.allclose(found.mean, x.numpy().mean(0), rtol=1e-14)
        assert np.allclose(found.covariance, np.cov(x.numpy(), rowvar=False), rtol=0, atol=1e-9)
        assert torch.equal(found.covariance, found.covariance.T)


def test_moments_take_any_precision() -> None:
    x = random(50, 3).half()
    assert np.allclose(seen(x).covariance, np.cov(x.double().numpy(), rowvar=False), atol=1e-13)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (random(3, 2, 2), "have the shape \\(3, 2, 2\\), expected N D"),
        (random(3, 5), "have 5 dimensions, expected 4 as before"),
        (
            torch.tensor([[1.0, 2, 3, math.nan], [1, 2, 3, 4], [math.inf, 2, 3, 4]]),
            "of 2 of 3 images are NaN or infinite",
        ),
    ],
)
def test_features_that_are_refused(features: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Moments().add(random(2, 4)).add(features)


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        Moments().add(random(1, 4)).statistics()


def test_statistics_come_back_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "reference.npz"
    made = seen(correlated(100, 6, 1), extractor="fashion-cnn", provenance={"data": "größer", "seeds": [1, 2]},
                features=random(9, 6).half().float())  # fmt: skip
    made.save(path)
    read = load_statistics(path)
    for name in ("mean", "covariance", "features"):
        assert torch.equal(getattr(read, name), getattr(made, name)), name
        assert getattr(read, name).dtype == getattr(made, name).dtype
    assert (read.count, read.extractor, read.provenance) == (100, "fashion-cnn", {"data": "größer", "seeds": [1, 2]})
    assert list(path.parent.iterdir()) == [path]
    with np.load(path, allow_pickle=False) as file:
        assert np.array_equal(file["mu"], made.mean)
        assert np.array_equal(file["sigma"], made.covariance)
        assert file["features"].dtype == np.float16


def test_features_beyond_half_precision_stay_finite(tmp_path: Path) -> None:
    seen(random(9, 2), features=torch.full((2, 2), 1e5)).save(tmp_path / "a.npz")
    assert torch.equal(load_statistics(tmp_path / "a.npz").features, torch.full((2, 2), 1e5))


def test_foreign_statistics(tmp_path: Path) -> None:
    """In single precision, rank-deficient, with keys that are not ours; nothing else is known."""
    x = correlated(10, 40, 1).numpy()
    sigma = np.cov(x, rowvar=False).astype(np.float32)
    np.savez(tmp_path / "a.npz", mu=x.mean(0).astype(np.float32), sigma=sigma, mu_s=np.ones(3))
    read = load_statistics(tmp_path / "a.npz")
    assert np.array_equal(read.covariance, sigma.astype(np.float64))
    assert (read.count, read.extractor, read.provenance, read.features) == (0, "", {}, None)


def test_single_precision_adds_no_directions() -> None:
    """Its rounding gives a rank-deficient covariance small eigenvalues of both signs, whose roots would add up."""
    x, y = correlated(60, 300, 1), correlated(900, 300, 2, mix=200)
    exact, other = seen(x), seen(y)
    rounded = gaussian(exact.covariance.float(), exact.mean)
    assert frechet_distance(rounded, exact) <= 1e-6 * float(exact.covariance.trace())
    assert frechet_distance(rounded, other) == pytest.approx(frechet_distance(exact, other), rel=5e-6)


def test_a_constant_feature_is_a_covariance_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.ones(2), sigma=np.zeros((2, 2)))
    assert not load_statistics(tmp_path / "a.npz").covariance.any()


def arrays(**changes: Any) -> Callable[[Path], None]:
    held = {"mu": np.zeros(3), "sigma": np.eye(3)} | changes
    return lambda path: np.savez(path, **{key: value for key, value in held.items() if value is not None})


LATIN = np.array([[1, 0.5, 0], [0.4, 1, 0], [0, 0, 1.0]])
INDEFINITE = np.array([[1, 2, 0], [2, 1, 0], [0, 0, 1.0]])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "there are no statistics"),
        (lambda path: path.mkdir(), "there are no statistics"),
        (lambda path: path.write_text("mu, sigma"), "cannot be read as .npz"),
        (lambda path: path.write_bytes(b""), "cannot be read as .npz"),
        (lambda path: path.write_bytes(b"PK\3\4 broken"), "cannot be read as .npz"),
        (lambda path: np.save(path.open("wb"), np.eye(3)), "cannot be read as .npz \\(it is a single .npy array\\)"),
        (arrays(mu=np.array([None, 1, 2])), "pickled objects"),
        (arrays(sigma=None), "holds mu, expected 'mu' and 'sigma'"),
        (arrays(mu=None, sigma=None, images=np.ones(3)), "holds images, expected 'mu' and 'sigma'"),
        (arrays(mu=np.array([0, np.nan, 0])), "'mu' of .* holds NaN or infinity"),
        (arrays(sigma=np.diag([1, 1, np.inf])), "'sigma' of .* holds NaN or infinity"),
        (arrays(features=np.full((2, 3), np.nan)), "'features' of .* holds NaN or infinity"),
        (arrays(mu=np.zeros(3, complex)), "'mu' of .* has the type complex128"),
        (arrays(mu=np.zeros(4)), "'mu' of shape \\(4,\\), 'sigma' of shape \\(3, 3\\)"),
        (arrays(mu=np.zeros((1, 3))), "'mu' of shape \\(1, 3\\)"),
        (arrays(mu=np.zeros(0), sigma=np.zeros((0, 0))), "'mu' of shape \\(0,\\)"),
        (arrays(features=np.zeros((5, 4))), "'features' of shape \\(5, 4\\)"),
        (arrays(features=np.zeros(3)), "'features' of shape \\(3,\\)"),
        (arrays(sigma=LATIN), "not symmetric \\(by up to 0.1\\)"),
        (arrays(sigma=INDEFINITE), "negative eigenvalues"),
        (arrays(sigma=-np.eye(3)), "negative eigenvalues"),
        (arrays(provenance=np.array("somebody")), "'provenance' of .* is no JSON object"),
        (arrays(provenance=np.array(json.dumps([1]))), "'provenance' of .* is no JSON object"),
    ],
)  # fmt: skip
def test_files_that_are_refused(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "a.npz"
    write(path)
    with pytest.raises(UserError, match=message) as caught:
        load_statistics(path)
    assert "\n" not in str(caught.value)


# Kernel distance ------------------------------------------------------------------------------------------------------


def brute_kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (float(np.dot(a, b)) / len(a) + 1) ** 3

    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
    within = sum(k(s[i], s[j]) for s in (x, y) for i, j in pairs) / len(pairs)
    return within - 2 * sum(k(a, b) for a in x for b in y) / len(x) / len(y)


def test_kernel_distance_equals_brute_force() -> None:
    x, y = correlated(30, 7, 1).float(), correlated(30, 7, 2).float()
    found = kernel_distance(x, y, subsets=3, subset_size=30)
    assert found.mean == pytest.approx(brute_kernel_distance(x.double().numpy(), y.double().numpy()), rel=1e-10)
    assert found.std == pytest.approx(0, abs=1e-12)  # each subset is the whole


def test_kernel_distance_of_subsets_is_that_of_the_whole_on_average() -> None:
    x, y = correlated(60, 7, 1), correlated(60, 7, 2)
    whole, found = kernel_distance(x, y, subsets=1, subset_size=60), kernel_distance(x, y, subsets=400, subset_size=20)
    assert found.std > 0
    assert abs(found.mean - whole.mean) < 3 * found.std / math.sqrt(400)
    assert kernel_distance(x, y, subsets=400, subset_size=20) == found
    assert kernel_distance(x, y, subsets=400, subset_size=20, seed=1) != found


def test_kernel_distance_has_no_bias() -> None:
    """Equal distributions: 0 within its error, where the estimate that counts each image with itself is far off."""
    sets = random(300, 2, 20, 4)
    values = np.array([kernel_distance(x, y, subsets=1, subset_size=20).mean for x, y in sets])
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean()) < 3 * error
    own = ((sets.square().sum(-1) / 4 + 1) ** 3).mean() - ((sets[:, 0] @ sets[:, 1].mT / 4 + 1) ** 3).mean()
    assert 2 * float(own) / 20 > 20 * error


@pytest.mark.parametrize(("count", "real"), [(100, 300), (300, 100)])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_the_kernel_distance_s_spread_is_its_standard_error(count: int, real: int, shift: float) -> None:
    """Against many draws of generated images, where there is no difference and where there is a clear one."""
    features = random(real, 8, seed=1)
    reference = Statistics(features.mean(0), features.T.cov(), 0, "", {}, features)
    made = random(60, count, 8) + shift
    scores = [METRICS["kid"].score(Evidence(vectors=rows, reference=reference)) for rows in made]
    true = np.std([score.value for score in scores], ddof=1)
    spread = np.sqrt(np.mean([(score.spread or 0) ** 2 for score in scores]))
    assert true / 1.5 < spread < 1.5 * true


@pytest.mark.parametrize(("count", "size"), [(50, 51), (50, 1), (50, 0)])
def test_subsets_that_are_refused(count: int, size: int) -> None:
    with pytest.raises(
        UserError, match=f"subset_size is {size}, expected 2 to 50, as there are 50 generated and 80 real"
    ):
        kernel_distance(random(count, 3), random(80, 3), subset_size=size)


# Neighbours -----------------------------------------------------------------------------------------------------------


def brute_neighbours(generated: np.ndarray, real: np.ndarray, k: int, density_k: int) -> Neighbours:
    def balls(s: np.ndarray, k: int) -> list[tuple[np.ndarray, float]]:
        others = [sorted(np.sum((s[i] - s[j]) ** 2) for j in range(len(s)) if j != i) for i in range(len(s))]
        return [(x, near[k - 1]) for x, near in zip(s, others, strict=True)]

    def inside(x: np.ndarray, balls: list[tuple[np.ndarray, float]]) -> list[bool]:
        return [np.sum((x - centre) ** 2) <= square for centre, square in balls]

    dense, true, made = balls(real, density_k), balls(real, k), balls(generated, k)
    hits = [inside(x, dense) for x in generated]
    return Neighbours(
        precision=np.mean([any(inside(x, true)) for x in generated]),
        recall=np.mean([any(inside(x, made)) for x in real]),
        density=np.sum(hits) / (density_k * len(generated)),
        coverage=np.mean(np.any(hits, axis=0)),
    )


def lattice(count: int, seed: int) -> Tensor:
    """Whole numbers: many distances are equal, many points too."""
    return torch.randint(0, 3, (count, 3), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("entries", [2**24, 40], ids=["one block", "a row or two a block"])
@pytest.mark.parametrize(
    ("generated", "real"),
    [
        (0.7 * random(40, 5, seed=1), random(30, 5, seed=2)),
        (random(20, 5, seed=1) + 1, random(50, 5, seed=2)),
        (lattice(40, 1), lattice(30, 2)),
        (lattice(40, 1)[:8], lattice(60, 2) + 1),
    ],
    ids=["narrow", "shifted", "ties", "ties apart"],
)
def test_neighbours_equal_brute_force(
    generated: Tensor, real: Tensor, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "ENTRIES", entries)
    for k, density_k in ((3, 5), (4, 1)):
        found = neighbours.neighbours(generated, real, k=k, density_k=density_k)
        expected = brute_neighbours(generated.double().numpy(), real.double().numpy(), k, density_k)
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("x", [random(50, 4), lattice(50, 1), random(50, 4).float() + 1e3, torch.ones(7, 4)])
def test_identical_sets_are_precise_and_complete(x: Tensor) -> None:
    found = neighbours.neighbours(x, x.flip(0))
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density >= 6 / 5  # itself and five others


def test_sets_that_do_not_meet() -> None:
    assert neighbours.neighbours(random(20, 4), random(20, 4) + 100) == (0, 0, 0, 0)


def test_one_spot_is_precise_but_not_complete() -> None:
    real = random(200, 2)
    found = neighbours.neighbours(real[:1] + 1e-3 * random(100, 2, seed=1), real)
    assert found.precision == 1
    assert found.recall < 0.05
    assert found.coverage < 0.2


def test_sets_too_small_for_neighbours() -> None:
    with pytest.raises(UserError, match="5 neighbours need more than 5 images on either side, got 5"):
        neighbours.neighbours(random(5, 3), random(50, 3))


@pytest.mark.parametrize("metric", [kernel_distance, neighbours.neighbours, sliced_wasserstein])
def test_features_of_other_sizes_are_refused(metric: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="generated features have 3 dimensions but real ones 4"):
        metric(random(9, 3), random(9, 4))
    with pytest.raises(UserError, match="of 9 of 9 images are NaN"):
        metric(random(9, 3), random(9, 3) * math.nan)


# Classes --------------------------------------------------------------------------------------------------------------


def test_class_accuracy() -> None:
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 1, 0], [3, 1, 2]])
    assert class_accuracy(logits, torch.tensor([0, 2, 1, 1])) == 0.75
    for labels, message in (
        ([0, 1, 2, 3], "label 3 is none of .* 0 to 2"),
        ([0, -1, 2, 1], "label -1"),
        ([0], "4 images"),
    ):
        with pytest.raises(UserError, match=message):
            class_accuracy(logits, torch.tensor(labels))


def test_class_score_at_its_ends() -> None:
    """1 where the classifier cannot tell images apart, the number of classes where it is sure and all are there."""
    assert class_score(random(1, 10).expand(50, 10), splits=5) == pytest.approx((1, 0))
    assert class_score(1e4 * torch.eye(10), splits=1) == pytest.approx((10, 0))
    assert class_score(1e4 * torch.eye(10)[:4], splits=1).mean == pytest.approx(4)
    assert class_score(1e4 * torch.eye(10), splits=10).mean == pytest.approx(1)  # one image has one class


def test_class_score_equals_its_definition() -> None:
    p = scipy.special.softmax(2 * random(40, 6).numpy(), axis=1)
    expected = np.exp(np.mean([scipy.stats.entropy(row, p.mean(0)) for row in p]))
    assert class_score(torch.from_numpy(np.log(p)).float(), splits=1).mean == pytest.approx(expected, rel=1e-6)


def test_class_score_is_split_at_random() -> None:
    """Labels in turn: neighbours or every tenth would show few classes."""
    logits = 1e3 * torch.eye(10)[torch.arange(1000) % 10]
    found = class_score(logits)
    assert 8 < found.mean < 10
    assert found.std > 0
    assert class_score(logits) == found != class_score(logits, seed=1)
    with pytest.raises(UserError, match="splits is 11, expected 1 to 10"):
        class_score(torch.eye(10), splits=11)


# Toys -----------------------------------------------------------------------------------------------------------------


def test_sliced_wasserstein_in_one_dimension() -> None:
    x, y = random(12, 1), 2 * random(8, 1, seed=1) + 1
    longer, other = np.repeat(x.numpy(), 2, 0), np.repeat(y.numpy(), 3, 0)
    expected = np.sqrt(np.mean((np.sort(longer, 0) - np.sort(other, 0)) ** 2))
    assert sliced_wasserstein(x, y) == pytest.approx(expected, rel=1e-12)
    assert sliced_wasserstein(x, x + 3) == pytest.approx(3, rel=1e-12)
    assert sliced_wasserstein(torch.zeros(1, 1), torch.tensor([[1.0], [7.0]])) == pytest.approx(5)


def test_sliced_wasserstein_of_a_shift() -> None:
    """E (v.theta)^2 = |v|^2 / D"""
    x, v = random(50, 3), torch.tensor([3.0, 0, -4])
    assert sliced_wasserstein(x, x + v, directions=20_000) == pytest.approx(5 / math.sqrt(3), rel=0.02)
    assert sliced_wasserstein(x, x + v) == sliced_wasserstein(x, x + v) != sliced_wasserstein(x, x + v, seed=1)


def test_sliced_wasserstein_of_sets_of_other_sizes() -> None:
    x = random(10, 3)
    assert sliced_wasserstein(x, x.repeat(7, 1)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(UserError, match="got 0 generated and 10 real"):
        sliced_wasserstein(x[:0], x)


def test_mode_coverage() -> None:
    means, stds = torch.tensor([[0.0, 0], [10, 0], [0, 10]]), torch.tensor([1.0, 1, 0.1])
    samples = torch.cat([means[0].expand(6, 2), torch.tensor([[10.0, 2.9], [10.0, 3.1], [0.0, 10.2], [0.0, 9.6]])])
    assert mode_coverage(samples, means, stds) == pytest.approx((1 / 3, 0.8))  # 6, 1 and 1 where half of 3.3 is asked
    assert mode_coverage(samples, means, stds, enough=0.3) == pytest.approx((1, 0.8))
    assert mode_coverage(samples, means, stds, torch.tensor([8, 1, 1]), within=1) == pytest.approx((1 / 3, 0.6))
    assert mode_coverage(samples, means, stds, torch.tensor([8, 1, 1])) == pytest.approx((1, 0.8))
    assert mode_coverage(samples, means, 0.1, enough=0.1) == pytest.approx((2 / 3, 0.7))


def test_mode_coverage_of_the_mixture_itself() -> None:
    """In two dimensions 1 - exp(-9 / 2) of a Gaussian lies within 3 stds."""
    means = 100 * torch.eye(2)
    samples = means[torch.arange(20_000) % 2] + 5 * random(20_000, 2)
    found = mode_coverage(samples, means, 5.0)
    assert found.covered == 1
    assert found.near == pytest.approx(1 - math.exp(-4.5), abs=4 * math.sqrt(0.011 / 20_000))
    with pytest.raises(UserError, match="there are no samples"):
        mode_coverage(samples[:0], means, 5.0)
