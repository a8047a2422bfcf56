"""What the EDM networks are built from, in the words of their checkpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from onefold.errors import UserError
from onefold.settings import Settings

Count = Annotated[int, Field(ge=1, le=16)]
Tap = Annotated[int, Field(ge=0, le=1000)]


class Architecture(Settings):
    """What both families are built from. Bounds are generous, but a file cannot ask for a network without end."""

    img_resolution: int = Field(ge=1, le=4096)
    in_channels: int = Field(ge=1, le=1024)
    out_channels: int = Field(ge=1, le=1024)
    label_dim: int = Field(0, ge=0, le=1_000_000)
    augment_dim: int = Field(0, ge=0, le=1024)
    model_channels: int = Field(ge=4, le=4096)
    channel_mult: tuple[Count, ...] = Field(min_length=1, max_length=10)
    channel_mult_emb: Count = 4
    num_blocks: int = Field(ge=1, le=64)
    attn_resolutions: tuple[int, ...] = Field(max_length=64)
    dropout: float = Field(0.10, ge=0, lt=1)
    label_dropout: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def halves(self) -> Self:
        parts = 2 ** (len(self.channel_mult) - 1)
        if self.img_resolution % parts:
            raise UserError(
                f"images of {self.img_resolution} pixels cannot be halved {len(self.channel_mult) - 1} times; "
                f"img_resolution must be a multiple of {parts}"
            )
        return self

    @property
    def widths(self) -> list[int]:
        return [self.model_channels * multiple for multiple in self.channel_mult]

    def size(self, level: int) -> int:
        return self.img_resolution >> level

    def attends(self, level: int) -> bool:
        return self.size(level) in self.attn_resolutions


class Song(Architecture):
    """DDPM++ and NCSN++, in the words of Song et al.'s configurations."""

    model_channels: int = Field(128, ge=4, le=4096)
    channel_mult: tuple[Count, ...] = Field((1, 2, 2, 2), min_length=1, max_length=10)
    num_blocks: int = Field(4, ge=1, le=64)
    attn_resolutions: tuple[int, ...] = Field((16,), max_length=64)
    embedding_type: Literal["positional", "fourier"] = "positional"
    channel_mult_noise: Count = 1
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: tuple[Tap, ...] = Field((1, 1), min_length=2, max_length=16)

    @model_validator(mode="after")
    def filters(self) -> Self:
        if len(self.resample_filter) % 2 or sum(self.resample_filter) == 0:
            raise UserError(
                f"resample_filter is {list(self.resample_filter)}, expected an even number of taps with a sum; "
                "[1, 1] and [1, 3, 3, 1] are usual"
            )
        return self


class ADM(Architecture):
    """Ablated diffusion model."""

    model_channels: int = Field(192, ge=4, le=4096)
    channel_mult: tuple[Count, ...] = Field((1, 2, 3, 4), min_length=1, max_length=10)
    num_blocks: int = Field(3, ge=1, le=64)
    attn_resolutions: tuple[int, ...] = Field((32, 16, 8), max_length=64)


# The published configurations, but for resolution, channels, classes and dropout; at 64 pixels channel_mult is 1, 2, 2, 2.
DDPMPP: dict[str, Any] = {"channel_mult": (2, 2, 2), "augment_dim": 9}
NCSNPP: dict[str, Any] = {
    "channel_mult": (2, 2, 2),
    "augment_dim": 9,
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": (1, 3, 3, 1),
}
