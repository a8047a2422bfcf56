"""Layers of the EDM networks. Attribute names are those of the checkpoints, so that weights load by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Resample = Literal["up", "down"]


@dataclass(frozen=True)
class Style:
    """What all blocks of a network have in common.

    `first` initialises a layer in the middle of things, `last` one that ends a residual branch and starts near zero.
    """

    embedding: int  # channels of the time embedding
    taps: tuple[int, ...]  # of the filter for halving and doubling
    dropout: float
    eps: float  # of the group norms
    skip_scale: float  # keeps the variance of a sum
    film: bool  # the embedding scales and shifts, or only shifts
    always_project: bool  # a resampled shortcut is a 1x1 convolution even when widths agree
    head_channels: int | None  # None: one head
    family: Literal["song", "adm"]

    def heads(self, width: int) -> int:
        return 1 if self.head_channels is None else width // self.head_channels

    def first(self, layer: nn.Module, gain: float = 1.0) -> None:
        """DDPM++ starts with the Glorot uniform distribution and no bias, ADM with torch's own default."""
        weight, bias = tensors(layer)
        if weight.is_meta:  # its values come from a file
            return
        if self.family == "adm":
            spread = 1 / math.sqrt(weight[0].numel())
            nn.init.uniform_(weight, -spread, spread)
            if bias is not None:
                nn.init.uniform_(bias, -spread, spread)
            return
        nn.init.xavier_uniform_(weight, gain)
        if bias is not None:
            nn.init.zeros_(bias)

    def last(self, layer: nn.Module) -> None:
        weight, bias = tensors(layer)
        if weight.is_meta:
            return
        if self.family == "adm":
            nn.init.zeros_(weight)
        else:
            nn.init.xavier_uniform_(weight, 1e-5)
        if bias is not None:
            nn.init.zeros_(bias)


def tensors(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    assert isinstance(weight, Tensor)
    return weight, bias if isinstance(bias, Tensor) else None


class Linear(nn.Linear):
    """Initialised by a `Style` alone."""

    def reset_parameters(self) -> None:
        pass


class Conv(nn.Module):
    """A convolution that keeps the image's size, or halves or doubles it with a filter; kernel 0 only resamples.

    `fused` filters after the convolution instead of before it, with the padding of both done once.
    """

    resample_filter: Tensor | None
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        resample: Resample | None = None,
        taps: Sequence[int] = (1, 1),
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, self.resample, self.fused, self.box = kernel, resample, fused, tuple(taps) == (1, 1)
        self.register_buffer("resample_filter", None if resample is None else separable(taps))
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(outputs)) if kernel else None

    def forward(self, x: Tensor) -> Tensor:
        if self.fused and self.resample == "down" and self.weight is not None:
            edge = self.kernel // 2 + (self.filter_size - 1) // 2
            return self.shrink(F.conv2d(x, self.weight, self.bias, padding=edge), padding=0)
        if self.resample == "down":
            x = self.shrink(x, padding=(self.filter_size - 1) // 2)
        elif self.resample == "up":
            x = self.enlarge(x)
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2)

    @property
    def filter_size(self) -> int:
        assert self.resample_filter is not None
        return self.resample_filter.shape[-1]

    def shrink(self, x: Tensor, padding: int) -> Tensor:
        if self.box:
            return F.avg_pool2d(x, 2)
        return F.conv2d(x, self.filter_for(x), stride=2, padding=padding, groups=x.shape[1])

    def enlarge(self, x: Tensor) -> Tensor:
        if self.box:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        padding = (self.filter_size - 1) // 2
        # four times: three of four places between the pixels are empty
        return F.conv_transpose2d(x, 4 * self.filter_for(x), stride=2, padding=padding, groups=x.shape[1])

    def filter_for(self, x: Tensor) -> Tensor:
        """The same filter for every channel."""
        assert self.resample_filter is not None
        return self.resample_filter.to(x.dtype).expand(x.shape[1], -1, -1, -1)


def separable(taps: Sequence[int]) -> Tensor:
    """(1, 1, k, k) with sum 1. Of plain numbers: torch.outer on the meta device would import the compiler, for seconds."""
    total = sum(taps) ** 2
    return torch.tensor([[[[a * b / total for b in taps] for a in taps]]], dtype=torch.float32)


class Block(nn.Module):
    """Norm, SiLU, convolution, twice, with the time embedding in between; then self-attention where wanted."""

    def __init__(
        self, inputs: int, outputs: int, style: Style, *, resample: Resample | None = None, attention: bool = False
    ) -> None:
        super().__init__()
        self.skip_scale, self.film, self.dropout = style.skip_scale, style.film, style.dropout
        self.heads = style.heads(outputs) if attention else 0
        self.norm0 = norm(inputs, style.eps)
        self.conv0 = Conv(inputs, outputs, 3, resample=resample, taps=style.taps)
        self.affine = Linear(style.embedding, outputs * (2 if style.film else 1))
        self.norm1 = norm(outputs, style.eps)
        self.conv1 = Conv(outputs, outputs, 3)
        project = inputs != outputs or (resample is not None and style.always_project)
        self.skip: Conv | None = None
        if project or resample is not None:
            self.skip = Conv(inputs, outputs, 1 if project else 0, resample=resample, taps=style.taps)
        if self.heads:
            self.norm2 = norm(outputs, style.eps)
            self.qkv = Conv(outputs, 3 * outputs, 1)
            self.proj = Conv(outputs, outputs, 1)
        self.start(style, project)

    def start(self, style: Style, project: bool) -> None:
        style.first(self.conv0)
        style.first(self.affine)
        style.last(self.conv1)
        if project and self.skip is not None:
            style.first(self.skip)
        if self.heads:
            style.first(self.qkv, gain=math.sqrt(0.2))
            style.last(self.proj)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        told = self.affine(embedding)[:, :, None, None].to(h.dtype)
        if self.film:
            scale, shift = told.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = F.silu(self.norm1(h + told))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        return (x + self.attend(x)) * self.skip_scale if self.heads else x

    def attend(self, x: Tensor) -> Tensor:
        """Channels of qkv are ordered (head, channel, which of the three)."""
        n, c, height, width = x.shape
        parts = self.qkv(self.norm2(x)).reshape(n, self.heads, c // self.heads, 3, height * width)
        q, k, v = parts.permute(3, 0, 1, 4, 2).contiguous().unbind(0)  # each (n, heads, places, channels)
        mixed = F.scaled_dot_product_attention(q, k, v)
        output: Tensor = self.proj(mixed.transpose(2, 3).reshape(n, c, height, width))
        return output


def norm(channels: int, eps: float) -> nn.GroupNorm:
    """32 groups, or groups of four channels where that is fewer."""
    return nn.GroupNorm(max(1, min(32, channels // 4)), channels, eps)


class Waves(nn.Module):
    """A time as cosines and sines of falling frequency (Vaswani et al. 2017), from 1 to 1 / 10,000.

    `reaches` says whether the last frequency is 1 / 10,000 itself, as in DDPM++, or one step short of it, as in ADM.
    """

    def __init__(self, channels: int, *, reaches: bool) -> None:
        super().__init__()
        self.channels, self.reaches = channels, reaches

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        half = self.channels // 2
        exponents = torch.arange(half, dtype=time.dtype, device=time.device) / (half - self.reaches)
        angles = torch.outer(time, 1e-4**exponents)
        return angles.cos(), angles.sin()


class Fourier(nn.Module):
    """A time as cosines and sines of random frequencies, drawn once (Tancik et al. 2020, as NCSN++ uses them)."""

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        freqs = torch.empty(channels // 2)
        self.register_buffer("freqs", freqs if freqs.is_meta else freqs.normal_(std=scale))

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.outer(time, 2 * math.pi * self.freqs.to(time.dtype))
        return angles.cos(), angles.sin()
