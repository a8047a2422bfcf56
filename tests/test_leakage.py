"""Metrics that look through what a discriminator looked through are named, and an unrelated distance stands beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import onefold
from onefold.bench.leakage import related
from onefold.data import load_data
from onefold.metrics.extractors import find_extractor
from onefold.metrics.frechet import frechet_distance
from onefold.metrics.statistics import Moments
from onefold.student import Student
from onefold.teachers import load_teacher

EXTRACTOR = f"{__name__}:halves"


def halves(images: torch.Tensor) -> torch.Tensor:
    return torch.stack([images[..., :4].mean((1, 2, 3)), images[..., 4:].mean((1, 2, 3))], 1)


def recipe(discriminator: str) -> dict[str, Any]:
    return {"settings": {"discriminator": discriminator}}


def test_who_is_related() -> None:
    assert related(recipe("timm:vgg16_bn+tf_efficientnet_lite0"), "inception")
    assert not related(recipe("timm:vgg16_bn"), "dinov2")
    assert related(recipe(EXTRACTOR), EXTRACTOR)
    for own in ("teacher", "scratch", "random"):
        assert not related(recipe(own), "inception")
    assert not related({}, "inception")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "real.npz"
    np.savez(path, images=load_data("digits").fetch(range(200))[0].numpy())
    return path


def student(discriminator: str) -> Student:
    teacher = load_teacher("digits8", device="cpu")
    grid = onefold.grids.make_grid("auto", teacher.process, 1)
    return replace(Student(teacher, grid, None, recipe(discriminator)), denoiser=teacher.replace(name="fast"))


def test_the_unrelated_distance_is_measured_beside(images: Path) -> None:
    said: list[str] = []
    how: dict[str, Any] = {"extractor": EXTRACTOR, "metrics": ["fd"], "count": 20, "device": "cpu", "tell": said.append}
    found = onefold.evaluate(student(EXTRACTOR), reference=images, **how)
    assert set(found["scores"]) == {f"fd[{EXTRACTOR}]", "fd[pixels]"}
    assert any("flatter this student" in line for line in said)
    said.clear()
    found = onefold.evaluate(student("teacher"), reference=images, **how)
    assert set(found["scores"]) == {f"fd[{EXTRACTOR}]"} and not any("flatter" in line for line in said)


def test_pixels_are_their_own_features() -> None:
    """The Frechet distance of images that all became brighter is the square of how much."""
    extractor = find_extractor("pixels")
    dark = torch.rand(300, 1, 32, 32, generator=torch.Generator().manual_seed(0)) - 1
    step = 64 / 127.5
    a, b = (Moments().add(extractor.extract(x).vectors).statistics() for x in (dark, dark + step))
    assert a.mean.shape == (256,)
    assert frechet_distance(a, b) == pytest.approx(256 * step**2, rel=0.01)
    small = extractor.extract(dark[:2, :, :8, :8]).vectors
    torch.testing.assert_close(small, dark[:2, :, :8, :8].flatten(1), rtol=0, atol=1 / 127)
