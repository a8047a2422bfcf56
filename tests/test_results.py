"""What the committed results of the benchmarks say, and that the pages which quote them say the same."""

from __future__ import annotations

import itertools
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from onefold.methods import METHODS

ROOT = Path(__file__).parent.parent
TEACHERS = ("digits8", "fashion28")


def rows(teacher: str) -> list[dict[str, Any]]:
    return list(json.loads((ROOT / "benchmarks" / "results" / f"compare_{teacher}.json").read_text())["rows"])


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("calls", [8, 10])
def test_solvers_of_higher_order_come_nearer_on_the_usual_grid(teacher: str, calls: int) -> None:
    """Order 1, 2 and 3: each nearer to the fine solution than the one before, from the same noise."""
    there = [row for row in rows(teacher) if (row["grid"], row["calls"]) == ("quadratic", calls)]
    found = {row["solver"]: row["scores"]["rmse"]["value"] for row in there}
    for low, high in itertools.pairwise(("euler", "dpmpp2m", "ipndm3")):
        assert found[low] > found[high]


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_bundled_teacher_s_card_is_made_from_its_results(teacher: str) -> None:
    card_of = runpy.run_path(str(ROOT / "benchmarks" / "cards.py"))["card_of"]
    card = (ROOT / "src" / "onefold" / "assets" / teacher / "README.md").read_text()
    assert card == card_of(teacher), "write it again with `python benchmarks/cards.py`"
    best = next(row for row in rows(teacher) if row["kind"] == "best")["scores"]["rmse"]
    assert f"| 40 | {best['value']:.3f} ± {best['spread']:.3f} |" in card


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("benchmark", ["sfddm", "sfd_family", "gdd"])
def test_a_table_is_made_from_its_results(benchmark: str, teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    markdown = runpy.run_path(str(ROOT / "benchmarks" / f"{benchmark}.py"))["markdown"]
    page = (ROOT / "benchmarks" / "README.md").read_text()
    table = "\n".join(markdown(f"{benchmark}_{teacher}"))
    assert table in page, f"write `python benchmarks/{benchmark}.py TEACHER --table` there"


def test_roll_outs_are_nearer_than_ddim_and_no_farther_than_folds_at_three_times_the_cost() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "sfddm_digits8.json").read_text())["rows"]

    def mean(row: str, calls: int, key: str = "to_fine") -> float:
        found = [one[key] for one in rows if one["row"] == row and one["calls"] == calls]
        return float(sum(found) / len(found))

    for calls in (32, 16, 8, 4, 2):
        ddim, ours, folds = (mean(row, calls) for row in ("ddim", "rollout", "progressive"))
        assert ours < ddim / (2 if calls <= 16 else 1) and ours <= folds * 1.01
        assert mean("rollout", calls, "forwards") < mean("progressive", calls, "forwards") / 2.9
    for calls in (16, 8, 4, 2):
        assert mean("paper", calls, "to_strided") < 0.3 * mean("paper", calls, "strided_to_fine")


def test_students_of_sfd_come_nearer_than_any_solver_and_one_for_all_counts_as_near_as_one_for_each() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "sfd_family_digits8.json").read_text())["rows"]

    def mean(kind: str, calls: int) -> float:
        found = [one["distance"] for one in rows if one["kind"] == kind and one["calls"] == calls]
        return float(sum(found) / len(found))

    for calls in (1, 2, 3, 4, 5):
        solvers = [one["distance"] for one in rows if one["kind"] == "solver" and one["calls"] == calls]
        assert mean("sfd", calls) < min(solvers)
    ratios = [mean("sfd_v", calls) / mean("sfd", calls) for calls in (2, 3, 4, 5)]
    assert sum(ratios) / len(ratios) < 1.1
    assert mean("second", 1) < mean("sfd", 1)


def test_the_table_of_the_ablation_is_made_from_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setitem(METHODS, "vanilla", ("", "", ""))  # which the script enters; taken out again at the end
    markdown = runpy.run_path(str(ROOT / "benchmarks" / "sfd_ablation.py"))["markdown"]
    page = (ROOT / "docs" / "methods" / "sfd.md").read_text()
    whole, _, single = "\n".join(markdown("sfd_ablation_digits8_3_1200", 3, 2)).rstrip().partition("\n\n")
    assert whole in page and single in page, "write `python benchmarks/sfd_ablation.py digits8 --images 1200 --table`"
