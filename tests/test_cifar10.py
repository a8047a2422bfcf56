"""`benchmarks/cifar10` at toy size: random images, networks of random weights in files of the published forms, short runs."""

from __future__ import annotations

import contextlib
import importlib
import json
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import onefold
from onefold import seeds
from onefold.data import to_float
from onefold.errors import UserError
from onefold.metrics.extractors import find_extractor
from onefold.metrics.statistics import load_statistics
from onefold.training.pace import Stopped

ROOT = Path(__file__).parent.parent
TOY = {
    "widths": [8, 8, 8, 8],
    "layers": 1,
    "batch_size": 8,
    "holdout": 4,
    "checkpoint_every": "10h",
    "sample_every": "10h",
}
WORDS = ["--set", *(f"{key}={json.dumps(value).replace(' ', '')}" for key, value in TOY.items())]


@pytest.fixture(autouse=True)
def findable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT))
    yield
    part("networks").loaded.cache_clear()


def part(name: str) -> Any:
    return importlib.import_module(f"benchmarks.cifar10.{name}")


def uint8(*shape: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cifar10.npz"
    arrays = {}
    for split, count in (("train", 60), ("test", 30)):
        arrays |= {
            f"{split}_images": uint8(count, 32, 32, 3, seed=count),
            f"{split}_labels": (np.arange(count) % 10).astype(np.uint8),
        }
    np.savez(path, **arrays)
    return path


# -- networks and their files ------------------------------------------------------------------------------------------


def made(name: str) -> nn.Module:
    """A network whose weights are all random, normalisations too."""
    networks = part("networks")
    with seeds.drawing(3):
        network: nn.Module = networks.KINDS[name]().eval()
        for key, tensor in network.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim == 1:
                torch.nn.init.uniform_(tensor, 0.5, 1.5) if key.endswith(("weight", "var")) else tensor.normal_(std=0.1)
    return network


def write(name: str, network: nn.Module, folder: Path, **more: Tensor) -> Path:
    """In the form that the published file has."""
    networks, path = part("networks"), folder / part("places").FILES[name]
    name_of = networks.NAMES[networks.KINDS[name]]
    tensors = {name_of(k): v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")} | more
    if path.suffix == ".npz":
        arrays = {key: one.half().numpy() if one.ndim == 4 else one.numpy() for key, one in tensors.items()}
        np.savez_compressed(path, **arrays)
    else:
        torch.save({"state_dict": tensors, "best_prec1": 93.0}, path, _use_new_zipfile_serialization=False)
        older = path.read_bytes().replace(b"_rebuild_tensor_v2\n", b"_rebuild_tensor\n")
        path.write_bytes(older)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-56 of random weights, which the runs below look through."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        folder = tmp_path_factory.mktemp("weights")
        write("resnet56", made("resnet56"), folder)
    return folder


@pytest.mark.parametrize(("name", "size"), [("resnet56", 64), ("mobilenetv2", 1280), ("resnet50v2", 1024)])
def test_a_network_is_read_from_its_file_by_names(name: str, size: int, tmp_path: Path) -> None:
    networks, network = part("networks"), made(name)
    path = write(name, network, tmp_path, extra=torch.ones(2))
    read, unused = networks.load(type(network), path)
    assert unused == ["extra"]
    for key, one in network.state_dict().items():
        torch.testing.assert_close(read.state_dict()[key], one, rtol=1e-3, atol=1e-3, check_dtype=False)
    extractor = find_extractor(f"benchmarks.cifar10.networks:{name}", weights=path)
    features = extractor.extract(to_float(torch.from_numpy(uint8(2, 3, 32, 32, seed=1))))
    assert features.vectors.shape == (2, size)
    assert (features.logits is not None) == (name == "resnet56")


def test_a_file_that_lacks_weights_is_told(tmp_path: Path) -> None:
    networks, network = part("networks"), made("resnet56")
    path = tmp_path / "other.th"
    torch.save({"module.conv1.weight": torch.zeros(16, 3, 5, 5)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"module.conv1.weight of shape \(16, 3, 5, 5\), expected \(16, 3, 3, 3\)"):
        networks.load(type(network), path)
    with pytest.raises(UserError, match="cannot be read"):
        networks.load(type(network), tmp_path)


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    read = part("weights").read_weights
    torch.save({"a": Evil()}, "evil.th", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.ones(1)}, "zipped.th")
    torch.save([1, 2], "numbers.th", _use_new_zipfile_serialization=False)
    Path("plain.th").write_bytes(pickle.dumps(1) + pickle.dumps(2))
    for name, told in {
        "evil.th": "nothing of it was run",
        "zipped.th": "a zip file of torch.save",
        "numbers.th": "no tensors by name",
        "plain.th": "the beginning in it is not in the known form",
    }.items():
        with pytest.raises(UserError, match=told):
            read(tmp_path / name)
    assert not Path("touched").exists()


@pytest.mark.parametrize("cut", [20, 200, 2000, 30_000])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, weights: Path, cut: int) -> None:
    whole = (weights / "resnet56-4bfd9763.th").read_bytes()
    (tmp_path / "cut.th").write_bytes(whole[:-cut])
    with pytest.raises(UserError, match="does not load"):
        part("weights").read_weights(tmp_path / "cut.th")


def test_tensors_that_share_or_view_a_storage_come_back(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": base, "turned": base.T, "row": base[1], "parameter": nn.Parameter(base + 1), "ints": base.int()}
    torch.save(tensors, tmp_path / "views.pth", _use_new_zipfile_serialization=False)
    found = part("weights").read_weights(tmp_path / "views.pth")
    for key, one in tensors.items():
        assert found[key].equal(one)


def test_the_check_counts_right_answers(data: Path, weights: Path) -> None:
    checks, images = part("checks"), part("places").test_images(data)
    found = checks.check(
        data, weights, ["resnet56"], count=5, device="cpu", batch_size=16, progress=lambda *_, **__: None
    )["resnet56"]
    logits = part("networks").resnet56(to_float(images[0]), weights / "resnet56-4bfd9763.th")[1]
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == images[1]).double().mean().item())
    assert found["finite"] and found["unused"] == [] and found["features"] == 64 and found["images"] == 30
    apart = torch.cat([torch.eye(4)[[0, 1, 2, 3]], torch.eye(4)[[2, 1, 0, 3]]])
    assert checks.nearest_class_mean(apart, torch.tensor([5, 6, 7, 8, 7, 6, 5, 5])) == 0.75


# -- the teacher -------------------------------------------------------------------------------------------------------


def learn(places: Any, data: Path, seconds: float) -> Any:
    teacher = part("teacher")
    quiet = teacher.Piece(lambda *_, **__: None, seconds)
    how = {"budget": "40", "device": "cpu", "eager": True, "settings": TOY, "tell": lambda _: None}
    return teacher.learn(places, data, progress=quiet, **how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Any:
    """A teacher of one piece."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        places = part("places").Places(tmp_path_factory.mktemp("whole"))
        assert learn(places, data, 600) == places.teacher
    return places


def test_pieces_make_the_teacher_that_one_run_makes(tmp_path: Path, data: Path, whole: Any) -> None:
    """Bit by bit; the kept teacher is the run's in half precision."""
    cut, pieces = part("places").Places(tmp_path), 0
    while not cut.teacher.is_dir():
        with contextlib.suppress(Stopped):
            learn(cut, data, 0)
        pieces += 1
        assert pieces < 20
    assert pieces > 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    file = Path("unet") / "diffusion_pytorch_model.safetensors"
    first, second, kept = (
        load_file(folder / file) for folder in (whole.run / "teacher", cut.run / "teacher", cut.teacher)
    )
    for key, one in first.items():
        assert one.equal(second[key])
        assert kept[key].dtype == torch.float16 and kept[key].equal(one.half())
    teacher = onefold.load_teacher(cut.teacher, device="cpu")
    assert (teacher.name, teacher.classes, teacher.shape, teacher.process.sigma_max) == ("cifar10", 10, (3, 32, 32), 80)
    assert onefold.sample(teacher, 2, calls=2).isfinite().all()


def test_the_recipe_stays_within_what_is_kept() -> None:
    from onefold.networks.unet import build_unet

    teacher = part("teacher")
    network = build_unet((3, 32, 32), widths=teacher.RECIPE["widths"], layers=teacher.RECIPE["layers"], classes=11)
    assert 2 * sum(one.numel() for one in network.parameters()) < 0.97 * teacher.MOST_BYTES


# -- the commands ------------------------------------------------------------------------------------------------------


def test_from_the_images_to_the_command_of_the_frontier(
    tmp_path: Path, data: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main, places = part("__main__").main, part("places").Places(tmp_path / "out", unconditional=True)
    monkeypatch.setattr(part("pictures"), "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.pairs.RESULTS", tmp_path)
    common = ["--data", str(data), "--out", str(places.out), "--device", "cpu"]
    seen = ["--weights", str(weights), "--extractors", "resnet56", "pixels"]
    teacher = ["teacher", *common, "--unconditional", "--budget", "16", *WORDS]
    assert main(["pictures", *common, *seen, "--unconditional"]) == 2
    assert "there is no teacher" in capsys.readouterr().err
    assert main([*teacher, "--minutes", "0"]) == 3
    assert main(teacher) == 0

    assert main(["references", *common, *seen]) == 0
    made_at = places.reference("resnet56").stat().st_mtime_ns
    assert main(["references", *common, *seen]) == 0
    assert places.reference("resnet56").stat().st_mtime_ns == made_at
    statistics = load_statistics(places.reference("resnet56"))
    assert statistics.count == 60 and statistics.features is not None and len(statistics.features) == 30
    assert statistics.extractor == "benchmarks.cifar10.networks:resnet56"

    monkeypatch.setattr(part("pictures"), "CALLS", (3, 2))
    measure = ["pictures", *common, *seen, "--unconditional", "--count", "20", "--batch-size", "10"]
    assert main(measure) == 0
    result = json.loads((tmp_path / "cifar10_unconditional_teacher.json").read_text())
    assert [(row["calls"], row["extractor"], list(row["scores"])) for row in result["rows"]] == [
        (3, "resnet56", ["fd"]),
        (3, "pixels", ["fd"]),
        (2, "resnet56", ["fd"]),
        (2, "pixels", ["fd"]),
    ]
    assert result["rows"][0]["scores"]["fd"]["floor"]["count"] == 20
    assert (tmp_path / result["picture"]).is_file()
    monkeypatch.setattr(onefold, "evaluate", None)  # what is known is not measured again
    assert main(measure) == 0

    called: list[list[str]] = []
    monkeypatch.setattr(part("frontier"), "run_frontier", lambda argv: called.append(list(argv)) or 3)
    words = ["frontier", *common, *seen[:2], "--unconditional", "--extractor", "resnet56", "--count", "50"]
    assert main([*words, "--", "--budgets", "1k"]) == 3
    assert called[0][1:] == [
        str(ROOT / "benchmarks" / "frontier"), str(places.out / "cifar10_unconditional"), "--data", str(data),
        "--reference", str(places.out / "references" / "resnet56.npz"),
        "--reference", str(places.out / "references" / "pixels.npz"),
        "--extractor", "benchmarks.cifar10.networks:resnet56",
        "--extractor-weights", str(weights / "resnet56-4bfd9763.th"), "--device", "cpu", "--jobs", "4", "--calls", "1", "2", "4", "8", "--budgets", "16k", "64k", "256k", "--seeds", "0", "1", "2",
        "--count", "50", "--minutes", "9", "--out", str(places.out / "students" / "cifar10_unconditional"),
        "--budgets", "1k",
    ]  # fmt: skip


def test_classes_are_rows_of_the_picture_and_right_answers_are_counted(
    tmp_path: Path, data: Path, weights: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, places = part("pictures"), whole
    monkeypatch.setattr(pictures, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.pairs.RESULTS", tmp_path)
    monkeypatch.setattr(pictures, "CALLS", (2,))
    quiet: Any = {"progress": lambda *_, **__: None}
    more: Any = {**quiet, "device": "cpu", "batch_size": 30}
    part("references").make_references(places, data, weights, ["resnet56"], tell=lambda _: None, **more)
    (row,) = pictures.measure(places, weights, ["resnet56"], count=30, **more)
    assert list(row["scores"]) == ["fd", "accuracy"]
    assert 0 <= row["scores"]["accuracy"]["value"] <= 1
    assert "real images" in pictures.told(row)


def test_what_the_data_must_hold_is_told(tmp_path: Path, data: Path, weights: Path) -> None:
    places = part("places")
    with pytest.raises(UserError, match=r"is missing; expected CIFAR-10 .* unpack_data.py cifar10 cifar10.npz"):
        places.check_data(tmp_path / "cifar10.npz")
    np.savez(tmp_path / "half.npz", train_images=uint8(2, 32, 32, 3, seed=0), train_labels=np.zeros(2))
    with pytest.raises(UserError, match="lacks test_images"):
        places.check_data(tmp_path / "half.npz")
    with pytest.raises(UserError, match="with the weights of mobilenetv2"):
        places.weights_file(weights, "mobilenetv2")
    images, labels = places.test_images(data)
    assert images.shape == (30, 3, 32, 32) and labels.tolist()[:3] == [0, 1, 2]


def test_it_runs_as_a_folder(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "cifar10"), "teacher", "--data", "nowhere.npz"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert "nowhere.npz is missing; expected CIFAR-10" in done.stderr and "Traceback" not in done.stderr
