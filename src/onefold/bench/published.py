"""Published numbers that are shipped as reference data, to stand beside a run on the same data set."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from onefold.errors import UserError, suggest
from onefold.metrics.references import shape_text

FOLDER = Path(__file__).parent.parent / "assets" / "published"


def published() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read_published(name: str, shape: Sequence[int]) -> dict[str, Any]:
    """Points of calls and metric, for images of this shape."""
    if name not in published():
        raise UserError(f"no published numbers {name!r}{suggest(name, published())}")
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    if tuple(found["shape"]) != tuple(shape):
        raise UserError(
            f"the published numbers of {name} are of images of {shape_text(found['shape'])}, these are of {shape_text(shape)}; "
            "leave --published out"
        )
    return found


def check_measured(found: Mapping[str, Any], measured: Collection[str]) -> None:
    """Of use only where the same metric, with its extractor, is measured too."""
    if found["metric"] not in measured:
        raise UserError(
            f"the published numbers are {found['metric']}, which is not measured here; add it to --metrics with a --reference"
        )
