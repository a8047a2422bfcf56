"""Latent diffusion without conditions (LDMPipeline): a pixel U-Net between the two halves of a VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onefold.denoiser import Denoiser
from onefold.teachers import pixels
from onefold.teachers.codecs import load_codec
from onefold.teachers.parts import Parts


def load(parts: Parts, card: Mapping[str, Any]) -> Denoiser:
    teacher = pixels.load(parts, card)
    return teacher.replace(codec=load_codec(parts, "vqvae", teacher.shape, "VQModel", "AutoencoderKL"))
