"""Pictures: grids, labelled rows, and what happens when they cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from onefold.errors import UserError
from onefold.pictures import GAP, labelled_rows, picture_grid, save_png


def test_picture_grid_places_images_row_by_row() -> None:
    images = torch.stack([torch.full((1, 4, 4), value) for value in (-1.0, 0.0, 1.0)])
    picture = picture_grid(images, columns=2, scale=2)
    assert picture.size == (2 * (8 + GAP) + GAP, 2 * (8 + GAP) + GAP)
    middles = [picture.getpixel((GAP + 4 + x, GAP + 4 + y)) for x, y in ((0, 0), (8 + GAP, 0), (0, 8 + GAP))]
    assert middles == [0, 128, 255]


def test_pictures_have_one_or_three_channels() -> None:
    assert picture_grid(torch.zeros(2, 3, 8, 8)).mode == "RGB"
    with pytest.raises(UserError, match=r"1 or 3 channels .* \(4, 8, 8\)"):
        picture_grid(torch.zeros(2, 4, 8, 8))
    with pytest.raises(UserError, match="at least one image"):
        picture_grid(torch.zeros(0, 1, 8, 8))


def test_labels_stand_beside_their_rows() -> None:
    """Ink at the left of each row, and none of it in the images."""
    picture = labelled_rows([("first row", torch.ones(3, 1, 8, 8)), ("second\nrow", torch.ones(3, 1, 8, 8))])
    left = picture.convert("L").crop((0, 0, picture.width - 3 * 64 - 40, picture.height))
    for top in (0, left.height // 2):
        assert left.crop((0, top, left.width, top + left.height // 2)).getextrema()[0] < 64


def test_a_picture_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_png(picture_grid(torch.zeros(1, 1, 8, 8)), tmp_path / "a.png")
    before = path.read_bytes()

    def half(self: Image.Image, file: Path, *_: object, **__: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(UserError, match=r"No space.*make room"):
        save_png(picture_grid(torch.ones(1, 1, 8, 8)), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
