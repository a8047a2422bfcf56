"""Pictures of batches: grids, and rows with a label beside each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from onefold.data import to_uint8
from onefold.errors import UserError
from onefold.files import atomic_file

INK, PAPER = "black", "white"
GAP = 2  # pixels between images
COLUMNS = 10  # of a comparison


def to_pil(image: Tensor) -> Image.Image:
    """One image (C, H, W) in [-1, 1]."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UserError(
            f"a picture needs an image of 1 or 3 channels as (C, H, W), not one of shape {tuple(image.shape)}"
        )
    pixels = to_uint8(image.cpu())
    return Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy())


def picture_grid(images: Tensor, columns: int | None = None, scale: int | None = None, gap: int = GAP) -> Image.Image:
    """A batch (N, C, H, W) in [-1, 1] as one picture, row by row; about square and enlarged to be seen by default."""
    if not len(images):
        raise UserError("a picture needs at least one image; the batch is empty")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    height, width = (scale or enlargement(images)) * images.shape[-2], (scale or enlargement(images)) * images.shape[-1]
    rows = math.ceil(len(images) / columns)
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    picture = Image.new("L" if images.shape[1] == 1 else "RGB", size, PAPER)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        tile = to_pil(image).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(tile, (gap + column * (width + gap), gap + row * (height + gap)))
    return picture


def enlargement(images: Tensor) -> int:
    """Small images are shown at about 64 pixels; whole factors keep their pixels square."""
    return max(1, round(64 / max(images.shape[-2:])))


def labelled_rows(
    rows: Sequence[tuple[str, Tensor]], *, title: str = "", scale: int | None = None, size: int = 15
) -> Image.Image:
    """One row of images for each (label, batch), the label at its left; lines of a label are split at newlines."""
    strips = [(label, picture_grid(images, len(images), scale).convert("RGB")) for label, images in rows]
    font, margin = ImageFont.load_default(size), size
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    text = max(math.ceil(pen.multiline_textbbox((0, 0), label, font=font)[2]) for label, _ in strips)
    left, top = text + 2 * margin, 2 * margin + size if title else margin
    width = left + max(strip.width for _, strip in strips) + margin
    picture = Image.new("RGB", (width, top + sum(strip.height for _, strip in strips) + margin), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((margin, top / 2), title, INK, font, anchor="lm")
    for label, strip in strips:
        pen.multiline_text((margin, top + strip.height / 2), label, INK, font, anchor="lm")
        picture.paste(strip, (left, top))
        top += strip.height
    return picture


def save_png(picture: Image.Image, path: str | Path) -> Path:
    """Written beside and renamed: a reader never sees half a picture."""
    path = Path(path)
    with atomic_file(path) as draft:
        picture.save(draft, "PNG", optimize=True)
    return path
