"""One picture of a comparison: the teacher at its best, students, and what solvers give for as many calls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from onefold.data import to_float
from onefold.pictures import COLUMNS, labelled_rows, save_png

NAME = "comparison.png"


def save_picture(results: Mapping[str, Any], folder: Path) -> Path:
    count = min(COLUMNS, results["shown"])
    rows = [
        (caption(row, results), images(folder / row["picture"], results["image"])[:count]) for row in shown(results)
    ]
    title = f"{results['title']}: the same noise in each column"
    return save_png(labelled_rows(rows, title=title), folder / NAME)


def shown(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Under each student, or else at each number of calls, the nearest solver; the plainest comes last."""
    rows = [row for row in results["rows"] if not row["broken"]]
    metric = next((one for one in results["metrics"] if one["key"] == "rmse"), results["metrics"][0])
    students = sorted((row for row in rows if row["kind"] == "student"), key=lambda row: -int(row["calls"]))
    solvers = [row for row in rows if row["kind"] == "solver"]
    calls = dict.fromkeys(row["calls"] for row in students) or sorted({row["calls"] for row in solvers}, reverse=True)
    chosen = [row for row in rows if row["kind"] == "best"]
    for count in calls:
        own = [row for row in students if row["calls"] == count]
        whose = {row["teacher"] for row in own} or {row["teacher"] for row in solvers}
        same = [row for row in solvers if row["calls"] == count and row["teacher"] in whose]
        chosen += own + sorted(same, key=lambda row: rank(row, metric))[:1]
    plain = [row for row in solvers if row["solver"] == "euler" and row["calls"] in calls and row not in chosen]
    return chosen + sorted(plain, key=lambda row: rank(row, metric))[-1:]


def rank(row: Mapping[str, Any], metric: Mapping[str, Any]) -> float:
    """Smaller is better; what was not measured comes last."""
    score = row["scores"].get(metric["key"])
    if score is None:
        return math.inf
    return float(score["value"]) if metric["better"] == "lower" else -float(score["value"])


def caption(row: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    told = [one["key"] for one in results["metrics"] if one["key"] in ("rmse", "median")] or [
        results["metrics"][0]["key"]
    ]
    scores = ", ".join(f"{key} {row['scores'][key]['value']:.3f}" for key in told if key in row["scores"])
    who = "student" if row["kind"] == "student" else "teacher at its best" if row["kind"] == "best" else "teacher"
    return f"{who}, {row['calls']} calls\n{row['series']}\n{scores}"


def images(path: Path, image: Mapping[str, int]) -> Tensor:
    """The tiles of a row's picture, in [-1, 1]; the last of them may be empty."""
    with Image.open(path) as picture:
        pixels = torch.from_numpy(np.asarray(picture).copy())
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width = image["height"], image["width"]
    tiles = pixels.unfold(0, height, height).unfold(1, width, width).flatten(0, 1)
    return to_float(tiles)
