"""`onefold inspect`: right teachers pass, and each broken one gets the one warning that is its own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import onefold
from onefold.bench.checks import CHECKS
from onefold.bench.inspection import Inspection, inspect
from onefold.cli import main
from onefold.data import MemoryData, to_uint8
from onefold.denoiser import Denoiser, GaussianMixture
from onefold.errors import UserError
from onefold.process import EDM, VE, ContinuousVP, DiscreteVP, Flow, Prediction, Process, beta_table, from_x0
from onefold.teachers import load_teacher

LINEAR = DiscreteVP.from_betas(beta_table("linear"))
MEANS = 1.6 * torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.8
Change = Callable[[Tensor], Tensor]


def same(value: Tensor) -> Tensor:
    return value


class Network:
    """A network that gives the exact answer for some data, in any of the usual forms, or a spoilt one."""

    def __init__(self, exact: GaussianMixture, gives: Prediction, time: Change, output: Change, ignored: str) -> None:
        self.exact, self.gives, self.time, self.output, self.ignored = exact, gives, time, output, ignored

    def __call__(self, z: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        process = self.exact.process
        sigma = process.sigma(self.time(time.double())[:1])
        a, b = (float(value) for value in process.scales(sigma))
        x = z if math.isinf(float(sigma)) else z / a
        labels = {key: value for key, value in cond.items() if key != self.ignored}
        denoised = self.exact.closed_form(x, sigma, **labels)
        scales = (torch.tensor(value, dtype=z.dtype) for value in (a, b))
        return self.output(from_x0(self.gives, denoised, z, *scales, process.sigma_data))


def network(
    process: Process | None = None,
    gives: Prediction = "x0",
    declared: Prediction | None = None,
    *,
    means: Tensor = MEANS,
    std: float = 0.1,
    time: Change = same,
    output: Change = same,
    ignored: str = "",
    labels: bool = True,
) -> Denoiser:
    exact = GaussianMixture(means, std, labels=range(len(means)) if labels else None, process=process or EDM())
    made = Denoiser(
        Network(exact, gives, time, output, ignored),
        exact.process,
        prediction=declared or gives,
        shape=exact.shape,
        classes=exact.classes,
    )
    made.name = "toy"
    return made


def warned(inspection: Inspection) -> list[str]:
    return [found.check for found in inspection.warnings]


# --- right ones -------------------------------------------------------------------------------------------------------

FORMS = [
    (process, kind)
    for process in (EDM(), VE(), Flow(), LINEAR, ContinuousVP())
    for kind in process.predictions
    if not (kind == "eps" and math.isinf(process.sigma_max))
]


@pytest.mark.parametrize(
    ("process", "kind"), FORMS, ids=lambda form: form if isinstance(form, str) else type(form).__name__
)
def test_right_networks_pass(process: Process, kind: Prediction) -> None:
    inspection = inspect(network(process, kind))
    assert not inspection.warnings and not inspection.left_out
    assert inspection.comparison is not None and inspection.comparison.accuracy < 0.01


@pytest.mark.parametrize("std", [0.1, 0.4])
@pytest.mark.parametrize("process", [EDM(), Flow(), LINEAR], ids=lambda process: type(process).__name__)
def test_exact_teachers_pass(process: Process, std: float) -> None:
    """They are functions of sigma, with no network that could be read in another way."""
    inspection = inspect(GaussianMixture(MEANS, std, process=process), count=8)
    assert not inspection.warnings and not inspection.left_out


@pytest.mark.parametrize("kind", ["eps", "x0", "edm"])
def test_networks_that_hardly_need_their_time_pass(kind: Prediction) -> None:
    """Data near one Gaussian of sigma_data leaves EDM's network little to do; told right it is still the best."""
    assert not inspect(network(EDM(), kind, std=0.4)).warnings


def test_a_network_of_whole_times_passes() -> None:
    assert not inspect(network(LINEAR, "v").replace(continuous_time=False)).warnings


def test_the_small_bundled_teacher_passes() -> None:
    inspection = inspect(load_teacher("digits8", device="cpu"), "digits", count=6)
    assert not inspection.warnings and not inspection.left_out
    assert all(row.network < 0.9 * min(row.mean, row.noisy) for row in inspection.denoising)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits8", "fashion28"])
def test_bundled_teachers_pass(name: str) -> None:
    assert not inspect(load_teacher(name, device="cpu")).warnings


# --- broken ones ------------------------------------------------------------------------------------------------------


def nan_in_low_precision(output: Tensor) -> Tensor:
    return output * math.nan if torch.is_autocast_enabled("cpu") else output


def coarse_in_low_precision(output: Tensor) -> Tensor:
    return (4 * output).round() / 4 if torch.is_autocast_enabled("cpu") else output


class Rough(Network):
    """Near the clean image it gives lighter and darker images in turns, as the time goes on."""

    def __call__(self, z: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        turns = 0.1 * torch.sin(900 * time).sign() * (time < 60)
        return super().__call__(z, time, **cond) + turns.reshape(-1, 1, 1, 1)


def rough_network() -> Denoiser:
    right = network(LINEAR, "x0", std=0.3)
    return right.replace(network=Rough(right.network.exact, "x0", same, same, ""))


BROKEN: dict[str, tuple[Denoiser, str, str]] = {
    "eps as v": (network(LINEAR, "eps", "v"), "kind of output", "read as 'v', but read as 'eps' .* \"epsilon\""),
    "eps as x0": (network(LINEAR, "eps", "x0"), "kind of output", "read as 'eps'"),
    "v as eps": (network(LINEAR, "v", "eps"), "kind of output", "read as 'v' .* \"v_prediction\""),
    "v as x0": (network(LINEAR, "v", "x0"), "kind of output", "read as 'v'"),
    "x0 as eps": (network(LINEAR, "x0", "eps"), "kind of output", "read as 'x0' .* \"sample\""),
    "x0 as v": (network(LINEAR, "x0", "v"), "kind of output", "read as 'x0'"),
    "edm as eps": (network(EDM(), "edm", "eps"), "kind of output", "prediction='edm'"),
    "x0 as edm": (network(EDM(), "x0", "edm"), "kind of output", "prediction='x0'"),
    "x0 as flow": (network(Flow(), "x0", "flow"), "kind of output", "prediction='x0'"),
    "flow as eps": (network(Flow(), "flow", "eps"), "kind of output", "prediction='flow'"),
    "half the time": (network(LINEAR, "v", time=lambda t: 0.5 * t), "time", "told [24] times the noise"),
    "twice the time": (network(LINEAR, "v", time=lambda t: (2 * t).clamp(max=999)), "time", "told 0.5 times the noise"),
    "time in thousandths": (network(LINEAR, "v", time=lambda t: t / 1000), "time", "hardly matters"),
    "time ignored": (network(LINEAR, "v", time=lambda t: 0 * t + 300), "time", r"changes by 0\.0%"),
    "images twice as large": (network(means=2 * MEANS, std=0.2), "range of pixels", r"reach from -1\.\d+ to 1\.\d+"),
    "images in [0, 1]": (network(means=MEANS / 2 + 0.5, std=0.01), "range of pixels", r"as data in \[0, 1\]"),
    "schedule cut short": (
        network(DiscreteVP(LINEAR.alphas_cumprod[:300])),
        "start",
        "whole schedule, .* zero terminal SNR",
    ),
    "classes ignored": (network(ignored="labels"), "conditions", r"hardly change with the class \(0\.0%\)"),
    "NaN in bf16": (network(output=nan_in_low_precision), "low precision", "in bf16 it gives NaN .* --precision fp32"),
    "coarse in bf16": (network(output=coarse_in_low_precision), "low precision", r"changes its samples by 0\."),
    "NaN": (
        network(output=lambda output: output * math.nan),
        "finite numbers",
        "NaN or infinite numbers at sigma 0.002",
    ),
    "rough in time": (rough_network(), "solvers agree", "no solution to come near to"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_ones_get_their_own_warning(name: str, tmp_path: Path) -> None:
    teacher, check, sentence = BROKEN[name]
    inspection = inspect(teacher, out=tmp_path)
    assert warned(inspection) == [check]
    inspection.warnings[0].sentence.index(";")  # what is wrong; what to do
    assert "\n" not in inspection.warnings[0].sentence
    with Image.open(tmp_path / "inspect.png") as picture:
        assert picture.format == "PNG"
    assert re.search(sentence, inspection.warnings[0].sentence)


def test_every_check_has_a_teacher_that_fails_it() -> None:
    with_data = {"denoising of the data", "contrast of the data"}
    assert {check for _, check, _ in BROKEN.values()} | with_data == {check.name for check in CHECKS}


def test_what_a_warning_makes_meaningless_is_left_out() -> None:
    inspection = inspect(BROKEN["eps as v"][0])
    assert inspection.comparison is None and inspection.checks == ("finite numbers", "kind of output")
    assert inspection.left_out == tuple(check.name for check in CHECKS[2:])
    harmless = inspect(BROKEN["classes ignored"][0])
    assert harmless.comparison is not None and not harmless.left_out


# --- with data --------------------------------------------------------------------------------------------------------


def drawn(exact: GaussianMixture, count: int = 256, scale: float = 1.0, labels: bool = False) -> MemoryData:
    images, chosen = exact.draw(count, torch.Generator().manual_seed(9))
    about = {"class_names": None, "description": {"source": "drawn"}}
    return MemoryData(to_uint8(scale * images), chosen if labels else None, classes=5 if labels else None, **about)


def test_the_table_is_the_closed_form_of_one_gaussian() -> None:
    """E |D - x0|^2 = s^2 sigma^2 / (s^2 + sigma^2), the mean is s off, the noisy image sigma."""
    exact = GaussianMixture(torch.full((1, 3, 8, 8), 0.2, dtype=torch.float64), 0.25)
    inspection = inspect(exact, drawn(exact), count=4)
    assert not inspection.warnings and inspection.data == "drawn"
    sigmas = [row.sigma for row in inspection.denoising]
    assert sigmas[0] == 0.002 and sigmas[-1] == pytest.approx(80.0) and len(sigmas) == 8
    for row in inspection.denoising:
        best = 0.25 * row.sigma / math.hypot(0.25, row.sigma)
        assert row.network == pytest.approx(best, rel=0.02)
        assert row.mean == pytest.approx(0.25, rel=0.02) and row.noisy == row.sigma


def test_levels_of_the_table_are_entries_for_networks_of_whole_times() -> None:
    teacher = network(LINEAR, "v").replace(continuous_time=False)
    inspection = inspect(teacher, drawn(teacher.network.exact, labels=True))
    assert not inspection.warnings
    entries = LINEAR.time(torch.tensor([row.sigma for row in inspection.denoising]).double())
    assert torch.allclose(entries, entries.round(), atol=1e-6)


def test_the_data_s_own_classes_are_told() -> None:
    """With them the error at high noise is that of one narrow mode; without, but told so, that of all modes."""
    teacher = network(std=0.1).replace(null={"labels": -1})
    right, without = (inspect(teacher, drawn(teacher.network.exact, labels=labels)) for labels in (True, False))
    assert right.denoising[-1].sigma == pytest.approx(80.0) and not right.warnings and not without.warnings
    assert right.denoising[-1].network == pytest.approx(0.1, rel=0.05)
    assert without.denoising[-1].network == pytest.approx(without.denoising[-1].mean, rel=0.05)


@pytest.mark.parametrize("name", ["eps as v", "half the time", "time ignored"])
def test_data_shows_the_same_mistakes(name: str) -> None:
    teacher, check, _ = BROKEN[name]
    assert warned(inspect(teacher, drawn(teacher.network.exact, labels=True))) == [check]


def test_other_data_is_noticed() -> None:
    exact = GaussianMixture(MEANS, 0.1)
    assert "contrast of the data" in warned(inspect(exact, drawn(exact, scale=0.5)))
    assert "denoising of the data" in warned(inspect(exact, drawn(GaussianMixture(-MEANS, 0.1))))


# --- what is told -----------------------------------------------------------------------------------------------------


def test_the_seed_decides_all() -> None:
    teacher = network(LINEAR, "v")
    one, again, other = (inspect(teacher, seed=seed).as_dict() for seed in (3, 3, 4))
    for inspection in (one, again, other):
        del inspection["seconds"], inspection["comparison"]["seconds"]
    assert one == again and one["comparison"] != other["comparison"]


def test_progress_begins_at_nothing_and_ends_with_all() -> None:
    seen: list[tuple[int, int | None]] = []
    inspect(network(), progress=lambda done, total, **_: seen.append((done, total)))
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1]
    assert all(before[0] <= after[0] for before, after in pairwise(seen))


def test_facts_are_plain() -> None:
    values = json.loads(json.dumps(inspect(network(Flow(), "flow")).as_dict()))
    assert values["facts"]["sigma_max"] == "inf" and values["facts"]["prior"] == 1.0
    assert values["facts"]["shape"] == [1, 4, 4] and values["facts"]["classes"] == 5
    assert inspect(network(LINEAR, "v")).facts.prior == pytest.approx(math.hypot(1, LINEAR.sigma_max))
    assert onefold.inspect is inspect


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 1}, "count is 1, expected 2 or more"),
        (
            {"data": drawn(GaussianMixture(torch.zeros(1, 1, 4, 5), 0.1))},
            r"the data's images are \(1, 4, 5\), those of 'toy' \(1, 4, 4\)",
        ),
        (
            {"data": drawn(GaussianMixture(MEANS, 0.1))},
            "'toy' is told one of 5 classes with each image, the data has none",
        ),
        ({"data": "didgits"}, "there is no data 'didgits'"),
        ({"data": drawn(GaussianMixture(MEANS, 0.1), count=8)}, "there are 8 images in the data, fewer than count, 16"),
        ({"teacher": "digit8"}, "did you mean 'digits8'"),
    ],
)
def test_mistakes_get_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        inspect(**{"teacher": network(), **arguments})
    assert "\n" not in str(error.value)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onefold.teachers.load_teacher", lambda *_, **__: network(LINEAR, "v"))
    assert main(["inspect", "toy", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "DiscreteVP, predicts v" in said and "No warning." in said and str(tmp_path / "inspect.png") in said
    assert re.search(r"ipndm3 +quadratic +[\d.]+", said)
    assert main(["inspect", "toy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []
    broken = BROKEN["eps as v"][0]
    monkeypatch.setattr("onefold.teachers.load_teacher", lambda *_, **__: broken)
    images, labels = broken.network.exact.draw(64, torch.Generator().manual_seed(9))
    pixels = to_uint8(images).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "data.npz", images=pixels, labels=labels.numpy())
    assert main(["inspect", "toy", "--data", str(tmp_path / "data.npz")]) == 0
    said = capsys.readouterr().out
    assert "Warning, kind of output: its output is read as 'v'" in said and "Not looked at" in said
    assert "the noisy image" in said and "Solvers:" not in said
