"""How much work steps are, beside one forward pass of the teacher: multiply-adds of the layers with matrices.

What else there is (attention's products, norms, second derivatives, the optimiser) is little beside them or alike in all methods. The backward pass is two more where a
layer's weights learn, and one where it only hands gradients on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from onefold.networks.lora import Lora
from onefold.networks.step_condition import size


class Work:
    """Of all networks together, in passes of the first that was seen to make a whole one."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.networks = dict(networks)
        self.done = 0.0  # multiply-adds
        self.begun = Counter[str]()
        self.whole = dict[str, float]()  # forward pass of one row

    def hooks(self) -> list[RemovableHandle]:
        """Of a compiled network only the whole is seen, since hooks inside would become a part of it."""
        found = list[RemovableHandle]()
        for name, network in self.networks.items():
            found.append(network.register_forward_hook(partial(self.after, name), with_kwargs=True))
            inside = network.network if isinstance(network, Lora) else network
            layers = inside.modules() if network._compiled_call_impl is None else ()
            found += [one.register_forward_hook(partial(self.layer, name)) for one in layers if has_matrix(one)]
            found.append(network.register_forward_pre_hook(partial(self.before, name)))
        return found

    def before(self, name: str, *_: Any) -> None:
        self.begun[name] = 0

    def layer(self, name: str, layer: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            once = output.numel() * layer.weight[0].numel()  # type: ignore[index]
            self.begun[name] += once
            self.done += once * passes(layer, output)

    def after(self, name: str, network: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        rows = rows_of(given, named)
        if self.begun[name]:
            self.whole[name] = self.begun[name] / rows
        elif self.whole:  # compiled; as large as its share of the parameters
            known = next(iter(self.whole))
            share = size(network) / max(1, size(self.networks[known]))
            self.done += rows * share * self.whole[known] * passes(network, output)

    @property
    def forwards(self) -> float:
        unit = next((self.whole[name] for name in self.networks if name in self.whole), None)
        return 0.0 if unit is None else self.done / unit


def has_matrix(layer: nn.Module) -> bool:
    weight = layer._parameters.get("weight")  # its own; some show the weight of a layer inside
    return isinstance(weight, Tensor) and weight.ndim >= 2 and not isinstance(layer, nn.Embedding)


def passes(learner: nn.Module, output: Any) -> int:
    if not getattr(output, "requires_grad", True):
        return 1
    own = (getattr(learner, "weight", None),) if has_matrix(learner) else learner.parameters()
    return 3 if any(parameter is not None and parameter.requires_grad for parameter in own) else 2


def rows_of(given: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    return next(len(value) for value in (*given, *named.values()) if isinstance(value, Tensor) and value.ndim)
