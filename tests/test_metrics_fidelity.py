"""The same features through torch-fidelity, an implementation that many published numbers come from."""

from __future__ import annotations

from importlib.metadata import version
from types import ModuleType

import pytest
import torch
from torch import Tensor

from onefold.metrics.classes import class_score
from onefold.metrics.frechet import frechet_distance
from onefold.metrics.kid import kernel_distance
from onefold.metrics.neighbours import neighbours
from onefold.metrics.statistics import Moments


def fidelity(name: str) -> ModuleType:
    """It needs a working torchvision, whose import can fail in many ways beside a torch for the CPU."""
    return pytest.importorskip(f"torch_fidelity.{name}", exc_type=Exception)


def features(count: int, seed: int) -> Tensor:
    """In 64 dimensions, correlated, not negative, some often 0, as networks give them."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -1.5, 64)
    return (torch.randn(count, 64, generator=draw) @ mix.T + 0.3 * seed).relu()


@pytest.mark.parametrize(("generated", "real"), [(500, 700), (40, 700), (40, 50)])
def test_frechet_distance(generated: int, real: int) -> None:
    module, (x, y) = fidelity("metric_fid"), (features(generated, 1), features(real, 2))
    theirs = module.fid_statistics_to_metric(
        *(module.fid_features_to_statistics(rows.double()) for rows in (x, y)), verbose=False
    )
    ours = frechet_distance(*(Moments().add(rows).statistics() for rows in (x, y)))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)


def test_kernel_distance() -> None:
    """Whole sets, as the two draw their subsets in other ways."""
    module, (x, y) = fidelity("metric_kid"), (features(200, 1), features(200, 2))
    theirs = module.kid_features_to_metric(x.double(), y.double(), kid_subsets=2, kid_subset_size=200, verbose=False)
    ours = kernel_distance(x, y, subsets=2, subset_size=200)
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)


@pytest.mark.parametrize(
    ("generated", "real"), [(features(300, 1), features(200, 2)), (features(50, 3), features(400, 2))]
)
def test_precision_and_recall(generated: Tensor, real: Tensor) -> None:
    module = fidelity("metric_prc")
    older = tuple(map(int, version("torch-fidelity").split(".")[:2])) < (0, 4)  # took the real ones first
    pair = (real, generated) if older else (generated, real)
    theirs = module.prc_features_to_metric(*(rows.double() for rows in pair), verbose=False)
    ours = neighbours(generated, real)
    assert ours.precision == pytest.approx(theirs["precision"], rel=1e-4)
    assert ours.recall == pytest.approx(theirs["recall"], rel=1e-4)
    assert ours.precision != ours.recall


def test_class_score() -> None:
    logits = features(100, 1)
    theirs = fidelity("metric_isc").isc_features_to_metric(logits, splits=1)
    assert class_score(logits, splits=1).mean == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
