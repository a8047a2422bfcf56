"""Results of a comparison as `onefold compare` writes them, made up: plausible numbers, and pictures of drawn blobs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLUMNS = 8
SOLVERS = {  # error at one call, order, recall over the others'
    "ipndm3 on quadratic": (330.0, 1.9, 0.0),
    "unipc2 on quadratic": (350.0, 1.8, 0.0),
    "dpmpp2m on karras": (420.0, 1.5, 0.18),
    "euler on karras": (460.0, 1.0, 0.0),
}
CALLS = (1, 2, 3, 4, 8, 20)
STUDENTS = {  # calls, error above the teacher's best, seconds, images
    "runs/sfd1": (1, 31.0, 1450.0, 40_000),
    "runs/sfd2": (2, 9.5, 900.0, 20_000),
    "runs/sfd4": (4, 3.1, 210.0, 2_880),
    "runs/sfd4-long": (4, 1.4, 2600.0, 40_000),
    "runs/sfd8": (8, 0.7, 520.0, 4_000),
}
BEST = 10.0
SHA256 = "d8d13a3fab9d35541c5b7593a1fa11fbb51709f7487ca194b81744bf7ea65a37"
FD, RMSE, RECALL = "fd[fashion-cnn]", "rmse", "recall[fashion-cnn]"


def write_comparison(folder: Path, *, shown: int = 64, size: tuple[int, int, int] = (1, 28, 28)) -> dict[str, Any]:
    """30 rows: four solvers at six numbers of calls, five students, the teacher at its best."""
    rows = solver_rows() + student_rows() + [best_row()]
    channels, height, width = size
    for index, row in enumerate(rows):
        row |= {"id": f"r{index:02d}", "picture": f"pictures/r{index:02d}.png"}
        blur = row["scores"][RMSE]["value"]
        save(folder / row["picture"], [draw(noise, blur, size) for noise in range(shown)], COLUMNS)
    strips = [row for row in rows if row["kind"] != "solver" or row["label"].startswith("ipndm3 on quadratic, 4")][:2]
    results = {
        "format": "onefold.comparison/1",
        "title": "fashion28 and 5 students",
        "made": "2026-11-20T16:20:00+00:00",
        "seconds": 312.4,
        "count": 512,
        "seed": 0,
        "shown": shown,
        "image": {"channels": channels, "height": height, "width": width},
        "metrics": metrics(),
        "rows": rows,
        "interpolations": [interpolation(folder, row, kind, size) for row in strips for kind in ("slerp", "linear")],
        "trajectories": [trajectory(folder, row, size) for row in strips],
        "published": None,
        "provenance": provenance(),
    }
    return write(folder, results)


def write(folder: Path, results: dict[str, Any]) -> dict[str, Any]:
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    return results


def metrics() -> list[dict[str, Any]]:
    def floor(value: float, low: float, high: float, count: int = 512) -> dict[str, Any]:
        about = f"{count} real images against the reference"
        return {"value": value, "low": low, "high": high, "count": count, "about": about}

    distance = "distance of Gaussians fitted to features of the samples and of 10,000 test images"
    return [
        {"key": FD, "name": "Fréchet distance", "about": distance, "better": "lower", "floor": floor(1.2, 1.0, 1.45)},
        {
            "key": RMSE,
            "name": "RMSE to the teacher",
            "about": "distance of pixels in [-1, 1] to the teacher's fine solution from the same noise.",
            "better": "lower",
            "floor": None,
        },
        {
            "key": RECALL,
            "name": "Recall",
            "about": "share of the reference that lies among the samples.",
            "better": "higher",
            "floor": floor(0.83, 0.8, 0.86, 250),
        },
    ]


def scores(distance: float, rmse: float, more: float = 0.0) -> dict[str, Any]:
    recall = min(0.8 * math.exp(-(distance - BEST) / 120) + more, 0.8)
    return {
        FD: {"value": distance, "spread": 0.03 * distance},
        RMSE: {"value": rmse, "spread": None},
        RECALL: {"value": recall, "spread": 0.012},
    }


def solver_rows() -> list[dict[str, Any]]:
    rows = []
    for place, (series, (error, order, more)) in enumerate(SOLVERS.items()):
        solver, grid = series.split(" on ")
        for calls in CALLS:
            distance = BEST + 0.3 * place + error * calls**-order
            row = {"label": f"{series}, {calls} call{'s' if calls > 1 else ''}", "series": series, "kind": "solver"}
            row |= {"model": "fashion28", "method": None, "solver": solver, "grid": grid, "calls": calls}
            row |= {"nfe": float(calls), "scores": scores(distance, error / 800 * calls**-order, more)}
            rows.append(row | {"seconds_per_image": 0.0031 * calls + 0.0004 * (place + 1), "cost": None})
    return rows


def student_rows() -> list[dict[str, Any]]:
    rows = []
    for name, (calls, error, seconds, images) in STUDENTS.items():
        row = {"label": f"{name}, {calls} call{'s' if calls > 1 else ''}", "series": name, "kind": "student"}
        row |= {"model": name, "method": "sfd", "solver": "euler", "grid": "quadratic", "calls": calls}
        row |= {"nfe": float(calls), "scores": scores(BEST + error, 0.02 + error / 100)}
        cost = {"seconds": seconds, "images": images, "calls": 14 * images}
        rows.append(row | {"seconds_per_image": 0.0031 * calls, "cost": cost})
    return rows


def best_row() -> dict[str, Any]:
    row = {"label": "the teacher at its best: ipndm3 on quadratic, 40 calls", "series": "the teacher at its best"}
    row |= {"kind": "best", "model": "fashion28", "method": None, "solver": "ipndm3", "grid": "quadratic", "calls": 40}
    return row | {"nfe": 40.0, "scores": scores(BEST, 0.0052), "seconds_per_image": 0.124, "cost": None}


def provenance() -> dict[str, Any]:
    return {
        "commands": ["onefold compare fashion28 runs/sfd1 runs/sfd2 runs/sfd4 --calls 1,2,3,4,8,20 --count 512"],
        "versions": {"onefold": "0.3.0", "torch": "2.9.1", "diffusers": "0.42.1", "python": "3.11.7"},
        "hardware": "AMD EPYC, 2 cores, float32",
        "models": {
            "fashion28": {"teacher": "<fashion28: 1x28x28, 10 classes, DiscreteVP, predicts v>", "sha256": SHA256},
            "runs/sfd4": {"student": recipe()},
        },
        "data": {"reference": "fashion28's own statistics", "count": 10_000, "seeds": [0, 1, 2]},
    }


def recipe() -> dict[str, Any]:
    """As `student.json` holds it: the page must find room for all of its depth."""
    solvers = {"euler": 0.17095046094837088, "dpmpp2m": 0.12843369724136694, "ipndm3": 0.10351718273167071}
    settings = {"out": "runs/sfd4", "budget": "3.5m", "batch_size": 16, "ema_half_life": None, "compile": False}
    settings |= {"gradient_checkpointing": False, "checkpoint_every": "2m", "trackers": [], "loss": "pseudo_huber"}
    return {
        "method": "sfd",
        "command": "onefold distill fashion28 --method sfd --calls 4 --budget 3.5m --set watched=32 --out runs/sfd4",
        "settings": settings,
        "teacher": {"name": "fashion28", "sha256": SHA256},
        "cost": {"images": 2880, "seconds": 210.0, "calls": {"teacher": 31680, "student": 12672}, "processes": 1},
        "evidence": {
            "measure": "RMSE to the teacher's fine solution, same noise",
            "images": 32,
            "student": 0.07374372242496272,
            "best_solver": "ipndm3",
            "solvers": solvers,
        },
        "published": None,
        "versions": {"python": "3.11.7", "onefold": "0.3.0", "torch": "2.13.0+cpu", "diffusers": "0.42.1"},
    }


def interpolation(folder: Path, row: dict[str, Any], kind: str, size: tuple[int, int, int]) -> dict[str, Any]:
    name = row["picture"].replace(".png", f"-{kind}.png")
    images = [draw(line + step / 9, 0.02, size) for line in range(3) for step in range(10)]
    save(folder / name, images, 10)
    evenness = {"length": 1.59, "jump": 1.41} if kind == "slerp" else {"length": 1.83, "jump": 1.62}
    return {"row": row["id"], "picture": name, "columns": 10, "kind": kind, "evenness": evenness}


def trajectory(folder: Path, row: dict[str, Any], size: tuple[int, int, int]) -> dict[str, Any]:
    name, sigmas = row["picture"].replace(".png", "-steps.png"), [80.0, 10.0, 1.0, 0.1, 0.0]
    images = [draw(line, min(sigma, 1.0), size) for line in range(3) for sigma in sigmas]
    save(folder / name, images, len(sigmas))
    return {"row": row["id"], "picture": name, "columns": len(sigmas), "sigmas": sigmas}


def draw(noise: float, blur: float, size: tuple[int, int, int]) -> np.ndarray:
    """(H, W, C) uint8: three blobs whose places depend on `noise` smoothly, under noise of amplitude `blur`."""
    channels, height, width = size
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    image = np.zeros((height, width, channels))
    for blob in range(3):
        angle = noise * (1.3 + blob) + 2 * blob
        bump = np.exp(-((x - 0.5 * math.cos(angle)) ** 2 + (y - 0.5 * math.sin(angle)) ** 2) * 9)
        image += bump[..., None] * (0.6 + 0.4 * np.cos(angle + np.arange(channels)))
    image += blur * np.random.default_rng(int(noise * 100)).standard_normal(image.shape)
    return (image * 255).clip(0, 255).astype(np.uint8)


def save(path: Path, images: list[np.ndarray], columns: int) -> None:
    images = images + [np.zeros_like(images[0])] * (-len(images) % columns)
    lines = [np.concatenate(images[first : first + columns], axis=1) for first in range(0, len(images), columns)]
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.concatenate(lines, axis=0)
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(path)
