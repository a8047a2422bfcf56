"""Every family of diffusers pipelines: the adapter's steps are the pipeline's own, and the whole house takes its teachers."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import onefold
import pipelines
from onefold import seeds
from onefold.bench.inspection import inspect
from onefold.conditions import Prompts, load_prompts
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.grids import Grid
from onefold.sampling import Plan
from onefold.student import load_student
from onefold.teachers import encoders, load_teacher
from pipelines import SD, VP

TEXTS = ["a cat", "the quick brown fox jumps over", "x"]  # the second is cut by the tokenizer
EULER = {key: value for key, value in SD.items() if key != "clip_sample"}
STEPS = 4


def saved(pipe: Any, folder: Path, **settings: Any) -> Denoiser:
    pipe.save_pretrained(folder, **settings)
    return load_teacher(folder, device="cpu")


def stock_steps(pipe: Any, count: int, **request: Any) -> tuple[list[Tensor], Tensor]:
    """What the pipeline's scheduler gives after each step from the noise of seed 0, and the images as N C H W in [0, 1]."""
    states: list[Tensor] = []
    step = pipe.scheduler.step

    def watched(*given: Any, **more: Any) -> Any:
        made = step(*given, **more)
        states.append(made[0][:count])
        return made

    pipe.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seeds.image_seed(0, index)) for index in range(count)]
    pipe.scheduler.step = watched
    try:
        images = torch.as_tensor(pipe(generator=noise, **{"num_inference_steps": STEPS, **request}).images)
    finally:
        del pipe.scheduler.step
    return states, images if images.shape[1] == 3 else images.permute(0, 3, 1, 2)


def trailing(teacher: Denoiser, start: str) -> Grid:
    """The levels of "trailing" spacing, and 0."""
    times = torch.arange(999, -1, -1000 // STEPS, dtype=torch.float64)
    grid = Grid(torch.cat([teacher.process.sigma(times), torch.zeros(1, dtype=torch.float64)]))
    return grid.starting("ve") if start == "ve" else grid


def our_steps(teacher: Denoiser, grid: Grid, labels: Sequence[int] | None, count: int) -> list[Tensor]:
    numbers = None if labels is None else torch.tensor(labels)
    noise = seeds.ImageNoise(0, range(count), teacher.shape)
    return Plan("euler", grid, None, {}).solve(teacher, noise, numbers, trajectory=True)[1:]


def assert_same_steps(
    teacher: Denoiser,
    pipe: Any,
    labels: Sequence[int] | None = None,
    *,
    count: int = 3,
    start: str = "vp",
    **request: Any,
) -> Tensor:
    """States after every step, in units of the largest number among them where that is above 1, and the images."""
    theirs, images = stock_steps(pipe, count, **request)
    grid = trailing(teacher, start)
    ours = our_steps(teacher, grid, labels, count)
    assert len(theirs) == len(ours) == STEPS
    for stock, state, sigma in zip(theirs, ours, grid.sigmas[1:].tolist(), strict=True):
        scale = (1 + sigma**2) ** -0.5  # both in the network's own coordinates
        stock = stock * scale if start == "ve" else stock
        assert float((stock - scale * state).abs().max()) <= 1e-5 * max(1.0, float(stock.abs().max()))
    made = teacher.images(ours[-1])
    assert teacher.image_shape == made.shape[1:] == images.shape[1:]
    assert float(((made / 2 + 0.5).clamp(0, 1) - images).abs().max()) <= 1e-5 * max(1.0, float(made.abs().max()))
    sampled = onefold.sample(teacher, count, solver="euler", grid=grid, labels=labels)
    assert torch.equal(sampled, made)
    return made


def differ(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) > 1e-3


# Steps equal to the pipeline's ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_pixels(tmp_path: Path, prediction: str) -> None:
    torch.manual_seed(0)
    pipe = diffusers.DDIMPipeline(pipelines.pixel_unet(), diffusers.DDIMScheduler(**VP, prediction_type=prediction))
    assert_same_steps(saved(pipe, tmp_path / "t"), pipe, batch_size=3, output_type="np")


def test_pixels_with_a_learnt_embedding_of_whole_times(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = pipelines.pixel_unet(time_embedding_type="learned", num_train_timesteps=1000)
    pipe = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler(**VP))
    teacher = saved(pipe, tmp_path / "t")
    assert not teacher.continuous_time and onefold.sample(teacher, 1, calls=3).isfinite().all()  # the grid is snapped
    assert_same_steps(teacher, pipe, batch_size=3, output_type="np")


@pytest.mark.parametrize("kind", ["VQModel", "AutoencoderKL"])
def test_unconditional_latents(tmp_path: Path, kind: str) -> None:
    pipe = pipelines.latent_pipeline(kind)
    teacher = saved(pipe, tmp_path / "t")
    assert teacher.choices is None and teacher.shape == (3, 8, 8) and teacher.image_shape == (3, 16, 16)
    assert_same_steps(teacher, pipe, batch_size=3, output_type="np")


@pytest.mark.parametrize("variance", [True, False])
def test_diffusion_transformers(tmp_path: Path, variance: bool) -> None:
    pipe = pipelines.dit_pipeline(variance=variance)
    saved(pipe, tmp_path / "t")
    edited(tmp_path / "t" / "model_index.json", id2label={"0": "tench, tinca"})  # as the hub's folders have it
    teacher = load_teacher(tmp_path / "t", device="cpu")
    labels = [7, 0, 999]
    assert (teacher.classes, teacher.null) == (1000, {"labels": 1000})
    assert teacher.card["index"]["id2label"] == {"0": "tench, tinca"}
    plain = assert_same_steps(teacher, pipe, labels, class_labels=labels, guidance_scale=1.0, output_type="pt")
    guided = teacher.replace(guidance=3.0)
    made = assert_same_steps(guided, pipe, labels, class_labels=labels, guidance_scale=3.0, output_type="pt")
    assert differ(made, plain) and guided.calls == 4 * STEPS  # two runs, two calls a step


def test_a_transformer_of_few_classes_is_guided_by_its_own_null_class(tmp_path: Path) -> None:
    """Where the stock pipeline asks for class 1000, which there is not."""
    teacher = saved(pipelines.dit_pipeline(classes=5), tmp_path / "t")
    assert (teacher.classes, teacher.null) == (5, {"labels": 5})
    assert onefold.sample(teacher, 2, calls=2, guidance=2.0).isfinite().all()


SCHEDULERS: dict[str, tuple[Callable[[], Any], str]] = {
    "eps ddim": (lambda: diffusers.DDIMScheduler(**SD, steps_offset=1), "vp"),
    "eps euler": (lambda: diffusers.EulerDiscreteScheduler(**EULER), "ve"),
    "v ddim": (lambda: diffusers.DDIMScheduler(**SD, steps_offset=1, prediction_type="v_prediction"), "vp"),
    "v euler": (lambda: diffusers.EulerDiscreteScheduler(**EULER, prediction_type="v_prediction"), "ve"),
    "v zero-snr": (
        lambda: diffusers.DDIMScheduler(
            **SD, steps_offset=1, prediction_type="v_prediction", rescale_betas_zero_snr=True
        ),
        "vp",
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_stable_diffusion(tmp_path: Path, name: str) -> None:
    """Prompts of unequal length, in another order than the table's, with and without guidance."""
    make, start = SCHEDULERS[name]
    second = {"attention_head_dim": (2, 4), "use_linear_projection": True} if name.startswith("v") else {}  # as 2.x
    pipe = pipelines.text_pipeline(tmp_path, make(), **second)
    teacher = saved(pipe, tmp_path / "t").with_prompts(TEXTS)
    assert (teacher.process.sigma_max == float("inf")) == (name == "v zero-snr")
    labels = [2, 0, 1]
    request = {"prompt": [TEXTS[label] for label in labels], "output_type": "pt"}
    plain = assert_same_steps(teacher, pipe, labels, start=start, guidance_scale=1.0, **request)
    guided = teacher.replace(guidance=3.0)
    assert differ(assert_same_steps(guided, pipe, labels, start=start, guidance_scale=3.0, **request), plain)


@pytest.mark.parametrize("zeros", [True, False])
def test_stable_diffusion_xl(tmp_path: Path, zeros: bool) -> None:
    moved = {} if zeros else {"latents_mean": (0.1, -0.2, 0.3, 0.0), "latents_std": (0.9, 1.1, 1.0, 2.0)}
    pipe = pipelines.large_pipeline(tmp_path, zeros=zeros, **moved)
    teacher = saved(pipe, tmp_path / "t").with_prompts(TEXTS)
    assert teacher.prompts is not None
    assert set(teacher.prompts.table) == {"encoder_hidden_states", "text_embeds", "time_ids"}
    assert teacher.prompts.table["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 3
    assert bool(teacher.prompts.nothing["text_embeds"].any()) is not zeros
    labels = [2, 0, 1]
    request = {"prompt": [TEXTS[label] for label in labels], "output_type": "pt"}
    plain = assert_same_steps(teacher, pipe, labels, start="ve", guidance_scale=1.0, **request)
    guided = teacher.replace(guidance=3.0)
    assert differ(assert_same_steps(guided, pipe, labels, start="ve", guidance_scale=3.0, **request), plain)


def consistency_pipeline(**scheduler: Any) -> Any:
    torch.manual_seed(0)
    noising = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40, **scheduler)
    return diffusers.ConsistencyModelPipeline(pipelines.pixel_unet(num_class_embeds=10), noising)


@pytest.mark.parametrize("clip", [True, False])
def test_consistency_models_in_one_step(tmp_path: Path, clip: bool) -> None:
    pipe = consistency_pipeline(clip_denoised=clip)
    teacher = saved(pipe, tmp_path / "t")
    labels = [3, 9, 0]
    theirs, images = stock_steps(pipe, 3, batch_size=3, class_labels=labels, num_inference_steps=1, output_type="pt")
    ours = onefold.sample(teacher, 3, solver="euler", grid=[80.0, 0.0], labels=labels)
    assert torch.allclose((ours / 2 + 0.5).clamp(0, 1), images, atol=1e-5)
    assert clip or torch.allclose(ours, theirs[-1], rtol=1e-5, atol=1e-5)


def test_consistency_models_in_two_steps(tmp_path: Path) -> None:
    """Noise is added up to the second level from the image at the lowest one: x + sqrt(sigma^2 - sigma_min^2) z."""
    pipe = consistency_pipeline(clip_denoised=False)
    teacher = saved(pipe, tmp_path / "t")
    cond = {"labels": torch.tensor([3, 9, 0])}
    request = {"batch_size": 3, "class_labels": [3, 9, 0], "num_inference_steps": None, "timesteps": [22, 0]}
    theirs, _ = stock_steps(pipe, 3, **request, output_type="pt")
    noise = seeds.ImageNoise(0, range(3), teacher.shape)
    first, second = (float(sigma) for sigma in pipe.scheduler.sigmas[:2])
    assert first == 80 and second == pytest.approx((80 ** (1 / 7) + 22 / 39 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)
    with torch.no_grad():
        x = teacher(80 * noise(), first, cond) + (second**2 - 0.002**2) ** 0.5 * noise()
        last = teacher(x, second, cond)
    assert torch.allclose(x, theirs[0], rtol=1e-5, atol=1e-5) and torch.allclose(last, theirs[1], rtol=1e-5, atol=1e-5)


# Codecs and prompts --------------------------------------------------------------------------------------------------


def test_codecs_are_the_pipelines_own_in_both_directions(tmp_path: Path) -> None:
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    for pipe, autoencoder in ((pipelines.latent_pipeline(), "vqvae"), (pipelines.dit_pipeline(), "vae")):
        codec = saved(pipe, tmp_path / autoencoder).codec
        assert codec is not None
        module = getattr(pipe, autoencoder)
        with torch.no_grad():
            found = module.encode(images)
        expected = found.latents if autoencoder == "vqvae" else found.latent_dist.mode()
        assert torch.allclose(codec.latents(images), expected * module.config.scaling_factor, atol=1e-5)
    centred = {"latents_mean": (0.1, -0.2, 0.3, 0.0), "latents_std": (0.9, 1.1, 1.0, 2.0), "scaling_factor": 0.5}
    codec = saved(pipelines.large_pipeline(tmp_path, **centred), tmp_path / "xl").codec
    assert codec is not None
    latents = codec.latents(images)
    assert torch.allclose(codec.images(latents), codec.decode(latents), atol=1e-5)
    mean, std = (torch.tensor(centred[key]).reshape(1, 4, 1, 1) for key in ("latents_mean", "latents_std"))
    with torch.no_grad():
        expected = (codec.module.encode(images).latent_dist.mode() - mean) * 0.5 / std
    assert torch.allclose(latents, expected, atol=1e-5)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Denoiser:
    place = tmp_path_factory.mktemp("texts")
    return saved(pipelines.text_pipeline(place), place / "t")


def test_prompts_again_replace_the_former(texts: Denoiser) -> None:
    one, two = texts.with_prompts(TEXTS), texts.with_prompts(TEXTS).with_prompts(["b", "x"])
    assert (texts.choices, one.choices, two.choices) == (None, 3, 2) and two.prompts and one.prompts
    key = encoders.TEXT
    assert torch.allclose(two.prompts.table[key][1], one.prompts.table[key][2], atol=1e-6)
    assert torch.equal(two.prompts.nothing[key], one.prompts.nothing[key])
    assert one.prompts.fingerprint != two.prompts.fingerprint
    assert one.prompts.table[key].dtype == torch.float32 and one.prompts.table[key].device.type == "cpu"


def test_many_prompts_are_read_in_parts(texts: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = texts.with_prompts(list("abcde")).prompts
    monkeypatch.setattr(encoders, "AT_ONCE", 2)
    parts = texts.with_prompts(list("abcde")).prompts
    assert whole and parts and parts.texts == tuple("abcde")
    assert torch.allclose(whole.table[encoders.TEXT], parts.table[encoders.TEXT], atol=1e-6)


def test_encoders_are_not_kept(texts: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []
    load = encoders.load_encoder
    monkeypatch.setattr(encoders, "load_encoder", lambda *given: made.append(weakref.ref(e := load(*given))) or e)
    told = texts.with_prompts(["a"])
    gc.collect()
    assert len(made) == 1 and made[0]() is None and told.prompts


def test_prompts_in_a_file(texts: Denoiser, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS) + "\n\n")
    told = texts.with_prompts(tmp_path / "prompts.txt")
    assert told.prompts is not None
    told.prompts.save(tmp_path / "prompts.safetensors")
    again = load_prompts(tmp_path / "prompts.safetensors")
    assert again.texts == tuple(TEXTS) and again.fingerprint == told.prompts.fingerprint
    read = texts.with_prompts(tmp_path / "prompts.safetensors")
    assert torch.equal(onefold.sample(read, 3, calls=2), onefold.sample(told, 3, calls=2))


DAMAGE: dict[str, Callable[[dict[str, Tensor], dict[str, str]], object]] = {
    "no texts": lambda _, head: head.clear(),
    "texts that are one word": lambda _, head: head.update(texts='"abc"'),
    "texts that are numbers": lambda _, head: head.update(texts="[1, 2, 3]"),
    "texts without end": lambda _, head: head.update(texts="[" * 100_000),
    "too few texts": lambda _, head: head.update(texts='["a"]'),
    "a table without its nothing": lambda tensors, _: tensors.pop("nothing.encoder_hidden_states"),
    "something else": lambda tensors, _: tensors.update(other=torch.zeros(1)),
    "a number for a table": lambda tensors, _: tensors.update({"table.encoder_hidden_states": torch.zeros(())}),
    "a nothing of another shape": lambda tensors, _: tensors.update(
        {"nothing.encoder_hidden_states": torch.zeros(1, 3, 4)}
    ),
    "numbers that are none": lambda tensors, _: tensors["table.encoder_hidden_states"].fill_(float("nan")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_prompt_files_are_refused(texts: Denoiser, tmp_path: Path, damage: str) -> None:
    prompts, path = texts.with_prompts(TEXTS).prompts, tmp_path / "p.safetensors"
    assert prompts is not None
    prompts.save(path)
    tensors, head = load_file(path), {"texts": json.dumps(TEXTS)}
    DAMAGE[damage](tensors, head)
    save_file(tensors, path, metadata=head)
    with pytest.raises(UserError, match="no encoded prompts"):
        texts.with_prompts(path)


def test_files_cut_short_are_refused(texts: Denoiser, tmp_path: Path) -> None:
    prompts, path = texts.with_prompts(TEXTS).prompts, tmp_path / "p.safetensors"
    assert prompts is not None
    prompts.save(path)
    for content in (path.read_bytes()[:-5], b"", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(UserError, match="no encoded prompts"):
            texts.with_prompts(path)
    with pytest.raises(UserError, match="not readable"):
        texts.with_prompts(tmp_path / "missing.txt")


def test_networks_of_texts_ask_for_prompts(texts: Denoiser, tmp_path: Path) -> None:
    request: dict[str, Any] = {"out": tmp_path / "run", "budget": "4", "batch_size": 2, "device": "cpu"}
    for ask in (
        lambda: onefold.sample(texts, 2),
        lambda: onefold.sample(texts, 2, guidance=3.0),
        lambda: onefold.distill(texts, "sfd", **request),
        lambda: onefold.distill(texts, "sfd", guidance=3.0, **request),
        lambda: inspect(texts, count=2),
    ):
        with pytest.raises(UserError, match="is told a text with each image and has none yet; give prompts"):
            ask()
    with pytest.raises(UserError, match="got none; give it prompts"):
        texts.denoise(torch.zeros(1, *texts.shape), 1.0)


def test_prompts_of_another_model_are_refused(texts: Denoiser) -> None:
    row = torch.zeros(1, 12, 24)
    other = texts.replace(prompts=Prompts(("a",), {encoders.TEXT: row}, {encoders.TEXT: row}))
    with pytest.raises(UserError, match="has 24 numbers, expected 16: they were encoded for another model"):
        onefold.sample(other, 1, calls=1)


def test_pixels_are_told_no_texts() -> None:
    with pytest.raises(UserError, match="is told no texts"):
        load_teacher("digits8").with_prompts(["a"])


# The whole house takes them ------------------------------------------------------------------------------------------


def latent(place: Path) -> Denoiser:
    return saved(pipelines.latent_pipeline(), place / "t")


def transformer(place: Path) -> Denoiser:
    return saved(pipelines.dit_pipeline(classes=5), place / "t")


def stable(place: Path) -> Denoiser:
    return saved(pipelines.text_pipeline(place), place / "t").with_prompts(TEXTS)


def zero_snr(place: Path) -> Denoiser:
    scheduler = SCHEDULERS["v zero-snr"][0]()
    return saved(pipelines.text_pipeline(place, scheduler), place / "t").with_prompts(TEXTS)


def large(place: Path) -> Denoiser:
    return saved(pipelines.large_pipeline(place), place / "t").with_prompts(TEXTS)


def consistency(place: Path) -> Denoiser:
    return saved(consistency_pipeline(), place / "t")


@pytest.mark.parametrize("family", [latent, transformer, stable, zero_snr, large, consistency])
def test_students_of_every_family(tmp_path: Path, family: Callable[[Path], Denoiser]) -> None:
    """Two updates, and the student is a folder of its teacher's form that gives the same images again, bit for bit."""
    teacher = family(tmp_path)
    settings: dict[str, Any] = {"calls": 2, "afs": None, "parts": 1, "budget": "2", "batch_size": 2, "watched": 2}
    if teacher.nothing:
        settings["guidance"] = 2.0
    student = onefold.distill(teacher, "sfd", out=tmp_path / "run", device="cpu", **settings)
    before = {name: value.clone() for name, value in teacher.module.state_dict().items()}
    after = student.denoiser.module.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert not (tmp_path / "run" / "student" / "model_index.json").exists()
    student.save(tmp_path / "again")
    images = []
    for folder in (tmp_path / "run", tmp_path / "again"):
        loaded = load_student(folder, device="cpu")
        assert (loaded.denoiser.shape, loaded.denoiser.image_shape) == (teacher.shape, teacher.image_shape)
        told = loaded.denoiser if teacher.prompts is None else loaded.denoiser.with_prompts(TEXTS)
        images.append(onefold.sample(told, 2, **loaded.way))
    assert torch.equal(*images) and images[0].shape == (2, *teacher.image_shape) and images[0].isfinite().all()


@pytest.mark.parametrize("family", [latent, transformer, stable, large, consistency])
def test_inspecting_every_family(tmp_path: Path, family: Callable[[Path], Denoiser]) -> None:
    teacher = family(tmp_path)
    seen = inspect(teacher, count=2, out=tmp_path / "seen")
    assert seen.facts.image_shape == teacher.image_shape and Path(str(seen.picture)).is_file()
    assert seen.facts.prompts == (None if teacher.prompts is None else len(TEXTS))


# Folders as they come, and what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"variant": "fp16"}, {"max_shard_size": "40KB"}, {"variant": "fp16", "max_shard_size": "40KB"}]
)
def test_variants_and_shards(tmp_path: Path, settings: dict[str, Any]) -> None:
    half = "variant" in settings
    pipe = pipelines.text_pipeline(tmp_path)
    teacher = saved(pipe.to(torch.float16) if half else pipe, tmp_path / "t", **settings).with_prompts(TEXTS)
    assert len(list((tmp_path / "t" / "unet").glob("*.safetensors"))) > 1 or "max_shard_size" not in settings
    assert not (tmp_path / "t" / "unet" / "diffusion_pytorch_model.safetensors").exists()
    expected = pipe.to(torch.float32).unet.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in teacher.module.state_dict().items())
    assert teacher.prompts is not None
    assert teacher.prompts.table[encoders.TEXT].dtype == (torch.float16 if half else torch.float32)
    images = onefold.sample(teacher, 2, calls=2, guidance=2.0)
    _, stock = stock_steps(pipe, 2, prompt=TEXTS[:2], num_inference_steps=1, output_type="pt")
    assert images.shape == (2, 3, 16, 16) and images.isfinite().all() and stock.shape == images.shape
    assert teacher.card["sha256"] == load_teacher(tmp_path / "t", device="cpu").card["sha256"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("whole")
    pipes = {
        "sd": pipelines.text_pipeline(place / "sd"),
        "xl": pipelines.large_pipeline(place / "xl"),
        "dit": pipelines.dit_pipeline(classes=5),
        "ldm": pipelines.latent_pipeline(),
    }
    for name, pipe in pipes.items():
        pipe.save_pretrained(place / name)
    pipes["sd"].unet.save_pretrained(place / "sharded", max_shard_size="40KB")
    return {name: place / name for name in (*pipes, "sharded")}


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shard_missing(folder: Path, whole: dict[str, Path]) -> None:
    shutil.rmtree(folder / "unet")
    shutil.copytree(whole["sharded"], folder / "unet")
    next((folder / "unet").glob("*-00002-of-*")).unlink()


def link_dangling(folder: Path, _: dict[str, Path]) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to("../../blobs/0123")


def only_pickles(folder: Path, _: dict[str, Path]) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def cut_short(folder: Path, _: dict[str, Path]) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def weights_missing(folder: Path, _: dict[str, Path]) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path)


def unet_says(**changes: Any) -> Callable[[Path, dict[str, Path]], None]:
    return lambda folder, _: edited(folder / "unet" / "config.json", **changes)


def part_says(part: str, **changes: Any) -> Callable[[Path, dict[str, Path]], None]:
    return lambda folder, _: edited(folder / part / "config.json", **changes)


def index_says(**changes: Any) -> Callable[[Path, dict[str, Path]], None]:
    return lambda folder, _: edited(folder / "model_index.json", **changes)


def scheduler_says(**changes: Any) -> Callable[[Path, dict[str, Path]], None]:
    return lambda folder, _: edited(folder / "scheduler" / "scheduler_config.json", **changes)


def without(part: str) -> Callable[[Path, dict[str, Path]], None]:
    return lambda folder, _: shutil.rmtree(folder / part)


REFUSED: list[tuple[str, Callable[[Path, dict[str, Path]], None], str]] = [
    ("sd", index_says(_class_name="StableDiffusionInpaintPipeline"), "holds a StableDiffusionInpaintPipeline, which is not"),
    ("sd", index_says(_class_name=["StableDiffusionPipeline"]), "which is not supported"),
    ("sd", lambda folder, _: (folder / "model_index.json").write_text("[]"), "must hold a JSON object"),
    ("sd", unet_says(in_channels=9), "takes 9 channels and gives 4: inpainting"),
    ("sd", unet_says(sample_size="64"), "sample_size '64'"),
    ("sd", unet_says(sample_size=[True, -1]), "expected whole numbers"),
    ("sd", unet_says(num_class_embeds=1000), "has num_class_embeds 1000, expected None"),
    ("sd", unet_says(time_cond_proj_dim=256), "has time_cond_proj_dim 256, expected None"),
    ("sd", unet_says(_class_name="UNet2DModel"), "holds a UNet2DModel; expected UNet2DConditionModel"),
    ("sd", unet_says(_class_name={"a": 1}), "holds a {'a': 1}; expected"),
    ("sd", unet_says(block_out_channels="wide"), "does not load as a UNet2DConditionModel"),
    ("sd", unet_says(block_out_channels=[8, 10**7]), "does not load as a UNet2DConditionModel"),
    ("sd", without("unet"), "unet/ is missing; download it again"),
    ("sd", without("vae"), "vae/ is missing; download it again"),
    ("sd", without("scheduler"), "scheduler/ is missing; download it again"),
    ("sd", scheduler_says(trained_betas=["a"]), "has values that no scheduler has"),
    ("sd", scheduler_says(prediction_type=[]), "has values that no scheduler has"),
    ("sd", scheduler_says(rescale_betas_zero_snr="no"), "has values that no scheduler has"),
    ("sd", scheduler_says(beta_start="0.1"), "has values that no scheduler has"),
    ("sd", shard_missing, "-00002-of-.*safetensors is missing; download it again"),
    ("sd", link_dangling, "diffusion_pytorch_model.safetensors is missing; download it again"),
    ("sd", only_pickles, "only diffusion_pytorch_model.bin, whose loading can execute code"),
    ("sd", cut_short, "vae/.* holds no tensors that can be read"),
    ("sd", weights_missing, "lacks weights of a UNet2DConditionModel, such as conv_in.weight"),
    ("sd", part_says("vae", _class_name="AutoencoderTiny"), "holds a AutoencoderTiny; expected AutoencoderKL"),
    ("sd", part_says("vae", scaling_factor="1"), "names scaling_factor '1', expected something like"),
    ("sd", part_says("vae", scaling_factor=0), "expected positive numbers"),
    ("sd", part_says("vae", scaling_factor=None), "scales that no VAE has"),
    ("xl", part_says("vae", latents_mean=[0, 1], latents_std="a"), "scales that no VAE has"),
    ("xl", unet_says(addition_embed_type="text_image"), "has addition_embed_type 'text_image', expected 'text_time'"),
    ("xl", index_says(_class_name="StableDiffusionPipeline"), "has addition_embed_type 'text_time', expected None"),
    ("dit", part_says("transformer", num_embeds_ada_norm="5"), "names num_embeds_ada_norm '5'"),
    ("dit", part_says("transformer", num_embeds_ada_norm=None), "is told no class"),
    ("dit", part_says("transformer", out_channels=3), "takes 4 channels and gives 3"),
    ("ldm", without("vqvae"), "vqvae/ is missing"),
    ("ldm", unet_says(in_channels=4, out_channels=4), "does not load|makes latents of 3 channels"),
    ("ldm", unet_says(time_embedding_type="fourier"), "time embedding 'fourier'"),
    ("ldm", unet_says(num_class_embeds=-2), "names num_class_embeds -2"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "spoil", "sentence"), REFUSED)
def test_refusals_name_what_was_found(
    folders: dict[str, Path], tmp_path: Path, source: str, spoil: Callable[[Path, dict[str, Path]], None], sentence: str
) -> None:
    folder = tmp_path / "t"
    shutil.copytree(folders[source], folder)
    spoil(folder, folders)
    with pytest.raises(UserError, match=sentence) as error:
        load_teacher(folder, device="cpu")
    assert "\n" not in str(error.value)


def tokens_gone(folder: Path, _: dict[str, Path]) -> None:
    for file in (folder / "tokenizer").iterdir():
        file.write_text("[]")


def encoder_pickled(folder: Path, _: dict[str, Path]) -> None:
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "pytorch_model.bin")


UNREADABLE: list[tuple[str, Callable[[Path, dict[str, Path]], None], str]] = [
    ("sd", without("tokenizer"), "tokenizer/ is missing"),
    ("sd", without("text_encoder"), "text_encoder/ is missing"),
    ("sd", index_says(text_encoder=["transformers", "T5EncoderModel"]), "expected CLIPTextModel of transformers"),
    ("sd", index_says(text_encoder=7), "is a 7, expected CLIPTextModel"),
    ("sd", tokens_gone, "holds no CLIP tokenizer that loads"),
    ("sd", encoder_pickled, "only pytorch_model.bin, whose loading can execute code"),
    ("sd", part_says("text_encoder", hidden_size="a"), "does not load as a CLIPTextModel"),
    ("sd", part_says("text_encoder", num_hidden_layers=3), "lacks weights of a CLIPTextModel"),
    ("xl", without("text_encoder_2"), "text_encoder_2/ is missing"),
    ("xl", index_says(force_zeros_for_empty_prompt="no"), "is 'no', expected true or false"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "spoil", "sentence"), UNREADABLE)
def test_refusals_when_texts_are_read(
    folders: dict[str, Path], tmp_path: Path, source: str, spoil: Callable[[Path, dict[str, Path]], None], sentence: str
) -> None:
    """Only then: a model whose prompts were encoded elsewhere needs no encoder."""
    folder = tmp_path / "t"
    shutil.copytree(folders[source], folder)
    spoil(folder, folders)
    teacher = load_teacher(folder, device="cpu")
    with pytest.raises(UserError, match=sentence) as error:
        teacher.with_prompts(["a"])
    assert "\n" not in str(error.value)
