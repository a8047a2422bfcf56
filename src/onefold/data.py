"""Images to train on: a folder, an `.npz`, a Hugging Face dataset, scikit-learn's digits, or samples of a teacher.

Whatever the source, images end as uint8 tensors of one shape, N C H W, with integer labels or none. `Stream` turns them
into the endless shuffled stream of training as a pure function of position, so that neither an interruption nor the
number of processes changes what is seen.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import io
import json
import math
import os
import re
import threading
import zipfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from onefold import seeds
from onefold.errors import UserError, first_line, suggest
from onefold.files import atomic_file, must_be_plain, place_of
from onefold.progress import Progress, silent

if TYPE_CHECKING:
    from onefold.denoiser import Denoiser

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
SOURCES = "a folder of images, an .npz file, 'digits', 'hf:NAME[:split]' or 'teacher:NAME'"
MEMORY_LIMIT = 2 * 2**30  # bytes of decoded pixels; more than that is decoded when fetched
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
SMALL = 64 * 2**20  # bytes that may be unpacked from any file
DENSEST = 400  # bytes of decoded pixels from one of a file
SPAN = 64  # pictures a thread takes at a time
MOST_CLASSES = 100_000


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 as float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Float [-1, 1] as uint8 0..255, clipped: the exact inverse of `to_float`."""
    return ((images.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


# Data sets ------------------------------------------------------------------------------------------------------------


class ImageData(ABC):
    """Images of one shape, by index. `description` is JSON-able provenance."""

    def __init__(
        self,
        count: int,
        shape: Sequence[int],
        labels: Tensor | None,
        classes: int | None,
        class_names: Sequence[str] | None,
        description: Mapping[str, Any],
    ) -> None:
        channels, height, width = shape
        self.count, self.shape = count, (channels, height, width)
        self.labels = labels
        self.classes = classes if labels is not None else None
        self.class_names = list(class_names) if class_names is not None and labels is not None else None
        self.description = {
            **description,
            "count": count,
            "shape": list(self.shape),
            "classes": self.classes,
            "fingerprint": description.get("fingerprint") or self.fingerprint(),
        }

    @abstractmethod
    def pixels(self, indices: Tensor) -> Tensor:
        """uint8 N C H W."""

    def __len__(self) -> int:
        return self.count

    def fetch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 images N C H W and their int64 labels, if there are any."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self.pixels(chosen), None if self.labels is None else self.labels[chosen]

    def fingerprint(self, sample: int = 256) -> str:
        """sha256 over count, shape, all labels and up to 256 evenly spaced images: tells data sets apart for little work."""
        chosen = [i * self.count // min(sample, self.count) for i in range(min(sample, self.count))]
        digest = hashlib.sha256(json.dumps([self.count, *self.shape]).encode())
        digest.update(b"" if self.labels is None else self.labels.numpy().tobytes())
        digest.update(self.pixels(torch.tensor(chosen)).numpy().tobytes())
        return digest.hexdigest()


class MemoryData(ImageData):
    """Decoded images, held as one uint8 tensor."""

    def __init__(self, images: Tensor, labels: Tensor | None, **about: Any) -> None:
        self.images = images
        super().__init__(len(images), images.shape[1:], labels, **about)

    def pixels(self, indices: Tensor) -> Tensor:
        return self.images[indices]


class LazyData(ImageData):
    """More pictures than fit in memory, decoded by threads when they are fetched."""

    def __init__(self, pictures: Pictures, form: Form, labels: Tensor | None, **about: Any) -> None:
        self.pictures, self.form = pictures, form
        self.pool = ThreadPoolExecutor(thread_name_prefix="decode")
        super().__init__(pictures.count, form.shape, labels, **about)

    def pixels(self, indices: Tensor) -> Tensor:
        images = np.empty((len(indices), *self.shape), dtype=np.uint8)
        chosen = indices.tolist()
        for row, image in enumerate(self.pool.map(lambda index: self.form.decode(self.pictures, index), chosen)):
            images[row] = image
        return torch.from_numpy(images)


# Pictures: encoded images that have yet to become one shape -----------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """Images that can be opened by index, and the name by which an error calls each."""

    count: int
    open: Callable[[int], Image.Image]
    name: Callable[[int], str]


@dataclass(frozen=True)
class Header:
    """What is known of a picture before it is decoded."""

    name: str
    width: int
    height: int
    kind: str


MODES = {
    "1": "grey", "L": "grey", "I;16": "grey", "I;16B": "grey", "I;16L": "grey", "I;16N": "grey",
    "RGB": "RGB", "RGBX": "RGB", "YCbCr": "YCbCr", "HSV": "HSV", "CMYK": "CMYK", "P": "palette",
}  # fmt: skip
ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that swap the sides


class Form:
    """The one shape that every picture must take: checks each against the first, then crops, converts and resizes it."""

    def __init__(self, first: Header, size: int | None, channels: int | None) -> None:
        self.first, self.size, self.channels = first, size, channels
        depth = channels or (1 if first.kind == "grey" else 3)
        self.shape = (depth, size or first.height, size or first.width)
        self.check(first)

    def check(self, picture: Header) -> None:
        first = self.first
        if self.channels is None and picture.kind == "alpha":
            raise UserError(
                f"image {picture.name} has an alpha channel, expected grey or RGB; "
                "put it on white with --channels 3 (or --channels 1)"
            )
        if self.channels is None and picture.kind != first.kind:
            raise UserError(
                f"image {first.name} is {first.kind} but {picture.name} is {picture.kind}, expected one kind; "
                "convert them all with --channels 3 (or --channels 1)"
            )
        if self.size is not None and min(picture.width, picture.height) < self.size:
            raise UserError(
                f"image {picture.name} is {picture.width}x{picture.height}, smaller than the asked {self.size}x{self.size}; "
                f"give --size {min(picture.width, picture.height)} or less, or remove the image"
            )
        if self.size is None and (picture.width, picture.height) != (first.width, first.height):
            smallest = min(picture.width, picture.height, first.width, first.height)
            raise UserError(
                f"image {first.name} is {first.width}x{first.height} but {picture.name} is "
                f"{picture.width}x{picture.height}, expected one size; crop and resize them all with --size {smallest}"
            )

    def inspect(self, pictures: Pictures, index: int) -> None:
        with opened(pictures, index) as image:
            self.check(header(image, pictures.name(index), self.size is None))

    def decode(self, pictures: Pictures, index: int) -> NDArray[np.uint8]:
        """C H W."""
        with opened(pictures, index) as image:
            self.check(header(image, pictures.name(index), self.size is None))
            ImageOps.exif_transpose(image, in_place=True)
            cropped = self.crop(image)
            plain = on_white(cropped).convert("L" if self.shape[0] == 1 else "RGB")
            if self.size is not None and plain.width != self.size:
                plain = plain.resize((self.size, self.size), Image.Resampling.LANCZOS)
            return np.asarray(plain, dtype=np.uint8).reshape(*self.shape[1:], self.shape[0]).transpose(2, 0, 1)

    def crop(self, image: Image.Image) -> Image.Image:
        """The centre square when a size is asked for."""
        side = min(image.width, image.height)
        if self.size is None or image.width == image.height:
            return image
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return image.crop((left, top, left + side, top + side))


def open_picture(source: Path | bytes) -> Image.Image:
    """With the decoders of plain images alone: others start programs. What is too large for its file is not decoded."""
    if isinstance(source, Path):
        must_be_plain(source)
    image = Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS)
    size, pixels = source.stat().st_size if isinstance(source, Path) else len(source), image.width * image.height
    if 4 * pixels > max(SMALL, DENSEST * size):
        image.close()
        raise ValueError(f"it says {image.width} x {image.height} pixels in {size:,} bytes")
    return image


@contextmanager
def opened(pictures: Pictures, index: int) -> Iterator[Image.Image]:
    """Whatever goes wrong with the picture inside is told with its name."""
    try:
        with pictures.open(index) as image:
            yield image
    except (UserError, MemoryError):
        raise
    except Exception as error:  # decoders raise nearly anything for a broken file
        raise UserError(trouble(pictures.name(index), error)) from error


def trouble(name: str, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"image {name} may not be read (permission denied); change its permissions"
    if isinstance(error, FileNotFoundError):
        return f"image {name} is not there; put it back, or load the data again without it"
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
    return f"image {name} cannot be decoded ({reason}); replace or remove it"


def header(image: Image.Image, name: str, exact: bool) -> Header:
    """Without decoding. A rotated photo swaps its sides, which matters (`exact`) only where no square is cut out."""
    width, height = image.size
    if exact and width != height and image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS:
        width, height = height, width
    if image.mode not in ALPHA_MODES and image.mode not in MODES:
        raise UserError(
            f"image {name} has {image.mode!r} pixels, expected 8 or 16 bits a channel; convert it to 8 bits"
        )
    kind = "alpha" if image.has_transparency_data else MODES[image.mode]
    return Header(name, width, height, kind)


def on_white(image: Image.Image) -> Image.Image:
    """Alpha composited on white; 16-bit grey rounded to 8 (Pillow would clip it)."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    colour = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)


def gather(pictures: Pictures, labels: Tensor | None, wish: Wish, **about: Any) -> ImageData:
    """All pictures decoded, or, where they exceed the memory limit, checked by their headers and decoded when fetched."""
    with opened(pictures, 0) as image:
        form = Form(header(image, pictures.name(0), wish.size is None), wish.size, wish.channels)
    if pictures.count * int(np.prod(form.shape)) > MEMORY_LIMIT:
        in_parallel(pictures.count, lambda index: form.inspect(pictures, index), wish.progress)
        return LazyData(pictures, form, labels, **about)
    images = np.empty((pictures.count, *form.shape), dtype=np.uint8)

    def place(index: int) -> None:
        images[index] = form.decode(pictures, index)

    in_parallel(pictures.count, place, wish.progress)
    return MemoryData(torch.from_numpy(images), labels, **about)


def in_parallel(count: int, work: Callable[[int], None], progress: Progress) -> None:
    """work(i) for every i < count on threads. Of several errors the one of the lowest i is raised, on every run."""

    def run(span: range) -> int:
        for index in span:
            work(index)
        return span.stop

    progress(0, count)
    with ThreadPoolExecutor() as pool:
        for done in pool.map(run, [range(start, min(start + SPAN, count)) for start in range(0, count, SPAN)]):
            progress(done, count)


# Sources --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What the user asked of the images, the same for every source."""

    size: int | None = None
    channels: int | None = None
    labels: bool = True
    progress: Progress = silent
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise UserError(f"size is {self.size}, expected 1 or more pixels; leave it out to keep the images' own")
        if self.channels not in (None, 1, 3):
            raise UserError(
                f"channels is {self.channels}, expected 1 (grey) or 3 (RGB); leave it out to keep the images' own"
            )


def load_data(
    source: str | os.PathLike[str],
    *,
    size: int | None = None,
    channels: int | None = None,
    labels: bool = True,
    device: str = "auto",
    progress: Progress | None = None,
) -> ImageData:
    """Images from a folder, an `.npz`, `digits`, `hf:NAME[:split]` or `teacher:NAME`.

    `size` crops the centre square and scales it down (Lanczos, antialiased); `channels` 1 or 3 converts, with alpha put on
    white. Without them the images must agree. Nothing is ever scaled up.
    """
    name, wish = os.fspath(source), Wish(size, channels, labels, progress or silent, device)
    kind, colon, rest = name.partition(":")
    if name == "digits":
        return digits(wish)
    if colon and kind in OPENERS:
        return OPENERS[kind](rest, wish)
    path = place_of(name)
    try:
        if name and path.is_dir():
            return hugging_face(name, wish) if is_saved_dataset(path) else image_folder(name, path, wish)
        if path.is_file():
            return npz_file(name, path, wish)
        raise nothing_there(name, path)
    except OSError as error:
        raise UserError(f"data {name!r} cannot be read ({error.strerror or error}); check its permissions") from error


def check_source(name: str) -> None:
    """Whether there is something by this name, before anything is read; what is elsewhere is not asked for."""
    kind, colon, _ = name.partition(":")
    path = place_of(name)
    if name != "digits" and not (colon and kind in OPENERS) and not (name and path.exists()):
        raise nothing_there(name, path)


def nothing_there(name: str, path: Path) -> UserError:
    return UserError(f"there is no data {name!r}, expected {SOURCES}{nearby(name, path)}")


def nearby(name: str, path: Path) -> str:
    """`; did you mean 'x'?` among the words of this page and the neighbours of a path that does not exist."""
    siblings = [str(entry) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    rest = name.partition(":")[2]
    words = ["digits", *(f"{known}:{rest}" for known in OPENERS)]
    close = difflib.get_close_matches(name, words, 1) or difflib.get_close_matches(str(path), siblings, 1, 0.8)
    return f"; did you mean {close[0]!r}?" if close else "; check the spelling"


def from_array(images: NDArray[np.uint8], labels: Tensor | None, wish: Wish, **about: Any) -> ImageData:
    """uint8 N C H W, cropped, scaled and converted as wished."""
    _, depth, height, width = images.shape
    if depth in (1, 3) and wish.channels in (None, depth) and (wish.size is None or wish.size == height == width):
        return MemoryData(torch.from_numpy(np.ascontiguousarray(images)), labels, **about)

    def open_image(index: int) -> Image.Image:
        pixels = np.ascontiguousarray(images[index].transpose(1, 2, 0))
        return Image.fromarray(pixels[..., 0] if depth == 1 else pixels)

    pictures = Pictures(len(images), open_image, lambda index: f"{index} of {about['description']['source']}")
    return gather(pictures, labels, wish, **about)


# A folder of images


def image_folder(source: str, root: Path, wish: Wish) -> ImageData:
    """Every image below `root`, in order of path. Sub-folders directly below the root are the classes."""
    files = image_files(root)
    if not files:
        raise UserError(
            f"folder {source!r} holds no images, expected {', '.join(sorted(SUFFIXES))}; give the folder they lie in"
        )
    tops = [file.relative_to(root).parts[0] if file.parent != root else None for file in files]
    names = sorted({top for top in tops if top is not None})
    stray = next((file for file, top in zip(files, tops, strict=True) if top is None), None)
    if wish.labels and stray is not None and len(names) > 1:
        raise UserError(
            f"image {stray} lies beside the sub-folders {names[0]!r}, {names[1]!r}, which would be the classes; "
            "move it into one of them, or load without labels"
        )
    # One sub-folder tells nothing apart, so it is not a class.
    labelled = wish.labels and None not in tops and len(names) > 1
    number = {name: label for label, name in enumerate(names)}
    labels = torch.tensor([number[top] for top in tops if top is not None]) if labelled else None
    pictures = Pictures(len(files), lambda index: open_picture(files[index]), lambda index: str(files[index]))
    about = {"classes": len(names), "class_names": names, "description": {"kind": "folder", "source": source}}
    return gather(pictures, labels, wish, **about)


def image_files(root: Path) -> list[Path]:
    """Recursively, links followed once; hidden files and macOS's shadows left out."""

    def refuse(error: OSError) -> None:
        raise error

    files: list[Path] = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__MACOSX")
        files += [
            Path(folder, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return sorted(files, key=lambda file: file.relative_to(root).parts)


# An .npz file

NPZ_KEYS = (("images", "labels"), ("train_images", "train_labels"), ("arr_0", "arr_1"))
IMAGE_KEYS = {key for pair in NPZ_KEYS for key in pair} | {"description"}
TOLERANCE = 1e-3  # how far a float image may leave its range, by rounding


def npz_file(source: str, path: Path, wish: Wish) -> ImageData:
    """`images` (or `train_images`, `arr_0`) and, if there are any, `labels` (or `train_labels`, `arr_1`)."""
    if path.suffix.lower() != ".npz":
        raise UserError(
            f"data {source!r} is a {path.suffix or 'nameless kind of'} file, expected {SOURCES}; unpack or convert it"
        )
    arrays = read_npz(source, path, IMAGE_KEYS)
    keys = next(((images, labels) for images, labels in NPZ_KEYS if images in arrays), None)
    if keys is None:
        raise UserError(
            f"{source} holds {', '.join(arrays) or 'nothing'}, expected 'images' and optionally 'labels'; rename the key"
        )
    images = channels_first(eight_bits(arrays[keys[0]], source), source)
    labels = as_labels(arrays[keys[1]], len(images), source) if wish.labels and keys[1] in arrays else None
    classes = None if labels is None else int(labels.max()) + 1
    description = {"kind": "npz", "source": source}
    return from_array(images, labels, wish, classes=classes, class_names=None, description=description)


PACKED = 200  # how many times its size a file may unpack to; the densest of our own to some dozens
NPY = ".npy"  # what members are called in the archive
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(source: str, path: Path, wanted: Collection[str]) -> dict[str, NDArray[Any]]:
    """Arrays only: pickled objects could run code and are refused. Where none is wanted, all names with empty arrays."""
    with unzipped(source, path) as archive:
        keys = keys_of(archive)
        known = [key for key in keys if key in wanted]
        unpacked = sum(archive.getinfo(key + NPY).file_size for key in known)
        if unpacked > max(SMALL, PACKED * path.stat().st_size):
            raise UserError(
                f"{source} unpacks to {unpacked:,} bytes, more than {PACKED} times its own size; save it again with numpy.savez"
            )
        return {key: read_member(archive, key + NPY, source) for key in known} or {key: np.empty(0) for key in keys}


def npz_keys(path: Path) -> list[str]:
    """The names of a file's arrays; none where it is no .npz file."""
    try:
        with unzipped(str(path), path) as archive:
            return keys_of(archive)
    except (UserError, OSError):
        return []


def keys_of(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(NPY) for name in archive.namelist() if name.endswith(NPY)]


@contextmanager
def unzipped(source: str, path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        must_be_plain(path)
        with path.open("rb") as file:
            if file.read(6) == np.lib.format.MAGIC_PREFIX:
                raise ValueError("it is a single .npy array")
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (PermissionError, UserError):
        raise
    except Exception as error:  # zip files, their headers and their content break in many ways
        raise UserError(
            f"{source} cannot be read as .npz ({first_line(error)}); save it again with numpy.savez"
        ) from error


def read_member(archive: zipfile.ZipFile, name: str, source: str) -> NDArray[Any]:
    """Its header first: memory is asked for only where the data are there."""
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed as numpy does not")  # the others are unpacked without end
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"{name} has format {version}")
        shape, _, dtype = HEADERS[version](file)
        if dtype.hasobject:
            raise UserError(f"{source} holds pickled objects, expected arrays of numbers; save plain arrays")
        claimed, there = math.prod(shape) * dtype.itemsize, archive.getinfo(name).file_size - file.tell()
        if claimed != there or min(shape, default=0) < 0:
            raise ValueError(f"{name} says {claimed:,} bytes of shape {shape} and has {there:,}")
    with archive.open(name) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array


def eight_bits(images: NDArray[Any], source: str) -> NDArray[np.uint8]:
    """Floats in [-1, 1], or in [0, 1] when none is negative, rounded to 0..255."""
    if images.ndim == 0:
        raise UserError(f"the images of {source} are a single number, expected an array N H W, N H W C or N C H W")
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(
            f"the images of {source} are {images.dtype}, expected uint8 or float; convert them with .astype('uint8')"
        )
    spans = [slice(start, start + 1024) for start in range(0, len(images), 1024)]
    for span in spans:
        refuse_outliers(images[span], span.start, source)
    signed = any(float(images[span].min()) < -TOLERANCE for span in spans)
    scale, shift = (127.5, 127.5) if signed else (255.0, 0.0)
    result = np.empty(images.shape, dtype=np.uint8)
    for span in spans:
        result[span] = (images[span].astype(np.float32) * scale + shift).round().clip(0, 255)
    return result


def refuse_outliers(images: NDArray[Any], start: int, source: str) -> None:
    good = np.abs(images) <= 1 + TOLERANCE  # false for NaN too
    if good.all():
        return
    index = int(np.argmin(good.reshape(len(images), -1).all(axis=1)))
    value = images[index][~good[index]].flat[0]
    raise UserError(
        f"image {index + start} of {source} holds {value:g}, expected floats in [-1, 1] or [0, 1]; mend it, or store uint8"
    )


def channels_first(images: NDArray[np.uint8], source: str) -> NDArray[np.uint8]:
    """N H W, N H W C or N C H W as N C H W. Where both of the last two fit, square images decide."""
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or 0 in images.shape:
        raise UserError(
            f"the images of {source} have shape {images.shape}, expected N H W, N H W C or N C H W; reshape them"
        )
    layouts = [layout for layout in (images, images.transpose(0, 3, 1, 2)) if layout.shape[1] in (1, 3, 4)]
    square = [layout for layout in layouts if layout.shape[2] == layout.shape[3]]
    if len(layouts) != 1:
        layouts = square
    if len(layouts) != 1:
        raise UserError(
            f"the images of {source} have shape {images.shape}, expected 1, 3 or 4 channels, first or last, beyond doubt; "
            "transpose them to N H W C"
        )
    return layouts[0]


def as_labels(labels: NDArray[Any], count: int, source: str) -> Tensor:
    """N or N 1 integers from 0, as int64."""
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape not in ((count,), (count, 1)):
        raise UserError(
            f"the labels of {source} are {labels.dtype} of shape {labels.shape}, expected {count} integers; "
            "mend them, or load without labels"
        )
    numbers = labels.reshape(-1).astype(np.int64)
    if numbers.min() < 0:
        index = int(np.argmax(numbers < 0))
        raise UserError(
            f"image {index} of {source} has label {numbers[index]}, expected 0 or more; mend it, or load without labels"
        )
    if numbers.max() >= MOST_CLASSES:
        index = int(numbers.argmax())
        raise UserError(
            f"image {index} of {source} has label {numbers[index]}, which is no class; number the classes from 0, "
            "or load without labels"
        )
    return torch.from_numpy(numbers)


# scikit-learn's digits


def digits(wish: Wish) -> ImageData:
    """1,797 images of 8x8 with grey levels v = 0..16, stored as round(255 v / 16), half rounded up: 0, 16, 32, ... 255."""
    bunch = need("sklearn.datasets", "scikit-learn").load_digits()
    images = ((bunch.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64)) if wish.labels else None
    description = {"kind": "digits", "source": "digits"}
    return from_array(images, labels, wish, classes=10, class_names=list("0123456789"), description=description)


def need(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this data needs {package}, which is missing; install it with: pip install 'onefold[data]'"
        ) from error


# A Hugging Face dataset

USUAL_COLUMNS = {"image", "img", "label", "labels"}


def hugging_face(text: str, wish: Wish) -> ImageData:
    """`NAME[:split][?config=...&image=...&label=...]`; NAME is a hub id or a folder."""
    place, _, query = text.partition("?")
    name, _, split = place.partition(":")
    asked = options(query, {"config": "", "image": "", "label": ""})
    datasets = need("datasets", "datasets")
    table = open_dataset(datasets, name, asked["config"], split)
    image = column(table.features, datasets.Image, asked["image"], "image", name)
    label = column(table.features, datasets.ClassLabel, asked["label"], "label", name) if wish.labels else None
    if image is None or not isinstance(table.features[image], datasets.Image) or not len(table):
        rows = f"{len(table)} rows of {', '.join(table.features)}"
        raise UserError(f"data set {name!r} has {rows}, expected a column of images; choose another")
    labels = None if label is None else as_labels(whole_column(table, label), len(table), name)
    names = getattr(table.features[label], "names", None) if label is not None else None
    classes = None if labels is None else len(names) if names else int(labels.max()) + 1
    cells = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    pictures = Pictures(len(table), lambda index: open_cell(cells[index][image]), lambda index: f"{index} of {name}")
    facts = {"kind": "hf", "source": f"hf:{text}", "split": str(table.split or split), "image": image, "label": label}
    about = {"classes": classes, "class_names": names, "description": facts}
    return gather(pictures, labels, wish, **about)


def is_saved_dataset(path: Path) -> bool:
    """Made by `save_to_disk`."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def open_dataset(datasets: Any, name: str, config: str, split: str) -> Any:
    path = Path(name).expanduser()
    try:
        if is_saved_dataset(path):
            return pick_split(datasets.load_from_disk(str(path)), name, split)
        return datasets.load_dataset(str(path) if path.is_dir() else name, config or None, split=split or "train")
    except UserError:
        raise
    except Exception as error:  # the hub, the net and the builders each have their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"data set {name!r} cannot be loaded ({reason}); check its name, its split and the connection"
        ) from error


def pick_split(saved: Any, name: str, split: str) -> Any:
    splits = saved if isinstance(saved, dict) else {str(saved.split or split): saved}
    wanted = split or ("train" if "train" in splits else next(iter(splits)))
    if wanted not in splits:
        raise UserError(f"data set {name!r} has no split {wanted!r}{suggest(wanted, splits)}")
    return splits[wanted]


def column(features: Mapping[str, Any], kind: type, asked: str, role: str, name: str) -> str | None:
    """The column asked for, or the only one of this type, or of several the one with a usual name."""
    if asked:
        if asked not in features:
            raise UserError(f"data set {name!r} has no column {asked!r}{suggest(asked, features)}")
        return asked
    fits = [key for key, feature in features.items() if isinstance(feature, kind)]
    usual = fits if len(fits) < 2 else [key for key in fits if key in USUAL_COLUMNS]
    if fits and len(usual) != 1:
        raise UserError(
            f"data set {name!r} has several {role} columns, {', '.join(fits)}; choose one with ?{role}={fits[0]}"
        )
    return usual[0] if usual else None


def whole_column(table: Any, name: str) -> NDArray[Any]:
    return np.asarray(table.select_columns([name]).with_format("numpy")[:][name])


def open_cell(cell: Mapping[str, Any] | None) -> Image.Image:
    if cell is None:
        raise ValueError("the row is empty")
    return open_picture(Path(cell["path"]) if cell["bytes"] is None else cell["bytes"])


def options(query: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """`key=value&key=value` over the known keys and their defaults; where the default is a number, so is the value."""
    result = dict(known)
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in known:
            raise UserError(f"unknown option {key!r} of a data source{suggest(key, known)}")
        if isinstance(known[key], int) and not value.isdecimal():
            raise UserError(
                f"option {key}={value!r} of a data source is not a whole number; write e.g. {key}={known[key]}"
            )
        result[key] = int(value) if isinstance(known[key], int) else value
    return result


# Samples of a teacher

SOLVER = "ipndm3"
PARTS = 10  # how often a long draw is written to its cache


def samples(text: str, wish: Wish) -> ImageData:
    """`NAME_OR_FOLDER[?count=5000&calls=20&seed=0&solver=...&batch_size=...&cache=FILE.npz]`."""
    name, _, query = text.partition("?")
    known = {"count": 5000, "solver": SOLVER, "calls": 20, "seed": 0, "batch_size": 64, "cache": ""}
    asked = options(query, known)
    asked["cache"] = Path(asked["cache"]).expanduser() if asked["cache"] else None
    from onefold.teachers import load_teacher

    data = teacher_data(load_teacher(name, device=wish.device), progress=wish.progress, **asked)
    labels = data.labels if wish.labels else None
    pixels = data.pixels(torch.arange(len(data))).numpy()
    description = {**data.description, "source": f"teacher:{text}"}
    return from_array(pixels, labels, wish, classes=data.classes, class_names=None, description=description)


def teacher_data(
    teacher: Denoiser,
    count: int,
    *,
    solver: str = SOLVER,
    calls: int = 20,
    seed: int = 0,
    batch_size: int = 64,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> ImageData:
    """Data for training without data: `count` samples of a teacher with their labels.

    They are kept in the .npz `cache` if given, also while they are drawn, and a later call goes on from there: image i
    depends on (seed, i) alone, so a shorter run is the beginning of a longer one.
    """
    if count < 1 or batch_size < 1:
        raise UserError(
            f"count is {count} and batch_size {batch_size}, expected 1 or more; say how many samples to draw"
        )
    recipe = {"teacher": fingerprint_of(teacher), "solver": solver, "calls": calls, "seed": seed}
    images, labels = (None, None) if cache is None else read_cache(cache, recipe)
    part = count if cache is None else -(-count // (PARTS * batch_size)) * batch_size
    while images is None or len(images) < count:
        first = 0 if images is None else len(images)
        indices = range(first, min(first + part, count))
        report = partial(onwards, progress or silent, first, count)
        drawn, classes = draw(teacher, indices, report, solver=solver, calls=calls, seed=seed, batch_size=batch_size)
        images = drawn if images is None else torch.cat([images, drawn])
        labels = classes if labels is None or classes is None else torch.cat([labels, classes])
        if cache is not None:
            write_cache(cache, images, labels, recipe)
    labels = None if labels is None else labels[:count]
    # samples differ in the last bit from device to device; what they are is said by their recipe
    fingerprint = hashlib.sha256(json.dumps([recipe, count], sort_keys=True).encode()).hexdigest()
    description = {"kind": "teacher", "source": f"teacher:{teacher.name}", **recipe, "fingerprint": fingerprint}
    return MemoryData(images[:count], labels, classes=teacher.classes, class_names=None, description=description)


def draw(
    teacher: Denoiser, indices: range, progress: Progress, *, seed: int, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    """Images of a seed as uint8, and their labels."""
    from onefold.sampling import labels_for, sample

    images = sample(teacher, len(indices), first=indices.start, seed=seed, progress=progress, **settings)
    return to_uint8(images).cpu(), labels_for(teacher, seed, indices)


def onwards(progress: Progress, before: int, total: int, done: int, _part: int | None, **facts: object) -> None:
    """Progress of a part, told as progress of the whole."""
    progress(before + done, total, **facts)


def fingerprint_of(teacher: Denoiser) -> str:
    """sha256 over what decides a teacher's samples: its weights, its architecture, and the plain attributes of itself and
    its process."""
    digest = hashlib.sha256()
    parts: dict[str, Any] = {**vars(teacher), "calls": None, "name": None, "process": type(teacher.process).__name__}
    parts |= {f"process.{key}": value for key, value in vars(teacher.process).items()}
    parts["prompts"] = teacher.prompts.fingerprint if teacher.prompts else None
    modules = {"network": teacher.network, "codec": teacher.codec and teacher.codec.module}
    for name, module in modules.items():
        if isinstance(module, nn.Module):
            parts |= module.state_dict(prefix=f"{name}.") | {name: architecture(module)}
    for key, value in sorted(parts.items()):
        if isinstance(value, Tensor):
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        elif isinstance(value, str | int | float | tuple):
            data = repr(value).encode()
        else:
            continue
        digest.update(key.encode() + b"\0" + data)
    return digest.hexdigest()


def architecture(module: nn.Module) -> str:
    """What weights alone do not say, such as activations: the module's own plain config, or how it describes itself."""
    config = getattr(module, "config", None)
    if not isinstance(config, Mapping):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(module))
    # what begins with _ says where it came from
    return json.dumps({key: value for key, value in config.items() if key[:1] != "_"}, sort_keys=True, default=repr)


def read_cache(cache: Path, recipe: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """What a cache holds, nothing if there is none; another recipe is refused, for samples are dear."""
    if not cache.exists():
        return None, None
    arrays = read_npz(str(cache), cache, IMAGE_KEYS)
    try:
        held = json.loads(str(arrays["description"]))
        images, labels = torch.from_numpy(arrays["images"]), arrays.get("labels")
        other = next((key for key in recipe if held[key] != recipe[key]), None)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{cache} is no cache of a teacher's samples; name another file") from error
    if other is not None:
        raise UserError(
            f"{cache} holds samples with {other} {held[other]!r}, not {recipe[other]!r}; delete it or name another file"
        )
    return images, None if labels is None else torch.from_numpy(labels)


def write_cache(cache: Path, images: Tensor, labels: Tensor | None, recipe: Mapping[str, Any]) -> None:
    arrays: dict[str, Any] = {"images": images.numpy(), "description": np.array(json.dumps(recipe))}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    with atomic_file(cache) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)


OPENERS: dict[str, Callable[[str, Wish], ImageData]] = {"hf": hugging_face, "teacher": samples}


# The stream of training -----------------------------------------------------------------------------------------------


class Stream:
    """The endless shuffled stream, as a function of position: nothing to save, nothing to resume.

    Row r of step s is place p = s * batch_size + r of the stream. It lies in epoch p // n and is the image at place p % n
    of that epoch's permutation, so any split into processes and micro-batches sees the same images.
    """

    def __init__(self, data: ImageData, *, batch_size: int, seed: int, flip: bool = False) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, expected 1 or more; give the images of one step")
        self.data, self.batch_size, self.seed, self.flip = data, batch_size, seed, flip
        self.permutations: OrderedDict[int, Tensor] = OrderedDict()
        self.lock = threading.Lock()

    def batch(self, step: int, rows: range | None = None) -> tuple[Tensor, Tensor | None]:
        """Images (float32 in [-1, 1], N C H W) and labels of some rows of a step, or of all."""
        rows = range(self.batch_size) if rows is None else rows
        if step < 0 or not all(0 <= row < self.batch_size for row in rows[:: max(1, len(rows) - 1)]):
            raise IndexError(f"{rows} of step {step} is not in a batch of {self.batch_size}")
        places = torch.tensor([step * self.batch_size + row for row in rows], dtype=torch.int64)
        images, labels = self.data.fetch(self.indices(places))
        images = to_float(images)
        if self.flip:
            turned = [seeds.uniform(self.seed, seeds.FLIP, place) < 0.5 for place in places.tolist()]
            mask = torch.tensor(turned, dtype=torch.bool)
            images[mask] = images[mask].flip(-1)
        return images, labels

    def indices(self, places: Tensor) -> Tensor:
        """Which image lies at each place of the stream."""
        epochs, within = places // len(self.data), places % len(self.data)
        result = torch.empty_like(places)
        for epoch in sorted(set(epochs.tolist())):
            result[epochs == epoch] = self.permutation(epoch)[within[epochs == epoch]]
        return result

    def permutation(self, epoch: int) -> Tensor:
        """The two last used are kept: a batch may span two epochs, and a large shuffle takes seconds."""
        with self.lock:
            if epoch not in self.permutations:
                shuffle = seeds.generator(self.seed, seeds.SHUFFLE, epoch)
                self.permutations[epoch] = torch.randperm(len(self.data), generator=shuffle)
                if len(self.permutations) > 2:
                    self.permutations.popitem(last=False)
            self.permutations.move_to_end(epoch)
            return self.permutations[epoch]
