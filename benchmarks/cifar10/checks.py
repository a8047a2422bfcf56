"""Are the networks what they say? The published accuracy of the one that classifies, and of all: are all weights used, are the
features finite, and do they tell the classes apart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.cifar10.networks import KINDS, load
from benchmarks.cifar10.places import extractor_name, test_images, weights_file
from torch import Tensor

from onefold.data import to_float
from onefold.files import sha256
from onefold.metrics.extractors import Features, find_extractor
from onefold.progress import Progress

PUBLISHED = {"resnet56": 0.9339}


def check(
    data: Path,
    weights: Path,
    extractors: Sequence[str],
    *,
    count: int,
    device: str,
    batch_size: int,
    progress: Progress,
) -> dict[str, Any]:
    """A network with published accuracy sees all test images, the others the first `count`."""
    images, labels = test_images(data)
    found = {}
    for name in extractors:
        number = len(images) if name in PUBLISHED else min(count, len(images))
        found[name] = check_one(
            name, weights_file(weights, name), images[:number], labels[:number], device, batch_size, progress
        )
    return found


def check_one(
    name: str, path: Path, images: Tensor, labels: Tensor, device: str, batch_size: int, progress: Progress
) -> dict[str, Any]:
    network, unused = load(KINDS[name], path)
    extractor = find_extractor(extractor_name(name), weights=path, device=device)
    parts: list[Features] = []
    begin = time.perf_counter()
    progress(0, len(images), begin=True)
    for part in images.split(batch_size):
        parts.append(extractor.extract(to_float(part)))
        progress(sum(len(one.vectors) for one in parts), len(images))
    seconds = time.perf_counter() - begin
    vectors = torch.cat([one.vectors for one in parts])
    facts = {
        "about": extractor.about,
        "file": path.name,
        "sha256": sha256(path),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "unused": unused,
        "images": len(images),
        "features": vectors.shape[1],
        "finite": bool(vectors.isfinite().all()),
        "constant_features": int((vectors.std(0) == 0).sum()),
        "nearest_class_mean": round(nearest_class_mean(vectors, labels), 4),
        "milliseconds_per_image": round(1000 * seconds / len(images), 2),
    }
    if name in PUBLISHED:
        logits = torch.cat([one.logits for one in parts if one.logits is not None])
        facts |= {
            "accuracy": (logits.argmax(1) == labels).double().mean().item(),
            "published_accuracy": PUBLISHED[name],
        }
    return facts


def nearest_class_mean(vectors: Tensor, labels: Tensor) -> float:
    """Share of the second half of the images whose class has the nearest mean in the first half; features in units of their
    own spread."""
    half = len(vectors) // 2
    scaled = (vectors - vectors[:half].mean(0)) / vectors[:half].std(0).clamp(min=1e-3)
    known = labels[:half].unique()
    means = torch.stack([scaled[:half][labels[:half] == one].mean(0) for one in known])
    return (known[torch.cdist(scaled[half:], means).argmin(1)] == labels[half:]).double().mean().item()
