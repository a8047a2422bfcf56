"""The teacher in a picture and in numbers: a row for each class, and the Fréchet distance by each extractor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cifar10.places import CLASSES, Places, extractor_name, weights_of
from benchmarks.pairs import RESULTS, save
from PIL.Image import Image

import onefold
from onefold.bench.ways import BEST
from onefold.data import teacher_data
from onefold.denoiser import Denoiser
from onefold.files import sha256
from onefold.pictures import labelled_rows, picture_grid, save_png
from onefold.progress import Progress
from onefold.teachers.native import WEIGHTS

CALLS = (40, 10)
COLUMNS = 10
UNSEEN = 1_000_000  # the seed of measurements


def show(teacher: Denoiser) -> Image:
    how: dict[str, Any] = {"solver": BEST[0], "calls": CALLS[0], "seed": UNSEEN}
    if teacher.classes is None:
        return picture_grid(onefold.sample(teacher, 10 * COLUMNS, **how), COLUMNS)
    labels = [label for label in range(teacher.classes) for _ in range(COLUMNS)]
    images = onefold.sample(teacher, len(labels), labels=labels, **how)
    names = CLASSES if teacher.classes == len(CLASSES) else [str(label) for label in range(teacher.classes)]
    rows = list(zip(names, images.split(COLUMNS), strict=True))
    return labelled_rows(rows, title=f"{teacher.name}: {BEST[0]}, {CALLS[0]} calls")


def measure(
    places: Places,
    weights: Path,
    extractors: Sequence[str],
    *,
    count: int,
    device: str,
    batch_size: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Rows as they are known; what the result file holds of these weights is not measured again."""
    path = places.need_teacher()
    references = {name: places.need_reference(name) for name in extractors}
    teacher = onefold.load_teacher(path, device=device, precision="fp32")
    save_png(show(teacher), picture := RESULTS / f"{places.name}_teacher.png")
    facts = {"teacher": teacher.name, "sha256": sha256(path / WEIGHTS), "count": count, "picture": picture.name}
    facts |= {key: teacher.card[key] for key in ("parameters", "cost", "command") if key in teacher.card}
    rows = [row for row in known(places) if (row["sha256"], row["count"]) == (facts["sha256"], count)]
    for calls in CALLS:
        cache = places.samples(calls)
        for name in extractors:
            if any((row["calls"], row["extractor"]) == (calls, name) for row in rows):
                continue
            how: dict[str, Any] = {"solver": BEST[0], "calls": calls, "seed": UNSEEN, "batch_size": batch_size}
            teacher_data(teacher, count, cache=cache, progress=progress, **how)
            found = onefold.evaluate(
                cache,
                reference=references[name],
                extractor=extractor_name(name),
                weights=weights_of(weights, name),
                metrics=["fd", "accuracy"] if name == "resnet56" and teacher.classes else ["fd"],
                count=count,
                batch_size=batch_size,
                device=device,
                progress=progress,
            )
            scores = {key.partition("[")[0]: score for key, score in found["scores"].items()}
            rows.append(
                {"sha256": facts["sha256"], "count": count, "calls": calls, "extractor": name, "scores": scores}
            )
            save(result_name(places), {"what": (__doc__ or "").strip(), **facts, "rows": rows}, show=False)
    return rows


def result_name(places: Places) -> str:
    return f"{places.name}_teacher"


def known(places: Places) -> list[dict[str, Any]]:
    path = RESULTS / f"{result_name(places)}.json"
    return list(json.loads(path.read_text())["rows"]) if path.is_file() else []


def told(row: dict[str, Any]) -> str:
    parts = []
    for key, score in row["scores"].items():
        floor = f", real images {score['floor']['value']:.4g}" if score["floor"] else ""
        parts.append(f"{key} {score['value']:.4g}{floor}")
    return f"{row['calls']} calls, {row['extractor']}: {'; '.join(parts)}"
