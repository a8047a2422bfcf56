"""What the committed results of the benchmarks say, and that the pages which quote them say the same."""

from __future__ import annotations

import itertools
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

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
