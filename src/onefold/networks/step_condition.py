"""SFD-v's step condition: a network that is told for how many calls it is asked.

The count is constant along a trajectory, so all that it does in a residual block is to add a row of numbers to what the
layer says that reads the time embedding. For one count these rows go into the biases of such layers, and what is left is
an ordinary network of the teacher's own architecture.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from onefold import seeds
from onefold.errors import UserError
from onefold.networks.edm_layers import Waves
from onefold.networks.lora import kinds, named_so

# As diffusers' U-Nets call them, as EDM's do, and as its transformers do: in blocks, and before the last layer.
TIME_READERS = ("time_emb_proj", "affine", "norm1.linear", "proj_out_1")
WIDTH = 128  # of the count's embedding


class StepCondition(nn.Module):
    """A network with its step condition, called like the network, which it owns: it is to be called through this alone.

    Where activations are recomputed (gradient checkpointing), go backward before the next call with gradients.
    """

    network: nn.Module

    def __init__(
        self,
        network: nn.Module,
        counts: Sequence[int],
        *,
        layers: Sequence[str] = TIME_READERS,
        init: Literal["zero", "official"] = "zero",
        seed: int = 0,
    ) -> None:
        super().__init__()
        readers = time_readers(network, layers)
        self.counts = tuple(sorted(set(counts)))
        self.network = network
        self.waves = Waves(WIDTH, reaches=True)
        with seeds.drawing(seed):
            self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
            rows = {key(name): nn.Linear(WIDTH, layer.out_features, bias=False) for name, layer in readers.items()}
        if init == "zero":  # else as torch draws all layers, and the student does not begin as the teacher
            for row in rows.values():
                nn.init.zeros_(row.weight)
        self.rows = nn.ModuleDict(rows)
        weight = next(iter(readers.values())).weight
        for part in (self.mlp, self.rows):
            part.to(weight.device, weight.dtype)
        self.now = Rows()
        self.handles = [layer.register_forward_hook(AddRow(self.now, name)) for name, layer in readers.items()]
        self.calls: int | None = None
        self.count: Tensor | None = None  # as a tensor, or a compiled network would be compiled for each; and no buffer
        if len(self.counts) == 1:
            self.told(self.counts[0])

    def told(self, calls: int) -> None:
        """Which count the next calls are for."""
        self.calls = self.trained(calls)
        self.count = self.as_tensor(calls)

    def as_tensor(self, calls: int) -> Tensor:
        return torch.full((1,), calls, dtype=torch.float32, device=next(self.mlp.parameters()).device)

    def trained(self, calls: int) -> int:
        if calls not in self.counts:
            known = " and ".join(", ".join(map(str, self.counts)).rsplit(", ", 1))
            raise UserError(
                f"this student was trained for {known} calls, not {calls}; ask for one of these, or distil a student for {calls}"
            )
        return calls

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.count is None:
            raise UserError(f"this network serves {len(self.counts)} counts and was told none; call told(calls) first")
        before, self.now.rows = self.now.rows, self.rows_for(self.count)
        try:
            return self.network(*args, **kwargs)
        finally:
            if not torch.is_grad_enabled():  # else backward may run layers again, and they must hear the same
                self.now.rows = before

    def rows_for(self, count: Tensor) -> dict[str, Tensor]:
        """What each layer's output is increased by: W mlp(sinusoid(count))."""
        weight = next(self.mlp.parameters())
        heard = self.mlp(torch.cat(self.waves(count.to(weight.device))[::-1], 1).to(weight.dtype))
        return {name.replace("/", "."): row(heard)[0] for name, row in self.rows.items()}

    @torch.no_grad()
    def biases(self, calls: int) -> dict[str, Tensor]:
        """By its name in the network, the bias of each layer with the count's row in it."""
        rows, values = self.rows_for(self.as_tensor(self.trained(calls))), dict[str, Tensor]()
        for name, row in rows.items():
            bias = self.network.get_parameter(f"{name}.bias")
            values[f"{name}.bias"] = bias + row.to(bias.dtype)
        return values

    def folded(self, calls: int) -> nn.Module:
        """A network of the former kind for this count, on which nothing more is to be known. It shares all other weights."""
        shared = {id(weight): weight for weight in self.network.parameters()}
        network, handles = copy.deepcopy((self.network, self.handles), shared)
        for handle in handles:
            handle.remove()
        for name, value in self.biases(calls).items():
            layer = network.get_submodule(name.removesuffix(".bias"))
            layer.bias = nn.Parameter(value, requires_grad=False)
        return network

    @property
    def note(self) -> str:
        own, there = size(self.mlp) + size(self.rows), size(self.network)
        counts = ", ".join(map(str, self.counts))
        return f"step condition for {counts} calls at {len(self.rows)} layers: {own:,} weights, {own / there:.1%} of the network's"

    def __getattr__(self, name: str) -> Any:
        """What adapters of model families read beside the call: config, class_embedding and the like."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "network" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.network, name)


class Rows:
    """The rows of the present call, where the layers find them. A copy is of no call: it begins empty."""

    def __init__(self) -> None:
        self.rows: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()


class AddRow:
    """A layer's hook. An object and no closure, so that a copy of the network finds the copy's rows."""

    def __init__(self, now: Rows, name: str) -> None:
        self.now, self.name = now, name

    def __call__(self, _layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        row = self.now.rows.get(self.name)
        return output if row is None else output + row.to(output.dtype)


def time_readers(network: nn.Module, ends: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers with a bias whose names end so. The usual names need not all occur; those that a user chose must."""
    linear = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    able = {name: layer for name, layer in linear.items() if getattr(layer, "bias", None) is not None}
    named, absent = named_so(able, ends)
    if not named or (absent and tuple(ends) != TIME_READERS):
        raise UserError(
            f"the network has no linear layer with a bias called {' or '.join(absent) or 'nothing'} that could hear the number of "
            f"calls; set step_layers: name linear layers by the ends of their names, of: {kinds(able) or 'none, it has no such layers'}"
        )
    return {name: able[name] for name in named}


def key(name: str) -> str:
    """Without dots, which the names of submodules cannot have."""
    return name.replace(".", "/")


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
