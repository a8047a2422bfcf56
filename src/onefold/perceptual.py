"""How far apart two batches look to a network that does not learn: the distance of its features.

As in LPIPS (Zhang et al. 2018) the features of several layers are made unit vectors over their channels, which takes out
their scale, and the squares of their differences are summed over channels and averaged over positions:

    d(a, b) = sum_l mean_p | w_l^(1/2) (u_l(a)_p - u_l(b)_p) |^2,    u_l = features of layer l / their length

`Lpips` is that of the paper, with VGG16 and learnt w. `TeacherFeatures` asks the model's own teacher (w = 1, mean over l).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from onefold.conditions import Conditions
from onefold.denoiser import Denoiser
from onefold.errors import UserError, check_choice, first_line, whole_number
from onefold.files import place_of
from onefold.networks.features import DenoiserFeatures, channel_axis
from onefold.process import as_sigma
from onefold.weights import Damaged, must_be_finite, read_tensors, shapes

Kind = Literal["teacher", "lpips", "none"]
Pooling = Literal["max", "average"]
TINY = 1e-10  # under the root of a length: where all features are 0, as behind a ReLU, a gradient is still finite


class Perceptual(Protocol):
    """(output, target) -> one float32 number, a mean over the batch; the gradient reaches the output alone."""

    def __call__(self, output: Tensor, target: Tensor, cond: Conditions | None = None) -> Tensor: ...


def make_perceptual(
    kind: Kind,
    denoiser: Denoiser,
    *,
    sigma: float,
    layers: Sequence[str] | None = None,
    lpips_weights: str | Path | None = None,
) -> Perceptual | None:
    """The distance for what a denoiser gives; `sigma` and `layers` are for its own features, `lpips_weights` for LPIPS."""
    check_choice("the perceptual loss", kind, get_args(Kind))
    if kind == "none":
        return None
    if kind == "teacher":
        return TeacherFeatures(denoiser, sigma, layers)
    if denoiser.codec is not None:
        raise UserError(
            f"LPIPS compares pixels, and {denoiser.name!r} gives latents; take the features of the teacher instead"
        )
    check_channels(denoiser.shape[0])
    if lpips_weights is None:
        raise UserError(f"perceptual weights missing: LPIPS needs a file of them and none is named; make it: {RECIPE}")
    return load_lpips(lpips_weights)


def unit(features: Tensor, axis: int) -> Tensor:
    x = features.float()
    return x * (x.square().sum(axis, keepdim=True) + TINY).rsqrt()


def apart(found: Tensor, wanted: Tensor, axis: int, weight: Tensor | float = 1.0) -> Tensor:
    """Summed over channels, averaged over positions and the batch."""
    total: Tensor = (weight * (found - wanted).square()).sum(axis).mean()
    return total


# -- a teacher's features ----------------------------------------------------------------------------------------------


class TeacherFeatures:
    """What a denoiser's network sees in two clean batches, which it is asked about at one level, without noise.

    The network is left as it is: for the time of a call it is in eval mode and its weights are constants. Guidance plays no
    part. A call of this costs two calls of the network, each only as far as the last layer that is looked at.
    """

    def __init__(self, denoiser: Denoiser, sigma: float, layers: Sequence[str] | None = None) -> None:
        self.sigma = as_sigma(known_level(denoiser, sigma))
        self.seen = DenoiserFeatures(denoiser, layers)

    @property
    def layers(self) -> tuple[str, ...]:
        return self.seen.layers

    def __call__(self, output: Tensor, target: Tensor, cond: Conditions | None = None) -> Tensor:
        with torch.no_grad():
            wanted = self.features(target, cond)
        found = self.features(output, cond)
        each = [apart(a, b, channel_axis(a)) for a, b in zip(found, wanted, strict=True)]
        return torch.stack(each).mean()

    def features(self, x: Tensor, cond: Conditions | None = None) -> list[Tensor]:
        """Unit vectors over the channels of each layer."""
        return [unit(features, channel_axis(features)) for features in self.seen(x.float(), self.sigma, cond)]


def known_level(denoiser: Denoiser, sigma: float) -> float:
    """The level itself; of a network of whole times the nearest that it knows."""
    process, slack = denoiser.process, 1e-5  # what a level loses when it is printed
    low, high = process.sigma_min, process.sigma_top
    if not low * (1 - slack) <= sigma <= high * (1 + slack):
        raise UserError(
            f"features are asked for at sigma = {sigma:.6g}, and {denoiser.name!r} knows levels from {low:.6g} to {high:.6g}; choose one of them"
        )
    level = min(max(float(sigma), low), high)
    return level if denoiser.continuous_time else float(process.sigma(process.time(as_sigma(level)).round()))


# -- LPIPS -------------------------------------------------------------------------------------------------------------

# Convolutions of VGG16 (Simonyan & Zisserman 2015) up to relu1_2, 2_2, 3_3, 4_3 and 5_3, by their places in it.
PLACES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]
SMALLEST = 16  # that is left after four poolings
ALIASES = ("lins.", "scaling_layer.")  # tensors that the state has twice, and constants
RECIPE = (
    'save_file({k: v for k, v in lpips.LPIPS(net="vgg").state_dict().items() if not k.startswith("lins.")}, "lpips.safetensors") '
    "with save_file of safetensors.torch"
)


def tensor_sides() -> dict[str, tuple[int, ...]]:
    sides: dict[str, tuple[int, ...]] = {}
    width = 3
    for number, (places, wide) in enumerate(zip(PLACES, WIDTHS, strict=True)):
        for place in places:
            sides[f"net.slice{number + 1}.{place}.weight"] = (wide, width, 3, 3)
            sides[f"net.slice{number + 1}.{place}.bias"] = (wide,)
            width = wide
        sides[f"lin{number}.model.1.weight"] = (1, wide, 1, 1)
    return sides


SIDES = tensor_sides()


class Lpips:
    """LPIPS with VGG16, from the tensors of `lpips.LPIPS(net="vgg")` by their names there.

    `range` is that of the images. Those whose shorter side is below `size` are enlarged to it, as published for second stages
    at 224; their pooling was "average", where VGG's is "max".
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        *,
        range: tuple[float, float] = (-1, 1),  # noqa: A002  (as it is called elsewhere)
        size: int = 224,
        pooling: Pooling = "max",
    ) -> None:
        check_state({name: tuple(tensor.shape) for name, tensor in state.items()}, "the state")
        check_choice("pooling", pooling, get_args(Pooling))
        if whole_number("size", size) < SMALLEST:
            raise UserError(f"size is {size}, and VGG16 halves images four times; give {SMALLEST} or more")
        self.low, self.high = range
        if not self.low < self.high:
            raise UserError(f"range is {range}, expected its low end first; [-1, 1] is range=(-1, 1)")
        self.state = {name: state[name].detach().float() for name in SIDES}
        check_values(self.state)
        self.size, self.pooling = size, pooling

    def __call__(self, output: Tensor, target: Tensor, cond: Conditions | None = None) -> Tensor:  # noqa: ARG002
        self.follow(output.device)
        with torch.no_grad():
            wanted = self.features(target)
        found = self.features(output)
        each = [
            apart(a, b, 1, self.state[f"lin{number}.model.1.weight"])
            for number, (a, b) in enumerate(zip(found, wanted, strict=True))
        ]
        return torch.stack(each).sum()

    def follow(self, device: torch.device) -> None:
        """The weights stay where the images are."""
        self.state = {name: tensor.to(device) for name, tensor in self.state.items()}

    def features(self, images: Tensor) -> list[Tensor]:
        x, found = self.prepare(images.float()), []
        for number, places in enumerate(PLACES, 1):
            x = x if number == 1 else self.pool(x)
            for place in places:
                name = f"net.slice{number}.{place}"
                x = F.relu(F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], padding=1))
            found.append(unit(x, 1))
        return found

    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) if self.pooling == "max" else F.avg_pool2d(x, 2)

    def prepare(self, images: Tensor) -> Tensor:
        check_channels(images.shape[1])
        x = 2 * (images - self.low) / (self.high - self.low) - 1
        shorter = min(x.shape[-2:])
        if shorter < self.size:
            sides = [round(side * self.size / shorter) for side in x.shape[-2:]]
            x = F.interpolate(x, size=sides, mode="bilinear", align_corners=False)
        return (x - x.new_tensor(SHIFT).reshape(3, 1, 1)) / x.new_tensor(SCALE).reshape(
            3, 1, 1
        )  # one channel becomes three


def load_lpips(
    path: str | Path,
    *,
    range: tuple[float, float] = (-1, 1),  # noqa: A002
    size: int = 224,
    pooling: Pooling = "max",
) -> Lpips:
    """From a safetensors file of `lpips.LPIPS(net="vgg").state_dict()`; nothing is downloaded and no pickle is read."""
    place = place_of(path)
    if not place.exists():
        raise UserError(f"perceptual weights missing: {place} does not exist; make it: {RECIPE}")
    try:
        check_state({name: shape.sides for name, shape in shapes([place]).items()}, place)
        state, _ = read_tensors(place)
    except Damaged as error:
        raise UserError(f"{place} is no safetensors file ({first_line(error)}); make one: {RECIPE}") from error
    return Lpips(state, range=range, size=size, pooling=pooling)


def check_state(sides: Mapping[str, tuple[int, ...]], place: Path | str) -> None:
    for name, expected in SIDES.items():
        if sides.get(name) != expected:
            found = f"has {name} as {list(sides[name])}" if name in sides else f"lacks {name}"
            raise UserError(f"{place} is no LPIPS of VGG16: it {found}, expected {list(expected)}; make it: {RECIPE}")
    if unknown := sorted(name for name in sides if name not in SIDES and not name.startswith(ALIASES)):
        raise UserError(
            f"{place} is no LPIPS of VGG16: it has {unknown[0]}, which that does not know; make it: {RECIPE}"
        )


def check_values(state: Mapping[str, Tensor]) -> None:
    must_be_finite(state, "the LPIPS of VGG16")
    for name, tensor in state.items():
        if name.startswith("lin") and bool((tensor < 0).any()):
            raise UserError(f"{name} has weights below 0, and a distance has none; make it anew: {RECIPE}")


def check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise UserError(
            f"LPIPS compares images of 1 or 3 channels, not {channels}; take the features of the teacher for latents and others"
        )
