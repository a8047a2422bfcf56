"""Files made to run code, to fill the memory or to break a reader, of every kind that a user may hand over but pickles."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import pipelines
from hostile import ending, endings, entry, put_together, taken_apart
from onefold.conditions import load_prompts
from onefold.data import load_data, read_npz, teacher_data
from onefold.distilling import choose
from onefold.errors import UserError
from onefold.grids import explicit
from onefold.metrics.references import is_statistics, maker_of
from onefold.metrics.statistics import load_statistics
from onefold.networks.edm import build_edm
from onefold.settings import build, parse_assignments, read_yaml
from onefold.student import Student, load_student
from onefold.teachers import load_teacher
from onefold.teachers.edm import EDMForm, edm_denoiser, save_edm
from onefold.teachers.edm_process import preconditioning
from onefold.teaching import TeachSettings
from onefold.training.checkpoint import Checkpoints

Spoil = Callable[[Path], object]
EVIL = "torch_module_evil"
WEIGHTS = "diffusion_pytorch_model.safetensors"
RECIPE: dict[str, Any] = {
    "method": "sfd",
    "command": "onefold distill t",
    "settings": {"teacher": "t", "guidance": 1.0},
    "teacher": {"name": "t", "sha256": None},
    "cost": {"images": 1, "steps": 1, "seconds": 1.0, "device": "cpu", "processes": 1, "calls": {"teacher": 1}},
    "evidence": {"measure": "RMSE", "images": 1, "student": 0.1, "best_solver": "euler", "solvers": {"euler": 0.2}},
    "published": None,
    "versions": {"onefold": "0"},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Undamaged models of every kind of folder."""
    place = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    pixels = diffusers.DDIMPipeline(pipelines.pixel_unet(num_class_embeds=5), diffusers.DDIMScheduler(**pipelines.VP))
    pipes = {"pixels": pixels, "ldm": pipelines.latent_pipeline(), "dit": pipelines.dit_pipeline(classes=5)}
    pipes |= {"sd": pipelines.text_pipeline(place / "sd"), "xl": pipelines.large_pipeline(place / "xl")}
    for name, pipe in pipes.items():
        pipe.save_pretrained(place / name)
    plan = {"img_resolution": 4, "in_channels": 1, "out_channels": 1, "model_channels": 4, "channel_mult": [1]}
    network = build_edm("SongUNet", {**plan, "num_blocks": 1, "attn_resolutions": []})
    edm = edm_denoiser(network, preconditioning("EDMPrecond", {}))
    edm.form = EDMForm(edm.card)
    save_edm(edm, place / "edm")
    Student(load_teacher(place / "pixels", device="cpu"), explicit([80, 0.0]), None, RECIPE).save(place / "student")
    load_teacher(place / "sd", device="cpu").with_prompts(["a"]).prompts.save(place / "prompts.safetensors")  # type: ignore[union-attr]
    Checkpoints(place / "run").write(1, {"a": torch.zeros(1)}, {"identity": {}, "journal_bytes": 0})
    return {name: place / name for name in (*pipes, "edm", "student", "prompts.safetensors", "run")}


def copied(whole: Mapping[str, Path], name: str, place: Path) -> Path:
    target = place / name
    (shutil.copytree if whole[name].is_dir() else shutil.copyfile)(whole[name], target)  # type: ignore[operator]
    return target


def load(folder: Path) -> object:
    """As a user would; texts are read too."""
    if folder.name == "student":
        return load_student(folder, device="cpu")
    if folder.suffix == ".safetensors":
        return load_prompts(folder)
    if (folder / "step-0000000001").exists():
        return Checkpoints(folder).read_newest(lambda _: None)
    teacher = load_teacher(folder, device="cpu")
    return teacher if teacher.encode_texts is None else teacher.with_prompts(["a"])


def damaged(whole: Mapping[str, Path], place: Path, kind: str, spoils: Mapping[str, Spoil]) -> dict[str, str]:
    """How loading ends for each damage, which must be told with the name of the folder; {} for damage is no damage."""
    folders = []
    for number, spoil in enumerate(spoils.values()):
        (place / str(number)).mkdir()
        folders.append(copied(whole, kind, place / str(number)))
        spoil(folders[-1])
    found = dict(zip(spoils, endings([partial(load, folder) for folder in folders]), strict=True))
    for folder, (name, text) in zip(folders, found.items(), strict=True):
        assert not text or str(folder) in text or folder.suffix or kind == "run", (name, text)
    return found


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_whole_loads_in_the_little_room(whole: dict[str, Path]) -> None:
    assert set(endings([partial(load, folder) for folder in whole.values()])) == {""}


# Safetensors ----------------------------------------------------------------------------------------------------------

FLAT = json.dumps({"a": entry()}).encode()


def raw(**tensors: Any) -> bytes:
    return put_together(json.dumps(tensors).encode(), bytes(4))


TENSORS: dict[str, bytes] = {
    "nothing": b"",
    "few bytes": b"\x01\x02",
    "a header of 0 bytes": put_together(b"", bytes(8)),
    "a header of 2^63 bytes": put_together(FLAT, bytes(4), 2**63),
    "a header of 2^64 - 1 bytes": put_together(FLAT, bytes(4), 2**64 - 1),
    "a header longer than the file": put_together(FLAT, bytes(4), len(FLAT) + 5),
    "a header of 100 MB that is not there": put_together(FLAT, bytes(4), 99_999_999),
    "a header that is no JSON": put_together(b"{'a': 1}" * 9),
    "a header that is no text": put_together(b"\xff" * 64),
    "a header that is a list": put_together(b"[]      "),
    "a header that is nothing": put_together(b"null    "),
    "a header without end": put_together(b'{"a":' * 100_000),
    "a tensor that is a number": raw(a=1),
    "a tensor that is nothing": raw(a=None),
    "a tensor of no offsets": raw(a={"dtype": "F32", "shape": [1]}),
    "metadata that are a list": raw(__metadata__=[], a=entry()),
    "metadata of numbers": raw(__metadata__={"texts": 1}, a=entry()),
    "an unknown type": raw(a=entry(dtype="F33")),
    "a type that is a number": raw(a=entry(dtype=32)),
    "a shape of words": raw(a=entry(shape=["1"])),
    "a negative shape": raw(a=entry(shape=[-1])),
    "a fractional shape": raw(a=entry(shape=[1.5])),
    "a shape that is a number": raw(a=entry(shape=1)),
    "a huge shape": raw(a=entry(shape=[10**6, 10**6])),
    "a huge shape without data": raw(a=entry(shape=[10**12], data_offsets=[0, 0])),
    "a shape beyond 64 bits": raw(a=entry(shape=[2**32, 2**32, 2**32])),
    "a shape of huge numbers": raw(a=entry(shape=[10**40])),
    "offsets of words": raw(a=entry(data_offsets=["0", "4"])),
    "negative offsets": raw(a=entry(data_offsets=[-4, 0])),
    "offsets that fall": raw(a=entry(data_offsets=[4, 0])),
    "offsets outside of the file": raw(a=entry(data_offsets=[4096, 4100])),
    "offsets beyond 64 bits": raw(a=entry(data_offsets=[0, 2**70])),
    "overlapping offsets": raw(a=entry(), b=entry()),
    "a hole": raw(a=entry(data_offsets=[0, 2], dtype="F16"), b=entry(data_offsets=[3, 4], dtype="U8")),
    "data after the end": raw(a=entry()) + bytes(100),
    "data cut short": raw(a=entry())[:-1],
    "one name twice": put_together(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)),
    "many empty tensors": put_together(
        json.dumps({f"t{n}": entry(shape=[0], data_offsets=[0, 0]) for n in range(20_000)}).encode()
    ),
}  # fmt: skip
PLACES = {
    "pixels": f"unet/{WEIGHTS}",
    "ldm": f"vqvae/{WEIGHTS}",
    "sd": "text_encoder/model.safetensors",
    "edm": "edm.safetensors",
    "student": f"unet/{WEIGHTS}",
    "prompts.safetensors": "",
    "run": "step-0000000001/state.safetensors",
}
EVERYWHERE = ("nothing", "a header of 2^63 bytes", "a huge shape without data", "data cut short", "many empty tensors")


def believed(folder: Path) -> None:
    """Checksums that fit again: who writes a hostile file writes its checksum too."""
    digest = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name in PLACES.values()
        if (path := folder / name).is_file()
    }
    if (folder / "edm.json").exists():
        edit(folder / "edm.json", sha256=digest["edm.safetensors"])
    if (folder / "onefold.json").exists():
        edit(folder / "onefold.json", sha256=digest[f"unet/{WEIGHTS}"])
    state = folder / "step-0000000001" / "state.json"
    if state.exists():
        restate(state, sha256=digest["step-0000000001/state.safetensors"])


def restate(state: Path, **changes: Any) -> None:
    """The facts of a checkpoint, with the checksum of what they are now."""
    text = json.dumps(json.loads(json.loads(state.read_text())["facts"]) | changes)
    state.write_text(json.dumps({"facts": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}))


@pytest.mark.parametrize("kind", PLACES)
def test_headers_that_lie(whole: dict[str, Path], tmp_path: Path, kind: str) -> None:
    def written(content: bytes, folder: Path) -> None:
        (folder / PLACES[kind]).write_bytes(content)
        believed(folder)

    names = TENSORS if kind in ("pixels", "prompts.safetensors") else EVERYWHERE
    found = damaged(whole, tmp_path, kind, {name: partial(written, TENSORS[name]) for name in names})
    sound = {"many empty tensors"} if kind == "run" else set()
    assert {name for name, text in found.items() if not text} == sound


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: tensors.pop(name)


def changed(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: tensors.update({name: value(tensors[name])})


def first_filled(value: float) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: tensors[max(tensors, key=lambda name: tensors[name].numel())].view(-1)[:1].fill_(value)


WRONG: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("pixels", without("conv_in.weight"), "lacks weights of a UNet2DModel, such as conv_in.weight"),
    ("pixels", lambda tensors: tensors.clear(), "more tensors than its weights hold"),
    ("pixels", lambda tensors: tensors.update(other=torch.zeros(3)), "no place for, such as other"),
    ("pixels", lambda tensors: tensors.update(other=torch.zeros(10**6)) or tensors.pop("conv_in.weight"), "lacks weights"),
    ("pixels", changed("conv_in.weight", lambda t: t[:4]), "asks for more than its weights hold, as in conv_in.weight"),
    ("pixels", changed("conv_in.weight", lambda t: t.repeat(2, 1, 1, 1)), "does not load as a UNet2DModel"),
    ("pixels", changed("conv_in.weight", lambda t: t.flatten()), "does not load as a UNet2DModel"),
    ("pixels", first_filled(float("nan")), "NaN or infinite"),
    ("pixels", first_filled(float("-inf")), "NaN or infinite"),
    ("student", first_filled(float("nan")), "NaN or infinite"),
    ("ldm", first_filled(float("nan")), "NaN or infinite"),
    ("ldm", lambda tensors: tensors.update(other=torch.zeros(3)), "no place for, such as other"),
    ("sd", first_filled(float("inf")), "NaN or infinite"),
    ("sd", without("embeddings.token_embedding.weight"), "lacks weights of a CLIPTextModel"),
    ("edm", first_filled(float("nan")), "NaN or infinite"),
    ("edm", lambda tensors: tensors.pop(min(tensors)), "do not fit the description"),
    ("edm", lambda tensors: tensors.update(other=torch.zeros(3)), "do not fit the description"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "spoil", "sentence"), WRONG)
def test_tensors_that_are_not_the_networks(
    whole: dict[str, Path], tmp_path: Path, kind: str, spoil: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    folder = copied(whole, kind, tmp_path)
    path = folder / PLACES[kind]
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    names = {name.removeprefix("text_model."): name for name in tensors}  # as older and newer transformers call them
    plain = {short: tensors[name] for short, name in names.items()}
    spoil(plain)
    save_file({names.get(short, short): tensor.contiguous() for short, tensor in plain.items()}, path, {"format": "pt"})
    believed(folder)
    assert sentence in ending(lambda: load(folder))


def test_a_file_with_a_hole_of_terabytes_is_not_read(whole: dict[str, Path], tmp_path: Path) -> None:
    """A sparse file takes no place on the disk, and one more tensor fits into it."""
    folder = copied(whole, "pixels", tmp_path)
    path, size = folder / PLACES["pixels"], 2**40
    header, data = taken_apart(path.read_bytes())
    tensors = json.loads(header) | {
        "other": entry(shape=[size], dtype="U8", data_offsets=[len(data), len(data) + size])
    }
    with path.open("wb") as file:
        file.write(put_together(json.dumps(tensors).encode(), data))
        file.truncate(file.tell() + size)
    assert ending(lambda: load_teacher(folder, device="cpu"))


# Files that are none --------------------------------------------------------------------------------------------------


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def folder_instead(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


READ = [
    ("pixels", "model_index.json"), ("pixels", "unet/config.json"), ("pixels", f"unet/{WEIGHTS}"),
    ("pixels", "scheduler/scheduler_config.json"), ("pixels", "onefold.json"), ("ldm", f"vqvae/{WEIGHTS}"),
    ("sd", "tokenizer/tokenizer_config.json"), ("sd", "tokenizer/tokenizer.json"), ("sd", "tokenizer/added_tokens.json"),
    ("sd", "text_encoder/model.safetensors"), ("sd", "text_encoder/config.json"), ("sd", "text_encoder/generation_config.json"),
    ("edm", "edm.json"), ("edm", "edm.safetensors"), ("student", "student.json"), ("prompts.safetensors", ""),
    ("run", "step-0000000001/state.json"), ("run", "step-0000000001/state.safetensors"),
]  # fmt: skip


@pytest.mark.parametrize("become", [pipe, device, folder_instead, loop])
def test_what_is_no_file_is_neither_waited_for_nor_read_for_ever(
    whole: dict[str, Path], tmp_path: Path, become: Spoil
) -> None:
    calls = []
    for number, (kind, file) in enumerate(READ):
        (tmp_path / str(number)).mkdir()
        folder = copied(whole, kind, tmp_path / str(number))
        become(folder / file)
        calls.append(partial(load, folder))
    for found, (_, file) in zip(endings(calls), READ, strict=True):
        optional = file.endswith(("generation_config.json", "added_tokens.json"))
        assert found or (optional and become in (loop, folder_instead)), file


@pytest.mark.parametrize("become", [pipe, device, folder_instead, loop])
def test_such_files_given_by_name(whole: dict[str, Path], tmp_path: Path, become: Spoil) -> None:
    for name in ("d.npz", "c.yaml", "p.txt", "p.safetensors", "m.pkl"):
        become(tmp_path / name)
    become(tmp_path / "a.png")
    texts = load_teacher(whole["sd"], device="cpu")
    calls: list[Callable[[], object]] = [
        lambda: load_data(tmp_path / "d.npz"),
        lambda: load_statistics(tmp_path / "d.npz"),
        lambda: read_npz("d", tmp_path / "d.npz", ["images"]),
        lambda: read_yaml(tmp_path / "c.yaml"),
        lambda: texts.with_prompts(tmp_path / "p.txt"),
        lambda: texts.with_prompts(tmp_path / "p.safetensors"),
        lambda: load_teacher(tmp_path / "m.pkl"),
        lambda: load_data(tmp_path),
    ]
    assert all(endings(calls))
    assert not is_statistics(tmp_path / "d.npz") and maker_of(tmp_path / "d.npz") == ""


def test_a_student_takes_along_what_belongs_to_its_parts_alone(whole: dict[str, Path], tmp_path: Path) -> None:
    """Not what a link beside the weights points to, which the user would ship without knowing."""
    folder = copied(whole, "ldm", tmp_path)
    (tmp_path / "secret").write_text("mine")
    (folder / "vqvae" / "key").symlink_to(tmp_path / "secret")
    (folder / "vqvae" / "up").symlink_to("..")
    Student(load_teacher(folder, device="cpu"), explicit([80, 0.0]), None, RECIPE).save(tmp_path / "s")
    assert sorted(path.name for path in (tmp_path / "s" / "vqvae").iterdir()) == ["config.json", WEIGHTS]


# Configs that ask for the impossible ----------------------------------------------------------------------------------

HUGE: list[tuple[str, str, dict[str, Any]]] = [
    *(
        ("pixels", "unet/config.json", change)
        for change in (
            {"block_out_channels": [8, 10**9]},
            {"block_out_channels": [10**30, 10**30]},
            {"block_out_channels": []},
            {"block_out_channels": [8] * 10_000},
            {"layers_per_block": 10**7},
            {"layers_per_block": -1},
            {"layers_per_block": "1"},
            {"sample_size": 10**9},
            {"sample_size": [10**9, 1]},
            {"sample_size": True},
            {"sample_size": 0},
            {"num_class_embeds": 10**12},
            {"num_class_embeds": 2.5},
            {"in_channels": 10**12, "out_channels": 10**12},
            {"in_channels": 0, "out_channels": 0},
            {"in_channels": None},
            {"norm_num_groups": 0},
            {"norm_eps": "x"},
            {"attention_head_dim": 0},
            {"act_fn": "os.system"},
            {"act_fn": None},
            {"down_block_types": [f"{EVIL}.Block"] * 2},
            {"down_block_types": ["DownBlock2D"] * 20_000},
            {"down_block_types": 7},
            {"flip_sin_to_cos": "false"},
            {"time_embedding_type": ["positional"]},
            {"time_embedding_type": "learned", "num_train_timesteps": 10**12},
            {"class_embed_type": "timestep"},
            {"_class_name": ["os", "system"]},
            {"_class_name": f"{EVIL}.Network"},
            {"_class_name": "UNet2DModel\x1b[31m"},
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            {"quantization_config": 7},
        )
    ),
    ("pixels", "unet/config.json", {"down_block_types": [["DownBlock2D"]], "up_block_types": {}}),
    ("ldm", "vqvae/config.json", {"block_out_channels": [8, 10**9]}),
    ("ldm", "vqvae/config.json", {"layers_per_block": 10**7}),
    ("ldm", "vqvae/config.json", {"num_vq_embeddings": 10**12}),
    ("ldm", "vqvae/config.json", {"latent_channels": "3"}),
    ("ldm", "vqvae/config.json", {"vq_embed_dim": [3]}),
    ("ldm", "vqvae/config.json", {"scaling_factor": 10**400}),
    ("ldm", "vqvae/config.json", {"out_channels": None}),
    ("dit", "transformer/config.json", {"num_layers": 10**9}),
    ("dit", "transformer/config.json", {"num_attention_heads": 10**9}),
    ("dit", "transformer/config.json", {"num_embeds_ada_norm": 10**12}),
    ("dit", "transformer/config.json", {"sample_size": 10**9}),
    ("dit", "transformer/config.json", {"sample_size": 4096}),
    ("dit", "transformer/config.json", {"patch_size": 0}),
    ("sd", "unet/config.json", {"cross_attention_dim": 10**12}),
    ("sd", "unet/config.json", {"cross_attention_dim": [16, 16]}),
    ("sd", "unet/config.json", {"transformer_layers_per_block": 10**9}),
    ("sd", "unet/config.json", {"addition_time_embed_dim": 10**12, "class_embeddings_concat": 1, "conv_in_kernel": 0}),
    ("xl", "unet/config.json", {"projection_class_embeddings_input_dim": None}),
    ("xl", "unet/config.json", {"addition_time_embed_dim": "4"}),
    ("xl", "vae/config.json", {"latents_mean": [[[]]], "latents_std": {"a": 1}}),
    ("sd", "text_encoder/config.json", {"num_hidden_layers": 10**9}),
    ("sd", "text_encoder/config.json", {"hidden_size": 10**9}),
    ("sd", "text_encoder/config.json", {"vocab_size": 10**12}),
    ("sd", "text_encoder/config.json", {"max_position_embeddings": 10**12}),
    ("sd", "text_encoder/config.json", {"num_attention_heads": 0}),
    ("sd", "text_encoder/config.json", {"quantization_config": {"quant_method": "gptq"}}),
    ("sd", "tokenizer/tokenizer_config.json", {"model_max_length": 10**12}),
    ("sd", "tokenizer/tokenizer_config.json", {"model_max_length": "many"}),
    ("sd", "tokenizer/tokenizer_config.json", {"model_max_length": -1}),
    ("edm", "edm.json", {"format": [1]}),
    ("edm", "edm.json", {"network": [1]}),
    ("edm", "edm.json", {"preconditioning": {"kind": ["os", "system"]}}),
    ("edm", "edm.json", {"name": ["x"]}),
    ("edm", "edm.json", {"sha256": None}),
]  # fmt: skip


@pytest.mark.parametrize("kind", sorted({kind for kind, _, _ in HUGE}))
def test_configs_that_ask_for_what_the_weights_do_not_hold(whole: dict[str, Path], tmp_path: Path, kind: str) -> None:
    spoils: dict[str, Spoil] = {
        f"{file} {change}": lambda folder, file=file, change=change: edit(folder / file, **change)  # type: ignore[misc]
        for one, file, change in HUGE
        if one == kind
    }
    assert all(damaged(whole, tmp_path, kind, spoils).values())


@pytest.mark.parametrize(
    "change",
    [
        {"img_resolution": 4096},
        {"num_blocks": 64},
        {"model_channels": 4096},
        {"label_dim": 10**6},
        {"num_blocks": 10**9},
        {"kind": EVIL},
    ],
)
def test_edm_folders_that_ask_for_it(whole: dict[str, Path], tmp_path: Path, change: dict[str, Any]) -> None:
    folder = copied(whole, "edm", tmp_path)
    network = json.loads((folder / "edm.json").read_text())["network"]
    edit(folder / "edm.json", network={**network, **change})
    found = ending(lambda: load_teacher(folder, device="cpu").images)
    assert str(folder) in found or change == {"img_resolution": 4096}


SCHEDULERS: list[dict[str, Any]] = [
    {"num_train_timesteps": 10**12}, {"num_train_timesteps": 10**400}, {"num_train_timesteps": -1}, {"num_train_timesteps": 2.5},
    {"num_train_timesteps": "1000"}, {"num_train_timesteps": [1000]}, {"num_train_timesteps": True},
    {"beta_start": "x"}, {"beta_start": None}, {"beta_start": [0.1]}, {"beta_start": float("nan")}, {"beta_end": float("inf")},
    {"beta_end": 1e300}, {"beta_schedule": "x"}, {"beta_schedule": ["linear"]}, {"beta_schedule": None},
    {"trained_betas": ["a", "b"]}, {"trained_betas": "0.1"}, {"trained_betas": []}, {"trained_betas": {}},
    {"trained_betas": [[0.1, 0.2], [0.3, 0.4]]}, {"trained_betas": [0.1, [0.2]]}, {"trained_betas": [float("nan")] * 4},
    {"trained_betas": [None]}, {"trained_betas": 0.5}, {"trained_betas": [2.0] * 4}, {"trained_betas": [-1.0] * 4},
    {"trained_betas": [10**400]}, {"trained_betas": [0.001] * 100_001}, {"trained_betas": json.loads("[" * 500 + "]" * 500)},
    {"prediction_type": "x" * 10**6}, {"prediction_type": {"a": 1}}, {"rescale_betas_zero_snr": 1},
    {"rescale_betas_zero_snr": True, "num_train_timesteps": 1},
    {"_class_name": "EDMEulerScheduler", "sigma_min": 80, "sigma_max": 0.1, "sigma_data": 0.5},
    {"_class_name": "EDMEulerScheduler", "sigma_min": 1e-300, "sigma_max": 1e300, "sigma_data": 0.5},
    {"_class_name": "EDMEulerScheduler", "sigma_min": [0.1], "sigma_max": 80, "sigma_data": 0.5},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1e300},
    {"_class_name": "CMStochasticIterativeScheduler", "sigma_min": None, "sigma_max": 80, "sigma_data": 0.5},
]  # fmt: skip


def scheduler_says(**change: Any) -> Spoil:
    return lambda folder: edit(folder / "scheduler" / "scheduler_config.json", **change)


def test_schedulers_that_are_none(whole: dict[str, Path], tmp_path: Path) -> None:
    found = damaged(whole, tmp_path, "pixels", {str(change): scheduler_says(**change) for change in SCHEDULERS})
    assert [change for change, text in found.items() if not text] == []


def test_schedulers_of_strange_classes_are_judged_by_their_numbers(whole: dict[str, Path], tmp_path: Path) -> None:
    strange = (["os", "system"], {"a": []}, None, 7, f"{EVIL}.Scheduler")
    found = damaged(whole, tmp_path, "pixels", {str(kind): scheduler_says(_class_name=kind) for kind in strange})
    assert set(found.values()) == {""}


def refusal(action: Callable[[], object]) -> str:
    """In this process, for what asks for nothing."""
    try:
        action()
    except UserError as error:
        return str(error)
    return ""


# JSON -----------------------------------------------------------------------------------------------------------------

JSON: dict[str, bytes] = {
    "nothing": b"",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "nested 100,000 deep": b"[" * 100_000,
    "objects nested 100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a number of a million digits": b'{"format": ' + b"9" * 1_000_000 + b"}",
    "50 MB of digits": b"9" * 50_000_000,
    "invalid UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "cut short": b'{"_class_name": "DDIMPipeline"',
}


@pytest.mark.parametrize("content", JSON)
def test_facts_that_are_no_json_objects(whole: dict[str, Path], tmp_path: Path, content: str) -> None:
    names = (
        "index.json",
        "/config.json",
        "scheduler_config.json",
        "edm.json",
        "student.json",
        "state.json",
        "tokenizer.json",
    )
    folders = []
    for number, (kind, file) in enumerate(READ):
        if file.endswith(names):
            (tmp_path / str(number)).mkdir()
            folders.append(copied(whole, kind, tmp_path / str(number)))
            (folders[-1] / file).write_bytes(JSON[content])
    for folder, found in zip(folders, endings([partial(load, folder) for folder in folders]), strict=True):
        assert str(folder) in found


def test_a_key_twice_is_the_last_one(whole: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(whole, "pixels", tmp_path)
    text = (folder / "model_index.json").read_text()
    (folder / "model_index.json").write_text('{"_class_name": "Evil", ' + text.strip()[1:])
    assert ending(lambda: load(folder)) == ""


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that would be there if a module that can be imported had been."""
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / f"{EVIL}.py").write_text(f"open({str(trap / 'ran')!r}, 'w').close()\nclass X: pass\n")
    monkeypatch.syspath_prepend(trap)
    return trap / "ran"


def test_no_module_that_a_file_names_is_imported(whole: dict[str, Path], tmp_path: Path, canary: Path) -> None:
    folder = copied(whole, "sd", tmp_path)
    for part in (folder, folder / "unet", folder / "text_encoder", folder / "tokenizer"):
        shutil.copyfile(canary.parent / f"{EVIL}.py", part / f"{EVIL}.py")
    named = {part: [EVIL, "X"] for part in ("unet", "vae", "scheduler", "tokenizer", "feature_extractor", "other")}
    edit(folder / "model_index.json", **named, custom_pipeline=EVIL)
    edit(folder / "unet" / "config.json", auto_map={"AutoModel": f"{EVIL}.X"})
    edit(folder / "text_encoder" / "config.json", auto_map={"AutoModel": f"{EVIL}.X", "AutoConfig": f"{EVIL}.X"})
    remote = {"auto_map": {"AutoTokenizer": [f"{EVIL}.X", f"{EVIL}.X"]}, "chat_template": "{{ ''.__class__ }}"}
    edit(folder / "tokenizer" / "tokenizer_config.json", **remote, tokenizer_class="X")
    ending(lambda: load(folder))
    for kind in ([EVIL, "X"], ["os", "system"], f"{EVIL}.X", EVIL, 7, {"a": 1}):
        edit(folder / "model_index.json", _class_name=kind)
        assert "not supported" in ending(lambda: load(folder))
    edit(folder / "model_index.json", _class_name="StableDiffusionPipeline", text_encoder=[EVIL, "X"])
    assert "expected CLIPTextModel" in ending(lambda: load(folder))
    assert not canary.exists()


def test_adapters_are_not_followed(whole: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(whole, "sd", tmp_path)
    (folder / "text_encoder" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/etc"}))
    assert "holds an adapter" in ending(lambda: load(folder))


@pytest.mark.parametrize("name", ["../../evil", "/etc", "..", ".", "a/b", "", "a\\b", "a\n"])
def test_parts_with_names_that_lead_elsewhere(whole: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = copied(whole, "pixels", tmp_path)
    edit(folder / "model_index.json", **{name: ["diffusers", "X"]})
    assert "names a part" in ending(lambda: load(folder))
    edit(whole["student"] / "onefold.json")
    student = copied(whole, "student", tmp_path)
    edit(student / "onefold.json", index={name: ["diffusers", "X"]})
    assert "names a part" in ending(lambda: load(student))


@pytest.mark.parametrize(
    "names", [["../x.safetensors"], ["/dev/zero"], ["a/../../x"], [".."], [""], [7], 7, [], ["\x00"]]
)
def test_shards_that_lie_elsewhere(whole: dict[str, Path], tmp_path: Path, names: Any) -> None:
    folder = copied(whole, "pixels", tmp_path)
    listed = {f"a{number}": name for number, name in enumerate(names)} if isinstance(names, list) else names
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    assert str(folder) in ending(lambda: load(folder))


CARDS: list[dict[str, Any]] = [
    {"index": []}, {"index": {"_class_name": [1]}}, {"sha256": 7}, {"sha256": None}, {"exported": True},
    {"classes": "5"}, {"classes": 10**12}, {"classes": -1}, {"classes": [5]}, {"classes": True}, {"classes": 6},
    {"null_label": "4"}, {"null_label": -1}, {"null_label": 5}, {"null_label": 1.0}, {"null_label": {}},
    {"name": None}, {"name": ["x"]}, {"name": "x" * 1000}, {"name": "\x1b[2J"}, {"name": "\ud800"},
]  # fmt: skip


def test_cards_that_say_strange_things(whole: dict[str, Path], tmp_path: Path) -> None:
    spoils: dict[str, Spoil] = {
        str(change): lambda folder, change=change: edit(folder / "onefold.json", **change)  # type: ignore[misc]
        for change in CARDS
    }
    found = damaged(whole, tmp_path, "student", spoils)
    assert [change for change, text in found.items() if not text] == []


GRID: dict[str, Any] = {"sigmas": [80.0, 1.0, 0.0], "times": None, "phi": None, "start": "prior", "end": "zero", "space": "power", "rho": 7.0}  # fmt: skip
GRIDS: list[Any] = [
    None, [], 7, "x", {}, {**GRID, "more": 1},
    *({**GRID, "sigmas": value} for value in (
        None, 7, "80", [], ["a", "b", 0], [1.0, 80.0, 0.0], [80.0, 80.0, 0.0], [80.0, -1.0], [float("nan"), 1, 0],
        [[80.0], [1.0]], [10**400, 0], {"a": 1}, [80.0], [80.0, None, 0.0], ["inf", "inf", 0])),
    *({**GRID, key: value} for key in ("start", "end", "space") for value in ("x", None, 7, ["prior"], {})),
    *({**GRID, "rho": value} for value in ("x", None, [7], 0, -1, float("nan"), 1e400)),
    *({**GRID, "times": value} for value in ("x", 7, [1], ["a", "b"], [[1], [2]], {"a": 1})),
    *({**GRID, "phi": value} for value in ("x", 7, [1], ["a", "b"], [[1], [2]], [1.5, 2.5], {"a": 1})),
]  # fmt: skip
STUDENTS: list[dict[str, Any]] = [
    {"format": None}, {"format": [1]}, {"format": True}, {"format": "1"}, {"afs": "xx"}, {"afs": ["ve"]}, {"afs": {}}, {"afs": True},
    {"method": None}, {"method": ["sfd"]}, {"method": 7}, {"teacher": None}, {"teacher": "t"}, {"teacher": {"name": 7}},
    {"teacher": {"name": "t", "sha256": 7}}, {"settings": []}, {"settings": {"guidance": "2"}}, {"settings": {"teacher": ["x"]}},
    {"cost": 7}, {"cost": {"images": "many"}}, {"cost": {**RECIPE["cost"], "calls": [1]}}, {"cost": {**RECIPE["cost"], "seconds": None}},
    {"evidence": []}, {"evidence": {"student": "good"}}, {"evidence": {**RECIPE["evidence"], "solvers": [1]}},
    {"cost": {**RECIPE["cost"], "steps": "7"}}, {"cost": {**RECIPE["cost"], "stages": 7}}, {"by_calls": [1]}, {"by_calls": {"2": {}}},
    {"first_stage": []}, {"first_stage": {"method": 7}}, {"first_stage": {"method": "sfd", "distance": "near"}},
    {"published": {"a": 1}}, {"command": ["rm"]}, {"versions": [1]}, {"versions": {"a": 1}},
    *({"grid": grid} for grid in GRIDS),
    {"afs": "ve", "grid": {**GRID, "sigmas": [80.0, 0.0]}},
]  # fmt: skip


def test_students_whose_recipes_say_strange_things(whole: dict[str, Path], tmp_path: Path) -> None:
    """All in one process for each folder: their files are small, and nothing of them is built."""
    folder = copied(whole, "student", tmp_path)
    sound = (folder / "student.json").read_text()
    for change in STUDENTS:
        (folder / "student.json").write_text(json.dumps(json.loads(sound) | change))
        told = refusal(partial(load_student, folder, device="cpu"))
        assert "student.json" in told and told.isprintable(), change
    for key in RECIPE:
        (folder / "student.json").write_text(json.dumps({k: v for k, v in json.loads(sound).items() if k != key}))
        try:
            load_student(folder, device="cpu").save(tmp_path / "again")
        except UserError:
            assert key in ("method", "teacher")


@pytest.mark.parametrize("content", [b"", b"%!PS\n", b"text", b"\x89PNG\r\n\x1a\n" + bytes(64)])
def test_a_student_is_complete_without_its_picture(whole: dict[str, Path], tmp_path: Path, content: bytes) -> None:
    folder = copied(whole, "student", tmp_path)
    (folder / "samples.png").write_bytes(content)
    assert ending(lambda: load(folder)) == ""
    (folder / "samples.png").write_bytes(png(60_000, 60_000))
    assert ending(lambda: load(folder)) == ""


@pytest.mark.parametrize(
    "change",
    [{"step": "1"}, {"step": None}, {"journal_bytes": "0"}, {"identity": []}, {"format": [1]}, {"sha256": 7}],
)
def test_checkpoints_that_say_strange_things(whole: dict[str, Path], tmp_path: Path, change: dict[str, Any]) -> None:
    folder = copied(whole, "run", tmp_path)
    restate(folder / "step-0000000001" / "state.json", **change)
    assert ending(lambda: load(folder))
    ending(lambda: Checkpoints(folder).identity())


@pytest.mark.parametrize("content", [b"7", b"[]", b'{"facts": 7}', b'{"facts": "[]", "sha256": 7}', b"[" * 100_000])
def test_checkpoints_that_are_none(whole: dict[str, Path], tmp_path: Path, content: bytes) -> None:
    folder = copied(whole, "run", tmp_path)
    (folder / "step-0000000001" / "state.json").write_bytes(content)
    assert "are damaged" in ending(lambda: load(folder))
    assert Checkpoints(folder).identity() == {}


# YAML -----------------------------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
YAML: dict[str, str | bytes] = {
    "code": "calls: !!python/object/apply:os.system ['touch {canary}']",
    "code as a new object": "calls: !!python/object/new:subprocess.Popen [['touch', '{canary}']]",
    "a module": f"calls: !!python/module:{EVIL} x",
    "a name": f"calls: !!python/name:{EVIL}.X x",
    "a tag of its own": "calls: !evil x",
    "a billion laughs": LAUGHS,
    "a billion laughs as a setting": f"{LAUGHS}grid: *a11",
    "a list that holds itself": "grid: &a [*a]",
    "a merge that holds itself": "a: &a\n  <<: *a",
    "nested 100,000 deep": "grid: " + "[" * 100_000,
    "nested deep and closed": "grid: " + "[" * 2_000 + "]" * 2_000,
    "an integer of 5,000 digits": "calls: " + "9" * 5_000,
    "an integer of 400 digits": "calls: " + "9" * 400,
    "a date that is none": "out: 2020-13-45",
    "a truth that is none": "compile: !!bool perhaps",
    "a number that is none": "lr: !!float x",
    "an integer that is none": "calls: !!int ''",
    "a time that is none": "out: !!timestamp x",
    "bytes that are none": "preset: !!binary '*'",
    "a key that is a list": "? [a]\n: 1",
    "a key that is a number": "7: 1",
    "a list": "- a",
    "a word": "a",
    "nothing": "",
    "two documents": "a: 1\n---\nb: 1",
    "control characters": b"calls: \x00\x01",
    "invalid UTF-8": b"calls: \xff\xfe",
    "letters that are none": 'out: "\\ud800"\nnone: 1',
    "50 MB": b"#" * 50_000_000,
}


@pytest.mark.parametrize("content", YAML)
def test_settings_files_that_are_none(tmp_path: Path, canary: Path, content: str) -> None:
    text, path = YAML[content], tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.replace("{canary}", str(canary)).encode())
    assert ending(lambda: choose({**read_yaml(path), "teacher": "digits8", "out": "x"}))
    assert not canary.exists()


STRANGE: list[Any] = [None, "", "x", "\x00", [], ["x"], {}, {"a": {"b": 1}}, -1, 0, 10**30, 1.5, float("nan"), float("inf"), True, [[[]]], "9" * 5000]  # fmt: skip


def test_settings_of_strange_types() -> None:
    """Each setting with each value is refused with its name, or is one."""
    for kind, needed in ((None, {"teacher": "t", "out": "o"}), (TeachSettings, {"data": "digits", "out": "o"})):
        fields = TeachSettings.model_fields if kind else type(choose({"teacher": "t", "out": "o"})).model_fields
        for name in fields:
            for value in STRANGE:
                values = {**needed, name: value}
                told = refusal(partial(build, kind, values) if kind else partial(choose, values))
                assert told.isprintable(), (name, value)


@pytest.mark.parametrize(
    "text", ["!!python/name:os.system x", "[" * 50_000, "&a [*a]", "2020-13-45", "9" * 5000, "!!bool x"]
)
def test_assignments_are_as_plain_as_files(text: str) -> None:
    ending(lambda: parse_assignments([f"grid={text}"]))


# Arrays ---------------------------------------------------------------------------------------------------------------


def npy(shape: object, dtype: object = "|u1", data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\x01\x00" else "<I", len(header)) + header + data


def zipped(path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def array(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


class Trap:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


IMAGES = array(np.zeros((4, 8, 8), np.uint8))
ARRAYS: dict[str, dict[str, bytes]] = {
    "a shape of 10^12": {"images.npy": npy((10**12,))},
    "a shape of 10^12 images": {"images.npy": npy((10**8, 100, 100), data=bytes(64))},
    "a shape beyond 64 bits": {"images.npy": npy((2**40, 2**40))},
    "a shape of 10^400": {"images.npy": npy((10**400,))},
    "a negative shape": {"images.npy": npy((-4, -8, 8), data=bytes(256))},
    "a shape of words": {"images.npy": npy(("4", 8, 8))},
    "a shape that is a number": {"images.npy": npy(4)},
    "a shape of truths": {"images.npy": npy((True, 8, 8), data=bytes(64))},
    "an unknown type": {"images.npy": npy((4, 8, 8), "|q9")},
    "a huge type": {"images.npy": npy((1, 8, 8), "|V1000000000")},
    "a type within a type": {"images.npy": npy((1,), [("a", "<f4", (10**6, 10**6))])},
    "a type of objects": {"images.npy": npy((4,), "|O", b"cos\nsystem\n(S'touch ran'\ntR.")},
    "objects": {"images.npy": array(np.array([Trap()], dtype=object))},
    "objects as labels": {"images.npy": IMAGES, "labels.npy": array(np.array([Trap()] * 4, dtype=object))},
    "objects within records": {"images.npy": npy((1,), [("a", "|O")], bytes(8))},
    "a header that is code": {"images.npy": b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').system('touch')"},
    "a header without end": {"images.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"(" * 60_000},
    "a header that is longer than the file": {"images.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{"},
    "a version to come": {"images.npy": npy((4, 8, 8), data=bytes(256), version=b"\x09\x00")},
    "not an array": {"images.npy": b"hello"},
    "nothing": {"images.npy": b""},
    "data cut short": {"images.npy": IMAGES[:-1]},
    "data after the end": {"images.npy": IMAGES + b"x"},
    "members with ways out": {"../images.npy": IMAGES, "/etc/x.npy": IMAGES},
    "a nested archive": {"images.npz": IMAGES},
    "no member": {},
    "many members": {f"{number}.npy": b"" for number in range(2_000)},
    "numbers that are complex": {"images.npy": array(np.zeros((4, 8, 8), complex))},
    "words": {"images.npy": array(np.array(["a" * 1000] * 4))},
    "dates": {"images.npy": array(np.zeros((4, 8, 8), "M8[s]"))},
    "NaN": {"images.npy": array(np.full((4, 8, 8), np.nan))},
    "no image": {"images.npy": array(np.zeros((0, 8, 8), np.uint8))},
    "five sides": {"images.npy": array(np.zeros((1,) * 5, np.uint8))},
    "labels of words": {"images.npy": IMAGES, "labels.npy": array(np.array(["a"] * 4))},
    "labels of another length": {"images.npy": IMAGES, "labels.npy": array(np.zeros(10**6, int))},
    "labels without end": {"images.npy": IMAGES, "labels.npy": array(np.full(4, 2**63, np.uint64))},
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = zipped(tmp_path / "x.npz", ARRAYS[name])
    assert str(path) in ending(lambda: load_data(path))
    statistics = {key.replace("images", "mu").replace("labels", "sigma"): value for key, value in ARRAYS[name].items()}
    path = zipped(tmp_path / "s.npz", {"extractor.npy": b"x", **statistics})
    for call in (load_statistics, maker_of):
        found = ending(lambda: call(path))  # noqa: B023  (it is called at once)
        assert found or call is maker_of
    assert not (tmp_path / "ran").exists()


def bomb(path: Path, size: int, compression: int = zipfile.ZIP_DEFLATED, shape: tuple[int, ...] | None = None) -> Path:
    """As many zeros, written in pieces."""
    with zipfile.ZipFile(path, "w", compression) as archive, archive.open("images.npy", "w", force_zip64=True) as file:
        file.write(npy(shape or (size // 10_000, 100, 100)))
        for _ in range(size // 2**20):
            file.write(bytes(2**20))
    return path


def test_archives_that_unpack_without_end(tmp_path: Path) -> None:
    path = bomb(tmp_path / "x.npz", 400 * 2**20, shape=(400, 1024, 1024))
    assert "unpacks to 419," in ending(partial(load_data, path))
    content = path.read_bytes()  # and its list of members, at the end, may say anything
    for size in (0, 100, 2**20, 2**31):
        place = content.rindex(b"PK\x01\x02") + 24
        path.write_bytes(content[:place] + struct.pack("<I", size) + content[place + 4 :])
        assert str(path) in ending(partial(load_data, path))
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        other = bomb(tmp_path / f"{kind}.npz", 2 * 2**20, kind, shape=(2, 1024, 1024))
        assert "compressed as numpy does not" in ending(partial(load_data, other))


def test_archives_that_are_cut_or_lie(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    whole = zipped(tmp_path / "w.npz", {"images.npy": IMAGES}).read_bytes()
    for cut in (1, 22, 50, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:-cut])
        assert str(path) in ending(lambda: load_data(path))
    place = whole.rindex(b"PK\x01\x02")
    for offset, value in ((8, 1), (10, 99), (42, 2**31), (42, 7)):  # encrypted, unknown compression, elsewhere
        path.write_bytes(
            whole[: place + offset]
            + struct.pack("<H" if offset < 42 else "<I", value)
            + whole[place + offset + (2 if offset < 42 else 4) :]
        )
        assert str(path) in ending(lambda: load_data(path))


STATISTICS: dict[str, dict[str, Any]] = {
    "a covariance that is none": {"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)},
    "a mean of words": {"mu": np.array(["a", "b"]), "sigma": np.eye(2)},
    "a count of words": {"mu": np.zeros(2), "sigma": np.eye(2), "count": np.array("x")},
    "a count without end": {"mu": np.zeros(2), "sigma": np.eye(2), "count": np.array(np.inf)},
    "a negative count": {"mu": np.zeros(2), "sigma": np.eye(2), "count": np.array(-5)},
    "a provenance that is a list": {"mu": np.zeros(2), "sigma": np.eye(2), "provenance": np.array("[1]")},
    "a provenance without end": {"mu": np.zeros(2), "sigma": np.eye(2), "provenance": np.array("[" * 100_000)},
    "features of another size": {"mu": np.zeros(2), "sigma": np.eye(2), "features": np.zeros((4, 3))},
    "a mean of nothing": {"mu": np.zeros(0), "sigma": np.zeros((0, 0))},
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_that_are_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, **STATISTICS[name])
    assert str(path) in ending(lambda: load_statistics(path))


def test_caches_of_samples_that_are_none(tmp_path: Path) -> None:
    teacher, path = load_teacher("digits8", device="cpu"), tmp_path / "c.npz"
    for said in ("[]", "7", "{}", "[" * 100_000, "x"):
        np.savez(path, images=np.zeros((4, 1, 8, 8), np.uint8), description=np.array(said))
        assert str(path) in ending(lambda: teacher_data(teacher, 4, calls=1, cache=path))


# Pictures -------------------------------------------------------------------------------------------------------------


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A grey picture of any size, with no more data than given."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def picture(width: int, height: int, kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, kind)
    return file.getvalue()


PICTURES: dict[str, bytes] = {
    "nothing": b"",
    "text": b"hello, this is text",
    "a program of Postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(ran) (w) file closefile\nshowpage\n",
    "a page of the web": b"<svg xmlns='http://www.w3.org/2000/svg'><script>x</script></svg>",
    "2^31 pixels a side": png(2**31 - 1, 2**31 - 1),
    "60,000 pixels a side": png(60_000, 60_000),
    "9,000 pixels a side": png(9_000, 9_000),
    "9,000 pixels a side, packed": png(9_000, 9_000, bytes(9_001 * 9_000)),
    "5,000 pixels a side as a GIF": picture(5_000, 5_000, "GIF"),
    "no pixels": png(0, 0),
    "no rows": png(8, 8),
    "cut short": picture(8, 8, "PNG")[:44],
    "a TIFF cut short": picture(64, 64, "TIFF")[:200],
    "a JPEG cut short": picture(64, 64, "JPEG")[:200],
    "a header alone": b"\x89PNG\r\n\x1a\n",
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(8):  # as many threads
        (tmp_path / f"{number}.png").write_bytes(PICTURES[name])
    assert "0.png" in ending(lambda: load_data(tmp_path, size=None if name == "no rows" else 4))
    assert not (tmp_path / "ran").exists()


# Prompts and names ----------------------------------------------------------------------------------------------------

PROMPTS: dict[str, bytes] = {
    "nothing": b"",
    "invalid UTF-8": b"a\n\xff\xfe",
    "one of a million letters": b"a" * 1_000_000,
    "a null": b"a\x00b",
    "letters that no font has": "\u202e\U000e0001\ufffe".encode(),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_files_of_prompts(whole: dict[str, Path], tmp_path: Path, name: str) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(PROMPTS[name])
    teacher = load_teacher(whole["sd"], device="cpu")
    assert ending(lambda: teacher.with_prompts(path)) or name in ("a null", "letters that no font has")


def test_a_file_of_prompts_larger_than_any(whole: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    with path.open("wb") as file:
        file.truncate(2**40)
    teacher = load_teacher(whole["sd"], device="cpu")
    assert "more than the" in ending(lambda: teacher.with_prompts(path))


NAMES = [
    "", " ", ".", "..", "/", "~", "~nobody-here/x", "a\x00b", "x" * 5000, "a/" * 3000, "a/b\n", "org/model@../../x", "-rf", "\udcff",
    "a/b/c", "org/model@", "@", "https://example.com/x", "file:///etc/passwd", "ünï/cödé", "\x1b[2J", "a\\b", "hf:", "../x/y",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
def test_names_with_odd_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    calls = [
        partial(load_teacher, name, device="cpu"),
        partial(load_student, name, device="cpu"),
        partial(load_statistics, name),
    ]
    if not name.startswith(("/", "~")) or name.startswith("~n"):
        calls.append(partial(load_data, name))
    assert all(endings(calls))
