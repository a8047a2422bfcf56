"""Everything that is measured of one way, gathered while its images are drawn, batch by batch and process by process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onefold.bench.processes import Processes
from onefold.bench.ways import Way
from onefold.bench.ways import way as one_call
from onefold.errors import UserError
from onefold.files import atomic_file
from onefold.metrics.extractors import Extractor
from onefold.metrics.fidelity import feature_errors, squared_errors
from onefold.metrics.statistics import Moments
from onefold.progress import Progress
from onefold.sampling import batches, chosen_labels

GROUPS = 10  # image i is in group i mod 10; leaving out one after the other gives the spread
PAIRED = 1000  # images whose fine solution is drawn at most: it costs several times what a row costs


@dataclass(frozen=True)
class Request:
    """The same for every way: which images, and what is looked at."""

    count: int
    seed: int
    batch_size: int
    extractors: Sequence[Extractor]
    keep_vectors: bool  # some metrics need every image's features, others their moments alone
    gaps: bool  # some compare the features with those of the fine solution, image by image
    shown: int


@dataclass
class Gathered:
    """Of all images of a way, in the order of their numbers."""

    groups: dict[str, list[Moments]] = field(default_factory=dict)  # by extractor
    vectors: dict[str, Tensor] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)
    gaps: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    errors: Tensor | None = None  # mean square of the first images' differences to the fine solution
    shown: Tensor | None = None
    seconds_per_image: float | None = None
    nfe: float = 0.0
    broken: int = 0  # images with NaN or infinite pixels, of which nothing can be measured


@dataclass
class Share:
    """One process's part."""

    groups: dict[str, list[Moments]] = field(default_factory=dict)
    pieces: list[tuple[int, dict[str, Any]]] = field(default_factory=list)  # by the first image's number

    def add(self, request: Request, indices: range, images: Tensor, labels: Tensor | None, fine: Tensor | None) -> None:
        """Images as floats N C H W; what is shown and seen by extractors is clipped, as pictures are."""
        broken = ~images.flatten(1).isfinite().all(1)
        piece: dict[str, Any] = {"labels": labels, "broken": broken}
        seen = images.nan_to_num(0).clamp(-1, 1)
        for extractor in request.extractors:
            features = extractor.extract(seen)
            groups = self.groups.setdefault(extractor.name, [Moments() for _ in range(GROUPS)])
            numbers = torch.tensor(list(indices)) % GROUPS
            for group in numbers.unique().tolist():
                groups[group].add(features.vectors[numbers == group])
            piece[f"logits {extractor.name}"] = features.logits
            piece[f"vectors {extractor.name}"] = features.vectors if request.keep_vectors else None
            if fine is not None and request.gaps:
                theirs = extractor.extract(fine.clamp(-1, 1)).vectors
                piece[f"gaps {extractor.name}"] = feature_errors(features.vectors[: len(fine)], theirs)
        if fine is not None:
            piece["errors"] = squared_errors(images[: len(fine)], fine)
        if indices.start < request.shown:
            piece["shown"] = seen[: request.shown - indices.start].clone()
        self.pieces.append((indices.start, piece))


def joined(shares: Sequence[Share]) -> Gathered:
    """The parts of all processes as one."""
    gathered = Gathered()
    for share in shares:
        for name, groups in share.groups.items():
            if name not in gathered.groups:
                gathered.groups[name] = groups
            else:
                for ours, theirs in zip(gathered.groups[name], groups, strict=True):
                    ours.merge(theirs)
    pieces = [
        piece for _, piece in sorted((item for share in shares for item in share.pieces), key=lambda item: item[0])
    ]
    columns = {key for piece in pieces for key, value in piece.items() if value is not None}
    tensors = {key: torch.cat([piece[key] for piece in pieces if piece.get(key) is not None]) for key in columns}
    gathered.labels, gathered.errors, gathered.shown = (tensors.get(key) for key in ("labels", "errors", "shown"))
    gathered.broken = int(tensors["broken"].sum())
    for key, value in tensors.items():
        kind, _, extractor = key.partition(" ")
        if extractor:
            getattr(gathered, kind)[extractor] = value
    return gathered


def warm_up(way: Way, request: Request) -> None:
    """A batch in one call before the clock runs: a model's first batch also pays for what is done once."""
    indices = range(min(request.batch_size, request.count))
    once = one_call(way.model, "euler", 1, weights=way.weights)
    draw(once, request.seed, indices, chosen_labels(way.model, request.seed, indices, None))


def gather(way: Way, request: Request, fine: Fine | None, meter: Meter, processes: Processes) -> Gathered:
    """Draws a way's images and measures them; with several processes each takes every n-th batch."""
    share, seconds, calls = Share(), list[float](), 0
    parts = list(batches(0, request.count, request.batch_size))[processes.rank :: processes.world]
    for indices in parts:
        labels = chosen_labels(way.model, request.seed, indices, None)
        begin, before = time.perf_counter(), way.model.calls
        images = draw(way, request.seed, indices, labels)
        if len(indices) == request.batch_size or not seconds:
            seconds.append((time.perf_counter() - begin) / len(indices))
        calls += way.model.calls - before
        share.add(request, indices, images, labels, fine.at(indices, meter) if fine else None)
        meter.add(way.calls * len(indices), way.label)
    gathered = joined(processes.everyone(share))
    gathered.seconds_per_image = statistics.median(seconds) if seconds else None
    gathered.nfe = calls / max(1, len(parts))
    return gathered


def draw(way: Way, seed: int, indices: range, labels: Tensor | None) -> Tensor:
    """On the CPU, which also waits for the device: the clock beside it counts the work."""
    return way.plan.run(way.model, seed, indices, labels).float().cpu()


class Meter:
    """Progress in network calls, of this process; it is told beforehand how many there will be."""

    def __init__(self, progress: Progress, processes: Processes, total: int) -> None:
        self.progress, self.done, self.total = progress, 0, -(-total // processes.world)
        progress(0, self.total)

    def add(self, calls: int, what: str) -> None:
        self.done = min(self.done + calls, self.total)
        self.progress(self.done, self.total, now=what)


class Fine:
    """A teacher's fine solution for the first images, drawn once and kept on disk batch by batch."""

    def __init__(self, way: Way, seed: int, count: int, folder: Path | None) -> None:
        self.way, self.seed, self.count = way, seed, count
        self.folder = folder / f"fine-{way.fingerprint[:16]}-{seed}" if folder and way.repeatable else None
        self.drawn: dict[range, Tensor] = {}

    def at(self, indices: range, meter: Meter) -> Tensor | None:
        indices = range(indices.start, min(indices.stop, self.count))
        if not indices:
            return None
        if indices not in self.drawn:
            self.drawn[indices] = self.read(indices)
            meter.add(self.way.calls * len(indices), "fine solution")
        return self.drawn[indices]

    def read(self, indices: range) -> Tensor:
        path = self.folder / f"{indices.start}-{indices.stop}.npy" if self.folder else None
        if path and path.exists():
            return torch.from_numpy(np.load(path, allow_pickle=False))
        labels = chosen_labels(self.way.model, self.seed, indices, None)
        images = draw(self.way, self.seed, indices, labels)
        if not bool(images.isfinite().all()):
            raise UserError(
                f"the fine solution of {self.way.model.name!r} ({self.way.label}) is NaN, so no distance to it says anything; "
                "look at the teacher with `onefold inspect`, or leave rmse, median and psnr out of the metrics"
            )
        if path:
            with atomic_file(path) as draft, draft.open("wb") as file:
                np.save(file, images.numpy())
        return images
