"""Published numbers that are shipped as reference data, to stand beside a run on the same data set."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from onefold.errors import UserError, suggest

FOLDER = Path(__file__).parent.parent / "assets" / "published"


def published() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read_published(name: str, measured: Collection[str]) -> dict[str, Any]:
    """Points of calls and metric; of use only where that metric, with its extractor, is measured too."""
    if name not in published():
        raise UserError(f"no published numbers {name!r}{suggest(name, published())}")
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    if found["metric"] not in measured:
        raise UserError(
            f"the published numbers of {name} are {found['metric']}, which is not measured here; add it to --metrics"
        )
    return found
