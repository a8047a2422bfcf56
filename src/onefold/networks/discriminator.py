"""A discriminator: heads that tell real from made, on the features of a network that does not learn, or of one of its own.

    l_k(x; sigma, c) = head_k(features_k(x + sigma n, sigma, c)),    + <w(c), h_k> / sqrt(width) where it knows classes

With the features of a diffusion model's own network (as LADD, Sauer et al. 2024, and Zheng and Yang's GDD without pretrained image
networks) it needs nothing but the teacher, works for pixels, latents and vectors, and hears the noise level and the class already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from onefold.conditions import Conditions
from onefold.errors import UserError

# (state, its noise level or None without noise, conditions) -> maps (N, C, H, W), tokens (N, positions, C) or vectors (N, C)
Features = Callable[[Tensor, Tensor | None, Conditions], list[Tensor]]
SMALL = 4  # pixels: where a map needs no further halving


class Discriminator(nn.Module):
    """`features` that have weights to keep are modules and belong to it; all others stay outside of its state."""

    features: Features

    def __init__(
        self, features: Features, shapes: Sequence[Sequence[int]], *, width: int = 128, classes: int | None = None
    ) -> None:
        super().__init__()
        if isinstance(features, nn.Module):
            self.features = features
        else:
            self.__dict__["features"] = features
        self.heads = nn.ModuleList([Head(shape, width) for shape in shapes])
        self.classes = classes
        self.class_rows = None if classes is None else nn.Embedding(classes + 1, width)  # the last: no class

    def forward(self, x: Tensor, sigma: Tensor | None = None, cond: Conditions | None = None) -> list[Tensor]:
        """Logits (N, positions) of each head."""
        told = dict(cond or {})
        rows = self.rows_of(told.get("labels"))
        seen = self.features(x, sigma, told)
        return [head(features.float(), rows) for head, features in zip(self.heads, seen, strict=True)]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """The heads alone: features come through hooks, which compiled networks do not have."""
        for head in self.heads:
            head.compile(*args, **kwargs)

    def rows_of(self, labels: Tensor | None) -> Tensor | None:
        if self.class_rows is None or labels is None or self.classes is None:
            return None
        known = (labels >= 0) & (labels < self.classes)
        rows: Tensor = self.class_rows(torch.where(known, labels, self.classes))
        return rows


class Head(nn.Module):
    """From features to logits: of a map halved until it is small, of every token, of a vector."""

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        self.tokens = len(shape) == 2  # (positions, C)
        if len(shape) == 3:
            layers, kernel = halving(tuple(shape), width)
            self.body = nn.Sequential(*layers)
            self.last: nn.Module = nn.Conv2d(width, width, kernel)
        elif len(shape) in (1, 2):
            channels = shape[-1]
            self.body = nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width), nn.SiLU())
            self.last = nn.Linear(width, width)
        else:
            raise UserError(
                f"features are of shape {'x'.join(map(str, shape))} an image, expected a map, tokens or a vector; name other layers"
            )
        self.logit = nn.Linear(width, 1)

    def forward(self, features: Tensor, rows: Tensor | None) -> Tensor:
        hidden: Tensor = nn.functional.silu(self.last(self.body(features)))
        places = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden  # channels last
        places = places.reshape(len(places), -1, places.shape[-1])
        logits: Tensor = self.logit(places).squeeze(-1)
        if rows is None:
            return logits
        return logits + (places * rows.unsqueeze(1)).sum(-1) / math.sqrt(places.shape[-1])


def halving(shape: tuple[int, ...], width: int) -> tuple[list[nn.Module], tuple[int, int]]:
    """Convolutions down to a small map, and the size of a kernel that covers it."""
    channels, *sides = shape
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), norm(width), nn.SiLU()]
    while max(sides) > SMALL and min(sides) > 1:
        layers += [nn.Conv2d(width, width, 4, stride=2, padding=1), norm(width), nn.SiLU()]
        sides = [side // 2 for side in sides]
    return layers, (min(SMALL, sides[0]), min(SMALL, sides[1]))


def norm(width: int) -> nn.GroupNorm:
    """Of each image alone: a batch norm would make an image's logits depend on its neighbours'."""
    return nn.GroupNorm(math.gcd(width, 8), width)


def plain(x: Tensor, sigma: Tensor | None, cond: Conditions) -> list[Tensor]:  # noqa: ARG001
    """No features but the images: a discriminator from scratch."""
    return [x]


def shapes_of(features: Features, x: Tensor, sigma: Tensor | None, cond: Conditions) -> list[tuple[int, ...]]:
    """Of one image's features, by asking once."""
    with torch.no_grad():
        return [tuple(each.shape[1:]) for each in features(x, sigma, cond)]
