"""Writes the model cards of the bundled teachers, with what their comparisons (results/compare_*.json) say of them.

python benchmarks/cards.py
"""

from __future__ import annotations

import json
from pathlib import Path

from onefold.teachers import bundled
from onefold.teachers.card import measured, page

ROOT = Path(__file__).parent.parent
ASSETS = Path("src/onefold/assets")


def main() -> None:
    for name in bundled():
        (ROOT / ASSETS / name / "README.md").write_text(card_of(name))
        print(f"{ASSETS / name}/README.md")


def card_of(name: str) -> str:
    card = json.loads((ROOT / ASSETS / name / "onefold.json").read_text())
    results = json.loads((ROOT / "benchmarks" / "results" / f"compare_{name}.json").read_text())
    return page(card, name, measured(results), str(ASSETS / name))


if __name__ == "__main__":
    main()
