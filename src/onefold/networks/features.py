"""What a network computes inside, seen through a hook, so that no forward has to be written again."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from onefold.conditions import Conditions
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.networks.edm import EDMNetwork


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


class DenoiserFeatures:
    """What a denoiser's network sees in noised states at some of its layers.

    The network is left as it is: for the time of a call it is in eval mode and its weights are constants, and it runs only as
    far as the last layer that is looked at. Guidance plays no part.
    """

    def __init__(self, denoiser: Denoiser, layers: Sequence[str] | None = None) -> None:
        network = denoiser.module
        self.denoiser = denoiser
        self.layers = tuple(usual_layers(network) if layers is None else layers)
        if not self.layers:
            raise UserError("layers is an empty list, and features need a layer; name one, or leave layers out")
        for name in self.layers:
            layer_of(network, name)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditions | None = None) -> list[Tensor]:
        network = self.denoiser.module
        with unchanged(network), watched(network, self.layers) as seen:
            self.denoiser.calls += 1
            with suppress(AllSeen):
                self.denoiser.evaluate(x, sigma, dict(cond or {}))
        if missing := [name for name in self.layers if name not in seen]:
            raise UserError(
                f"the layer {missing[0]!r} was not asked, so it has no features; name one that every call reaches"
            )
        return [seen[name] for name in self.layers]


class AllSeen(Exception):
    """Every layer was reached; what comes after it in the network is not needed."""


@contextmanager
def watched(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the layers give when they are first asked, filled in while the network runs, which stops after the last of them."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_: nn.Module, given: Any, output: Any) -> None:  # noqa: ARG001
            if name not in seen:
                seen[name] = only_tensor(output, name)
            if len(seen) == len(set(layers)):
                raise AllSeen

        return look

    with ExitStack() as hooks:
        for name in layers:
            hooks.callback(layer_of(network, name).register_forward_hook(watch(name)).remove)
        yield seen


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Without dropout, and with weights that take no gradient."""
    training = [module for module in network.modules() if module.training]
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for module in training:
            module.training = False
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in learning:
            parameter.requires_grad_(True)


def only_tensor(output: Any, name: str) -> Tensor:
    """The block of a U-Net gives (hidden state, (skips, ...))."""
    found = [part for part in output if isinstance(part, Tensor)] if isinstance(output, (tuple, list)) else [output]
    if len(found) != 1 or not isinstance(found[0], Tensor) or found[0].ndim < 2:
        raise UserError(
            f"the layer {name!r} does not give one tensor with channels, which features are; name another layer"
        )
    return found[0]


def channel_axis(features: Tensor) -> int:
    """Tokens are (N, positions, channels), all else has its channels behind the batch."""
    return 2 if features.ndim == 3 else 1


def usual_layers(network: nn.Module) -> list[str]:
    """One at each resolution of an encoder and its middle, or three depths of a transformer."""
    if isinstance(network, EDMNetwork):
        last = f"block{network.architecture.num_blocks - 1}"
        return [f"enc.{network.name(level, last)}" for level in network.levels]
    parts = dict(network.named_children())
    if "down_blocks" in parts:
        return [*names_in("down_blocks", parts), *(["mid_block"] if "mid_block" in parts else [])]
    blocks = names_in("transformer_blocks", parts) or names_in("blocks", parts)
    if not blocks:
        raise UserError(
            f"a {type(network).__name__} is no U-Net or transformer whose layers are known; name some for its features, as named_modules() does: layers=[...]"
        )
    depths = {-(-len(blocks) * thirds // 3) - 1 for thirds in (1, 2, 3)}
    return [blocks[depth] for depth in sorted(depths)]


def names_in(part: str, parts: Mapping[str, nn.Module]) -> list[str]:
    return [f"{part}.{name}" for name, _ in parts[part].named_children()] if part in parts else []
