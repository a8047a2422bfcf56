"""Where everything lies, and the data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onefold.data import ImageData, load_data, npz_keys, read_npz
from onefold.errors import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MODULE = "benchmarks.cifar10.networks"
FILES = {
    "resnet56": "resnet56-4bfd9763.th",
    "mobilenetv2": "mobilenetv2_batchnorm_nchw_fp16.npz",
    "resnet50v2": "resnet50v2_nchw_fp16.npz",
}
PIXELS = "pixels"  # onefold's own extractor, which needs no file
EXTRACTORS = (*FILES, PIXELS)
KEYS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True)
class Places:
    """Below one folder: the run, the teacher that is kept, statistics of real images, samples."""

    out: Path
    unconditional: bool = False

    @property
    def name(self) -> str:
        return "cifar10_unconditional" if self.unconditional else "cifar10"

    @property
    def run(self) -> Path:
        return self.out / "teach" / self.name

    @property
    def teacher(self) -> Path:
        return self.out / self.name

    def reference(self, extractor: str) -> Path:
        return self.out / "references" / f"{extractor}.npz"

    def samples(self, calls: int) -> Path:
        return self.out / "samples" / f"{self.name}_{calls}.npz"

    @property
    def students(self) -> Path:
        return self.out / "students" / self.name

    def need_teacher(self) -> Path:
        if not self.teacher.is_dir():
            word = " --unconditional" if self.unconditional else ""
            raise UserError(
                f"there is no teacher {self.teacher}; make it with `python benchmarks/cifar10 teacher{word}`, again until it is done"
            )
        return self.teacher

    def need_reference(self, extractor: str) -> Path:
        if not (path := self.reference(extractor)).is_file():
            raise UserError(
                f"there are no statistics {path}; make them with `python benchmarks/cifar10 references --extractors {extractor}`"
            )
        return path


def extractor_name(extractor: str) -> str:
    return extractor if extractor == PIXELS else f"{MODULE}:{extractor}"


def weights_of(folder: Path, extractor: str) -> Path | None:
    return None if extractor == PIXELS else weights_file(folder, extractor)


def weights_file(folder: Path, extractor: str) -> Path:
    path = folder / FILES[extractor]
    if not path.is_file():
        raise UserError(f"there is no file {path} with the weights of {extractor}; give their folder with --weights")
    return path


def check_data(path: Path) -> Path:
    missing = [key for key in KEYS if key not in npz_keys(path)] if path.is_file() else list(KEYS)
    if missing:
        raise UserError(
            f"{path} {f'lacks {missing[0]}' if path.is_file() else 'is missing'}; expected CIFAR-10 as an .npz with {', '.join(KEYS)} "
            "(uint8, N 32 32 3): make it with `python unpack_data.py cifar10 cifar10.npz`, and give it with --data"
        )
    return path


def train_images(path: Path) -> ImageData:
    return load_data(check_data(path))


def test_images(path: Path) -> tuple[Tensor, Tensor]:
    """uint8 N 3 32 32, and labels."""
    arrays = read_npz(str(path), check_data(path), KEYS[2:])
    images, labels = (torch.from_numpy(arrays[key]) for key in KEYS[2:])
    return images.permute(0, 3, 1, 2).contiguous(), labels.long()
