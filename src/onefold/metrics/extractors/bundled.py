"""Small classifiers that come with the package, for the bundled teachers; `benchmarks/classifiers.py` trains them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from onefold.data import to_float
from onefold.files import read_json, sha256
from onefold.metrics.extractors import Extractor
from onefold.metrics.extractors.running import extraction, no_weights
from onefold.teachers import ASSETS

FOLDER = ASSETS / "extractors"
WEIGHTS, FACTS = "weights.safetensors", "extractor.json"


class Classifier(nn.Module):
    """3x3 convolutions, each with normalisation and ReLU; the mean over places is the feature, a linear map classifies."""

    def __init__(self, channels: int, layers: Sequence[Sequence[int]], classes: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for width, stride in layers:
            parts += [
                nn.Conv2d(channels, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.body = nn.Sequential(*parts)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] -> features and logits."""
        features = self.body(images).mean((2, 3))
        return features, self.head(features)


def build(name: str, weights: Path | None, device: torch.device) -> Extractor:
    no_weights(name, weights)
    facts = read_facts(FOLDER / name)
    network = load_classifier(FOLDER / name).to(device)
    channels, height, width = facts["shape"]
    shape = (channels, height, width)
    return Extractor(
        name=name,
        identity=sha256(FOLDER / name / WEIGHTS),
        about=f"{facts['what']}; {facts['test_accuracy']:.1%} of {facts['test_images']:,} held-out images right",
        classes=facts["classes"],
        extract=extraction(name, lambda images: network(to_float(images)), device, shape),
        shape=shape,
    )


def load_classifier(folder: Path) -> Classifier:
    """Weights are stored in half precision and computed with in single."""
    facts = read_facts(folder)
    network = Classifier(facts["shape"][0], facts["layers"], facts["classes"])
    network.load_state_dict({key: value.float() for key, value in load_file(folder / WEIGHTS).items()})
    return network.eval().requires_grad_(False)


def read_facts(folder: Path) -> dict[str, Any]:
    return read_json(folder / FACTS)
