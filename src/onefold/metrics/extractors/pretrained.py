"""Models from a folder as transformers saves it: config.json, safetensors, preprocessor_config.json."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onefold.errors import UserError, first_line
from onefold.files import read_json, sha256
from onefold.metrics.extractors.preprocessing import Preprocessing, read_preprocessing
from onefold.networks.transformers import import_class, quiet

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"


def model_folder(name: str, folder: Path | None, kinds: Sequence[str]) -> Path:
    """The folder, once it is seen to hold a model of one of these kinds."""
    if folder is None:
        raise UserError(
            f"extractor {name!r} needs a model on this machine, and nothing is downloaded here; "
            "give its folder, as transformers saves it, with --weights FOLDER"
        )
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {str(folder)!r}, expected a {name} model as transformers saves it; check the path"
        )
    kind = read_json(folder / CONFIG).get("model_type")
    if kind not in kinds:
        raise UserError(f"{folder} holds a model of type {kind!r}, expected {' or '.join(kinds)}; give another folder")
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} holds no *.safetensors (pickled weights are not read); save the model again with save_pretrained"
        )
    return folder


def load_model(name: str, folder: Path, kind: str) -> Any:
    """A class of transformers with all of its weights: one that is missing would be drawn at random."""
    found = import_class(f"extractor {name!r}", kind)
    try:
        with quiet():
            model, told = found.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # transformers and its files break in many ways
        raise UserError(f"{folder} does not load as a {kind} ({first_line(error)}); restore it") from error
    if told["missing_keys"]:
        raise UserError(f"{folder} lacks weights of a {kind}, such as {min(told['missing_keys'])}; restore it")
    return model.float().eval().requires_grad_(False)


def preprocessing_of(folder: Path) -> Preprocessing:
    return read_preprocessing(read_json(folder / PREPROCESSOR), str(folder / PREPROCESSOR))


def identity_of(folder: Path) -> str:
    """sha256 over what decides the features: the configs and the weights."""
    parts = [folder / CONFIG, folder / PREPROCESSOR, *sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256("".join(sha256(part) for part in parts).encode()).hexdigest()
