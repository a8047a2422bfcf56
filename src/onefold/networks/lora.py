"""LoRA: a network with adapters of low rank, W + B A at some of its layers, over the frozen weights of another.

The adapted network is a second set of modules over the very same weights, so the network it came from knows nothing of
adapters: nothing is switched on or off, in whatever order the two are called, recompute, drop or fail.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from onefold import seeds
from onefold.errors import UserError
from onefold.variants import twin

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # as diffusers calls the projections
FEW = 0.1  # of the weights of all layers
FILE = "lora/pytorch_lora_weights.safetensors"  # the name that diffusers looks for
METADATA = "lora_adapter_metadata"  # and where in it it looks for rank and alpha
NAME = "default"


class Lora(nn.Module):
    """An adapter, called like the network it is for. Its parameters are the adapter's alone."""

    source: nn.Module  # the network as it was
    network: nn.Module  # the same weights, with adapters

    def __init__(self, network: nn.Module, rank: int, *, targets: Sequence[str] = ATTENTION, seed: int = 0) -> None:
        super().__init__()
        peft = import_peft()
        self.rank, self.layers = rank, chosen_layers(network, targets)
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(self.layers))
        with seeds.drawing(seed):
            adapted = peft.inject_adapter_in_model(config, twin(network), adapter_name=NAME)
        # Past nn.Module's registration: what is frozen is neither a parameter of the adapter nor in its state.
        self.__dict__.update(source=network, network=adapted)
        learning = {name: weight for name, weight in adapted.named_parameters() if ".lora_" in name}
        self.weights = nn.ParameterDict({name.replace(".", "/"): weight for name, weight in learning.items()})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What adapters of model families read beside the call: config, class_embedding and the like."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__.get("network"), name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Another adapter over the same weights."""
        own = {id(weight) for weight in self.weights.values()}
        memo |= {id(weight): weight for weight in self.network.parameters() if id(weight) not in own}
        memo[id(self.source)] = self.source
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    def train(self, mode: bool = True) -> Self:
        self.network.train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Where the adapter goes, the weights beneath it go."""
        self.source._apply(fn, recurse)
        self.network._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """A network of the former kind with W + B A for W, on which nothing more is to be known. It shares the other weights."""
        network = twin(self.source)
        for name in self.layers:
            layer, adapter = network.get_submodule(name), self.network.get_submodule(name)
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            change: Any = adapter.get_delta_weight
            layer.weight = nn.Parameter((layer.weight + change(NAME)).to(layer.weight.dtype), requires_grad=False)
        return network

    def save_adapter(self, path: Path, part: str = "unet") -> None:
        """For `load_lora_weights` of diffusers; `part` is the pipeline's name of the network."""
        state = import_peft().get_peft_model_state_dict(self.network, adapter_name=NAME)
        tensors = {f"{part}.{name}": value.detach().cpu().contiguous() for name, value in state.items()}
        # These alone: other versions of peft refuse fields that they do not know.
        facts = {"r": self.rank, "lora_alpha": self.rank, "target_modules": list(self.layers)}
        told = json.dumps({f"{part}.{key}": value for key, value in facts.items()})
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={METADATA: told})  # of two entries the order would vary

    @property
    def note(self) -> str:
        """What learns, and what else could where that is little."""
        all_layers = layers_of(self.source)
        learning, whole = (sum(p.numel() for p in network.parameters()) for network in (self, self.source))
        reached, there = (sum(all_layers[name].weight.numel() for name in names) for names in (self.layers, all_layers))
        text = (
            f"LoRA of rank {self.rank} at {len(self.layers)} of {len(all_layers)} layers: {learning:,} weights learn, "
            f"beside {whole:,} frozen ones"
        )
        if reached < FEW * there:
            text += f"; these layers hold {reached / there:.1%} of the weights, name more with lora_targets: {kinds(all_layers)}"
        return text


def import_peft() -> ModuleType:
    try:
        import peft
    except ImportError:
        raise UserError("lora needs peft, which is missing; install it with: pip install 'onefold[lora]'") from None
    module: ModuleType = peft
    return module


def layers_of(network: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}


def chosen_layers(network: nn.Module, targets: Sequence[str]) -> tuple[str, ...]:
    """The layers whose names end so. The usual names need not all occur; those that a user chose must."""
    layers = layers_of(network)
    named, absent = named_so(layers, targets)
    if not named or (absent and tuple(targets) != ATTENTION):
        raise UserError(
            f"the network has no linear or convolution layer called {' or '.join(absent) or 'nothing'} for LoRA to adapt; "
            f"set lora_targets to some of: {kinds(layers) or 'none, it has no such layers; set lora=0'}"
        )
    return named


def named_so(layers: Iterable[str], ends: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """(the names that end in one of these, the ends that none has)."""
    names = list(layers)
    named = tuple(name for name in names if any(f".{name}".endswith(f".{end}") for end in ends))
    return named, [end for end in ends if not any(f".{name}".endswith(f".{end}") for name in names)]


def kinds(layers: Iterable[str] | Mapping[str, nn.Module]) -> str:
    """Their last names, and the one before where that is a number."""
    names = {".".join(name.split(".")[-2 if name.rpartition(".")[2].isdigit() else -1 :]) for name in layers}
    return ", ".join(sorted(names))
