"""DINOv2 (Oquab et al. 2023) from a folder: the normalised class token, as in FD-DINOv2 (Stein et al. 2023)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from onefold.files import read_json
from onefold.metrics.extractors import Extractor
from onefold.metrics.extractors.pretrained import (
    CONFIG,
    identity_of,
    load_model,
    model_folder,
    preprocessing_of,
)
from onefold.metrics.extractors.running import as_rgb, extraction

KINDS = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}


def build(name: str, weights: Path | None, device: torch.device) -> Extractor:
    folder = model_folder(name, weights, list(KINDS))
    prepare = preprocessing_of(folder)
    network = load_model(name, folder, KINDS[read_json(folder / CONFIG)["model_type"]]).to(device)

    def features(images: Tensor) -> tuple[Tensor, None]:
        return network(pixel_values=prepare(as_rgb(images))).pooler_output, None

    return Extractor(
        name=name,
        identity=identity_of(folder),
        about=f"DINOv2's class token, from {folder.name}",
        classes=None,
        extract=extraction(name, features, device),
    )
