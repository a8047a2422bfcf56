"""Texts read by a pipeline's own encoders, which are loaded for it and not kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onefold.conditions import Prompts
from onefold.errors import UserError, first_line
from onefold.networks.transformers import import_class, quiet
from onefold.networks.unet import import_diffusers
from onefold.teachers.fitting import must_fit
from onefold.teachers.parts import Parts, must_be_whole, weights_of
from onefold.weights import must_be_finite, shapes

TEXT, ADDED = "encoder_hidden_states", ("text_embeds", "time_ids")  # the networks' own names
ENCODERS = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
VOCABULARIES = ("vocab.json", "tokenizer.json")
AT_ONCE = 32  # texts
HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}


def encode_texts(parts: Parts, size: Sequence[int] | None, texts: tuple[str, ...], device: torch.device) -> Prompts:
    """A table in host memory, in half precision where the encoder's weights are. `size` of the images is told to networks
    that know it: height and width before the crop, its place, and after it."""
    with quiet():
        pipe, kept = read_pipeline(parts, device, ["text_encoder"] if size is None else list(ENCODERS))
    rows: list[list[Tensor]] = []
    free: list[Tensor] = []
    for first in range(0, len(texts), AT_ONCE):
        found = encode(pipe, texts[first : first + AT_ONCE], device, guided=first == 0)
        rows.append([tensor.to("cpu", kept) for tensor in found[::2]])
        free = free or [tensor[:1].to("cpu", kept) for tensor in found[1::2]]
    table = [torch.cat(column) for column in zip(*rows, strict=True)]
    if size is not None:
        told = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)
        table, free = [*table, told.repeat(len(texts), 1)], [*free, told]
    names = (TEXT, *ADDED)[: len(table)]
    return Prompts(texts, dict(zip(names, table, strict=True)), dict(zip(names, free, strict=True)))


@torch.no_grad()
def encode(pipe: Any, texts: Sequence[str], device: torch.device, *, guided: bool) -> tuple[Tensor, ...]:
    """The pipeline's own reading: what is told, then what stands for no text, then the same of the pooled texts if any."""
    try:
        found: tuple[Tensor, ...] = pipe.encode_prompt(
            prompt=list(texts), device=device, num_images_per_prompt=1, do_classifier_free_guidance=guided
        )
    except (
        IndexError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:  # words that the encoder has no row for, and the like
        raise UserError(
            f"the tokenizer and the text encoder do not belong together ({first_line(error)}); restore both"
        ) from error
    return found


def read_pipeline(parts: Parts, device: torch.device, encoders: Sequence[str]) -> tuple[Any, torch.dtype]:
    """The pipeline with its tokenizers and encoders alone, and the type that its encodings are kept in."""
    made: dict[str, Any] = dict.fromkeys(("vae", "unet", "scheduler"))
    for encoder in encoders:
        tokenizer = encoder.replace("text_encoder", "tokenizer")
        made[tokenizer] = load_tokenizer(parts, tokenizer)
        made[encoder] = load_encoder(parts, encoder).to(device)
        check_length(parts.home / tokenizer, made[tokenizer], made[encoder].config.max_position_embeddings)
    kind = str(parts.index["_class_name"])
    if kind == "StableDiffusionPipeline":
        made |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    else:
        made |= {"add_watermarker": False, "force_zeros_for_empty_prompt": zeros_for_nothing(parts)}
    return getattr(import_diffusers(), kind)(**made), kept_type(parts, encoders[0])


def check_length(folder: Path, tokenizer: Any, most: int) -> None:
    """Every text is filled up to this length."""
    length = tokenizer.model_max_length
    if not isinstance(length, int) or not 1 <= length <= most:
        raise UserError(
            f"{folder} makes texts of {length!r} tokens and the encoder reads up to {most}; restore its tokenizer_config.json"
        )


def zeros_for_nothing(parts: Parts) -> bool:
    value = parts.index.get("force_zeros_for_empty_prompt", True)
    if not isinstance(value, bool):
        raise UserError(
            f"force_zeros_for_empty_prompt of {parts.home} is {value!r}, expected true or false; restore it"
        )
    return value


def load_tokenizer(parts: Parts, part: str) -> Any:
    folder, kind = parts.folder(part), import_class(f"{parts.home}", "CLIPTokenizer")
    if not any((folder / name).is_file() for name in VOCABULARIES):  # transformers would make one without words
        raise UserError(
            f"{folder} holds no CLIP tokenizer that loads: {' or '.join(VOCABULARIES)} is missing; restore it"
        )
    try:
        with quiet():
            return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and its files break in many ways
        raise UserError(f"{folder} holds no CLIP tokenizer that loads ({first_line(error)}); restore it") from error


def load_encoder(parts: Parts, part: str) -> Any:
    """With all of its weights: one that is missing would be drawn at random."""
    folder, kind = parts.folder(part), ENCODERS[part]
    named = parts.index.get(part)
    if named not in (["transformers", kind], None):
        raise UserError(
            f"{folder} is a {named}, expected {kind} of transformers; give a pipeline that reads texts with CLIP"
        )
    if (folder / "adapter_config.json").exists():  # transformers would follow it to another model
        raise UserError(f"{folder} holds an adapter; merge it into the encoder and save that")
    files, variant = weights_of(folder, "model")
    made, config = import_class(f"{parts.home}", kind), parts.config(part)
    must_be_whole(config, folder)
    must_fit(lambda: made(made.config_class.from_dict(config)), shapes(files), kind, folder)
    try:
        with quiet():
            encoder, told = made.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                variant=variant,
                output_loading_info=True,
                torch_dtype=torch.float32,
            )
    except Exception as error:
        raise UserError(f"{folder} does not load as a {kind} ({first_line(error)}); restore it") from error
    if told["missing_keys"]:
        raise UserError(f"{folder} lacks weights of a {kind}, such as {min(told['missing_keys'])}; restore it")
    must_be_finite(encoder.state_dict(), folder)
    return encoder.eval().requires_grad_(False)


def kept_type(parts: Parts, part: str) -> torch.dtype:
    """Half precision where the weights are in it: a table of prompts is large."""
    held = shapes(weights_of(parts.folder(part), "model")[0]).values()
    return HALVES.get(next(iter(held)).dtype, torch.float32)
