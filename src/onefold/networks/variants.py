"""Networks that do not begin as the teacher's: the same architecture with fresh weights, or one of other widths and depth."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from onefold import seeds
from onefold.errors import UserError, first_line
from onefold.networks.edm import EDMNetwork, build_edm


def fresh(network: nn.Module, seed: int) -> nn.Module:
    """The architecture with weights drawn anew from a seed."""
    with seeds.drawing(seed):
        if isinstance(network, EDMNetwork):
            return build_edm(type(network).__name__, network.architecture.model_dump())
        if hasattr(network, "from_config"):
            return from_config(network, network.config)
        return reset(copy.deepcopy(network).cpu())


def reset(network: nn.Module) -> nn.Module:
    """Every layer by its own rule; weights that no layer knows how to draw are an error."""
    for name, module in network.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not hasattr(module, "reset_parameters"):
            raise UserError(
                f"the layer {name or type(network).__name__!r} of the teacher's network has weights of its own and no reset_parameters(), "
                "so it cannot begin at random; give it one, or take another beginning"
            )
        if own:
            module.reset_parameters()
    return network


def resized(network: nn.Module, widths: Sequence[int] | None, layers: int | None, seed: int) -> nn.Module:
    """A U-Net of diffusers with other widths or another number of blocks at each resolution, and fresh weights."""
    config: dict[str, Any] = dict(getattr(network, "config", {}))
    if "block_out_channels" not in config:
        raise UserError(
            f"widths and layers change a U-Net of diffusers, and the teacher's network is a {type(network).__name__}; leave them out"
        )
    usual, groups = list(config["block_out_channels"]), config.get("norm_num_groups") or 1
    chosen = list(widths or usual)
    if len(chosen) != len(usual) or any(width < 1 or width % groups for width in chosen):
        raise UserError(
            f"widths are {chosen}; the teacher has {usual}, so give {len(usual)} multiples of {groups}, one for each resolution"
        )
    changes = {"block_out_channels": tuple(chosen), "layers_per_block": layers or config["layers_per_block"]}
    with seeds.drawing(seed):
        try:
            return from_config(network, {**config, **changes})
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(
                f"a {type(network).__name__} of widths {chosen} cannot be built ({first_line(error)}); change the widths"
            ) from error


def from_config(network: Any, config: Any) -> nn.Module:
    """Another one of diffusers' class."""
    made: nn.Module = type(network).from_config(config)
    return made
