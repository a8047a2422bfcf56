"""The Inception of FID (Heusel et al. 2017) through torch-fidelity: 2048 pooled features, and logits for the Inception Score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onefold.errors import UserError, first_line
from onefold.files import sha256
from onefold.metrics.extractors import Extractor
from onefold.metrics.extractors.running import as_rgb, extraction

FILE = "weights-inception-2015-12-05-6726825d.pth"  # as torch-fidelity calls it
OFFICIAL = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # its sha256
OUTPUTS = ["2048", "logits_unbiased"]


def build(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """Other weights than the field's are taken when given by name, but do not bear the name that FID needs."""
    kind = import_extractor()
    path = weights_file(weights)
    identity = sha256(path)
    if identity != OFFICIAL:
        if weights is None:
            raise UserError(f"{path} is damaged: its sha256 is not {OFFICIAL[:8]}...; delete it and fetch it again")
        name = f"{name}-{identity[:8]}"
    network = load(kind, path).to(device)

    def features(images: Tensor) -> tuple[Tensor, Tensor]:
        vectors, logits = network(as_rgb(images))
        return vectors, logits

    return Extractor(
        name=name,
        identity=identity,
        about=f"Inception through torch-fidelity, weights {path.name}",
        classes=int(network.fc.out_features),
        extract=extraction(name, features, device),
    )


def import_extractor() -> Any:
    """torch-fidelity's class. A torchvision that was built for another torch breaks its import in many ways."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError as error:
        raise UserError(
            f"extractor 'inception' needs {error.name}, which is missing; install it with: pip install 'onefold[eval]'"
        ) from error
    except Exception as error:
        raise UserError(
            f"extractor 'inception' needs torch-fidelity, which does not load ({first_line(error)}); "
            f"install the torchvision that belongs to torch {torch.__version__}"
        ) from error
    return FeatureExtractorInceptionV3


def weights_file(given: Path | None) -> Path:
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    path = cached if given is None else given
    if path.is_file():
        return path
    if given is not None:
        raise UserError(f"there is no file {str(given)!r} with Inception's weights; give torch-fidelity's {FILE}")
    raise UserError(
        f"extractor 'inception' finds no weights at {cached}, and nothing is downloaded here; "
        f"put torch-fidelity's {FILE} there, or give it with --weights FILE"
    )


def load(kind: Any, path: Path) -> Any:
    """Read once without pickled code before torch-fidelity, which may allow it, reads the file itself."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
        return kind("inception", OUTPUTS, feature_extractor_weights_path=str(path))
    except Exception as error:  # foreign files break in many ways
        raise UserError(
            f"{path} does not hold the weights of torch-fidelity's Inception ({first_line(error)}); give its {FILE}"
        ) from error
