"""The measuring bench end to end on the bundled digits, and on exact teachers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import onefold
from onefold.bench.compare import COLUMNS, Comparison, compare
from onefold.bench.evaluate import evaluate
from onefold.bench.published import check_measured, read_published
from onefold.bench.ways import BEST, student_way, teacher_ways, way
from onefold.cli import main
from onefold.cli.evaluate import cell, print_comparison, verdicts
from onefold.denoiser import Denoiser, GaussianMixture
from onefold.errors import UserError
from onefold.grids import karras
from onefold.metrics.extractors import find_extractor
from onefold.metrics.references import load_reference, make_reference
from onefold.metrics.statistics import Statistics
from onefold.process import EDM
from onefold.student import Student, load_student

SMALL: dict[str, Any] = {
    "calls": (1, 2),
    "solvers": ("euler", "ipndm3"),
    "grids": ("auto",),
    "count": 24,
    "device": "cpu",
}


BUNDLED = Path(onefold.__file__).parent / "assets" / "digits8" / "reference.npz"


@pytest.fixture(scope="module")
def teacher() -> Denoiser:
    return onefold.load_teacher("digits8", device="cpu")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    out = tmp_path_factory.mktemp("students") / "quick"
    return onefold.distill("digits8", out=out, calls=2, budget="64", batch_size=16, watched=8, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def comparison(folder: Path, teacher: Denoiser, student: Student) -> Comparison:
    return compare([teacher, student], out=folder, command="onefold compare <digits8> & 'more'", **SMALL)


def mixture(**changes: Any) -> GaussianMixture:
    means = torch.linspace(-0.8, 0.8, 3 * 16, dtype=torch.float64).reshape(3, 1, 4, 4)
    return GaussianMixture(means, 0.2, labels=[0, 1, 2], process=EDM(), **changes)


def test_every_way_is_a_row(comparison: Comparison) -> None:
    kinds = [row["kind"] for row in comparison.rows]
    assert kinds.count("solver") == 4 and kinds.count("best") == 1 and kinds.count("student") == 1
    best = next(row for row in comparison.rows if row["kind"] == "best")
    assert (best["solver"], best["calls"]) == BEST  # fixed, not chosen
    for row in comparison.rows:
        assert row["nfe"] == row["calls"]
        assert set(row["scores"]) == {one["key"] for one in comparison.results["metrics"]}
        assert all(np.isfinite(score["value"]) for score in row["scores"].values())
    assert [row["cost"] is not None for row in comparison.rows] == [kind == "student" for kind in kinds]


def test_the_usual_metrics_come_with_the_bundled_reference(comparison: Comparison) -> None:
    keys = [one["key"] for one in comparison.results["metrics"]]
    assert keys == [
        "fd[digits-cnn]",
        "precision[digits-cnn]",
        "recall[digits-cnn]",
        "accuracy[digits-cnn]",
        "rmse",
        "median",
    ]
    floor = comparison.results["metrics"][0]["floor"]
    assert floor["low"] <= floor["value"] <= floor["high"]
    assert "24" in floor["about"] and floor["count"] == 24


@pytest.mark.parametrize(
    ("value", "spread", "printed"),
    [
        (0.10912, 0.00412, "0.109 +-0.004"),
        (0.10912, 0.0012, "0.1091 +-0.0012"),
        (2.75, 0.6, "2.8 +-0.6"),
        (117.3, 12.0, "117 +-12"),
        (1.0, 0.0, "1.00 +-0"),
        (1.61, None, "1.61"),
    ],
)
def test_a_value_is_printed_with_what_its_spread_knows(value: float, spread: float | None, printed: str) -> None:
    assert cell({"value": value, "spread": spread}) == printed


def test_the_table_tells_spreads_and_how_many_images_a_floor_has(
    tmp_path: Path, teacher: Denoiser, capsys: pytest.CaptureFixture[str]
) -> None:
    """The digits' reference holds 500 real images out, of which a floor against others has 250 at most."""
    settings: dict[str, Any] = {"calls": (1, 2), "solvers": ("euler",), "grids": ("auto",), "count": 300}
    results = compare([teacher], out=tmp_path, metrics=["fd", "precision"], **settings).results
    print_comparison(results, calls=1)
    *rows, floor = capsys.readouterr().out.split("\n\n")[0].splitlines()[2:]
    assert [row.split(",")[0] for row in rows] == ["euler on quadratic", "ipndm3 on quadratic (best)"]
    assert all(row.count(" +-") == 2 for row in rows)
    assert " of 250" in floor and floor.count(" of ") == 1  # as many as the rows have need no word


def test_the_best_student_stands_beside_the_best_solver() -> None:
    """At each number of calls that both have, by each measure for itself, smaller or larger as the measure wants; nobody who broke."""

    def row(kind: str, name: str, calls: int, fd: float, recall: float, rmse: float, broken: int = 0) -> dict[str, Any]:
        values = {"recall": recall, "fd": fd, "rmse": rmse}
        scores = {key: {"value": value, "spread": 0.01} for key, value in values.items()}
        return {"kind": kind, "label": f"{name}, {calls} calls", "calls": calls, "scores": scores, "broken": broken}

    metrics = [
        {"key": "recall", "better": "higher"},
        {"key": "fd", "better": "lower"},
        {"key": "rmse", "better": "lower"},
    ]
    rows = [
        row("student", "student a,b", 2, 1, 0.5, 0.3),
        row("student", "student c", 2, 1, 0.6, 0.4),
        row("solver", "euler", 2, 1, 0.7, 0.5),
        row("solver", "heun", 2, 1, 0.9, 0.1, broken=1),
        row("solver", "euler", 4, 1, 0.7, 0.5),
        row("student", "student c", 8, 1, 0.6, 0.4),
    ]
    assert list(verdicts({"metrics": metrics, "rows": rows})) == [
        "2 calls, recall: student c 0.600 +-0.010; best solver euler 0.700 +-0.010",
        "2 calls, rmse: student a,b 0.300 +-0.010; best solver euler 0.500 +-0.010",
    ]


def test_more_calls_are_nearer_and_the_best_is_nearest(comparison: Comparison) -> None:
    def rmse(**facts: Any) -> float:
        row = next(row for row in comparison.rows if all(row[key] == value for key, value in facts.items()))
        return float(row["scores"]["rmse"]["value"])

    assert rmse(kind="best") < rmse(solver="ipndm3", calls=2) < rmse(solver="ipndm3", calls=1)


def test_the_distance_is_to_the_fine_solution_from_the_same_noise(comparison: Comparison, teacher: Denoiser) -> None:
    fine = onefold.sample(teacher, 24, solver="dpmpp3m_exact", calls=64, seed=0)
    images = onefold.sample(teacher, 24, solver="euler", calls=2, seed=0)
    row = next(
        row for row in comparison.rows if row["solver"] == "euler" and row["kind"] == "solver" and row["calls"] == 2
    )
    assert row["scores"]["rmse"]["value"] == pytest.approx(float((images - fine).square().mean().sqrt()), rel=1e-4)


def test_pictures_hold_the_images_as_they_are(comparison: Comparison, teacher: Denoiser) -> None:
    row = next(row for row in comparison.rows if row["solver"] == "euler" and row["calls"] == 1)
    with Image.open(comparison.folder / row["picture"]) as picture:
        assert picture.size == (8 * COLUMNS, 8 * 3)
        tile = torch.from_numpy(np.asarray(picture)[8:16, 16:24].copy()).float() / 127.5 - 1
    images = onefold.sample(teacher, 11, solver="euler", calls=1, seed=0)
    assert torch.allclose(tile, images[10, 0].clamp(-1, 1), atol=1 / 127)


def test_results_are_json_and_name_where_they_come_from(comparison: Comparison) -> None:
    results = json.loads((comparison.folder / "results.json").read_text())
    assert results == json.loads(json.dumps(comparison.results))
    assert results["provenance"]["commands"] == ["onefold compare <digits8> & 'more'"]
    assert results["provenance"]["versions"]["torch"] == torch.__version__
    assert "processor" in results["provenance"]["hardware"]
    kinds = [path["kind"] for path in results["interpolations"]]
    assert kinds == ["slerp", "linear"] * (len(kinds) // 2) and kinds
    assert results["interpolations"][0]["evenness"] != results["interpolations"][1]["evenness"]
    for path in (*results["interpolations"], *results["trajectories"]):
        with Image.open(comparison.folder / path["picture"]) as picture:
            assert picture.width == 8 * path["columns"]


def test_trajectories_end_in_the_image(comparison: Comparison) -> None:
    student = next(row for row in comparison.rows if row["kind"] == "student")
    steps = next(one for one in comparison.results["trajectories"] if one["row"] == student["id"])
    with (
        Image.open(comparison.folder / steps["picture"]) as path,
        Image.open(comparison.folder / student["picture"]) as images,
    ):
        last = np.asarray(path)[0:8, -8:].astype(int)
        assert np.abs(last - np.asarray(images)[0:8, 0:8].astype(int)).max() <= 1
    assert steps["columns"] == student["calls"] + 2  # the start, the analytic step, and the calls


def test_the_page_is_there(comparison: Comparison) -> None:
    assert comparison.report.read_text().startswith("<!")


def test_what_was_measured_is_not_measured_again(comparison: Comparison, teacher: Denoiser, student: Student) -> None:
    again = teacher.replace(name=teacher.name)
    found = compare([again, student], out=comparison.folder, **SMALL)
    assert [row["scores"] for row in found.rows] == [row["scores"] for row in comparison.rows]
    assert [row["seconds_per_image"] for row in found.rows] == [row["seconds_per_image"] for row in comparison.rows]


def test_a_comparison_goes_on_where_it_stopped(
    tmp_path: Path, teacher: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onefold.bench import compare as module

    measured: list[str] = []
    original = module.Bench.measure

    def stop_at_third(self: Any, one: Any, meter: Any) -> Any:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(one.label)
        return original(self, one, meter)

    settings = {**SMALL, "count": 4, "metrics": ["rmse"]}
    monkeypatch.setattr(module.Bench, "measure", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        compare([teacher], out=tmp_path, **settings)
    rest: list[str] = []

    def note(self: Any, one: Any, meter: Any) -> Any:
        rest.append(one.label)
        return original(self, one, meter)

    monkeypatch.setattr(module.Bench, "measure", note)
    found = compare([teacher], out=tmp_path, **settings)
    assert len(measured) == 2 and len(rest) == len(found.rows) - 2 and not set(measured) & set(rest)


def test_other_weights_are_another_row(teacher: Denoiser, student: Student) -> None:
    ours, theirs = way(teacher, "euler", 2), way(student.denoiser, "euler", 2)
    assert ours.fingerprint != theirs.fingerprint
    assert ours.fingerprint == way(teacher, "euler", 2).fingerprint
    assert len({one.fingerprint for one in teacher_ways(teacher, ("euler", "ipndm3"), ("auto", "karras"), (2, 3))}) == 8


def test_the_same_grid_by_two_names_is_one_row() -> None:
    assert len(teacher_ways(mixture(), ("euler",), ("auto", "karras"), (4,))) == 1


def test_rows_of_several_teachers_say_whose_they_are(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"calls": (2,), "solvers": ("euler",), "grids": ("auto",), "count": 4}
    one, other = mixture(), GaussianMixture(mixture().means.flip(-1), 0.3, process=EDM())
    found = compare([one, other], out=tmp_path / "both", **settings)
    names = ["gaussian-mixture (1)"] * 2 + ["gaussian-mixture (2)"] * 2
    assert [row["series"].split(":")[0] for row in found.rows] == names
    alone = [row for model in (one, other) for row in compare([model], out=tmp_path / "alone", **settings).rows]
    assert [row["scores"]["rmse"] for row in found.rows] == [row["scores"]["rmse"] for row in alone]


def mixture_of_noise() -> GaussianMixture:
    return GaussianMixture(torch.zeros(1, 1, 8, 8), 0.5, process=EDM())


class Breaking(GaussianMixture):
    """Gives NaN at one noise level."""

    level = float(karras(EDM(), 3).sigmas[1])

    def evaluate(self, x: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
        found = super().evaluate(x, sigma, cond)
        return found * torch.nan if abs(float(sigma.max()) - self.level) < 1e-9 else found


def test_a_way_that_breaks_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    teacher = Breaking(mixture().means, 0.2, process=EDM())
    settings: dict[str, Any] = {"solvers": ("euler",), "grids": ("auto",), "count": 4}
    found = compare([teacher], out=tmp_path, calls=(3, 4), **settings)
    assert found.rows[0]["broken"] == 4 and found.rows[0]["scores"] == {}
    assert found.rows[1]["broken"] == 0 and found.rows[1]["scores"]["rmse"]["value"] < 1
    with pytest.raises(UserError, match="4 of 4 images are NaN"):
        evaluate(teacher, solver="euler", calls=3, count=4)


class Cold(GaussianMixture):
    """Its first call is slow, as a network's is that allocates, compiles or tunes."""

    warm = False

    def evaluate(self, x: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
        time.sleep(0 if self.warm else 2)
        self.warm = True
        return super().evaluate(x, sigma, cond)


def test_what_a_model_does_once_is_no_latency(tmp_path: Path) -> None:
    """Not even where all images are one batch; and what warms it up is not counted among the calls."""
    settings: dict[str, Any] = {"calls": (2,), "solvers": ("euler",), "grids": ("auto",), "metrics": ["rmse"]}
    first, *_ = compare([Cold(mixture().means, 0.2, process=EDM())], out=tmp_path, count=2, **settings).rows
    assert first["seconds_per_image"] < 0.9 and first["nfe"] == 2
    alone = evaluate(Cold(mixture().means, 0.2, process=EDM()), calls=2, count=2, metrics=["rmse"])
    assert alone["seconds_per_image"] < 0.9


def test_a_model_that_gives_nothing_but_nan_is_told(tmp_path: Path) -> None:
    teacher = Breaking(mixture().means, 0.2, process=EDM())
    teacher.level = 80.0  # the start of every grid
    settings: dict[str, Any] = {"calls": (2,), "solvers": ("euler",), "grids": ("auto",)}
    with pytest.raises(UserError, match="fine solution of 'gaussian-mixture'.* is NaN"):
        compare([teacher], out=tmp_path, count=4, **settings)
    digits = Breaking(torch.zeros(1, 1, 8, 8), 0.2, process=EDM())
    digits.level = 80.0
    with pytest.raises(UserError, match="no way gives images"):
        compare([digits], out=tmp_path, count=20, reference=[BUNDLED], metrics=["fd"], **settings)


def test_exact_teachers_need_no_reference(tmp_path: Path) -> None:
    found = compare([mixture()], out=tmp_path, calls=(2, 8), solvers=("euler",), grids=("auto",), count=20)
    assert [one["key"] for one in found.results["metrics"]] == ["rmse", "median"]
    few, many = (row["scores"]["rmse"]["value"] for row in found.rows[:2])
    assert many < few


@pytest.mark.parametrize(
    ("models", "settings", "message"),
    [
        ((), {}, "needs a teacher"),
        (("digits8",), {"metrics": ["fdd"]}, "unknown metric 'fdd'"),
        (("digits8",), {"metrics": ["fid"]}, r"fd\[inception\]"),
        (("digits8",), {"metrics": ["rmse[inception]"]}, "uses no extractor"),
        (("digits8",), {"metrics": ["fd"], "count": 8}, "needs 20 images or more"),
        (("digits8",), {"solvers": ("eular",)}, "did you mean 'euler'"),
        (("digits8",), {"calls": (0,)}, "1 or more network calls"),
        (("digits8",), {"count": 0}, "count is 0, expected 1 or more images"),
        (("digits8",), {"calls": ()}, "at least one of each"),
        (("digits8",), {"lead": "fdd"}, "cannot open with 'fdd'"),
        (("digits8", "fashion28"), {}, "1x28x28"),
        (("digits8",), {"metrics": ["fd[fashion-cnn]"]}, "fashion-cnn"),
        (("digits8",), {"published": "cifar"}, "did you mean 'cifar10'"),
        (
            ("digits8",),
            {"published": "cifar10"},
            "cifar10 are of images of 3x32x32, these are of 1x8x8; leave --published out",
        ),
    ],
)
def test_mistakes_get_one_sentence(
    tmp_path: Path, models: tuple[str, ...], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        compare(models, out=tmp_path / "out", **{**SMALL, **settings})


def test_published_numbers_fall_with_calls_and_hold_the_paper_s() -> None:
    found = read_published("cifar10", (3, 32, 32))
    with pytest.raises(UserError, match=r"fd\[inception\], which is not measured"):
        check_measured(found, ["rmse"])
    assert found["images"] == 50_000
    points = {one["label"]: dict(map(tuple, one["points"])) for one in found["series"]}
    assert points["Euler"][10] == 15.69 and points["SFD (student)"][2] == 4.53 and points["iPNDM-4"][5] == 13.59
    for series in points.values():
        assert list(series.values()) == sorted(series.values(), reverse=True)


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_a_row_alone_is_what_it_is_in_a_comparison(comparison: Comparison, student: Student) -> None:
    alone = evaluate(student, teacher="digits8", count=24)
    row = next(row for row in comparison.rows if row["kind"] == "student")
    for key, score in row["scores"].items():
        assert alone["scores"][key]["value"] == pytest.approx(score["value"], rel=1e-4), key
    assert alone["nfe"] == 2 and alone["cost"]["images"] == 64


def test_feature_distance_is_between_the_same_noises(teacher: Denoiser) -> None:
    extract = find_extractor("digits-cnn").extract
    how: dict[str, Any] = {"seed": 0}
    fine = extract(onefold.sample(teacher, 24, solver="dpmpp3m_exact", calls=64, **how).clamp(-1, 1)).vectors
    images = extract(onefold.sample(teacher, 24, solver="euler", calls=2, **how).clamp(-1, 1)).vectors
    found = evaluate(teacher, solver="euler", calls=2, count=24, metrics=["feature-distance"])["scores"]
    expected = float((images - fine).square().sum(1).mean().sqrt())
    assert found["feature-distance[digits-cnn]"]["value"] == pytest.approx(expected, rel=1e-3)


def test_the_path_is_measured_step_by_step(student: Student) -> None:
    steps = evaluate(student, teacher="digits8", count=24, metrics=["rmse"])["steps"]
    assert [step["sigma"] for step in steps] == student.grid.sigmas.tolist()[1:]
    found = evaluate(student, teacher="digits8", count=24, metrics=["rmse"])["scores"]["rmse"]["value"]
    assert steps[-1]["rmse"] == pytest.approx(found, rel=0.05)  # the same images, against two fine solutions


def test_a_few_of_many_images_are_drawn_by_lot(tmp_path: Path) -> None:
    """Folders are often sorted by class."""
    data = onefold.load_data("digits")
    assert data.labels is not None
    order = data.labels.argsort()
    np.savez(tmp_path / "sorted.npz", images=data.fetch(order)[0].permute(0, 2, 3, 1).numpy())
    found = evaluate(tmp_path / "sorted.npz", reference=BUNDLED, count=300, metrics=["fd"])["scores"]["fd[digits-cnn]"]
    assert found["value"] < 2 * found["floor"]["high"]


def test_a_reference_that_would_not_count_is_refused(tmp_path: Path) -> None:
    bare = Statistics(torch.zeros(32, dtype=torch.float64), torch.eye(32, dtype=torch.float64), 0, "", {})
    bare.save(tmp_path / "foreign.npz")
    with pytest.raises(UserError, match="name an --extractor"):
        evaluate("digits8", reference=tmp_path / "foreign.npz", count=24, device="cpu")
    with pytest.raises(UserError, match="takes images of 1x28x28"):
        evaluate("digits8", reference=BUNDLED.parent.parent / "fashion28" / "reference.npz", count=24, device="cpu")
    with pytest.raises(UserError, match="leave it out"):
        evaluate("digits8", reference=[BUNDLED, tmp_path / "foreign.npz"], count=24, device="cpu")
    images = np.zeros((30, 12, 12, 1), np.uint8)
    np.savez(tmp_path / "large.npz", images=images)
    with pytest.raises(UserError, match="scale the reference first"):
        evaluate("digits8", reference=tmp_path / "large.npz", extractor="digits-cnn", count=24, device="cpu")


def test_a_tiny_reference_is_told_before_images_are_drawn(teacher: Denoiser, tmp_path: Path) -> None:
    """Of 24 images 4 are held out, which have no five neighbours: what needs them drops out, or is refused if asked for."""
    np.savez(tmp_path / "few.npz", images=onefold.load_data("digits").fetch(range(24))[0].permute(0, 2, 3, 1).numpy())
    settings: dict[str, Any] = {"reference": tmp_path / "few.npz", "extractor": "digits-cnn", "count": 24, "calls": 1}
    found = evaluate(teacher, **settings)["scores"]
    assert "fd[digits-cnn]" in found and "precision[digits-cnn]" not in found
    before = teacher.calls
    for metric in ("precision", "kid"):
        with pytest.raises(UserError, match=rf"{metric}\[digits-cnn\] needs 20 held-out .* has 4; give one of 100"):
            evaluate(teacher, metrics=[metric], **settings)
    assert teacher.calls == before


@pytest.mark.parametrize("source", ["digits8", "digits"])
def test_a_count_is_kept_or_refused(source: str) -> None:
    with pytest.raises(UserError, match="count is 0, expected 1 or more images"):
        evaluate(source, count=0, device="cpu")
    with pytest.raises(UserError, match="count is 50,000, but digits has 1,797 images; leave it out"):
        evaluate("digits", count=50_000, reference=BUNDLED)


def test_what_does_not_apply_is_refused(student: Student) -> None:
    with pytest.raises(UserError, match="makes 2 calls, not 3; distil another one for 3"):
        evaluate(student, calls=3)
    with pytest.raises(UserError, match="are images; leave out solver"):
        evaluate("digits", solver="euler")
    with pytest.raises(UserError, match="is a teacher; leave out teacher"):
        evaluate("digits8", teacher="fashion28", device="cpu")
    with pytest.raises(UserError, match="unknown teacher 'digit8'"):
        evaluate("digit8")


def test_images_in_a_folder_are_measured_like_the_model_s(tmp_path: Path, teacher: Denoiser) -> None:
    assert (
        main(
            [
                "sample",
                "digits8",
                "--count",
                "40",
                "--calls",
                "2",
                "--solver",
                "euler",
                "--device",
                "cpu",
                "--out",
                str(tmp_path / "x.npz"),
            ]
        )
        == 0
    )
    images = evaluate(tmp_path / "x.npz", reference=BUNDLED)["scores"]
    model = evaluate(teacher, solver="euler", calls=2, count=40, metrics=["fd", "accuracy"])["scores"]
    assert images["fd[digits-cnn]"]["value"] == pytest.approx(model["fd[digits-cnn]"]["value"], rel=1e-3)
    assert images["accuracy[digits-cnn]"]["value"] == model["accuracy[digits-cnn]"]["value"]
    assert "rmse" not in images


def test_real_images_reach_the_floor() -> None:
    """All digits against a reference that has seen most of them, and noise, which must not."""
    found = evaluate("digits", reference=BUNDLED, metrics=["fd", "precision", "coverage"])
    scores = found["scores"]
    assert scores["fd[digits-cnn]"]["value"] < scores["fd[digits-cnn]"]["floor"]["high"]
    noise = evaluate(mixture_of_noise(), extractor="digits-cnn", reference=BUNDLED, metrics=["fd"], count=100)["scores"]
    assert noise["fd[digits-cnn]"]["value"] > 10 * scores["fd[digits-cnn]"]["floor"]["high"]
    for name in ("precision", "coverage"):
        score = scores[f"{name}[digits-cnn]"]
        assert score["value"] == pytest.approx(score["floor"]["value"], abs=0.1)


def test_a_student_whose_teacher_is_gone_is_measured_without_it(student: Student) -> None:
    lonely = Student(
        student.denoiser, student.grid, student.afs, {**student.recipe, "teacher": {"name": "gone", "sha256": "0"}}
    )
    said: list[str] = []
    found = evaluate(lonely, count=24, extractor="digits-cnn", reference="digits", tell=said.append)
    assert "rmse" not in found["scores"] and "--teacher" in said[-1]


def test_another_teacher_is_no_measure_for_a_student(student: Student) -> None:
    with pytest.raises(UserError, match="other weights"):
        evaluate(student, teacher="fashion28", count=4)


def test_a_reference_is_made_from_data_and_read_again(tmp_path: Path) -> None:
    extractor = find_extractor("digits-cnn")
    made = make_reference(onefold.load_data("digits"), extractor)
    assert made.count + len(made.features if made.features is not None else ()) == 1797
    made.save(tmp_path / "ref.npz")
    again = load_reference(tmp_path / "ref.npz", extractor)
    assert torch.equal(again.mean, made.mean) and again.provenance["held_out"] == 359
    with pytest.raises(UserError, match="held_out"):
        make_reference(onefold.load_data("digits"), extractor, held_out=1796)


def test_statistics_of_another_network_are_refused(tmp_path: Path) -> None:
    made = make_reference(onefold.load_data("digits"), find_extractor("digits-cnn"))
    made.provenance["identity"] = "0" * 64
    made.save(tmp_path / "ref.npz")
    with pytest.raises(UserError, match="other weights"):
        evaluate("digits8", reference=tmp_path / "ref.npz", count=24, device="cpu")


def test_the_way_of_a_student_is_its_own(student: Student) -> None:
    one = student_way(student)
    images = one.plan.run(student.denoiser, 3, range(2), torch.tensor([1, 2]))
    assert torch.equal(images, student.sample(2, seed=3, labels=[1, 2]))


# --- commands ---------------------------------------------------------------------------------------------------------


def test_the_commands(tmp_path: Path, student: Student, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(student.recipe["settings"]["out"])
    words = ["--count", "24", "--device", "cpu"]
    assert (
        main(
            [
                "compare",
                "digits8",
                str(run),
                "--calls",
                "1,2",
                "--solvers",
                "euler",
                "--grids",
                "auto",
                "--out",
                str(tmp_path),
                *words,
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "euler on quadratic, 2 calls" in printed and str(tmp_path / "report.html") in printed
    assert "; best solver euler on quadratic 0." in printed
    assert main(["evaluate", str(run), "--metrics", "fd,rmse", *words]) == 0
    printed = capsys.readouterr().out
    assert "fd[digits-cnn]" in printed and "at sigma" in printed
    assert main(["evaluate", "digits8", "--calls", "2", "--metrics", "rmse", "--json", *words]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["rmse"]["value"] > 0


def test_two_processes_measure_what_one_does_and_go_on(tmp_path: Path, comparison: Comparison) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "onefold"]
    words = ["compare", "digits8", "--calls", "1,2", "--solvers", "euler,ipndm3", "--grids", "auto", "--count", "24"]
    words += ["--batch-size", "5", "--device", "cpu", "--out", str(tmp_path)]
    found = []
    for _ in range(2):  # the second one reads what the first has measured
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=170, check=False)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / "results.json").read_text())["rows"])
    assert found[0] == found[1] and len(found[0]) == 5
    for ours, theirs in zip(found[0], comparison.rows[:5], strict=True):
        assert ours["scores"].keys() == theirs["scores"].keys()
        for key, score in ours["scores"].items():
            assert score["value"] == pytest.approx(theirs["scores"][key]["value"], rel=1e-3), (ours["label"], key)


def test_a_loaded_student_is_the_same_row(student: Student) -> None:
    again = load_student(student.recipe["settings"]["out"], device="cpu")
    assert student_way(again).fingerprint == student_way(student).fingerprint
