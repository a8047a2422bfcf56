"""The native network: diffusers' UNet2DModel, built from a few numbers and called in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onefold.conditions import Conditions
from onefold.errors import UserError, root

if TYPE_CHECKING:
    from types import ModuleType

    from diffusers import UNet2DModel


def import_diffusers() -> ModuleType:
    """diffusers imports torchvision when it is installed, and a torchvision that was built for another torch breaks it."""
    try:
        import diffusers
        from diffusers import UNet2DModel  # noqa: F401  (diffusers is lazy: this is what really imports)
    except (ImportError, RuntimeError) as error:
        if "torchvision" not in str(root(error)):
            raise
        raise UserError(
            f"the installed torchvision does not match torch {torch.__version__} and breaks diffusers; "
            "onefold does not need it: pip uninstall torchvision, or install the build that belongs to this torch"
        ) from error
    module: ModuleType = diffusers
    return module


def build_unet(
    shape: tuple[int, int, int],
    *,
    widths: Sequence[int],
    layers: int,
    classes: int | None,
    dropout: float = 0.0,
) -> UNet2DModel:
    """A U-Net with attention at its lowest resolution; `classes` counts the null class too."""
    channels, height, width = shape
    depth, groups = len(widths), 8
    if any(w % groups for w in widths):
        raise UserError(f"widths {list(widths)} must be multiples of {groups}; round them")
    if height % 2 ** (depth - 1) or width % 2 ** (depth - 1):
        raise UserError(
            f"images of {height}x{width} cannot be halved {depth - 1} times; use fewer widths or a --size that is a multiple of {2 ** (depth - 1)}"
        )
    model: UNet2DModel = import_diffusers().UNet2DModel(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        down_block_types=(*["DownBlock2D"] * (depth - 1), "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", *["UpBlock2D"] * (depth - 1)),
        norm_num_groups=groups,
        attention_head_dim=8,
        num_class_embeds=classes,
        dropout=dropout,
    )
    return model


def call_unet(network: Any, z: Tensor, time: Tensor, cond: Conditions) -> Tensor:
    """The adapter of every diffusers pixel U-Net."""
    if network.class_embedding is not None and "labels" not in cond:
        raise UserError("this network is class-conditional; give cond={'labels': a tensor of class numbers}")
    output: Tensor = network(z, time, class_labels=cond.get("labels")).sample
    return output
