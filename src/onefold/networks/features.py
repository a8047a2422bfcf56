"""What a network computes inside, seen through a hook, so that no forward has to be written again."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from onefold.errors import UserError


def layer_of(network: nn.Module, name: str) -> nn.Module:
    layers: dict[str, nn.Module] = dict(network.named_modules())
    if name not in layers or not name:
        close = difflib.get_close_matches(name, layers, n=1)
        instead = f"did you mean {close[0]!r}?" if close else "name one as named_modules() does, such as conv_out"
        raise UserError(f"the network has no layer {name!r} to take features from; {instead}")
    return layers[name]


def with_features(network: nn.Module, name: str, run: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """(what `run` returns, the input of the layer `name` when it was first asked)."""
    seen: list[Tensor] = []

    def look(_: nn.Module, given: tuple[Any, ...]) -> None:
        if not seen:
            seen.append(given[0])

    handle = layer_of(network, name).register_forward_pre_hook(look)
    try:
        output = run()
    finally:
        handle.remove()
    if not seen:
        raise UserError(f"the layer {name!r} was not asked, so it has no features; name one that every call reaches")
    return output, seen[0]
