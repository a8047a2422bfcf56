"""What each extractor sees of the real images: mean and covariance over those of the training, features of those of the test."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from benchmarks.cifar10.places import Places, extractor_name, test_images, train_images, weights_of
from torch import Tensor

from onefold.data import to_float
from onefold.metrics.extractors import Extractor, find_extractor
from onefold.metrics.frechet import frechet_distance
from onefold.metrics.references import load_reference
from onefold.metrics.statistics import Moments, Statistics
from onefold.progress import Progress, Tell
from onefold.version import versions


def make_references(
    places: Places,
    data: Path,
    weights: Path,
    extractors: Sequence[str],
    *,
    device: str,
    batch_size: int,
    progress: Progress,
    tell: Tell,
) -> None:
    """Those that are there already are kept, if they were made with the same network."""
    for name in extractors:
        extractor = find_extractor(extractor_name(name), weights=weights_of(weights, name), device=device)
        path = places.reference(name)
        if path.is_file():
            load_reference(path, extractor)
            tell(f"{path} is there")
            continue
        statistics = statistics_of(extractor, data, batch_size, progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        statistics.save(path)
        assert statistics.features is not None
        rest = Moments().add(statistics.features).statistics(extractor.name)
        tell(f"{path}: fd of the test images {frechet_distance(rest, statistics):.4f}")


def statistics_of(extractor: Extractor, data: Path, batch_size: int, progress: Progress) -> Statistics:
    train, (test, _) = train_images(data), test_images(data)
    seen, total = Moments(), len(train) + len(test)
    progress(0, total, begin=True)
    for indices in torch.arange(len(train)).split(batch_size):
        seen.add(extractor.extract(to_float(train.fetch(indices)[0])).vectors)
        progress(int(indices[-1]) + 1, total)
    held_out = torch.cat(list(features_of(extractor, test, batch_size)))
    progress(total, total)
    provenance = {
        "data": dict(train.description),
        "images": f"{len(train):,} of the training; features: {len(test):,} of the test",
        "identity": extractor.identity,
        "command": shlex.join(["python", "benchmarks/cifar10", *sys.argv[1:]]),
        "versions": versions(),
    }
    return seen.statistics(extractor.name, provenance, held_out)


def features_of(extractor: Extractor, images: Tensor, batch_size: int) -> Iterator[Tensor]:
    for part in images.split(batch_size):
        yield extractor.extract(to_float(part)).vectors
