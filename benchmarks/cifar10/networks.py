"""Networks whose features are compared, written from their papers; each is an extractor when it is given its file of weights.

onefold evaluate MODEL --reference STATISTICS.npz --extractor benchmarks.cifar10.networks:resnet56 --weights FILE

ResNet-56 knows CIFAR-10 and sees images as they are. The two of ImageNet see them enlarged to SIDE, and their files end
before the classifier. Layers bear the names that they have in the files, so that none has to be matched by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from benchmarks.cifar10.weights import fill, read_weights
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels in [0, 1]
SIDE = 96  # pixels: classes of CIFAR-10 are told apart as well as at 128, at half the cost


def resnet56(images: Tensor, weights: Path) -> tuple[Tensor, Tensor]:
    """ResNet-56 of CIFAR-10 (He et al. 2015), 64 features before its classifier"""
    features, logits = loaded(ResNet56, Path(weights), images.device)(normalised(images))
    return features, logits


def mobilenetv2(images: Tensor, weights: Path) -> Tensor:
    """MobileNetV2 of ImageNet (Sandler et al. 2018), 1,280 features"""
    return features_of(MobileNetV2, images, weights)


def resnet50v2(images: Tensor, weights: Path) -> Tensor:
    """ResNet-50 v2 of ImageNet (He et al. 2016), 1,024 features behind its third stage"""
    return features_of(ResNet50V2, images, weights)


def features_of(kind: type[nn.Module], images: Tensor, weights: Path) -> Tensor:
    enlarged = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    found: Tensor = loaded(kind, Path(weights), images.device)(normalised(enlarged))
    return found


def normalised(images: Tensor) -> Tensor:
    """Images in [-1, 1], with the mean and spread that the networks were trained with."""
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    return ((images.expand(-1, 3, -1, -1) + 1) / 2 - mean) / std


@cache
def loaded(kind: type[nn.Module], weights: Path, device: torch.device) -> nn.Module:
    return load(kind, weights)[0].to(device)


def load(kind: type[nn.Module], weights: Path) -> tuple[nn.Module, list[str]]:
    """The network, and the names in the file that it has no use for."""
    network = kind()
    unused = fill(network, read_weights(weights), NAMES[kind], weights)
    return network.eval().requires_grad_(False), unused


# -- ResNet-56 ---------------------------------------------------------------------------------------------------------


class Basic(nn.Module):
    """Two 3x3 convolutions. Where the sides are halved the shortcut takes every second pixel and sets the new channels,
    half of them on either side of the old ones, to 0 (option A, without weights)."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride, self.more = (2, (width - before) // 2) if width > before else (1, 0)
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet56(nn.Module):
    """3 stages of 9 blocks, of 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for number, (before, width) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
            blocks = [Basic(width if block else before, width) for block in range(9)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.bn1(self.conv1(x)))
        for number in (1, 2, 3):
            x = self.get_submodule(f"layer{number}")(x)
        features = x.mean((2, 3))
        return features, self.linear(features)


# -- MobileNetV2 -------------------------------------------------------------------------------------------------------

# Widening, channels, how many, stride of the first. The file does not say the strides. The paper's table halves the sides at
# 64 channels and not at 96; these weights were learnt the other way round: then they tell CIFAR-10's classes apart (nearest
# mean 0.75 against 0.45) and the variances they see are those they were normalised with, better than with any other choice.
BOTTLENECKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 1),
    (6, 96, 3, 2),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class LinearBottleneck(nn.Module):
    """Widened by 1x1, filtered channel by channel, narrowed by 1x1 without ReLU."""

    def __init__(self, before: int, width: int, factor: int, stride: int) -> None:
        super().__init__()
        wide = factor * before
        self.conv0, self.batchnorm0 = nn.Conv2d(before, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.conv1 = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        self.batchnorm1 = nn.BatchNorm2d(wide)
        self.conv2, self.batchnorm2 = nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width)
        self.shortcut = stride == 1 and before == width

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.batchnorm0(self.conv0(x)))
        y = F.relu6(self.batchnorm1(self.conv1(y)))
        y = self.batchnorm2(self.conv2(y))
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.batchnorm0 = nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        before, self.blocks = 32, list[str]()
        for factor, width, count, stride in BOTTLENECKS:
            for block in range(count):
                self.blocks.append(f"linearbottleneck{len(self.blocks)}")
                self.add_module(self.blocks[-1], LinearBottleneck(before, width, factor, 1 if block else stride))
                before = width
        self.conv1, self.batchnorm1 = nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.batchnorm0(self.conv0(x)))
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        return F.relu6(self.batchnorm1(self.conv1(x))).mean((2, 3))


# -- ResNet-50 v2 ------------------------------------------------------------------------------------------------------


class Stage(nn.Module):
    """Bottlenecks that normalise before each convolution; the first one's shortcut is a convolution of the normalised input.

    Layers are numbered through the stage: three normalisations and convolutions a block, the shortcut behind the first.
    """

    def __init__(self, before: int, width: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.blocks, narrow = blocks, width // 4
        for block in range(blocks):
            sides = ((before, narrow, 1, 1), (narrow, narrow, 3, stride if block == 0 else 1), (narrow, width, 1, 1))
            for part, (taken, given, kernel, step) in enumerate(sides):
                self.add_module(f"batchnorm{3 * block + part}", nn.BatchNorm2d(taken))
                conv = nn.Conv2d(taken, given, kernel, step, kernel // 2, bias=False)
                self.add_module(f"conv{conv_number(block, part)}", conv)
            if block == 0:
                self.conv3 = nn.Conv2d(before, width, 1, stride, bias=False)
            before = width

    def forward(self, x: Tensor) -> Tensor:
        for block in range(self.blocks):
            y, shortcut = x, x
            for part in range(3):
                y = F.relu(self.get_submodule(f"batchnorm{3 * block + part}")(y))
                shortcut = self.conv3(y) if block == part == 0 else shortcut
                y = self.get_submodule(f"conv{conv_number(block, part)}")(y)
            x = shortcut + y
        return x


def conv_number(block: int, part: int) -> int:
    return 3 * block + part + (block > 0)


class ResNet50V2(nn.Module):
    """Up to the normalisation behind the third stage; the input is normalised by a layer of its own as well."""

    def __init__(self) -> None:
        super().__init__()
        self.batchnorm0, self.batchnorm1 = nn.BatchNorm2d(3), nn.BatchNorm2d(64)
        self.conv0 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.stage1, self.stage2, self.stage3 = Stage(64, 256, 3, 1), Stage(256, 512, 4, 2), Stage(512, 1024, 6, 2)
        self.stage4 = nn.ModuleDict({"batchnorm0": nn.BatchNorm2d(1024)})

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.batchnorm1(self.conv0(self.batchnorm0(x))))
        x = self.stage3(self.stage2(self.stage1(F.max_pool2d(x, 3, 2, 1))))
        return F.relu(self.stage4["batchnorm0"](x)).mean((2, 3))


# -- names in the files ------------------------------------------------------------------------------------------------


def gluon(prefix: str) -> Callable[[str], str]:
    """`stage1.batchnorm0.weight` is `{prefix}_stage1_batchnorm0_gamma`."""

    def name_of(key: str) -> str:
        layer, _, kind = key.rpartition(".")
        normalises = "batchnorm" in layer
        kind = {"weight": "gamma", "bias": "beta"}.get(kind, kind) if normalises else kind
        return "_".join([prefix, *layer.split("."), kind])

    return name_of


KINDS: dict[str, type[nn.Module]] = {"resnet56": ResNet56, "mobilenetv2": MobileNetV2, "resnet50v2": ResNet50V2}
NAMES: dict[type[nn.Module], Callable[[str], str]] = {
    ResNet56: "module.{}".format,
    MobileNetV2: gluon("mobilenetv20_features"),
    ResNet50V2: gluon("resnetv24"),
}
