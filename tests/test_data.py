"""Every source of images, every complaint about them, and the stream of training."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from onefold import data as data_module
from onefold.data import ImageData, LazyData, MemoryData, Stream, load_data, teacher_data, to_float, to_uint8
from onefold.denoiser import Gaussian, GaussianMixture
from onefold.errors import UserError
from onefold.process import EDM


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def complaint(source: object, **options: Any) -> str:
    """The sentence a user gets: one line that ends with a remedy after a semicolon."""
    with pytest.raises(UserError) as caught:
        load_data(str(source), **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert ";" in sentence
    return sentence


def memory(count: int, shape: tuple[int, ...] = (1, 2, 2), labels: bool = True) -> MemoryData:
    """Image i holds the number i in every pixel."""
    images = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, *shape).contiguous()
    numbers = torch.arange(count) % 3 if labels else None
    return MemoryData(images, numbers, classes=3, class_names=None, description={})


# Conversions


def test_every_byte_survives_the_way_to_float_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    floats = to_float(every)
    assert floats.dtype == torch.float32
    assert floats[0] == -1
    assert floats[-1] == 1
    assert torch.equal(to_uint8(floats), every)


def test_to_uint8_clips_and_takes_low_precision() -> None:
    assert to_uint8(torch.tensor([-3.0, 3.0, 0.0])).tolist() == [0, 255, 128]
    assert to_uint8(torch.tensor([1.0, -1.0], dtype=torch.bfloat16)).tolist() == [255, 0]


# Folders


def test_png_pixels_are_exact_and_order_is_by_path(tmp_path: Path) -> None:
    arrays = [pixels(5, 7, 3, seed=i) for i in range(3)]
    for name, array in zip(("b/2.png", "a.png", "b/10.PNG"), arrays, strict=True):
        save(tmp_path / name, array)
    data = load_data(tmp_path)
    assert data.shape == (3, 5, 7)
    images, labels = data.fetch([0, 1, 2])
    assert labels is None  # one image lies at the root, so folders are no classes
    expected = np.stack([arrays[1], arrays[2], arrays[0]]).transpose(0, 3, 1, 2)
    assert images.dtype == torch.uint8
    assert np.array_equal(images.numpy(), expected)
    assert json.loads(json.dumps(data.description)) == data.description


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/2.png", "cat/deep/1.png", "emu/1.png"):
        save(tmp_path / name, pixels(4, 4))
    data = load_data(tmp_path)
    assert data.class_names == ["cat", "dog", "emu"]
    assert data.classes == 3
    labels = data.fetch(range(4))[1]
    assert labels is not None
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 0, 1, 2]
    plain = load_data(tmp_path, labels=False)
    assert (plain.classes, plain.class_names, plain.fetch([0])[1]) == (None, None, None)
    assert plain.description["fingerprint"] != data.description["fingerprint"]


def test_one_sub_folder_is_no_class(tmp_path: Path) -> None:
    save(tmp_path / "images" / "1.png", pixels(4, 4))
    assert load_data(tmp_path).classes is None


def test_hidden_files_and_other_files_are_left_out(tmp_path: Path) -> None:
    save(tmp_path / "1.png", pixels(4, 4))
    (tmp_path / "._1.png").write_bytes(b"shadow")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".thumbs").mkdir()
    (tmp_path / ".thumbs" / "1.png").write_bytes(b"")
    assert len(load_data(tmp_path)) == 1


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "1.png", pixels(4, 4))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "circle").symlink_to(tmp_path / "data")
    assert len(load_data(tmp_path / "data")) == 1


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tiff", "tif", "webp", "jpg", "jpeg"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    array = np.full((8, 8), 200, dtype=np.uint8)
    exact = {"lossless": True} if suffix == "webp" else {}
    save(tmp_path / f"1.{suffix}", array, **exact)
    data = load_data(tmp_path, channels=1)
    assert data.shape == (1, 8, 8)
    assert np.abs(data.fetch([0])[0].numpy().astype(int) - 200).max() <= 1


def test_size_crops_the_centre_and_scales_down_with_antialiasing(tmp_path: Path) -> None:
    array = np.zeros((8, 16, 3), dtype=np.uint8)
    array[:, 4:12] = (np.indices((8, 8)).sum(0) % 2 * 255)[..., None]  # a chequered centre, black sides
    save(tmp_path / "wide.png", array)
    save(tmp_path / "tall.png", array.transpose(1, 0, 2).copy())
    data = load_data(tmp_path, size=4)
    assert data.shape == (3, 4, 4)
    values = data.fetch([0, 1])[0].numpy().astype(int)
    assert abs(values - 128).max() <= 16  # averaged; sampling single pixels would give 0 and 255
    whole = load_data(tmp_path, size=8).fetch([1])[0].numpy()[0]
    assert np.array_equal(whole, array[:, 4:12].transpose(2, 0, 1))


def test_size_resizes_as_pillow_lanczos(tmp_path: Path) -> None:
    array = pixels(32, 32, 3)
    save(tmp_path / "1.png", array)
    expected = np.asarray(Image.fromarray(array).resize((12, 12), Image.Resampling.LANCZOS))
    assert np.array_equal(load_data(tmp_path, size=12).fetch([0])[0].numpy()[0].transpose(1, 2, 0), expected)


def test_different_sizes_need_a_size(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels(8, 8))
    save(tmp_path / "b.png", pixels(9, 12))
    sentence = complaint(tmp_path)
    for word in ("a.png", "8x8", "b.png", "12x9", "--size 8"):
        assert word in sentence
    assert load_data(tmp_path, size=8).shape == (1, 8, 8)


def test_nothing_is_scaled_up(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels(32, 32))
    save(tmp_path / "b.png", pixels(20, 40))
    sentence = complaint(tmp_path, size=32)
    for word in ("b.png", "40x20", "32x32", "--size 20"):
        assert word in sentence


def palette(path: Path) -> Path:
    Image.fromarray(pixels(4, 4, 3)).quantize(8).save(path)
    return path


@pytest.mark.parametrize("other", ["grey", "palette", "CMYK"])
def test_mixed_kinds_need_channels(tmp_path: Path, other: str) -> None:
    save(tmp_path / "a.png", pixels(4, 4, 3))
    if other == "grey":
        save(tmp_path / "b.png", pixels(4, 4))
    elif other == "palette":
        palette(tmp_path / "b.png")
    else:
        Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "b.jpg")
    sentence = complaint(tmp_path)
    for word in ("a.png", "RGB", "b.", other, "--channels 3"):
        assert word in sentence
    assert load_data(tmp_path, channels=3).shape == (3, 4, 4)
    assert load_data(tmp_path, channels=1).shape == (1, 4, 4)


def test_alpha_needs_channels_and_goes_on_white(tmp_path: Path) -> None:
    array = np.zeros((4, 4, 4), dtype=np.uint8)
    array[..., 0], array[:2, :, 3], array[2:, :, 3] = 255, 255, 0  # red above, nothing below
    save(tmp_path / "a.png", array)
    assert "alpha" in complaint(tmp_path)
    image = load_data(tmp_path, channels=3).fetch([0])[0][0]
    assert image[:, 0, 0].tolist() == [255, 0, 0]
    assert image[:, 3, 3].tolist() == [255, 255, 255]
    grey = load_data(tmp_path, channels=1).fetch([0])[0][0, 0]
    assert grey[:, 0].tolist() == [76, 76, 255, 255]


def test_alpha_beside_rgb_is_told(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels(4, 4, 3))
    save(tmp_path / "b.png", pixels(4, 4, 4))
    assert "b.png has an alpha channel" in complaint(tmp_path)


def test_transparent_palette_goes_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    assert "alpha" in complaint(tmp_path)
    values = load_data(tmp_path, channels=3).fetch([0])[0][0]
    assert values[:, 0, 0].tolist() == [0, 0, 255]
    assert values[:, 1, 1].tolist() == [255, 255, 255]


def test_palette_alone_is_rgb(tmp_path: Path) -> None:
    path = palette(tmp_path / "a.png")
    expected = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(load_data(tmp_path).fetch([0])[0].numpy()[0], expected)


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    image = load_data(tmp_path).fetch([0])[0][0].to(torch.int64)
    assert (image[:, 4, 4] - torch.tensor([255, 0, 0])).abs().max() <= 4


def test_sixteen_bit_grey_is_rounded_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 128, 129, 257], [32768, 65535, 65407, 65406]], dtype=np.uint16)
    save(tmp_path / "a.png", levels)
    expected = [[0, 0, 1, 1], [128, 255, 255, 254]]
    assert load_data(tmp_path).fetch([0])[0][0, 0].tolist() == expected
    assert load_data(tmp_path, channels=3).fetch([0])[0][0, 2].tolist() == expected


def test_deeper_pixels_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.tiff", np.ones((4, 4), dtype=np.float32))
    sentence = complaint(tmp_path)
    assert "'F' pixels" in sentence
    assert "a.tiff" in sentence


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation_is_honoured(tmp_path: Path, suffix: str) -> None:
    upright = np.zeros((8, 16), dtype=np.uint8)
    upright[:, 8:] = 255  # 16 wide, white at the right
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    Image.fromarray(np.rot90(upright).copy()).convert("RGB").save(tmp_path / f"a.{suffix}", exif=exif, quality=100)
    data = load_data(tmp_path)
    assert data.shape == (3, 8, 16)
    image = data.fetch([0])[0][0]
    assert image[:, :, 1].max() < 10
    assert image[:, :, -2].min() > 245
    save(tmp_path / f"b.{suffix}", pixels(8, 16, 3))  # the same size as the upright one
    assert len(load_data(tmp_path)) == 2


def truncated(path: Path, keep: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])


def corrupt(path: Path) -> None:
    """Bytes in the middle of the pixels overturned."""
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 200] = bytes(200)
    path.write_bytes(bytes(whole))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("b.jpg", lambda path: truncated(path, 0.5)),
        ("b.png", lambda path: truncated(path, 0.5)),
        ("b.webp", lambda path: truncated(path, 0.5)),
        ("b.gif", lambda path: truncated(path, 0.5)),
        ("b.png", corrupt),
        ("b.png", lambda path: path.write_bytes(b"")),
        ("b.jpg", lambda path: path.write_text("a page of text, not a photo")),
        ("b.png", lambda path: truncated(path, 0.002)),
    ],
    ids=["jpg-half", "png-half", "webp-half", "gif-half", "png-corrupt", "empty", "text", "png-header"],
)
def test_broken_images_are_named(tmp_path: Path, name: str, damage: Callable[[Path], object]) -> None:
    save(tmp_path / "a.png", pixels(64, 64, 3))
    damage(save(tmp_path / name, pixels(64, 64, 3)))
    sentence = complaint(tmp_path, channels=3)
    assert name in sentence
    assert "cannot be decoded" in sentence


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", pixels(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "a.png" in complaint(tmp_path)


def test_the_first_broken_image_is_the_one_named(tmp_path: Path) -> None:
    for index in range(200):
        save(tmp_path / f"{index:03}.png", pixels(4, 4))
    for index in (190, 70, 130):
        (tmp_path / f"{index:03}.png").write_bytes(b"")
    for _ in range(3):
        assert "070.png" in complaint(tmp_path)


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    sentence = complaint(tmp_path)
    assert "holds no images" in sentence
    assert ".png" in sentence


def test_missing_folder_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    sentence = complaint(tmp_path / "flower")
    assert "there is no data" in sentence
    assert f"did you mean '{tmp_path / 'flowers'}'" in sentence
    assert "check the spelling" in complaint(tmp_path / "nothing" / "like" / "it")


def test_permission_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", pixels(4, 4))

    def denied(file: object) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(data_module.Image, "open", denied)  # root may read a file without permissions
    sentence = complaint(tmp_path)
    assert str(path) in sentence
    assert "permission" in sentence


def test_permission_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "sub" / "a.png", pixels(4, 4))

    def denied(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(data_module.os, "scandir", denied)
    sentence = complaint(tmp_path)
    assert str(tmp_path) in sentence
    assert "permission" in sentence


def test_progress_starts_at_zero_and_reaches_the_end(tmp_path: Path) -> None:
    for index in range(130):
        save(tmp_path / f"{index}.png", pixels(2, 2))
    seen: list[tuple[int, int | None]] = []
    load_data(tmp_path, progress=lambda done, total, **facts: seen.append((done, total)))
    assert seen == [(0, 130), (64, 130), (128, 130), (130, 130)]


# Lazy mode


def twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[ImageData, ImageData]:
    held = load_data(tmp_path, **options)
    monkeypatch.setattr(data_module, "MEMORY_LIMIT", 100)
    lazy = load_data(tmp_path, **options)
    assert isinstance(held, MemoryData)
    assert isinstance(lazy, LazyData)
    return held, lazy


def test_lazy_mode_equals_memory_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(20):
        save(tmp_path / f"{index % 2}" / f"{index}.png", pixels(10, 12, 3, seed=index))
    held, lazy = twice(tmp_path, monkeypatch, size=8)
    assert held.description == lazy.description
    assert len(held) == len(lazy)
    chosen = torch.tensor([3, 0, 19, 3])
    assert all(torch.equal(one, other) for one, other in zip(held.fetch(chosen), lazy.fetch(chosen), strict=True))  # type: ignore[arg-type]
    streams = [Stream(data, batch_size=7, seed=1, flip=True) for data in (held, lazy)]
    for step in range(6):
        (a, la), (b, lb) = (stream.batch(step) for stream in streams)
        assert torch.equal(a, b)
        assert la is not None
        assert lb is not None
        assert torch.equal(la, lb)


def test_lazy_mode_checks_headers_at_once_and_pixels_when_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(400):
        save(tmp_path / f"{index:03}.png", pixels(8, 8))
    corrupted = tmp_path / "002.png"  # not among the images of the fingerprint
    save(corrupted, pixels(8, 8))
    corrupt(corrupted)
    monkeypatch.setattr(data_module, "MEMORY_LIMIT", 100)
    data = load_data(tmp_path)
    with pytest.raises(UserError, match=r"002\.png cannot be decoded"):
        data.fetch([0, 2])
    save(tmp_path / "399.png", pixels(9, 8))
    assert "399.png" in complaint(tmp_path)
    (tmp_path / "399.png").write_bytes(b"")
    assert "399.png cannot be decoded" in complaint(tmp_path)


def test_lazy_mode_and_turned_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    save(tmp_path / "a.jpg", pixels(16, 8, 3), exif=exif)
    save(tmp_path / "b.jpg", pixels(8, 16, 3))
    held, lazy = twice(tmp_path, monkeypatch)
    assert held.shape == lazy.shape == (3, 8, 16)
    assert torch.equal(held.fetch([0, 1])[0], lazy.fetch([0, 1])[0])


# .npz


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW", "NHWC1"])
def test_npz_layouts_are_exact(tmp_path: Path, layout: str) -> None:
    array = pixels(6, 3, 10, 12) if layout in {"NHWC", "NCHW"} else pixels(6, 1, 10, 12)
    last = array.transpose(0, 2, 3, 1)
    saved = {"NHW": array[:, 0], "NHWC": last, "NCHW": array, "NHWC1": last}
    np.savez(tmp_path / "a.npz", images=saved[layout], labels=np.arange(6, dtype=np.uint8) % 4)
    data = load_data(tmp_path / "a.npz")
    images, labels = data.fetch(range(6))
    assert np.array_equal(images.numpy(), array)
    assert labels is not None
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 1, 2, 3, 0, 1]
    assert data.classes == 4
    assert load_data(tmp_path / "a.npz", labels=False).classes is None


def test_npz_square_images_settle_a_doubtful_layout(tmp_path: Path) -> None:
    np.savez(tmp_path / "first.npz", images=pixels(5, 1, 4, 4))
    np.savez(tmp_path / "last.npz", images=pixels(5, 4, 4, 3))
    assert load_data(tmp_path / "first.npz").shape == (1, 4, 4)
    assert load_data(tmp_path / "last.npz").shape == (3, 4, 4)
    np.savez(tmp_path / "both.npz", images=pixels(5, 3, 3, 3))
    assert "beyond doubt" in complaint(tmp_path / "both.npz")
    np.savez(tmp_path / "neither.npz", images=pixels(5, 7, 7, 7))
    assert "beyond doubt" in complaint(tmp_path / "neither.npz")


@pytest.mark.parametrize("keys", [("train_images", "train_labels"), ("arr_0", "arr_1")])
def test_npz_other_keys(tmp_path: Path, keys: tuple[str, str]) -> None:
    np.savez_compressed(
        tmp_path / "a.npz", **{keys[0]: pixels(3, 8, 8), keys[1]: np.array([[0], [1], [0]]), "rest": np.ones(3)}
    )
    labels = load_data(tmp_path / "a.npz").fetch([0, 1, 2])[1]
    assert labels is not None
    assert labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("signed", [True, False])
def test_npz_floats_come_back_as_the_bytes_they_were(tmp_path: Path, kind: type, signed: bool) -> None:
    array = np.tile(np.arange(256, dtype=np.uint8), 6).reshape(6, 16, 16)
    floats = (array / 127.5 - 1 if signed else array / 255).astype(kind)
    np.savez(tmp_path / "a.npz", images=floats)
    values = load_data(tmp_path / "a.npz").fetch(range(6))[0].numpy()[:, 0]
    assert np.abs(values.astype(int) - array).max() <= (1 if kind is np.float16 else 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5, -2.0, 255.0])
def test_npz_outliers_are_named_by_index(tmp_path: Path, value: float) -> None:
    floats = np.zeros((2000, 4, 4), dtype=np.float32)
    floats[1500, 2, 1] = value
    np.savez(tmp_path / "a.npz", images=floats)
    sentence = complaint(tmp_path / "a.npz")
    assert "image 1500" in sentence
    assert f"{value:g}" in sentence


def test_npz_size_and_channels(tmp_path: Path) -> None:
    array = pixels(3, 16, 20, 3)
    np.savez(tmp_path / "a.npz", images=array)
    assert load_data(tmp_path / "a.npz").shape == (3, 16, 20)
    values = load_data(tmp_path / "a.npz", size=8, channels=1).fetch(range(3))[0].numpy()
    centre = [Image.fromarray(image[:, 2:18]).convert("L").resize((8, 8), Image.Resampling.LANCZOS) for image in array]
    assert np.array_equal(values[:, 0], np.stack([np.asarray(image) for image in centre]))
    sentence = complaint(tmp_path / "a.npz", size=32)
    assert "image 0 of" in sentence
    assert "--size 16" in sentence
    np.savez(tmp_path / "alpha.npz", images=pixels(3, 16, 16, 4))
    assert "alpha" in complaint(tmp_path / "alpha.npz")
    assert load_data(tmp_path / "alpha.npz", channels=3).shape == (3, 16, 16)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was opened",))


def test_npz_pickles_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([Trap()], dtype=object))
    assert "pickled" in complaint(tmp_path / "a.npz")


def test_npz_other_complaints(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"pictures": pixels(2, 4, 4)}, "holds pictures"),
        ({}, "holds nothing"),
        ({"images": pixels(2, 4)}, "shape (2, 4)"),
        ({"images": pixels(0, 4, 4)}, "shape (0, 1, 4, 4)"),
        ({"images": pixels(2, 4, 4).astype(np.int64)}, "int64"),
        ({"images": np.array(["a", "b"])}, "<U1"),
        ({"images": pixels(2, 4, 4), "labels": np.arange(3)}, "shape (3,)"),
        ({"images": pixels(2, 4, 4), "labels": np.float32([0, 1])}, "float32"),
        ({"images": pixels(2, 4, 4), "labels": np.array(1)}, "shape ()"),
        ({"images": pixels(2, 4, 4), "labels": np.array([0, -1])}, "image 1 of"),
    ]
    for arrays, word in cases:
        np.savez(path, **arrays)
        assert word in complaint(path), arrays


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 and then nothing"])
def test_npz_broken_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    assert "cannot be read as .npz" in complaint(tmp_path / "a.npz")


def test_npz_half_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(50, 8, 8))
    truncated(tmp_path / "a.npz", 0.5)
    assert "cannot be read as .npz" in complaint(tmp_path / "a.npz")


def test_npy_in_disguise(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, pixels(2, 4, 4))
    assert "single .npy array" in complaint(tmp_path / "a.npz")


def test_other_files_and_unknown_sources(tmp_path: Path) -> None:
    assert ".png file" in complaint(save(tmp_path / "a.png", pixels(4, 4)))
    assert "did you mean 'digits'?" in complaint("digit")
    assert "did you mean 'teacher:fashion28'?" in complaint("teachr:fashion28")
    for nothing in ("no such thing", "", "x" * 5000):
        assert "expected a folder of images" in complaint(nothing) or "too long" in complaint(nothing)
    assert load_data(save(tmp_path / "x" / "a.png", pixels(4, 4)).parent).description["kind"] == "folder"


def test_impossible_wishes() -> None:
    assert "size is 0" in complaint("digits", size=0)
    assert "channels is 4" in complaint("digits", channels=4)


# Digits


def test_digits() -> None:
    from sklearn.datasets import load_digits

    data = load_data("digits")
    assert len(data) == 1797
    assert data.shape == (1, 8, 8)
    assert data.classes == 10
    assert data.class_names == list("0123456789")
    images, labels = data.fetch(range(1797))
    raw = load_digits()
    table = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    assert torch.equal(images[:, 0], torch.tensor(table, dtype=torch.uint8)[torch.from_numpy(raw.images).long()])
    assert labels is not None
    assert labels.tolist() == raw.target.tolist()
    assert load_data("digits", size=4, channels=3).shape == (3, 4, 4)
    assert "smaller than the asked 16x16" in complaint("digits", size=16)


@pytest.mark.parametrize(("source", "module"), [("digits", "sklearn.datasets"), ("hf:some/name", "datasets")])
def test_missing_extra(monkeypatch: pytest.MonkeyPatch, source: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'onefold[data]'" in complaint(source)


# Hugging Face datasets


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


def table(hub: Any, numbers: list[int], **columns: Any) -> Any:
    """Rows whose image column is called `picture` and whose classes are `number`."""
    features = {"note": hub.Value("string"), "picture": hub.Image(), "number": hub.ClassLabel(names=["no", "yes"])}
    values: dict[str, list[Any]] = {
        "note": [""] * len(numbers),
        "picture": [Image.fromarray(pixels(6, 6, 3, seed=i)) for i in range(len(numbers))],
        "number": numbers,
    }
    for name, (feature, column) in columns.items():
        features[name], values[name] = feature, column
    return hub.Dataset.from_dict(values, features=hub.Features(features))


def test_saved_dataset(tmp_path: Path, hub: Any) -> None:
    table(hub, [1, 0, 1]).save_to_disk(tmp_path / "set")
    for source in (f"hf:{tmp_path / 'set'}", str(tmp_path / "set")):
        data = load_data(source)
        assert data.class_names == ["no", "yes"]
        images, labels = data.fetch([0, 1, 2])
        assert labels is not None
        assert labels.tolist() == [1, 0, 1]
        assert np.array_equal(
            images.numpy(), np.stack([pixels(6, 6, 3, seed=i) for i in range(3)]).transpose(0, 3, 1, 2)
        )
        assert (data.description["image"], data.description["label"]) == ("picture", "number")
    assert load_data(source, labels=False).classes is None
    assert load_data(source, size=4, channels=1).shape == (1, 4, 4)
    assert "--size 6" in complaint(source, size=7)


def test_saved_splits(tmp_path: Path, hub: Any) -> None:
    hub.DatasetDict({"train": table(hub, [1, 0, 1]), "test": table(hub, [1])}).save_to_disk(tmp_path / "set")
    assert len(load_data(f"hf:{tmp_path / 'set'}")) == 3
    assert len(load_data(f"hf:{tmp_path / 'set'}:test")) == 1
    assert "did you mean 'test'?" in complaint(f"hf:{tmp_path / 'set'}:tests")


def test_folder_of_parquet_files(tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    table(hub, [1, 0, 1]).to_parquet(tmp_path / "set" / "train.parquet")
    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert len(load_data(f"hf:{tmp_path / 'set'}")) == 3
    assert len(load_data(f"hf:{tmp_path / 'set'}:train[:2]")) == 2
    assert "no data" in complaint(f"hf:{tmp_path / 'set'}:train[:0]")
    assert "cannot be loaded" in complaint(f"hf:{tmp_path / 'set'}:tset")


def test_dataset_columns(tmp_path: Path, hub: Any) -> None:
    extra = {
        "mask": (hub.Image(), [Image.fromarray(pixels(3, 3)) for _ in range(3)]),
        "coarse": (hub.ClassLabel(names=["a", "b", "c", "d"]), [3, 2, 1]),
        "count": (hub.Value("int64"), [4, 5, 6]),
    }
    table(hub, [1, 0, 1], **extra).save_to_disk(tmp_path / "set")
    source = f"hf:{tmp_path / 'set'}"
    assert "several image columns, picture, mask; choose one with ?image=picture" in complaint(source)
    assert "several label columns" in complaint(f"{source}?image=mask")
    data = load_data(f"{source}?image=mask&label=coarse")
    assert data.shape == (1, 3, 3)
    assert data.class_names == ["a", "b", "c", "d"]
    counted = load_data(f"{source}?image=mask&label=count")
    assert (counted.classes, counted.class_names) == (7, None)
    assert "did you mean 'picture'?" in complaint(f"{source}?image=pictur")
    assert "did you mean 'label'?" in complaint(f"{source}?labels=coarse")
    assert "expected a column of images" in complaint(f"{source}?image=note&label=count")


def test_usual_column_names_win(tmp_path: Path, hub: Any) -> None:
    extra = {"label": (hub.ClassLabel(names=["x", "y", "z"]), [2, 1, 0])}
    table(hub, [1, 0, 1], **extra).save_to_disk(tmp_path / "set")
    assert load_data(f"hf:{tmp_path / 'set'}").class_names == ["x", "y", "z"]


def test_dataset_complaints(tmp_path: Path, hub: Any) -> None:
    table(hub, [1, -1]).save_to_disk(tmp_path / "unknown")
    assert "label -1" in complaint(f"hf:{tmp_path / 'unknown'}")
    assert len(load_data(f"hf:{tmp_path / 'unknown'}", labels=False)) == 2
    hub.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    assert "expected a column of images" in complaint(f"hf:{tmp_path / 'text'}")
    broken = {"image": (hub.Image(), [{"bytes": b"nonsense", "path": None}, None])}
    table(hub, [1, 0], **broken).save_to_disk(tmp_path / "broken")
    assert "image 0 of" in complaint(f"hf:{tmp_path / 'broken'}")


def test_hub_without_a_net(hub: Any) -> None:
    assert "'no/such' cannot be loaded" in complaint("hf:no/such")


def test_empty_dataset(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "load_dataset", lambda *args, **options: table(hub, []))
    assert "0 rows" in complaint("hf:some/name")


def test_dataset_lazily(tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table(hub, [1, 0] * 20).save_to_disk(tmp_path / "set")
    held, lazy = twice(tmp_path / "set", monkeypatch)
    assert torch.equal(held.fetch(range(40))[0], lazy.fetch(range(40))[0])


# Samples of a teacher


class Draws:
    """Stands in for sampling: image i is a constant that depends on (seed, i)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ranges: list[range] = []
        self.limit = 10**9
        monkeypatch.setattr(data_module, "draw", self)

    def __call__(
        self, teacher: Any, indices: range, progress: object, *, seed: int, **settings: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if indices.stop > self.limit:
            raise KeyboardInterrupt
        self.ranges.append(indices)
        levels = (torch.tensor(indices) + seed).to(torch.uint8)
        labels = torch.tensor(indices) % teacher.classes if teacher.classes else None
        return levels.reshape(-1, 1, 1, 1).expand(-1, *teacher.shape).contiguous(), labels


def mixture(shift: float = 0.0) -> GaussianMixture:
    means = torch.stack([torch.full((1, 4, 4), -0.5 + shift), torch.full((1, 4, 4), 0.5)])
    return GaussianMixture(means, 0.1, labels=[0, 1])


def test_teacher_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws, cache = Draws(monkeypatch), tmp_path / "deep" / "cache.npz"
    first = teacher_data(mixture(), 6, calls=5, cache=cache)
    again = teacher_data(mixture(), 6, calls=5, cache=cache)
    fewer = teacher_data(mixture(), 4, calls=5, cache=cache)
    assert draws.ranges == [range(6)]
    assert first.description == again.description
    assert (len(fewer), fewer.classes) == (4, 2)
    for data in (again, fewer):
        images, labels = data.fetch(range(4))
        assert torch.equal(images, first.fetch(range(4))[0])
        assert labels is not None
        assert labels.tolist() == [0, 1, 0, 1]
    assert len(teacher_data(mixture(), 9, calls=5, cache=cache)) == 9
    assert draws.ranges == [range(6), range(6, 9)]
    held = teacher_data(mixture(), 9, calls=5, cache=cache)
    assert torch.equal(load_data(cache).fetch(range(9))[0], held.fetch(range(9))[0])


def test_interrupted_draw_goes_on_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws, cache = Draws(monkeypatch), tmp_path / "cache.npz"
    whole = teacher_data(mixture(), 50, batch_size=2)
    assert draws.ranges == [range(50)]
    draws.limit = 20
    with pytest.raises(KeyboardInterrupt):
        teacher_data(mixture(), 50, batch_size=2, cache=cache)
    draws.limit = 50
    resumed = teacher_data(mixture(), 50, batch_size=2, cache=cache)
    assert draws.ranges[1:] == [range(start, min(start + 6, 50)) for start in range(0, 50, 6)]
    assert resumed.description == whole.description
    assert [path.name for path in tmp_path.iterdir()] == ["cache.npz"]


def test_teacher_cache_of_another_recipe_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws, cache = Draws(monkeypatch), tmp_path / "cache.npz"
    teacher_data(mixture(), 6, calls=5, cache=cache)
    content = cache.read_bytes()
    with pytest.raises(UserError, match="calls 5, not 6; delete it"):
        teacher_data(mixture(), 6, calls=6, cache=cache)
    with pytest.raises(UserError, match="with teacher"):
        teacher_data(mixture(0.1), 6, calls=5, cache=cache)
    assert cache.read_bytes() == content
    np.savez(cache, images=pixels(2, 4, 4))
    with pytest.raises(UserError, match="is no cache"):
        teacher_data(mixture(), 6, calls=5, cache=cache)
    np.savez(cache, images=pixels(2, 4, 4), description=np.array("my photos"))
    with pytest.raises(UserError, match="is no cache"):
        teacher_data(mixture(), 6, calls=5, cache=cache)
    assert draws.ranges == [range(6)]


def test_teacher_without_labels_or_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    Draws(monkeypatch)
    data = teacher_data(Gaussian(torch.zeros(3, 4, 4), 1.0), 5)
    assert (data.classes, data.labels, data.shape) == (None, None, (3, 4, 4))
    assert json.loads(json.dumps(data.description)) == data.description
    with pytest.raises(UserError, match="count is 0"):
        teacher_data(mixture(), 0)


def test_teacher_fingerprint_sees_weights_and_process_but_not_calls() -> None:
    teacher = mixture()
    before = data_module.fingerprint_of(teacher)
    teacher(torch.zeros(1, 1, 4, 4), 1.0)
    assert data_module.fingerprint_of(teacher) == before == data_module.fingerprint_of(mixture())
    assert data_module.fingerprint_of(mixture(0.1)) != before
    assert data_module.fingerprint_of(teacher.replace(guidance=2.0)) != before
    assert data_module.fingerprint_of(teacher.replace(process=EDM(sigma_data=0.7))) != before
    nets = [torch.nn.Linear(2, 2).to(torch.bfloat16) for _ in range(2)]
    assert len({data_module.fingerprint_of(teacher.replace(network=net)) for net in (*nets, nets[0])}) == 2


def test_teacher_fingerprint_sees_the_architecture(tmp_path: Path) -> None:
    """Equal weights compute other images with another activation or another epsilon; where they lie does not matter."""

    def fingerprint(network: torch.nn.Module) -> str:
        return data_module.fingerprint_of(mixture().replace(network=network))

    def unet(**changes: Any) -> UNet2DModel:
        size: dict[str, Any] = {"block_out_channels": (4,), "layers_per_block": 1, "norm_num_groups": 2}
        blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
        torch.manual_seed(0)
        return UNet2DModel(4, 1, 1, add_attention=False, **size, **blocks, **changes)

    unet().save_pretrained(tmp_path)
    again = UNet2DModel.from_pretrained(tmp_path)
    assert fingerprint(again) == fingerprint(unet())
    assert len({fingerprint(unet(**change)) for change in ({}, {"act_fn": "gelu"}, {"norm_eps": 0.1})}) == 3
    plain = [torch.nn.GroupNorm(1, 2), torch.nn.GroupNorm(1, 2, eps=0.1), torch.nn.GroupNorm(1, 2)]
    assert len({fingerprint(network) for network in plain}) == 2


def test_teacher_as_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(monkeypatch)
    monkeypatch.setattr("onefold.teachers.load_teacher", lambda name, **_: mixture(), raising=False)
    data = load_data(f"teacher:mine?count=7&calls=3&seed=2&cache={tmp_path / 'c.npz'}")
    assert draws.ranges == [range(7)]
    assert (len(data), data.classes, data.description["calls"], data.description["seed"]) == (7, 2, 3, 2)
    assert load_data("teacher:mine?count=7", size=2, channels=3).shape == (3, 2, 2)
    assert load_data("teacher:mine?count=7", labels=False).classes is None
    assert "did you mean 'count'?" in complaint("teacher:mine?cuont=7")
    assert "count='many'" in complaint("teacher:mine?count=many")


def test_teacher_really_sampled() -> None:
    from onefold import sampling

    seen: list[tuple[int, int | None]] = []
    data = teacher_data(
        mixture(), 8, calls=10, seed=3, batch_size=3, progress=lambda done, total, **facts: seen.append((done, total))
    )
    assert seen == [(0, 8), (3, 8), (6, 8), (8, 8)]
    images, labels = data.fetch(range(8))
    assert labels is not None
    assert torch.equal(labels, sampling.labels_for(mixture(), 3, range(8)))
    assert torch.equal(to_float(images).mean((1, 2, 3)) > 0, labels == 1)


# Descriptions


def test_fingerprint_tells_content_not_place(tmp_path: Path) -> None:
    arrays = pixels(5, 4, 4)
    for index, array in enumerate(arrays):
        save(tmp_path / "one" / f"{index}.png", array)
    np.savez(tmp_path / "two.npz", images=arrays)
    np.savez(tmp_path / "three.npz", images=arrays[::-1])
    places = [tmp_path / name for name in ("one", "two.npz", "three.npz")]
    one, two, three = (load_data(place).description["fingerprint"] for place in places)
    assert one == two != three
    assert len(one) == 64


# The stream


def flat(stream: Stream, steps: range) -> list[int]:
    """The images of the stream, by the number that each holds."""
    return [int(value) for step in steps for value in to_uint8(stream.batch(step)[0])[:, 0, 0, 0]]


def test_stream_gives_floats_and_labels() -> None:
    images, labels = Stream(memory(10), batch_size=4, seed=0).batch(0)
    assert images.dtype == torch.float32
    assert images.shape == (4, 1, 2, 2)
    assert labels is not None
    assert labels.tolist() == [int(value) % 3 for value in to_uint8(images)[:, 0, 0, 0]]
    assert Stream(memory(10, labels=False), batch_size=4, seed=0).batch(0)[1] is None


@pytest.mark.parametrize("batch_size", [1, 3, 5, 20, 64])
def test_each_epoch_is_a_permutation(batch_size: int) -> None:
    stream = Stream(memory(20), batch_size=batch_size, seed=5)
    seen = flat(stream, range(-(-60 // batch_size)))[:60]
    epochs = [seen[start : start + 20] for start in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_stream_does_not_depend_on_the_batch_size() -> None:
    streams = [Stream(memory(20), batch_size=size, seed=5) for size in (4, 6, 12)]
    assert flat(streams[0], range(15)) == flat(streams[1], range(10)) == flat(streams[2], range(5))


@pytest.mark.parametrize("flip", [False, True])
def test_any_split_into_rows_sees_the_same(flip: bool) -> None:
    data = MemoryData(
        torch.from_numpy(pixels(10, 1, 4, 4)), torch.arange(10), classes=10, class_names=None, description={}
    )
    whole = Stream(data, batch_size=12, seed=3, flip=flip)
    parts = Stream(data, batch_size=12, seed=3, flip=flip)
    for step in (0, 7, 3):
        images, labels = whole.batch(step)
        single = [range(row, row + 1) for row in range(12)]
        for rows in ([range(12)], [range(5), range(5, 12)], [range(0, 12, 2), range(1, 12, 2)], single):
            for part in rows:
                few, few_labels = parts.batch(step, part)
                assert torch.equal(few, images[list(part)])
                assert labels is not None
                assert few_labels is not None
                assert torch.equal(few_labels, labels[list(part)])


def test_stream_resumes_anywhere_without_state() -> None:
    through = Stream(memory(50), batch_size=8, seed=1, flip=True)
    expected = [through.batch(step)[0] for step in range(30)]
    for start in (29, 13, 6, 7):
        assert torch.equal(Stream(memory(50), batch_size=8, seed=1, flip=True).batch(start)[0], expected[start])


def test_seeds_differ() -> None:
    one, other = (flat(Stream(memory(50), batch_size=50, seed=seed), range(1)) for seed in (0, 1))
    assert one != other


def test_no_rows_and_rows_outside() -> None:
    stream = Stream(memory(10), batch_size=4, seed=0, flip=True)
    assert stream.batch(0, range(0))[0].shape == (0, 1, 2, 2)
    for rows in (range(3, 5), range(-1, 2)):
        with pytest.raises(IndexError):
            stream.batch(0, rows)
    with pytest.raises(IndexError):
        stream.batch(-1)
    with pytest.raises(UserError, match="batch_size is 0"):
        Stream(memory(10), batch_size=0, seed=0)


def test_flip_turns_half_of_the_images_left_to_right() -> None:
    images = torch.from_numpy(pixels(40, 3, 4, 6))
    data = MemoryData(images, None, classes=None, class_names=None, description={})
    plain, flipped = (Stream(data, batch_size=400, seed=2, flip=flip).batch(0)[0] for flip in (False, True))
    same = (plain == flipped).flatten(1).all(1)
    turned = (plain.flip(-1) == flipped).flatten(1).all(1)
    assert (same ^ turned).all()
    assert 160 < int(turned.sum()) < 240


def test_permutations_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n, generator: made.append(n) or real(n, generator=generator))
    stream = Stream(memory(20), batch_size=6, seed=0)
    for step in range(10):
        stream.batch(step)
    assert made == [20, 20, 20]
    for _ in range(5):  # to and fro over a border
        stream.batch(9)
        stream.batch(6)
    assert len(made) == 3
    assert len(stream.permutations) == 2


def test_stream_from_several_threads() -> None:
    stream, alone = (Stream(memory(20), batch_size=6, seed=0) for _ in range(2))
    results: dict[int, torch.Tensor] = {}

    def work(steps: range) -> None:
        for step in steps:
            results[step] = stream.batch(step)[0]

    threads = [threading.Thread(target=work, args=(range(start, 80, 4),)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[step], alone.batch(step)[0]) for step in range(80))


def test_importing_is_light() -> None:
    code = (
        "import sys, onefold.data; print({'datasets', 'sklearn', 'pandas', 'diffusers', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_image_beside_the_class_folders_is_no_accident(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png", "cover.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    with pytest.raises(UserError, match=r"cover.png lies beside the sub-folders 'a', 'b'"):
        load_data(tmp_path)
    assert load_data(tmp_path, labels=False).classes is None


def test_a_label_that_is_no_class_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 4, 4), np.uint8), labels=np.array([0, 2**40, 1]))
    with pytest.raises(UserError, match="image 1 .* has label 1099511627776, which is no class"):
        load_data(tmp_path / "x.npz")
