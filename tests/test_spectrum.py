"""`onefold inspect --spectrum`: power by spatial frequency, in closed form and beside data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from onefold.bench.spectrum import OTHERS, bands, inspect_spectrum, radial_spectrum, ring_numbers
from onefold.cli import main
from onefold.data import MemoryData, to_uint8
from onefold.denoiser import Gaussian
from onefold.errors import UserError
from onefold.grids import make_grid
from onefold.student import Student
from onefold.teachers import load_teacher

SIZES = [(8, 8), (9, 9), (6, 14), (13, 5), (1, 1), (2, 3)]


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_parseval(height: int, width: int) -> None:
    """The power of all frequencies is that of all pixels, and no ring is empty."""
    images = random_images(70, 3, height, width)
    sizes = torch.bincount(ring_numbers(height, width).flatten())
    assert bool((sizes > 0).all()) and int(sizes.sum()) == height * width
    spectrum = radial_spectrum(images)
    assert spectrum.dtype == torch.float64 and len(spectrum) == len(sizes)
    assert float((spectrum * sizes).sum()) == pytest.approx(float(images.double().square().sum()) / (70 * 3), rel=1e-10)


def test_white_noise_is_flat() -> None:
    """A frequency's power has the spread of its mean, and comes in pairs: five standard errors."""
    images = 0.3 * random_images(100, 3, 16, 16)
    sizes = torch.bincount(ring_numbers(16, 16).flatten())
    errors = (radial_spectrum(images) / 0.09 - 1).abs()
    assert bool((errors < 5 * (2 / (300 * sizes)).sqrt()).all())


@pytest.mark.parametrize(
    ("rows", "columns", "ring"), [(0, 3, 3), (3, 4, 5), (5, 0, 5), (1, 1, 1), (0, 0, 0), (7, 7, 10)]
)
def test_a_cosine_has_its_power_in_its_ring(rows: int, columns: int, ring: int) -> None:
    """a cos has a^2 / 2 of power a pixel, a constant a^2."""
    y, x = torch.meshgrid(torch.arange(16).double(), torch.arange(16).double(), indexing="ij")
    wave = 0.8 * torch.cos(2 * math.pi * (rows * y + columns * x) / 16 + 0.4 * bool(ring))
    spectrum = radial_spectrum(wave[None, None])
    sizes = torch.bincount(ring_numbers(16, 16).flatten())
    total = 0.64 * 256 * (0.5 if ring else 1.0)
    assert float(spectrum[ring] * sizes[ring]) == pytest.approx(total, rel=1e-10)
    spectrum[ring] = 0
    assert float(spectrum.abs().max()) < 1e-20


@pytest.mark.parametrize("rings", [1, 2, 3, 7, 12, 13, 21, 46, 182, 725])
def test_bands_cover_every_ring_once(rings: int) -> None:
    found = bands(rings)
    assert [ring for band in found for ring in band] == list(range(rings))
    assert len(found) == min(rings, 12)


def drawn(std: float, count: int = 512) -> MemoryData:
    images = std * random_images(count, 1, 8, 8, seed=7)
    return MemoryData(to_uint8(images), None, classes=None, class_names=None, description={"source": "drawn"})


def test_an_exact_teacher_of_half_the_data_s_size_is_6_dB_below() -> None:
    teacher = Gaussian(torch.zeros(1, 8, 8), 0.1)
    found = inspect_spectrum(teacher, drawn(0.2), count=256)
    sizes = torch.tensor(found.rings, dtype=torch.float64)
    spread = 5 * 10 / math.log(10) * (2 * 2 / (256 * sizes)).sqrt()  # of the ratio of two spectra, in decibel
    lines = {line.name: torch.tensor(line.decibels) for line in found.lines}
    assert list(lines) == ["teacher, 40 calls", OTHERS]
    assert bool(((lines["teacher, 40 calls"] + 20 * math.log10(2)).abs() < spread).all())
    assert bool((lines[OTHERS].abs() < spread).all())
    assert found.lines[0].off == pytest.approx(20 * math.log10(2), abs=0.5)
    assert found.power == pytest.approx([0.04] * 7, rel=0.4)
    assert found.beside(found.lines[0], range(7)) == pytest.approx(-20 * math.log10(2), abs=0.3)


def test_mistakes_get_one_sentence() -> None:
    teacher = Gaussian(torch.zeros(1, 8, 8), 0.1)
    with pytest.raises(UserError, match="no data is given; name some with --data"):
        inspect_spectrum(teacher, None)
    with pytest.raises(UserError, match="there are 512 images in the data, fewer than count, 600"):
        inspect_spectrum(teacher, drawn(0.2), count=600)
    broken = teacher.replace(name="lost")
    broken.means = broken.means * math.nan
    with pytest.raises(UserError, match="teacher, 40 calls: images have NaN"):
        inspect_spectrum(broken, drawn(0.2), count=4)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = load_teacher("digits8", device="cpu")
    recipe: dict[str, Any] = {"method": "none", "teacher": {"name": "digits8", "sha256": teacher.card["sha256"]}}
    Student(teacher.replace(name="pupil"), make_grid("quadratic", teacher.process, 2), None, recipe).save(
        tmp_path / "pupil"
    )
    words = ["inspect", str(tmp_path / "pupil"), "--spectrum", "--count", "4", "--device", "cpu"]
    assert main(words) == 2
    assert "there is no --data" in capsys.readouterr().err
    words += ["--data", "digits"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "student, 2 calls" in said and "teacher, 40 calls" in said and OTHERS in said
    assert max(map(len, said.splitlines())) <= 120
    with Image.open(tmp_path / "out" / "spectrum.png") as picture:
        assert picture.format == "PNG"
    assert main([*words, "--layers", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"layers", "spectrum"} and len(found["spectrum"]["power"]) == 7
    assert found["layers"]["data"] == "digits" and found["spectrum"]["lines"][0]["name"] == "student, 2 calls"
