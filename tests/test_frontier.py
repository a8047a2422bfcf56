"""The benchmark of all methods: who goes on, what is on the frontier, and what is written of it."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODULES = (
    "entries",
    "cells",
    "halving",
    "points",
    "tables",
    "plots",
    "drawn",
    "page",
    "publish",
    "workers",
    "controls",
)


@pytest.fixture(scope="module")
def frontier() -> Iterator[dict[str, ModuleType]]:
    folders = [str(BENCHMARKS), str(BENCHMARKS / "frontier")]
    sys.path[:0] = folders
    yield {name: import_module(name) for name in MODULES}
    for folder in folders:
        sys.path.remove(folder)
    for name in (*MODULES, "pairs"):
        sys.modules.pop(name, None)


def result(cell: Any, fd: float, rmse: float, counts: tuple[int, ...] = ()) -> dict[str, Any]:
    """What a cell would have found, without finding it."""
    score = {"value": fd, "spread": 0.05, "floor": {"value": 0.2, "about": "some"}}
    scores = {"fd[digits-cnn]": score, "precision[digits-cnn]": score, "recall[digits-cnn]": score, "fd[pixels]": score}
    rows = [
        {"calls": calls, "rmse": rmse, "scores": scores, "choice": {"rmse": rmse, "fd": fd}}
        for calls in counts or (cell.calls,)
    ]
    cost = {"seconds": 10.0, "images": 64, "forwards": cell.budget}
    return {**asdict(cell), "stages": [asdict(stage) for stage in cell.stages], "cost": cost, "rows": rows}


def failed(cell: Any) -> dict[str, Any]:
    return {**asdict(cell), "stages": [asdict(stage) for stage in cell.stages], "failed": "infinite"}


def play(frontier: dict[str, ModuleType], plan: Any, quality: Any) -> list[dict[str, Any]]:
    """All cells in the order in which they come up."""
    results: list[dict[str, Any]] = []
    while cell := next(frontier["halving"].upcoming(plan, frontier["halving"].Known(results)), None):
        results.append(quality(cell))
    return results


def plan_of(frontier: dict[str, ModuleType], entries: list[str], **changes: Any) -> Any:
    given = {"calls": [1, 4], "budgets": [10, 20, 40], "seeds": [0, 1], "entries": entries, "keep": 1, **changes}
    return frontier["halving"].Plan(**given)


def test_settings_are_halved_and_the_best_gets_all_seeds(frontier: dict[str, ModuleType]) -> None:
    plan = plan_of(frontier, ["sfd"], calls=[4])
    made = play(frontier, plan, lambda cell: result(cell, 1 / (1 + cell.candidate), 0.1))
    by_budget = {
        budget: [(one["candidate"], one["seed"]) for one in made if one["budget"] == budget] for budget in (10, 20, 40)
    }
    assert by_budget[10] == [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1)]  # all, then the best with the other seed
    assert by_budget[20] == [(3, 0), (2, 0), (3, 1)]  # the better half, best first
    assert by_budget[40] == [(3, 0), (3, 1)]


def test_methods_go_on_by_either_measure(frontier: dict[str, ModuleType]) -> None:
    """One is nearest to the data, one to the teacher, one neither."""
    worth = {"gdd": (0.1, 0.9), "second": (0.5, 0.1), "sfddm": (0.6, 0.6)}
    plan = plan_of(frontier, list(worth), calls=[1])
    made = play(frontier, plan, lambda cell: result(cell, *worth[cell.entry]))
    assert {one["entry"] for one in made if one["budget"] == 20} == set(worth)
    assert {one["entry"] for one in made if one["budget"] == 40} == {"gdd", "second"}


def test_nobody_goes_on_before_all_seeds_are_known(frontier: dict[str, ModuleType]) -> None:
    """Several work at the same time: while any cell of a budget is out, none of the last budget begins."""
    plan = plan_of(frontier, ["sfddm", "second"], calls=[1])
    made = play(frontier, plan, lambda cell: result(cell, 1.0, 1.0))
    before = [one for one in made if one["budget"] < 40]
    for out in before:
        if out["budget"] == 10 and out["seed"]:
            continue  # on which nothing depends
        known = frontier["halving"].Known([one for one in before if one is not out])
        assert all(cell.budget < 40 for cell in frontier["halving"].upcoming(plan, known))


def test_what_another_candidate_found_is_no_result(frontier: dict[str, ModuleType]) -> None:
    cell = frontier["cells"].Cell("sfd", 4, 10, 0, 0)
    found = result(cell, 1.0, 1.0)
    assert frontier["halving"].Known([found]).has(cell)
    found["stages"][0]["settings"]["lr"] = 1.0
    assert not frontier["halving"].Known([found]).has(cell)


def test_settings_that_fail_lose(frontier: dict[str, ModuleType]) -> None:
    def quality(cell: Any) -> dict[str, Any]:
        if cell.candidate == 0:
            return failed(cell)
        return result(cell, 1 + cell.candidate, 0.1)

    plan = plan_of(frontier, ["tuning"], calls=[1])
    made = play(frontier, plan, quality)
    assert {one["candidate"] for one in made if one["budget"] == 40} == {1}
    assert not any(one["candidate"] == 0 for one in made if one["budget"] > 10)


def test_a_method_that_always_fails_ends_nothing(frontier: dict[str, ModuleType]) -> None:
    plan = plan_of(frontier, ["sfddm", "second"], calls=[1])
    made = play(
        frontier,
        plan,
        lambda cell: failed(cell) if cell.entry == "sfddm" else result(cell, 1.0, 1.0),
    )
    assert {one["entry"] for one in made if one["budget"] == 40} == {"second"}
    known = {"plan": asdict(plan), "cells": made}
    assert {point.entry for point in frontier["points"].students(known)} == {"second"}


def test_who_imitates_nobody_is_chosen_by_the_data_alone(frontier: dict[str, ModuleType]) -> None:
    cell = frontier["cells"].Cell
    first, second = cell("gdd", 1, 10, 0, 0), cell("gdd", 1, 10, 1, 0)
    known = frontier["halving"].Known([result(first, 0.2, 0.9), result(second, 0.3, 0.1)])
    assert known.best_first([first, second]) == [first, second]
    first, second = cell("sfd", 1, 10, 0, 0), cell("sfd", 1, 10, 1, 0)
    known = frontier["halving"].Known([result(first, 0.2, 0.9), result(second, 0.3, 0.1)])
    assert known.best_first([first, second]) == [second, first]


def test_one_student_of_several_numbers_of_calls_is_made_once(frontier: dict[str, ModuleType]) -> None:
    plan = plan_of(frontier, ["sfd_v", "sfd"], calls=[1, 2, 4, 8])
    assert plan.contestants() == [("sfd_v", 8), ("sfd", 1), ("sfd", 2), ("sfd", 4), ("sfd", 8)]


def test_the_best_methods_are_carried_to_another_teacher(frontier: dict[str, ModuleType]) -> None:
    worth = {"gdd": (0.1, 0.9), "second": (0.5, 0.1), "sfddm": (0.6, 0.6)}
    plan = plan_of(frontier, list(worth), calls=[1])
    made = play(
        frontier, plan, lambda cell: result(cell, worth[cell.entry][0] / (1 + cell.candidate), worth[cell.entry][1])
    )
    found = frontier["halving"].finalists(plan, frontier["halving"].Known(made))
    assert found == [("gdd", 1, 2), ("second", 1, 2)]
    there = plan_of(frontier, list(worth), calls=[1], chosen=found, budgets=[30], seeds=[0])
    assert [(one["entry"], one["candidate"]) for one in play(frontier, there, lambda cell: result(cell, 1.0, 1.0))] == [
        ("gdd", 2),
        ("second", 2),
    ]


def known_of(frontier: dict[str, ModuleType]) -> dict[str, Any]:
    plan = plan_of(frontier, ["sfd", "sfd_v", "gdd"], calls=[1, 2, 4, 8])

    def quality(cell: Any) -> dict[str, Any]:
        several = (1, 2, 4, 8) if cell.entry == "sfd_v" else ()
        factor = {"gdd": 1, "sfd": 2, "sfd_v": 50}[cell.entry]
        return result(cell, factor * (1 + cell.seed / 10) / (cell.budget * cell.calls), 1 / cell.calls, several)

    controls = [
        {
            **result(frontier["cells"].Cell("sfd", calls, 10, 0, 0), 3 / calls, 0.5)["rows"][0],
            "solver": "euler",
            "grid": "auto",
        }
        for calls in (1, 2, 4, 8)
    ]
    controls.append({**controls[0], "calls": 40, "grid": "best"})
    return {
        "teacher": "digits8",
        "what": "a <test>",
        "command": "python benchmarks/frontier digits8",
        "plan": asdict(plan),
        "count": 100,
        "controls": controls,
        "cells": play(frontier, plan, quality),
        "versions": {"onefold": "0"},
        "machine": {"cores": 2},
    }


def test_nothing_on_the_frontier_is_beaten_and_all_else_is(frontier: dict[str, ModuleType]) -> None:
    points, known = frontier["points"], known_of(frontier)
    everyone = points.everything(known, "fd")
    front = points.pareto(everyone, "fd")
    assert 0 < len(front) < len(everyone)
    for one, other in itertools.product(everyone, everyone):
        better = other.calls <= one.calls and other.budget <= one.budget and other.mean("fd") < one.mean("fd")
        assert not (better and one in front)
    for one in everyone:
        if one not in front:
            assert any(o.calls <= one.calls and o.budget <= one.budget and o.mean("fd") < one.mean("fd") for o in front)


def test_the_table_tells_means_and_what_is_on_the_frontier(frontier: dict[str, ModuleType]) -> None:
    lines = list(frontier["tables"].markdown(known_of(frontier)))
    gdd = next(line for line in lines if line.startswith("| 1 | GDD |"))
    assert "**0.11** ± 0.01 / " in gdd  # 1 / 10 and 1.1 / 10 at the smallest budget
    free = next(line for line in lines if line.startswith("| 1 | free"))
    assert "**3.00** / **0.500**" in free


def test_the_page_asks_nothing_of_any_network(frontier: dict[str, ModuleType], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text = frontier["page"].write_page(known_of(frontier), tmp_path / "runs", tmp_path).read_text()
    assert text.count("data:image/svg+xml;base64,") == 2 and "a &lt;test&gt;" in text
    assert 'src="http' not in text and "<b>0.11</b>" in text


def test_images_are_shown_of_the_runs_that_are_at_hand(frontier: dict[str, ModuleType], tmp_path: Path) -> None:
    """The largest budget of each method, of the first seed; the noise of a column is that of the teacher's."""
    known, drawn, cells = known_of(frontier), frontier["drawn"], frontier["cells"]
    assert drawn.all_drawn(known, tmp_path) == []
    fine = np.linspace(-1, 1, 100 * 64, dtype="float32").reshape(100, 1, 8, 8)
    np.savez(tmp_path / f"fine_{cells.UNSEEN}_100.npz", images=fine)
    for cell, value in ((cells.Cell("gdd", 1, 40, 0, 0), 0.5), (cells.Cell("gdd", 1, 20, 0, 0), 0.9)):
        (tmp_path / cell.name).mkdir()
        np.savez(tmp_path / cell.name / cells.SHOWN, **{"1": np.full((cells.COLUMNS, 1, 8, 8), value, "float32")})
    teacher, gdd = drawn.all_drawn(known, tmp_path)
    assert teacher[1].tolist() == fine[: cells.COLUMNS].tolist()
    assert gdd[0] == "1 call: GDD\n0.03" and gdd[1].unique().tolist() == [0.5]


def test_what_is_published_can_be_looked_up(
    frontier: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onefold.bench.measured import read

    publish = frontier["publish"]
    (tmp_path / "frontier_digits8.json").write_text(json.dumps(known_of(frontier)))
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    (found,) = publish.published()["teachers"]
    bench = read(found)
    assert bench.counts == [1, 2, 4, 8] and bench.shape == [1, 8, 8] and len(bench.solvers) == 4
    assert bench.error == 0  # what chose the settings is here what is reported
    assert {one.method for one in bench.affordable(1, 15)} == {"sfd", "gdd"}  # SFD-v is one for several numbers
    assert [one.budget for one in bench.affordable(1, 25)] == [20, 20]


def test_a_cell_is_made_measured_and_leaves_no_weights(frontier: dict[str, ModuleType], tmp_path: Path) -> None:
    """Two runs, the second from the first one's student, both within the budget."""
    cells = frontier["cells"]
    reference = Path(__file__).parents[1] / "src/onefold/assets/digits8/reference.npz"
    bench = cells.Bench("digits8", "digits", (str(reference), "digits"), 24)
    cell = cells.Cell("second", 1, 3000, 0, 0)
    cells.make(cell, bench, tmp_path)
    found = json.loads((tmp_path / cell.name / cells.RESULT).read_text())
    assert [stage["calls"] for stage in found["cost"]["stages"]] == [4, 1]
    assert 0.8 < found["cost"]["forwards"] / 3000 < 1.3  # whole batches
    (row,) = found["rows"]
    assert row["rmse"] < 0.4 and set(row["scores"]) >= {"fd[digits-cnn]", "fd[pixels]"}
    assert not list((tmp_path / cell.name).glob("stage_*"))
    assert (tmp_path / cell.name / cells.SHOWN).is_file()


ROOT = BENCHMARKS.parent


def committed(teacher: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((BENCHMARKS / "results" / f"frontier_{teacher}.json").read_text())
    return found


@pytest.mark.parametrize(
    ("page", "teacher"), [("README.md", "digits8"), ("docs/choosing.md", "digits8"), ("docs/choosing.md", "fashion28")]
)
def test_the_pages_tell_what_was_measured(frontier: dict[str, ModuleType], page: str, teacher: str) -> None:
    table = "\n".join(frontier["tables"].short(committed(teacher)))
    assert table in (ROOT / page).read_text(), f"write `python benchmarks/frontier {teacher} --short` there"


@pytest.mark.parametrize("teacher", ["digits8", "fashion28"])
def test_all_numbers_stand_on_the_benchmarks_page(frontier: dict[str, ModuleType], teacher: str) -> None:
    table = "\n".join(frontier["tables"].markdown(committed(teacher)))
    assert table in (BENCHMARKS / "README.md").read_text(), (
        f"write `python benchmarks/frontier {teacher} --table` there"
    )


def test_advice_knows_what_was_measured(frontier: dict[str, ModuleType]) -> None:
    from onefold.bench.measured import PATH

    published = json.loads(json.dumps(frontier["publish"].published()))
    assert json.loads(PATH.read_text()) == published, "write `python benchmarks/frontier digits8 --publish`"


@pytest.mark.parametrize("teacher", ["digits8", "fashion28"])
def test_what_is_committed_is_of_the_candidates_that_stand_here(frontier: dict[str, ModuleType], teacher: str) -> None:
    known = committed(teacher)
    assert known["cells"] and all(map(frontier["halving"].current, known["cells"]))
    assert "--out" not in known["command"]  # no places of one machine
