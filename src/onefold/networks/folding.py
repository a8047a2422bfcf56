"""Tell a network one time and have it hear another: only the layer that reads the time changes.

A network hears a time as a vector s of sines and cosines, and the first thing that it does to it is linear, W s + bias.
So W can be solved again such that s(told) gives what s(real) gave, for as many times as s can tell apart.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from onefold.errors import UserError
from onefold.networks.edm import EDMNetwork, SongUNet
from onefold.networks.unet import import_diffusers

WORST = 1e3  # condition number of the times that are told: below it float32 keeps outputs to about 1e-6 (five indices)
Sinusoid = Callable[[Tensor], Tensor]


def time_layers(network: Any) -> list[tuple[Sinusoid, nn.Linear]]:
    """(sinusoid, the first layer that reads it): one of a U-Net, one a block of a transformer. Empty where that layer reads
    more than the time, and for networks of other kinds."""
    if isinstance(network, EDMNetwork):
        return of_edm(network)
    if hasattr(network, "time_proj") and hasattr(getattr(network, "time_embedding", None), "linear_1"):
        return [(network.time_proj, network.time_embedding.linear_1)]
    norms: list[Any] = [getattr(block, "norm1", None) for block in getattr(network, "transformer_blocks", [])]
    embedders = [norm.emb for norm in norms if hasattr(norm, "emb")]
    return [(one.time_proj, one.timestep_embedder.linear_1) for one in embedders]


def of_edm(network: Any) -> list[tuple[Sinusoid, nn.Linear]]:
    song = isinstance(network, SongUNet)
    if song and network.map_label is not None:  # added to the sinusoid
        return []
    order = -1 if song else 1  # sines first, or cosines
    return [(lambda time: torch.cat(network.map_noise(time)[::order], 1), network.map_layer0)]


def sinusoids(network: Any, times: list[float]) -> Tensor:
    """(len(times), dimensions), as the network computes them."""
    sinusoid, layer = time_layers(network)[0]
    values: Tensor = sinusoid(torch.tensor(times, dtype=torch.float32, device=layer.weight.device))
    return values.cpu().double()  # some devices have no float64


def condition(network: Any, times: list[float]) -> float:
    """How hard it is to tell these times apart: 1 is best, inf means that there are more of them than dimensions."""
    values = torch.linalg.svdvals(sinusoids(network, times))
    return float(values[0] / values[-1]) if len(values) == len(times) else float("inf")


@torch.no_grad()
def fold_time(network: Any, real: list[float], told: list[float] | None) -> None:
    """In place: W' s(told) = W s(real) for every time, by the smallest change of W. told=None: W' is 0 and the bias says
    the only real time."""
    heard = sinusoids(network, real).T
    said = None if told is None else sinusoids(network, told).T
    for _, layer in time_layers(network):
        weight = layer.weight.cpu().double()
        if said is None:
            layer.bias.add_((weight @ heard)[:, 0].to(layer.bias.dtype).to(layer.bias.device))
            layer.weight.zero_()
        else:
            solved = weight + weight @ (heard - said) @ torch.linalg.pinv(said)
            layer.weight.copy_(solved.to(layer.weight.dtype))


def fold_to_index(network: nn.Module, real: list[float]) -> nn.Module:
    """A copy for which the whole times 0, 1, ... mean the real ones of this list."""
    if not takes_indices(network, len(real)):
        raise UserError(
            f"a {type(network).__name__} cannot be told the numbers 0 to {len(real) - 1} in place of its own times; "
            "let the student keep the teacher's time (time=teacher)"
        )
    folded = copy.deepcopy(network)
    if tells_apart(network, len(real)):
        fold_time(folded, real, indices(len(real)))
    else:
        learn_table(folded, real)
    return folded


def takes_indices(network: nn.Module, steps: int) -> bool:
    """Whether `fold_to_index` can be asked for so many."""
    return tells_apart(network, steps) or time_embedding(network) in ("positional", "learned")


def tells_apart(network: nn.Module, steps: int) -> bool:
    sinusoidal = time_embedding(network) in (None, "positional") and bool(time_layers(network))
    return sinusoidal and condition(network, indices(steps)) < WORST


def indices(steps: int) -> list[float]:
    return [float(index) for index in range(steps)]


def index_table(network: nn.Module, count: int) -> nn.Module:
    """A copy that gives for 0, 1, ... what the network gives, but has a row to learn for each."""
    if time_embedding(network) is None:
        raise UserError(
            f"a {type(network).__name__} has no table of times (begin=table), which pixel U-Nets of diffusers have; use begin=teacher"
        )
    copied = copy.deepcopy(network)
    learn_table(copied, [float(index) for index in range(count)])
    return copied


def time_embedding(network: nn.Module) -> str | None:
    """Of a U-Net whose time may be a table; None: of another network."""
    config: Any = getattr(network, "config", None)
    if not isinstance(network, import_diffusers().UNet2DModel) or config["class_embed_type"] == "timestep":
        return None
    kind: str = config["time_embedding_type"]
    return kind


@torch.no_grad()
def learn_table(unet: Any, real: list[float]) -> None:
    """diffusers' "learned" time embedding, whose row j is what the network heard at real[j]: exact for any number of rows."""
    before, weight = unet.time_proj, unet.time_embedding.linear_1.weight
    dtype = torch.int64 if isinstance(before, nn.Embedding) else torch.float32
    rows = before(torch.tensor(real, dtype=torch.float64).to(dtype).to(weight.device))
    unet.time_proj = nn.Embedding.from_pretrained(
        rows.detach().to(weight.dtype).clone(), freeze=not weight.requires_grad
    )
    unet.register_to_config(time_embedding_type="learned", num_train_timesteps=len(real))
