"""The networks of Karras et al. 2022: DDPM++ and NCSN++ (Song et al. 2021) and ADM (Dhariwal & Nichol 2021).

Written from the papers. Parts are named as in the checkpoints: `enc.32x32_block0.conv0.weight`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onefold.errors import UserError, first_line, suggest
from onefold.networks.edm_layers import Block, Conv, Fourier, Linear, Style, Waves, norm
from onefold.networks.edm_plan import ADM, Song
from onefold.settings import build


class EDMNetwork(nn.Module):
    """A U-Net whose decoder takes one skip from every layer of the encoder.

    `labels` are class numbers; -1, or any number that is no class, is no class at all, as are missing labels. A label is
    never dropped here in training: what hides labels is the training loop, which knows why. The augmentation embedding
    is kept with the weights and never used: at sampling its input is zero.
    """

    decoder_attends = False  # in all of a level's blocks, or in the last one only
    map_layer0: Linear

    def __init__(self, architecture: Song | ADM, style: Style) -> None:
        super().__init__()
        self.architecture = architecture
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        skips = list(self.build_encoder(style))
        self.build_decoder(style, skips)

    @property
    def levels(self) -> range:
        return range(len(self.architecture.channel_mult))

    def name(self, level: int, part: str) -> str:
        size = self.architecture.size(level)
        return f"{size}x{size}_{part}"

    def build_encoder(self, style: Style) -> Iterator[int]:
        """The widths of the skips, in order."""
        plan, width = self.architecture, self.architecture.in_channels
        for level, wide in enumerate(plan.widths):
            if level == 0:
                first = self.enc[self.name(level, "conv")] = Conv(width, plan.model_channels, 3)
                style.first(first)
                width = plan.model_channels
            else:
                self.enc[self.name(level, "down")] = Block(width, width, style, resample="down")
            self.image_in(level, width, style)
            yield width
            for index in range(plan.num_blocks):
                block = Block(width, wide, style, attention=plan.attends(level))
                self.enc[self.name(level, f"block{index}")] = block
                width = wide
                yield width

    def build_decoder(self, style: Style, skips: list[int]) -> None:
        plan, width = self.architecture, self.architecture.widths[-1]
        for level in reversed(self.levels):
            if level == self.levels[-1]:
                self.dec[self.name(level, "in0")] = Block(width, width, style, attention=True)
                self.dec[self.name(level, "in1")] = Block(width, width, style)
            else:
                self.dec[self.name(level, "up")] = Block(width, width, style, resample="up")
            for index in range(plan.num_blocks + 1):
                attention = plan.attends(level) and (self.decoder_attends or index == plan.num_blocks)
                block = Block(width + skips.pop(), plan.widths[level], style, attention=attention)
                self.dec[self.name(level, f"block{index}")] = block
                width = plan.widths[level]
            self.image_out(level, width, style)

    def image_in(self, level: int, width: int, style: Style) -> None:
        """Layers that show the encoder the image again at a lower resolution."""

    def image_out(self, level: int, width: int, style: Style) -> None:
        """Layers that turn features into an image."""
        raise NotImplementedError

    def embed(self, time: Tensor, labels: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(self, z: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        weight = self.map_layer0.weight
        time = time.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
        embedding = self.embed(time, labels)
        return self.decode(*self.encode(z.to(weight.dtype), embedding), embedding)

    def encode(self, z: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, image, skips = z, z, []
        for level in self.levels:
            x = self.enc[self.name(level, "down")](x, embedding) if level else self.enc[self.name(level, "conv")](x)
            x, image = self.see(level, x, image)
            skips.append(x)
            for index in range(self.architecture.num_blocks):
                x = self.enc[self.name(level, f"block{index}")](x, embedding)
                skips.append(x)
        return x, skips

    def decode(self, x: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        image: Tensor | None = None
        for level in reversed(self.levels):
            for part in ("in0", "in1") if level == self.levels[-1] else ("up",):
                x = self.dec[self.name(level, part)](x, embedding)
            for index in range(self.architecture.num_blocks + 1):
                x = self.dec[self.name(level, f"block{index}")](torch.cat([x, skips.pop()], 1), embedding)
            image = self.show(level, x, image)
        assert image is not None
        return image

    def see(self, level: int, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return x, image

    def show(self, level: int, x: Tensor, image: Tensor | None) -> Tensor | None:
        raise NotImplementedError

    def one_hot(self, labels: Tensor | None, like: Tensor) -> Tensor:
        """Compared rather than scattered: no class number is ever out of range, and no device waits for a check."""
        if labels is None:
            return like.new_zeros(len(like), self.architecture.label_dim)
        classes = torch.arange(self.architecture.label_dim, device=like.device)
        return (labels.to(like.device)[:, None] == classes).to(like.dtype)


class SongUNet(EDMNetwork):
    """DDPM++ and NCSN++: the embedding shifts, the decoder attends once a level, sums are scaled by sqrt(1/2).

    The encoder may see the image at every level ("skip": added, "residual": averaged in and carried on), and the decoder
    may add up an image over its levels ("skip").
    """

    architecture: Song

    def __init__(self, plan: Song) -> None:
        wide = plan.model_channels * plan.channel_mult_emb
        style = Style(wide, plan.resample_filter, plan.dropout, 1e-6, math.sqrt(0.5), False, True, None, "song")
        super().__init__(plan, style)
        told = plan.model_channels * plan.channel_mult_noise
        self.map_noise = Fourier(told) if plan.embedding_type == "fourier" else Waves(told, reaches=True)
        self.map_label = Linear(plan.label_dim, told) if plan.label_dim else None
        self.map_augment = Linear(plan.augment_dim, told, bias=False) if plan.augment_dim else None
        self.map_layer0, self.map_layer1 = Linear(told, wide), Linear(wide, wide)
        for layer in (self.map_label, self.map_augment, self.map_layer0, self.map_layer1):
            if layer is not None:
                style.first(layer)

    def embed(self, time: Tensor, labels: Tensor | None) -> Tensor:
        cosines, sines = self.map_noise(time)
        told = torch.cat([sines, cosines], 1).to(self.map_layer0.weight.dtype)
        if self.map_label is not None:
            told = told + self.map_label(self.one_hot(labels, told) * math.sqrt(self.architecture.label_dim))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(told))))

    def image_in(self, level: int, width: int, style: Style) -> None:
        kind, taps = self.architecture.encoder_type, self.architecture.resample_filter
        if level == 0 or kind == "standard":
            return
        channels = self.architecture.in_channels
        if kind == "skip":
            self.enc[self.name(level, "aux_down")] = Conv(channels, channels, 0, resample="down", taps=taps)
            layer = self.enc[self.name(level, "aux_skip")] = Conv(channels, width, 1)
        else:
            seen = channels if level == 1 else self.architecture.widths[level - 2]
            layer = Conv(seen, width, 3, resample="down", taps=taps, fused=True)
            self.enc[self.name(level, "aux_residual")] = layer
        style.first(layer)

    def see(self, level: int, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        kind = self.architecture.encoder_type
        if level == 0 or kind == "standard":
            return x, image
        if kind == "skip":
            image = self.enc[self.name(level, "aux_down")](image)
            return x + self.enc[self.name(level, "aux_skip")](image), image
        x = (x + self.enc[self.name(level, "aux_residual")](image)) * math.sqrt(0.5)
        return x, x

    def shows(self, level: int) -> bool:
        return level == 0 or self.architecture.decoder_type == "skip"

    def image_out(self, level: int, width: int, style: Style) -> None:
        if not self.shows(level):
            return
        channels, taps = self.architecture.out_channels, self.architecture.resample_filter
        if self.shows(level + 1) and level < self.levels[-1]:
            self.dec[self.name(level, "aux_up")] = Conv(channels, channels, 0, resample="up", taps=taps)
        self.dec[self.name(level, "aux_norm")] = norm(width, style.eps)
        layer = self.dec[self.name(level, "aux_conv")] = Conv(width, channels, 3)
        style.last(layer)

    def show(self, level: int, x: Tensor, image: Tensor | None) -> Tensor | None:
        if not self.shows(level):
            return None
        drawn: Tensor = self.dec[self.name(level, "aux_conv")](F.silu(self.dec[self.name(level, "aux_norm")](x)))
        return drawn if image is None else self.dec[self.name(level, "aux_up")](image) + drawn


class DhariwalUNet(EDMNetwork):
    """ADM: the embedding scales and shifts, attention in heads of 64 channels wherever a level has it."""

    architecture: ADM
    decoder_attends = True

    def __init__(self, plan: ADM) -> None:
        wide = plan.model_channels * plan.channel_mult_emb
        style = Style(wide, (1, 1), plan.dropout, 1e-5, 1.0, True, False, 64, "adm")
        super().__init__(plan, style)
        self.map_noise = Waves(plan.model_channels, reaches=False)
        self.map_augment = Linear(plan.augment_dim, plan.model_channels, bias=False) if plan.augment_dim else None
        self.map_layer0, self.map_layer1 = Linear(plan.model_channels, wide), Linear(wide, wide)
        self.map_label = Linear(plan.label_dim, wide, bias=False) if plan.label_dim else None
        if self.map_augment is not None:
            style.last(self.map_augment)
        if self.map_label is not None and not self.map_label.weight.is_meta:
            nn.init.normal_(self.map_label.weight)  # as an embedding table starts
        for layer in (self.map_layer0, self.map_layer1):
            style.first(layer)

    def embed(self, time: Tensor, labels: Tensor | None) -> Tensor:
        told = torch.cat(self.map_noise(time), 1).to(self.map_layer0.weight.dtype)
        wide = self.map_layer1(F.silu(self.map_layer0(told)))
        if self.map_label is not None:
            wide = wide + self.map_label(self.one_hot(labels, told))
        return F.silu(wide)

    def image_out(self, level: int, width: int, style: Style) -> None:
        if level == 0:
            self.out_norm = norm(width, style.eps)
            self.out_conv = Conv(width, self.architecture.out_channels, 3)
            style.last(self.out_conv)

    def show(self, level: int, x: Tensor, image: Tensor | None) -> Tensor | None:  # noqa: ARG002
        return None if level else self.out_conv(F.silu(self.out_norm(x)))


FAMILIES: dict[str, tuple[type[Song | ADM], type[SongUNet | DhariwalUNet]]] = {
    "SongUNet": (Song, SongUNet),
    "DhariwalUNet": (ADM, DhariwalUNet),
}


def build_edm(family: str, arguments: Mapping[str, Any]) -> EDMNetwork:
    """A fresh network of a family by its constructor arguments; under `torch.device("meta")` it takes no memory."""
    if family not in FAMILIES:
        raise UserError(f"network {family!r} is not an EDM network{suggest(family, FAMILIES)}")
    kind, network = FAMILIES[family]
    plan: Any = build(kind, arguments)
    try:
        return network(plan)
    except ValueError as error:
        raise UserError(
            f"a {family} with {plan.model_channels} channels cannot be built ({first_line(error)}); "
            "its widths must be multiples of 4, from 128 on of 32"
        ) from error
