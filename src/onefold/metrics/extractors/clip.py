"""CLIP (Radford et al. 2021) from a folder: features of images, and of texts in the same space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from onefold.errors import UserError, first_line
from onefold.metrics.extractors import Extractor
from onefold.metrics.extractors.pretrained import identity_of, load_model, model_folder, preprocessing_of
from onefold.metrics.extractors.running import as_rgb, extraction, plain
from onefold.networks.transformers import import_class


def build(name: str, weights: Path | None, device: torch.device) -> Extractor:
    folder = model_folder(name, weights, ["clip"])
    prepare = preprocessing_of(folder)
    network = load_model(name, folder, "CLIPModel").to(device)

    def features(images: Tensor) -> tuple[Tensor, None]:
        seen = network.vision_model(pixel_values=prepare(as_rgb(images)))
        return network.visual_projection(seen.pooler_output), None

    return Extractor(
        name=name,
        identity=identity_of(folder),
        about=f"CLIP's image features, from {folder.name}",
        classes=None,
        extract=extraction(name, features, device),
    )


def text_features(weights: Path | None, device: torch.device) -> Callable[[Sequence[str]], Tensor]:
    """Texts -> float32 N D on the CPU. Texts are cut to the length that the model knows."""
    folder = model_folder("clip", weights, ["clip"])
    network = load_model("clip", folder, "CLIPModel").to(device)
    kind = import_class("extractor 'clip'", "CLIPTokenizer")
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and its files break in many ways
        raise UserError(f"{folder} holds no CLIP tokenizer that loads ({first_line(error)}); restore it") from error

    def extract(texts: Sequence[str]) -> Tensor:
        length = network.config.text_config.max_position_embeddings
        words = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        with torch.inference_mode():
            read = network.text_model(words.input_ids.to(device), attention_mask=words.attention_mask.to(device))
            found = network.text_projection(read.pooler_output)
        return plain(found)

    return extract
