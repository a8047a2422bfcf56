"""What generated images are compared with: statistics of real ones, from a file or made from data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from onefold.data import ImageData, load_data, npz_keys, read_npz, to_float
from onefold.errors import UserError
from onefold.files import place_of
from onefold.metrics.extractors import Extractor
from onefold.metrics.statistics import Moments, Statistics, load_statistics
from onefold.progress import Progress, silent
from onefold.version import versions

NAME = "reference.npz"  # inside a teacher's folder
HELD_OUT = 10_000  # images at most that are kept for floors and neighbours


def shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def maker_of(source: str | Path) -> str:
    """The extractor whose statistics a file holds; "" for images and files that do not say."""
    if not is_statistics(source):
        return ""
    path = place_of(source)
    return str(read_npz(str(source), path, {"extractor"}).get("extractor", "")) if "extractor" in npz_keys(path) else ""


def is_statistics(source: str | Path) -> bool:
    """An .npz with `mu`, as the field writes them; an .npz of images has none."""
    path = place_of(source)
    return path.suffix == ".npz" and "mu" in npz_keys(path)


def load_reference(
    source: str | Path,
    extractor: Extractor,
    *,
    shape: Sequence[int] | None = None,
    held_out: int | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Statistics:
    """From a file of statistics made with this extractor, or from images (see `make_reference`), which have the shape of
    those they are for, if that is given: scaled ones are other images."""
    if not is_statistics(source):
        data = load_data(str(source))
        if shape is not None and tuple(data.shape) != tuple(shape):
            raise UserError(
                f"{source} has images of {shape_text(data.shape)}, what is measured makes {shape_text(shape)}; scale the reference first"
            )
        return make_reference(data, extractor, held_out, batch_size, progress)
    found = load_statistics(place_of(source))
    check_maker(found, extractor, str(source))
    return found


def check_maker(found: Statistics, extractor: Extractor, source: str) -> None:
    if found.extractor and found.extractor != extractor.name:
        raise UserError(
            f"{source} holds statistics of {found.extractor!r}, not of {extractor.name!r}; use --extractor {found.extractor}, or other statistics"
        )
    maker = found.provenance.get("identity")
    if maker and maker != extractor.identity:
        raise UserError(
            f"{source} was made with other weights of {extractor.name!r} than are used now; make the statistics again"
        )


def make_reference(
    data: ImageData,
    extractor: Extractor,
    held_out: int | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Statistics:
    """Mean and covariance of all images but those held out (a fifth, 10,000 at most), whose features are kept."""
    kept = min(HELD_OUT, len(data) // 5) if held_out is None else held_out
    if not 0 <= kept <= len(data) - 2:
        raise UserError(
            f"held_out is {kept} of {len(data):,} images, but two or more must be left for mean and covariance; hold out fewer"
        )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    report, done = progress or silent, 0
    report(0, len(data))
    moments, features = Moments(), []
    for indices, aside in portions(order, kept, batch_size):
        vectors = extractor.extract(to_float(data.fetch(indices)[0])).vectors
        if aside:
            features.append(vectors)
        else:
            moments.add(vectors)
        report(done := done + len(indices), len(data))
    provenance = {
        "data": dict(data.description),
        "images": len(data) - kept,
        "held_out": kept,
        "identity": extractor.identity,
        "versions": versions(),
    }
    return moments.statistics(extractor.name, provenance, torch.cat(features) if features else None)


def portions(order: Tensor, kept: int, batch_size: int) -> Iterator[tuple[Tensor, bool]]:
    """Batches of image numbers, and whether they are held out."""
    for part, aside in ((order[:kept], True), (order[kept:], False)):
        for indices in part.split(batch_size):
            if len(indices):
                yield indices, aside
