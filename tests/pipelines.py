"""Tiny pipelines of every family, with random weights, as diffusers saves them; made without network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

LENGTH, WORDS = 12, "abcdefghijklmnopqrstuvwxyz"
VP: dict[str, Any] = {"timestep_spacing": "trailing", "clip_sample": False}
SD: dict[str, Any] = {**VP, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def tokenizer(folder: Path) -> Any:
    """Of single letters."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = ["<|startoftext|>", "<|endoftext|>", *WORDS, *(f"{letter}</w>" for letter in WORDS)]
    (folder / "vocab.json").write_text(json.dumps({entry: number for number, entry in enumerate(entries)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH)


def text_encoder(kind: str, width: int = 16, **more: Any) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=2 + 2 * len(WORDS),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **more,
    )
    encoder = getattr(transformers, kind)(config).eval()
    for parameter in encoder.parameters():  # what it makes of different texts differs
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def vae(channels: int = 4, kind: str = "AutoencoderKL", **more: Any) -> Any:
    return getattr(diffusers, kind)(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        **more,
    ).eval()


def pixel_unet(channels: int = 3, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    return diffusers.UNet2DModel(**{**settings, **more}).eval()


def text_unet(width: int = 16, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": width,
    }
    return diffusers.UNet2DConditionModel(**{**settings, **more}).eval()


def latent_pipeline(kind: str = "VQModel", **scheduler: Any) -> Any:
    torch.manual_seed(0)
    more = {"num_vq_embeddings": 16} if kind == "VQModel" else {}
    noising = diffusers.DDIMScheduler(**{**SD, "beta_start": 0.0015, "beta_end": 0.0195, **scheduler})
    return diffusers.LDMPipeline(vae(3, kind, **more), pixel_unet(3), noising)


def dit_pipeline(classes: int = 1000, variance: bool = True, **scheduler: Any) -> Any:
    """The stock pipeline has its null class at 1000, whatever the network."""
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8 if variance else 4,
        num_layers=2,
        norm_num_groups=4,
        sample_size=8,
        num_embeds_ada_norm=classes,
    ).eval()
    noising = diffusers.DDIMScheduler(**{**VP, **scheduler})
    return diffusers.DiTPipeline(transformer, vae(), noising)


def text_pipeline(place: Path, scheduler: Any = None, **unet: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder("CLIPTextModel"),
        tokenizer=tokenizer(place / "words"),
        unet=text_unet(**unet),
        scheduler=scheduler or diffusers.DDIMScheduler(**SD, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


XL: Mapping[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 8,
}


def large_pipeline(place: Path, scheduler: Any = None, zeros: bool = True, **autoencoder: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(**autoencoder),
        text_encoder=text_encoder("CLIPTextModel"),
        text_encoder_2=text_encoder("CLIPTextModelWithProjection", 12, projection_dim=8),
        tokenizer=tokenizer(place / "words"),
        tokenizer_2=tokenizer(place / "words2"),
        unet=text_unet(16 + 12, **XL),
        scheduler=scheduler or diffusers.EulerDiscreteScheduler(**{k: v for k, v in SD.items() if k != "clip_sample"}),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )
