"""Extractors give the features they say, see what a saved picture holds, and refuse what would mean nothing."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import onefold
from onefold import seeds
from onefold.bench.judging import find_extractors
from onefold.data import load_data, to_float, to_uint8
from onefold.errors import UserError
from onefold.metrics.clip import clip_score
from onefold.metrics.extractors import EXTRACTORS, Extractor, extractors, find_extractor, inception
from onefold.metrics.extractors.bundled import FOLDER, WEIGHTS, read_facts
from onefold.metrics.extractors.clip import text_features
from onefold.metrics.extractors.preprocessing import read_preprocessing
from onefold.metrics.frechet import frechet_distance
from onefold.metrics.statistics import Moments, load_statistics
from onefold.teachers import ASSETS, bundled

BUNDLED = {"digits-cnn": "digits8", "fashion-cnn": "fashion28"}


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Images in [-1, 1] that lie on the levels of 8 bits."""
    levels = torch.randint(0, 256, shape, generator=seeds.generator(seed))
    return to_float(levels)


def complaint(name: str, images: Tensor | None = None, **how: Any) -> str:
    """The sentence a user gets: one line that ends with a remedy after a semicolon."""
    with pytest.raises(UserError) as caught:
        find_extractor(name, **how).extract(noise(1, 1, 8, 8) if images is None else images)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert ";" in sentence
    return sentence


# Names


def test_every_extractor_is_listed_with_a_line() -> None:
    assert set(BUNDLED) <= set(EXTRACTORS) < set(extractors())
    assert all(line and "\n" not in line for line in extractors().values())


def test_names_are_known_without_torch() -> None:
    code = "import sys; from onefold.metrics.extractors import extractors; extractors(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr


def test_unknown_names_get_a_suggestion() -> None:
    assert "did you mean 'inception'?" in complaint("incepton")
    assert "package.module:function" in complaint("resnet")


def test_the_device_is_chosen_as_everywhere() -> None:
    assert "unknown device 'cup'; did you mean 'cpu'?" in complaint("digits-cnn", device="cup")


# The bundled classifiers


@pytest.fixture(scope="module", params=BUNDLED)
def small(request: pytest.FixtureRequest) -> Extractor:
    return find_extractor(request.param)


def images_for(extractor: Extractor, count: int, seed: int = 0) -> Tensor:
    assert extractor.shape is not None
    return noise(count, *extractor.shape, seed=seed)


def test_features_and_logits_are_plain_tensors(small: Extractor) -> None:
    facts = read_facts(FOLDER / small.name)
    features = small.extract(images_for(small, 3))
    assert features.logits is not None
    assert features.vectors.shape == (3, facts["features"])
    assert features.logits.shape == (3, small.classes) == (3, facts["classes"])
    for values in features.vectors, features.logits:
        assert values.dtype == torch.float32
        assert not values.requires_grad
        values.add_(1)  # refused by a tensor of inference mode


def test_logits_are_a_linear_map_of_the_features(small: Extractor) -> None:
    """So the features are those in front of the last layer."""
    features = small.extract(images_for(small, 200))
    assert features.logits is not None
    design = torch.cat([features.vectors, torch.ones(200, 1)], 1).double()
    fitted = design @ torch.linalg.lstsq(design, features.logits.double()).solution
    torch.testing.assert_close(fitted, features.logits.double(), atol=1e-4, rtol=0)


def test_features_do_not_depend_on_the_batch(small: Extractor) -> None:
    images = images_for(small, 7)
    alone = torch.cat([small.extract(image[None]).vectors for image in images])
    torch.testing.assert_close(small.extract(images).vectors, alone, atol=1e-5, rtol=1e-5)


def test_extractors_see_what_a_saved_picture_holds(small: Extractor) -> None:
    """Values between two levels, and beyond the range, are those of the nearest level."""
    images = images_for(small, 4)
    nudged = images + 0.4 / 127.5 * torch.where(images == 1, 1.0, -1.0)
    nudged[images == 1] += 0.3
    assert torch.equal(small.extract(nudged).vectors, small.extract(images).vectors)
    assert torch.equal(small.extract(images.double()).vectors, small.extract(images).vectors)


def test_identity_is_that_of_the_weights(small: Extractor) -> None:
    assert small.identity == hashlib.sha256((FOLDER / small.name / WEIGHTS).read_bytes()).hexdigest()
    assert f"{read_facts(FOLDER / small.name)['test_accuracy']:.1%}" in small.about


def test_wrong_images_are_refused(small: Extractor) -> None:
    assert small.shape is not None
    channels, height, width = small.shape
    size = f"1x{height}x{width}"
    assert f"takes images of {size}, not of 1x{height}x9" in complaint(small.name, noise(2, channels, height, 9))
    assert f"takes images of {size}, not of 3x{height}x{width}" in complaint(small.name, noise(2, 3, height, width))
    assert "expected floats in [-1, 1] as N C H W" in complaint(small.name, noise(channels, height, width))
    assert "torch.uint8" in complaint(small.name, to_uint8(noise(2, *small.shape)))
    assert "expected floats" in complaint(small.name, noise(0, *small.shape))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(small: Extractor, value: float) -> None:
    images = images_for(small, 5)
    images[3, 0, 1, 1] = value
    assert "image 3 of 5 holds values that are not finite" in complaint(small.name, images)


def test_weights_of_ones_own_are_refused_where_they_would_not_be_used(small: Extractor) -> None:
    assert "leave --weights out" in complaint(small.name, weights=Path("x.safetensors"))


def held_out_digits() -> tuple[Tensor, Tensor, Tensor]:
    """All 1,797 images with labels, and which of them the classifier was tested on: the first of its seed's order."""
    data, training = load_data("digits"), read_facts(FOLDER / "digits-cnn")["training"]
    images, labels = data.fetch(range(len(data)))
    assert labels is not None
    order = torch.randperm(len(data), generator=seeds.generator(training["seed"], seeds.SHUFFLE))
    return to_float(images), labels, order


def test_digits_cnn_is_as_accurate_as_it_says() -> None:
    facts = read_facts(FOLDER / "digits-cnn")
    images, labels, order = held_out_digits()
    chosen = order[: facts["test_images"]]
    logits = find_extractor("digits-cnn").extract(images[chosen]).logits
    assert logits is not None
    wrong = int((logits.argmax(1) != labels[chosen]).sum())
    assert abs(wrong - facts["test_images"] * (1 - facts["test_accuracy"])) <= 1  # kernels differ in the last digit
    assert facts["test_accuracy"] > 0.97


def test_fashion_cnn_is_the_one_that_was_measured() -> None:
    """Its data is not here, so its answer to fixed noise stands for it."""
    features = find_extractor("fashion-cnn").extract(noise(2, 1, 28, 28))
    assert features.logits is not None
    norms, first = torch.tensor([9.01734, 8.89398]), torch.tensor([[-1.58224, -5.48096], [-1.57145, -4.48868]])
    torch.testing.assert_close(features.vectors.norm(dim=1), norms, atol=1e-3, rtol=0)
    torch.testing.assert_close(features.logits[:, :2], first, atol=1e-3, rtol=0)
    assert read_facts(FOLDER / "fashion-cnn")["test_accuracy"] > 0.925


@pytest.mark.parametrize(
    ("name", "teacher", "labels"),
    [
        ("digits-cnn", "digits8", list(range(10))),
        ("fashion-cnn", "fashion28", [1, 3, 5, 7, 8, 9]),  # the other four are tops, alike also to people
    ],
)
def test_samples_of_the_teachers_are_seen_as_asked(name: str, teacher: str, labels: list[int]) -> None:
    images = onefold.sample(teacher, 3 * len(labels), calls=8, labels=labels, seed=1)
    logits = find_extractor(name).extract(images.clamp(-1, 1)).logits
    assert logits is not None
    right = logits.argmax(1) == torch.tensor(3 * labels)
    assert right.double().mean() > 0.85


# The references of the bundled teachers


@pytest.mark.parametrize(("name", "teacher"), BUNDLED.items())
def test_references_say_where_they_come_from(name: str, teacher: str) -> None:
    reference, facts = load_statistics(ASSETS / teacher / "reference.npz"), read_facts(FOLDER / name)
    assert reference.extractor == name
    assert reference.count == facts["training"]["images"]
    assert reference.features is not None
    assert reference.features.shape == (facts["test_images"], facts["features"])
    assert reference.provenance["identity"] == find_extractor(name).identity
    assert reference.provenance["fingerprint"] == bundled()[teacher]["data"]["fingerprint"]


@pytest.mark.parametrize(("name", "teacher"), BUNDLED.items())
def test_held_out_images_are_like_those_of_the_reference(name: str, teacher: str) -> None:
    """Far nearer than noise is, in both mean and distance."""
    reference, extractor = load_statistics(ASSETS / teacher / "reference.npz"), find_extractor(name)
    assert reference.features is not None
    real = Moments().add(reference.features).statistics(name)
    other = Moments().add(extractor.extract(images_for(extractor, 200)).vectors).statistics(name)
    assert frechet_distance(real, reference) < 0.02 * frechet_distance(other, reference)


def test_reference_of_digits8_is_what_the_classifier_sees() -> None:
    reference = load_statistics(ASSETS / "digits8" / "reference.npz")
    assert reference.features is not None
    images, _, order = held_out_digits()
    vectors = find_extractor("digits-cnn").extract(images[order]).vectors.double()
    held_out, seen = vectors[:500], vectors[500:]
    torch.testing.assert_close(reference.mean, seen.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(reference.covariance, seen.T.cov(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(reference.features.double(), held_out, rtol=2e-3, atol=1e-4)


def test_assets_stay_small() -> None:
    sizes = {path: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    references = {path: path.stat().st_size for path in ASSETS.glob("*/reference.npz")}
    assert max(sizes.values()) < 1_000_000
    assert max(references.values()) < 1_500_000
    assert sum(sizes.values()) + sum(references.values()) < 4_000_000


# Inception


class FakeInception(nn.Module):
    """Stands for torch-fidelity's class where that is not installed: the same way in and out."""

    def __init__(self, name: str, outputs: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert outputs == ["2048", "logits_unbiased"]
        self.fc = nn.Linear(3, 7)
        self.load_state_dict(torch.load(feature_extractor_weights_path))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        vectors = images.float().mean((2, 3))
        return vectors, vectors @ self.fc.weight.T


@pytest.fixture
def fake_fidelity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A weights file of the fake; torch's cache is an empty folder."""
    package, module = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = FakeInception  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    torch.save(nn.ModuleDict({"fc": nn.Linear(3, 7)}).state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_a_missing_torch_fidelity_is_told_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["torch_fidelity", *(name for name in sys.modules if name.startswith("torch_fidelity."))]:
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install 'onefold[eval]'" in complaint("inception")


def test_a_broken_torchvision_is_told_as_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch_fidelity").mkdir()
    text = "raise RuntimeError('operator torchvision::nms does not exist\\nand more')\n"
    (tmp_path / "torch_fidelity" / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)
    sentence = complaint("inception")
    assert "(operator torchvision::nms does not exist)" in sentence
    assert f"the torchvision that belongs to torch {torch.__version__}" in sentence


def test_inception_without_weights_says_where_it_looked(fake_fidelity: Path, tmp_path: Path) -> None:
    cache = tmp_path / "home" / "hub" / "checkpoints" / inception.FILE
    sentence = complaint("inception")
    assert str(cache) in sentence
    assert "--weights FILE" in sentence
    assert "'elsewhere.pth'" in complaint("inception", weights=Path("elsewhere.pth"))


def test_only_the_official_weights_bear_the_name(
    fake_fidelity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(fake_fidelity.read_bytes()).hexdigest()
    other = find_extractor("inception", weights=fake_fidelity)
    assert (other.name, other.identity, other.classes) == (f"inception-{digest[:8]}", digest, 7)
    cache = tmp_path / "home" / "hub" / "checkpoints" / inception.FILE
    cache.parent.mkdir(parents=True)
    shutil.copy(fake_fidelity, cache)
    assert f"{cache} is damaged" in complaint("inception")
    monkeypatch.setattr(inception, "OFFICIAL", digest)
    assert find_extractor("inception").name == "inception"
    assert find_extractor("inception", weights=cache).name == "inception"


def test_inception_gets_bytes_and_three_channels(fake_fidelity: Path) -> None:
    extractor = find_extractor("inception", weights=fake_fidelity)
    grey = noise(3, 1, 5, 4)
    vectors = extractor.extract(grey).vectors
    expected = (127.5 * grey + 127.5).mean((2, 3)).expand(-1, 3)
    torch.testing.assert_close(vectors, expected, atol=1e-4, rtol=0)
    assert torch.equal(extractor.extract(grey.expand(-1, 3, -1, -1)).vectors, vectors)
    assert "takes grey or RGB images, not 2 channels" in complaint(
        "inception", noise(1, 2, 4, 4), weights=fake_fidelity
    )


def test_a_file_that_is_not_inceptions_is_refused(fake_fidelity: Path, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(7, 3)}, tmp_path / "half.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save(nn.Linear(2, 2), tmp_path / "pickled.pth")
    for name in "half.pth", "text.pth", "pickled.pth":
        sentence = complaint("inception", weights=tmp_path / name)
        assert f"{name} does not hold the weights of torch-fidelity's Inception" in sentence


@pytest.fixture(scope="module")
def real_inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """torch-fidelity's class, and a file of random weights in the form of the official one."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except Exception as error:  # noqa: BLE001  (a torchvision for another torch breaks in many ways)
        pytest.skip(f"torch-fidelity does not load here: {error}")

    class Blank(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, state: dict[str, Tensor]) -> None:  # type: ignore[override]
            """Keeps the random weights."""

    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    torch.save(Blank("blank", ["2048"], feature_extractor_weights_path=str(path)).state_dict(), path)
    return FeatureExtractorInceptionV3, path


def test_inception_is_torch_fidelitys(real_inception: tuple[Any, Path]) -> None:
    kind, path = real_inception
    extractor = find_extractor("inception", weights=path)
    images = noise(3, 1, 28, 28)
    features = extractor.extract(images)
    theirs = kind("theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))
    pixels = ((images + 1) * 127.5).round().to(torch.uint8).repeat(1, 3, 1, 1)
    vectors, logits = theirs(pixels)
    assert features.logits is not None
    assert features.vectors.shape == (3, 2048)
    assert extractor.classes == features.logits.shape[1] == 1008
    assert torch.equal(features.vectors, vectors)
    assert torch.equal(features.logits, logits)
    alone = torch.cat([extractor.extract(image[None]).vectors for image in images])
    torch.testing.assert_close(features.vectors, alone, atol=1e-4, rtol=1e-4)


# CLIP and DINOv2, as transformers saves them

PREPROCESSOR = {
    "size": {"shortest_edge": 24},
    "crop_size": {"height": 24, "width": 24},
    "resample": 3,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}
TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def save_tokenizer(folder: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers, folder = pytest.importorskip("transformers"), tmp_path_factory.mktemp("clip")
    config = transformers.CLIPConfig(
        text_config={
            **TOWER, "vocab_size": 54, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
            "intermediate_size": 64, "projection_dim": 16,
        },
        vision_config={**TOWER, "image_size": 24, "patch_size": 8, "intermediate_size": 64, "projection_dim": 16},
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    save_tokenizer(folder)
    return folder


def save_dino(folder: Path, kind: str) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**TOWER, image_size=24, patch_size=8)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSOR, "size": {"shortest_edge": 32}}))
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dino(tmp_path_factory.mktemp("dino"), "Dinov2")


def with_pillow(images: Tensor, shorter: int, crop: int) -> Tensor:
    """What the models' own preprocessing does, by Pillow: scale, crop the middle, normalise."""
    results = []
    for image in to_uint8(images.expand(-1, 3, -1, -1)):
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        scale = shorter / min(picture.size)
        picture = picture.resize((int(picture.width * scale), int(picture.height * scale)), Image.Resampling.BICUBIC)
        left, top = (picture.width - crop) // 2, (picture.height - crop) // 2
        pixels = np.asarray(picture.crop((left, top, left + crop, top + crop)), dtype=np.float32) / 255
        results.append((pixels - PREPROCESSOR["image_mean"]) / PREPROCESSOR["image_std"])
    return torch.tensor(np.stack(results), dtype=torch.float32).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (12, 12), (24, 24)])
@pytest.mark.parametrize("shorter", [24, 32])
def test_preprocessing_is_pillows(size: tuple[int, int], shorter: int) -> None:
    images = noise(2, 3, *size)
    prepare = read_preprocessing({**PREPROCESSOR, "size": {"shortest_edge": shorter}}, "here")
    level = 1 / 255 / min(PREPROCESSOR["image_std"])
    ours, theirs = prepare(to_uint8(images)), with_pillow(images, shorter, 24)
    assert (ours - theirs).abs().max() < 2.01 * level  # both round twice, with fixed points of their own
    assert (ours - theirs).abs().mean() < 0.02 * level


def test_older_and_other_forms_of_the_preprocessors_config() -> None:
    plain = read_preprocessing(PREPROCESSOR, "here")
    assert read_preprocessing({**PREPROCESSOR, "size": 24, "crop_size": 24}, "here") == plain
    both = {"size": {"height": 24, "width": 30}, "do_center_crop": False, "do_normalize": False}
    images = to_uint8(noise(1, 3, 24, 30))
    torch.testing.assert_close(read_preprocessing({**PREPROCESSOR, **both}, "here")(images), images / 255)
    raw = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False}
    assert torch.equal(read_preprocessing(raw, "here")(images), images.float())
    with pytest.raises(UserError, match="here asks for resample 2"):
        read_preprocessing({**PREPROCESSOR, "resample": 2}, "here")
    with pytest.raises(UserError, match="here lacks or garbles 'crop_size'"):
        read_preprocessing({"size": 24, "image_mean": [0.5], "image_std": [0.5]}, "here")
    with pytest.raises(UserError, match="smaller than the 24x24"):
        read_preprocessing({**PREPROCESSOR, "size": 20}, "here")(images)


def test_clip_sees_what_transformers_sees(clip_folder: Path) -> None:
    import transformers

    extractor = find_extractor("clip", weights=clip_folder)
    images = noise(3, 1, 30, 24)
    found = extractor.extract(images)
    model = transformers.CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        theirs = model.get_image_features(pixel_values=with_pillow(images, 24, 24))
    expected = getattr(theirs, "pooler_output", theirs)  # since transformers 5
    assert found.vectors.shape == (3, 16)
    assert found.logits is None
    assert extractor.classes is None
    torch.testing.assert_close(found.vectors, expected, atol=1e-2 * float(expected.abs().max()), rtol=0)


def test_clip_reads_texts_as_transformers_does(clip_folder: Path) -> None:
    import transformers

    texts = ["a cat", "two dogs", "a sentence that is far longer than what the model can read at once"]
    found = text_features(clip_folder, torch.device("cpu"))(texts)
    model = transformers.CLIPModel.from_pretrained(clip_folder)
    tokens = transformers.CLIPTokenizer.from_pretrained(clip_folder)(
        texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = model.get_text_features(**tokens)
    assert found.shape == (3, 16)
    torch.testing.assert_close(found, getattr(theirs, "pooler_output", theirs), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])
def test_dinov2_gives_the_class_token(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")

    extractor = find_extractor("dinov2", weights=save_dino(tmp_path, kind))
    images = noise(3, 3, 40, 32)
    found = extractor.extract(images)
    with torch.no_grad():
        model = getattr(transformers, f"{kind}Model").from_pretrained(tmp_path)
        expected = model(pixel_values=with_pillow(images, 32, 24)).last_hidden_state[:, 0]
    assert found.vectors.shape == (3, 32)
    torch.testing.assert_close(found.vectors, expected, atol=1e-2 * float(expected.abs().max()), rtol=0)
    alone = torch.cat([extractor.extract(image[None]).vectors for image in images])
    torch.testing.assert_close(found.vectors, alone, atol=1e-5, rtol=1e-4)


def test_identity_changes_with_weights_and_configs(dino_folder: Path, tmp_path: Path) -> None:
    first = find_extractor("dinov2", weights=dino_folder).identity
    shutil.copytree(dino_folder, tmp_path / "copy")
    assert find_extractor("dinov2", weights=tmp_path / "copy").identity == first
    (tmp_path / "copy" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    assert find_extractor("dinov2", weights=tmp_path / "copy").identity != first


def test_models_are_quiet_while_they_load(dino_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    find_extractor("dinov2", weights=dino_folder)
    assert capfd.readouterr() == ("", "")


def test_folders_that_are_no_model_are_refused(tmp_path: Path) -> None:
    assert "--weights FOLDER" in complaint("clip")
    assert "there is no folder" in complaint("dinov2", weights=tmp_path / "none")
    assert "config.json is not readable" in complaint("clip", weights=tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "holds a model of type 'bert', expected clip" in complaint("clip", weights=tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "holds no *.safetensors" in complaint("clip", weights=tmp_path)


def test_a_missing_transformers_is_told_with_its_command(dino_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'onefold[text]'" in complaint("dinov2", weights=dino_folder)


def test_a_torchvision_that_breaks_transformers_is_named(dino_folder: Path, tmp_path: Path) -> None:
    """transformers hides the reason behind a sentence of its own."""
    package, about = tmp_path / "torchvision", tmp_path / "torchvision-0.99.0.dist-info"
    package.mkdir()
    about.mkdir()
    (package / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.0\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from pathlib import Path
from onefold.errors import UserError
from onefold.metrics.extractors import find_extractor
try:
    find_extractor("dinov2", weights=Path({str(dino_folder)!r}))
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "(operator torchvision::nms does not exist); pip uninstall torchvision" in done.stdout, done.stderr


def test_missing_weights_are_never_drawn_at_random(dino_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(dino_folder, tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    state = load_file(path)
    dropped = state.pop("layernorm.weight")
    save_file(state, path, {"format": "pt"})
    assert "lacks weights of a Dinov2Model, such as layernorm.weight" in complaint("dinov2", weights=path.parent)
    save_file({**state, "layernorm.weight": dropped[:5].clone()}, path, {"format": "pt"})
    assert "does not load as a Dinov2Model" in complaint("dinov2", weights=path.parent)


def test_a_tokenizer_that_is_missing_is_told(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "copy")
    (tmp_path / "copy" / "vocab.json").unlink()
    with pytest.raises(UserError, match="no CLIP tokenizer"):
        text_features(tmp_path / "copy", torch.device("cpu"))


# CLIP score


def test_clip_score_is_a_hundred_times_the_cosine_where_positive() -> None:
    angles = torch.tensor([0.0, 60.0, 90.0, 120.0, 180.0], dtype=torch.float64).deg2rad()
    images = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
    texts = torch.tensor([[7.0, 0.0]]).expand(5, -1)
    score = clip_score(images, texts)
    assert score.mean == pytest.approx((100 + 50) / 5, abs=1e-9)
    assert score.error == pytest.approx(np.std([100, 50, 0, 0, 0], ddof=1) / math.sqrt(5), abs=1e-9)


def test_clip_score_refuses_what_does_not_match() -> None:
    with pytest.raises(UserError, match="one text for each image"):
        clip_score(torch.ones(3, 4), torch.ones(2, 4))
    with pytest.raises(UserError, match="NaN"):
        clip_score(torch.full((2, 4), math.nan), torch.ones(2, 4))


# A user's own


MODULE = '''
import torch

def spread(images):
    """Mean and spread of each channel."""
    assert images.dtype == torch.float32 and images.min() >= -1 and images.max() <= 1
    return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)

def classify(images):
    return images.mean((2, 3)), images.flatten(1)[:, :5].half()

def scaled(images, weights):
    return images.mean((2, 3)) * float(weights.read_text())

def flat(images): return images.mean((1, 2, 3))
def array(images): return images.mean((2, 3)).numpy()
def fewer(images): return images.mean((2, 3))[1:]
def broken(images): raise ValueError("the net is missing")
def nans(images): return images.mean((2, 3)) * float("nan")
def wrong_logits(images): return images.mean((2, 3)), images
number = 3
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in the current folder, forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    package = tmp_path / "minepackage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "features.py").write_text(MODULE)
    (package / "needy.py").write_text("import surely_not_installed\n")
    (package / "failing.py").write_text("raise OSError('no net')\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "minepackage"]:
        del sys.modules[name]
    return package


def test_a_function_of_the_current_folder_is_an_extractor(mine: Path) -> None:
    extractor = find_extractor("minepackage.features:spread")
    images = noise(4, 3, 6, 5)
    features = extractor.extract(images)
    torch.testing.assert_close(features.vectors, torch.cat([images.mean((2, 3)), images.std((2, 3))], 1))
    assert features.logits is None
    assert extractor.name == "minepackage.features:spread"
    assert extractor.about == "Mean and spread of each channel."
    assert extractor.identity == hashlib.sha256((mine / "features.py").read_bytes()).hexdigest()


def test_a_function_may_classify(mine: Path) -> None:
    features = find_extractor("minepackage.features:classify").extract(noise(4, 1, 6, 5))
    assert features.logits is not None
    assert features.logits.shape == (4, 5)
    assert features.logits.dtype == torch.float32


def test_a_function_may_want_weights(mine: Path) -> None:
    """It gets the path that is given, and other weights make another extractor."""
    name, images = "minepackage.features:scaled", noise(4, 3, 6, 5)
    for value in ("2", "3"):
        (mine / value).write_text(value)
    two, three = (find_extractor(name, weights=mine / value) for value in ("2", "3"))
    torch.testing.assert_close(two.extract(images).vectors, 2 * images.mean((2, 3)))
    torch.testing.assert_close(three.extract(images).vectors, 3 * images.mean((2, 3)))
    assert two.identity != three.identity
    assert two.identity == find_extractor(name, weights=mine / "2").identity
    assert "wants a file of weights; give it with --weights FILE" in complaint(name)
    assert "there is no file 'nowhere'" in complaint(name, weights=Path("nowhere"))


def test_among_several_extractors_weights_go_to_those_that_take_them(mine: Path) -> None:
    (mine / "2").write_text("2")
    names = ["minepackage.features:scaled", "minepackage.features:spread", "pixels"]
    assert list(find_extractors(names, mine / "2", (3, 8, 8), "cpu")) == names
    with pytest.raises(UserError, match="leave --weights out"):
        find_extractors(names[1:2], mine / "2", (3, 8, 8), "cpu")


def test_names_that_lead_to_no_function_are_refused(mine: Path) -> None:
    assert "no function 'sprad'; did you mean 'spread'?" in complaint("minepackage.features:sprad")
    assert "no function 'number'" in complaint("minepackage.features:number")
    assert "needs module 'minepackage.feature', which is missing" in complaint("minepackage.feature:spread")
    assert "needs module 'nowhere', which is missing" in complaint("nowhere.module:function")
    assert "needs module 'surely_not_installed'" in complaint("minepackage.needy:spread")
    assert "does not import (no net)" in complaint("minepackage.failing:spread")
    assert "is no name of a function" in complaint("features.py:spread:more")
    assert "comes from no file" in complaint("sys:getrefcount")
    assert "leave --weights out" in complaint("minepackage.features:spread", weights=Path("x"))


def test_what_a_function_gives_is_looked_at(mine: Path) -> None:
    images = noise(2, 1, 8, 8)
    for function, told in {
        "flat": "gave features of shape (2,) for 2 images, expected (2, D)",
        "fewer": "gave features of shape (1, 1) for 2 images",
        "array": "gave a ndarray, expected features",
        "broken": "failed on images of shape (2, 1, 8, 8) (ValueError: the net is missing)",
        "nans": "gave features that are not finite",
        "wrong_logits": "gave logits of shape (2, 1, 8, 8)",
    }.items():
        assert told in complaint(f"minepackage.features:{function}", images)
