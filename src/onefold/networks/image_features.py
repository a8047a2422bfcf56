"""What frozen networks for pictures see in an image: the still part of a projected discriminator (Sauer et al. 2021, as in GDD).

A network F gives maps F_1 (fine) to F_n (coarse). Fixed random 1x1 convolutions mix their channels, and then their scales:

    c_k = conv(F_k),    y_k = conv(up2(y_{k+1} + c_k)),    y_n = conv(up2(c_n))

so that a head on y_k hears what the deeper layers see as well. The random numbers are a function of a seed, and part of the state,
so all processes and every resumed run look through the same ones. The networks F themselves are part of no state.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from onefold import seeds
from onefold.conditions import Conditions
from onefold.errors import UserError, first_line, root, suggest, whole_number
from onefold.files import place_of
from onefold.imports import FORM, find_function, is_function_name
from onefold.weights import Damaged, must_be_finite, read_tensors

TIMM = "timm:"
HUB = "hub"  # in place of a file: timm downloads the weights
WIDTH = 64  # channels of the finest map once mixed; they double from scale to scale
MAPS = 4  # that are taken of a network of timm
CHANNELS = (1, 3)
WANTED = "expected a list of feature maps, float tensors N C H W with the finest first"


def image_features(
    source: str,
    *,
    shape: Sequence[int],
    weights: Sequence[str | Path] | str | Path | None = None,
    size: int = 224,
    seed: int = 0,
    project: bool | None = None,
) -> ImageFeatures:
    """`timm:NAME` or `timm:NAME+NAME` with a file of weights for each, or `package.module:function`, which returns a module from
    images in [-1, 1] to a list of maps. Networks of timm are projected unless `project` is false, the user's own if it is true.
    """
    files = [weights] if isinstance(weights, (str, Path)) else list(weights or [])
    networks: dict[str, nn.Module]
    with seeds.drawing(seed):  # whatever is not loaded is the same in every process, and nobody else's numbers move
        if source.startswith(TIMM):
            names = source.removeprefix(TIMM).split("+")
            networks = dict(zip(names, pretrained(names, files, shape, whole_number("size", size)), strict=True))
        else:
            networks = {source: own_network(source, files)}
    return ImageFeatures(networks, shape, seed=seed, project=source.startswith(TIMM) if project is None else project)


class ImageFeatures(nn.Module):
    """Frozen networks, each from images in [-1, 1] to a list of maps (N, C, H, W), and what is made of their maps.

    They have no parameters, always work in eval mode, and let the gradient through to the image.
    """

    networks: tuple[nn.Module, ...]
    shapes: list[tuple[int, ...]]  # (C, H, W) of the maps that are given

    def __init__(
        self, networks: Mapping[str, nn.Module], shape: Sequence[int], *, seed: int = 0, project: bool = True
    ) -> None:
        super().__init__()
        for network in networks.values():
            network.cpu().eval().requires_grad_(False)
        # Past nn.Module's registration: not in the state, not among the parameters, and deaf to train().
        self.__dict__["networks"] = tuple(networks.values())
        found = [probed(name, network, shape) for name, network in networks.items()]
        self.projections: nn.ModuleList | None = None
        if project:
            with seeds.drawing(seed):
                self.projections = nn.ModuleList(
                    Projection(name, maps) for name, maps in zip(networks, found, strict=True)
                )
            with torch.no_grad():
                found = [mix(maps) for mix, maps in zip(self.projections, found, strict=True)]
        self.shapes = [tuple(each.shape[1:]) for maps in found for each in maps]

    def forward(self, x: Tensor, sigma: Tensor | None = None, cond: Conditions | None = None) -> list[Tensor]:  # noqa: ARG002
        """Such networks know neither noise levels nor conditions."""
        with sdpa_kernel(SDPBackend.MATH):  # the only attention with second derivatives, which R1 needs
            seen = [network(x) for network in self.networks]
        if self.projections is not None:
            seen = [mix(maps) for mix, maps in zip(self.projections, seen, strict=True)]
        return [each for maps in seen for each in maps]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """The networks go where the projection goes."""
        for network in self.networks:
            network._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]


@torch.no_grad()
def probed(name: str, network: nn.Module, shape: Sequence[int]) -> list[Tensor]:
    """The maps of two black images, which must be some."""
    try:
        maps: object = network(torch.full((2, *shape), -1.0))
    except UserError:
        raise
    except Exception as error:  # a foreign module may raise anything
        raise UserError(
            f"image features {name!r} failed on images of shape {'x'.join(map(str, shape))} "
            f"({type(error).__name__}: {first_line(error)}); mend them, or choose others"
        ) from error
    if not isinstance(maps, (list, tuple)) or not maps:
        given = "no maps" if isinstance(maps, (list, tuple)) else f"a {type(maps).__name__}"
        raise UserError(f"image features {name!r} gave {given}, {WANTED}; mend them")
    for each in maps:
        check_map(name, each)
    return list(maps)


def check_map(name: str, found: object) -> None:
    if not isinstance(found, Tensor):
        raise UserError(f"image features {name!r} gave a {type(found).__name__} in their list, {WANTED}; mend them")
    if found.ndim != 4 or len(found) != 2 or not found.numel() or not found.is_floating_point():
        raise UserError(
            f"image features {name!r} gave a {found.dtype} tensor of shape {tuple(found.shape)} for 2 images, {WANTED}; mend them"
        )
    if not found.isfinite().all():
        raise UserError(f"image features {name!r} gave values that are not finite for a black image; mend them")


# -- the random projection ---------------------------------------------------------------------------------------------


class Projection(nn.Module):
    """Mixes channels, then scales from the coarsest to the finest. Each map comes out at twice its size."""

    def __init__(self, name: str, maps: Sequence[Tensor]) -> None:
        """Fitting these maps."""
        super().__init__()
        maps = pyramid(maps)
        sides = [each.shape[-2:] for each in maps]
        if any(fine[0] < coarse[0] or fine[1] < coarse[1] for fine, coarse in pairwise(sides)):
            told = ", ".join(f"{height}x{width}" for height, width in sides)
            raise UserError(
                f"image features {name!r} gave maps of {told}, expected the finest first; turn them round, or set project=False"
            )
        widths = [WIDTH << k for k in range(len(maps))]
        self.channels = nn.ModuleList(Mixing(each.shape[1], width) for each, width in zip(maps, widths, strict=True))
        finer = [WIDTH, *widths[:-1]]
        self.scales = nn.ModuleList(Mixing(width, after) for width, after in zip(widths, finer, strict=True))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        mixed = [conv(each) for conv, each in zip(self.channels, pyramid(maps), strict=True)]
        found: list[Tensor] = []
        for k in reversed(range(len(mixed))):
            carried = mixed[k] if not found else found[-1] + mixed[k]
            # To the size of the next finer map, which is twice as large but where sides are odd.
            sides = mixed[k - 1].shape[-2:] if k else [2 * side for side in mixed[0].shape[-2:]]
            found.append(self.scales[k](F.interpolate(carried, size=sides, mode="bilinear", align_corners=True)))
        return found[::-1]


class Mixing(nn.Module):
    """A 1x1 convolution as torch draws it. Of buffers: who freezes and frees a discriminator's parameters does not wake it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        drawn = nn.Conv2d(before, after, 1)
        self.register_buffer("weight", drawn.weight.detach())
        self.register_buffer("bias", drawn.bias.detach() if drawn.bias is not None else None)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


def pyramid(maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps of one size, as transformers give them, as if each were half as large as the one before: 14x14 to 56, 28, 14 and 7."""
    if len(maps) == 1 or len({each.shape[-2:] for each in maps}) > 1:
        return list(maps)
    factors = [2.0 ** (len(maps) - 2 - k) for k in range(len(maps))]
    return [resized(each, factor) for each, factor in zip(maps, factors, strict=True)]


def resized(x: Tensor, factor: float) -> Tensor:
    sides = [max(1, round(side * factor)) for side in x.shape[-2:]]
    return F.interpolate(x, size=sides, mode="bilinear", align_corners=False)


# -- networks of timm --------------------------------------------------------------------------------------------------


class Pretrained(nn.Module):
    """A network of timm, from images in [-1, 1] of 1 or 3 channels to four of its maps."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Any, size: int, shape: Sequence[int]) -> None:
        super().__init__()
        facts = network.pretrained_cfg
        self.network, self.size = network, size
        # Drops the layers behind the last map, such as a classifier.
        self.taken = network.prune_intermediate_layers(taps(network.feature_info), prune_norm=True, prune_head=True)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(facts[name]).view(-1, 1, 1))
        sides = enlarged(torch.zeros(1, *shape), size).shape[-2:]
        if sides != tuple(facts["input_size"][-2:]) and hasattr(network, "set_input_size"):
            network.set_input_size(tuple(sides))  # transformers have a code for each place

    def forward(self, x: Tensor) -> list[Tensor]:
        pictures = (enlarged(x, self.size) + 1) / 2
        normal = (pictures - self.mean) / self.std  # one channel becomes three
        maps: list[Tensor] = self.network.forward_intermediates(normal, indices=self.taken, intermediates_only=True)
        return maps


def enlarged(x: Tensor, size: int) -> Tensor:
    """Until the shorter side is `size`; larger images stay as they are."""
    shorter = min(x.shape[-2:])
    return resized(x, size / shorter) if shorter < size else x


def taps(stages: Sequence[Mapping[str, Any]]) -> int | list[int]:
    """The last four stages of a network that halves its maps, at 1/4 to 1/32 (GDD's VGG16: at 1/2 to 1/16). Of equal ones, a
    transformer's, the ends of each quarter."""
    if len({stage["reduction"] for stage in stages}) > 1:
        return MAPS
    return [len(stages) * k // MAPS - 1 for k in range(1, MAPS + 1)]


def pretrained(names: Sequence[str], files: Sequence[str | Path], shape: Sequence[int], size: int) -> list[Pretrained]:
    if len(shape) != 3 or shape[0] not in CHANNELS:
        raise UserError(
            f"networks for pictures look at images of 1 or 3 channels, not at {'x'.join(map(str, shape))}; take the features of "
            f"the teacher, or a function of your own, {FORM}"
        )
    timm = import_timm()
    for name in names:
        if not timm.is_model(name):
            raise UserError(f"timm has no network {name!r}{suggest_network(name, timm.list_models())}")
    if len(set(names)) < len(names):
        raise UserError(f"{'+'.join(names)} names a network twice, and it would see the same twice; name it once")
    if len(files) != len(names):
        raise UserError(
            f"{len(names)} network(s) of timm, {' and '.join(names)}, need as many files of weights, and {len(files)} are given; "
            f"make each: {recipe(names[0])}; or give the word {HUB!r} to download them"
        )
    return [Pretrained(load_network(timm, name, place), size, shape) for name, place in zip(names, files, strict=True)]


def recipe(name: str) -> str:
    return (
        f'import timm; from safetensors.torch import save_file; save_file(timm.create_model("{name}", pretrained=True)'
        f'.state_dict(), "{name}.safetensors")'
    )


def suggest_network(name: str, known: Sequence[str]) -> str:
    """Of a thousand names only a close one is told."""
    close = suggest(name, known)
    return close if "did you mean" in close else "; timm.list_models() tells their names"


def import_timm() -> Any:
    """timm imports torchvision, and one that was built for another torch breaks it."""
    try:
        return importlib.import_module("timm")
    except Exception as error:
        remedy = "install it with: pip install 'onefold[gan]'"
        if "torchvision" in str(root(error)):
            remedy = "install the build of torchvision that belongs to this torch"
        raise UserError(
            f"these image features need timm, which does not load ({first_line(root(error))}); {remedy}"
        ) from error


def load_network(timm: Any, name: str, place: str | Path) -> Any:
    try:
        network = timm.create_model(name, pretrained=place == HUB)
    except Exception as error:  # timm and what it downloads with have errors of many kinds
        raise UserError(
            f"timm cannot make {name!r} ({first_line(root(error))}); mend the name, or where the download failed give a file: "
            f"{recipe(name)}"
        ) from error
    if not hasattr(network, "forward_intermediates"):
        raise UserError(
            f"this timm does not show the feature maps of {name!r}; try pip install -U timm, or choose another network"
        )
    if place != HUB:
        network.load_state_dict(tensors_for(network, name, place_of(place)))
    return network


def tensors_for(network: nn.Module, name: str, path: Path) -> dict[str, Tensor]:
    """Those of a file, which must be the network's: all of them and no others."""
    if not path.exists():
        raise UserError(f"weights of {name} missing: {path} does not exist; make it: {recipe(name)}")
    try:
        tensors, _ = read_tensors(path)
    except Damaged as error:
        raise UserError(
            f"{path} is no safetensors file ({first_line(root(error))}); make one: {recipe(name)}"
        ) from error
    wanted = network.state_dict()
    for key, value in wanted.items():
        if key not in tensors or tensors[key].shape != value.shape:
            found = f"has {key} as {list(tensors[key].shape)}" if key in tensors else f"lacks {key}"
            raise UserError(
                f"{path} is no {name} of timm: it {found}, expected {list(value.shape)}; make it: {recipe(name)}"
            )
    if unknown := tensors.keys() - wanted.keys():
        raise UserError(
            f"{path} is no {name} of timm: it has {min(unknown)}, which that lacks; make it: {recipe(name)}"
        )
    must_be_finite(tensors, path)
    return tensors


# -- a user's own ------------------------------------------------------------------------------------------------------


def own_network(source: str, files: Sequence[str | Path]) -> nn.Module:
    if not is_function_name(source):
        raise UserError(f"image features {source!r} are not known, expected {TIMM}NAME, {TIMM}NAME+NAME or {FORM}")
    if files:
        raise UserError(
            f"image features {source!r} load their weights themselves, and {files[0]} is given; leave it out"
        )
    try:
        network = find_function(source, "image features")()
    except UserError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise UserError(
            f"image features {source!r} failed ({type(error).__name__}: {first_line(error)}); mend it, --debug shows where"
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"image features {source!r} returned a {type(network).__name__}, expected a torch.nn.Module from images in [-1, 1] "
            "to a list of feature maps; mend it"
        )
    return network
