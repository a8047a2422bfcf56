"""Teaching in small: every process, precision and switch, and what is refused."""

from __future__ import annotations

import json
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from onefold.data import load_data
from onefold.errors import UserError
from onefold.process import from_x0, to_x0
from onefold.sampling import sample
from onefold.settings import build
from onefold.teaching import Part, TeachSettings, command_of, new_denoiser, split, teach
from onefold.training.checkpoint import TENSORS

SMALL: dict[str, Any] = {
    "budget": "96",
    "batch_size": 16,
    "widths": [8, 8],
    "device": "cpu",
    "warmup": 0,
    "sample_every": "48",
}


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((out / "checkpoints").iterdir())[-1] / TENSORS)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"process": "edm"},
        {"process": "flow"},
        {"prediction": "eps"},
        {"prediction": "x0", "beta_schedule": "squaredcos_cap_v2"},
        {"labels": False},
        {"label_dropout": 0.0},
        {"timesteps": 50, "beta_schedule": "squaredcos_cap_v2"},
        {"precision": "bf16"},
        {"dropout": 0.2, "flip": True},
    ],
    ids=str,
)
def test_every_kind_of_teacher_can_be_taught_and_sampled(tmp_path: Path, settings: dict[str, Any]) -> None:
    teacher = teach("digits", out=tmp_path / "run", **SMALL, **settings)
    assert teacher.classes == (None if settings.get("labels") is False else 10)
    assert ("labels" in teacher.null) == (teacher.classes is not None and settings.get("label_dropout") != 0.0)
    assert teacher.prediction == teacher.card["prediction"]
    images = sample(teacher, 3, calls=4)
    assert images.shape == (3, 1, 8, 8) and bool(torch.isfinite(images).all())
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["validation"]["held_out_loss"] for row in log if "validation" in row]
    assert len(losses) == 3 and all(0 < loss < 10 for loss in losses)


def test_recomputing_activations_changes_nothing(tmp_path: Path) -> None:
    teach("digits", out=tmp_path / "plain", **SMALL)
    teach("digits", out=tmp_path / "spared", gradient_checkpointing=True, **SMALL)
    a, b = weights(tmp_path / "plain"), weights(tmp_path / "spared")
    assert all(torch.allclose(a[key], b[key], atol=1e-6) for key in a)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_compiled_networks_learn_the_same(tmp_path: Path) -> None:
    settings = {**SMALL, "lr": 1e-5}
    teach("digits", out=tmp_path / "plain", **settings)
    teach("digits", out=tmp_path / "compiled", compile=True, **settings)
    a, b = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[key].double(), b[key].double(), atol=1e-4) for key in a)


@pytest.mark.parametrize("kind", ["vp", "edm", "flow"])
def test_the_target_is_what_the_denoiser_turns_into_the_image(kind: str) -> None:
    """A network that gives exactly the target denoises exactly."""
    settings = build(TeachSettings, {"data": "digits", "out": "x", "process": kind, **SMALL})
    data = load_data("digits")
    denoiser = new_denoiser(data, settings)
    images = torch.rand(5, 1, 8, 8, dtype=torch.float64) * 2 - 1
    noise = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    sigma = denoiser.process.training_sigma(torch.linspace(0, 0.999, 5, dtype=torch.float64))
    a, b = (scale.reshape(-1, 1, 1, 1) for scale in denoiser.process.scales(sigma))
    z = a * images + b * noise
    target = from_x0(denoiser.prediction, images, z, a, b, denoiser.process.sigma_data)
    assert torch.allclose(to_x0(denoiser.prediction, target, z, a, b, denoiser.process.sigma_data), images, atol=1e-9)
    exact = denoiser.replace(network=lambda *_: target, call=lambda network, z, time, cond: network())
    x = images + sigma.reshape(-1, 1, 1, 1) * noise
    assert torch.allclose(exact(x, sigma), images, atol=1e-8)


def test_learning_helps(tmp_path: Path) -> None:
    """A teacher of 20 seconds denoises held-out digits far better than the mean image does."""
    teacher = teach(
        "digits", out=tmp_path / "run", **{**SMALL, "budget": "6k", "widths": [16, 32], "sample_every": "6k"}
    )
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["validation"]["held_out_loss"] for row in log if "validation" in row]
    assert losses[-1] < 0.6 * losses[0]
    assert teacher.card["cost"]["images"] == 6000


def test_split_is_a_partition_and_stays(tmp_path: Path) -> None:
    data = load_data("digits")
    train, held_out = split(data, 100, seed=3)
    assert isinstance(train, Part) and isinstance(held_out, Part)
    assert sorted([*train.indices.tolist(), *held_out.indices.tolist()]) == list(range(1797))
    assert len(held_out) == 100 and len(split(data, 10_000, 3)[1]) == 179
    assert torch.equal(split(data, 100, 3)[1].fetch(range(5))[0], held_out.fetch(range(5))[0])


def test_the_written_settings_load_as_they_are(tmp_path: Path) -> None:
    teach("digits", out=tmp_path / "run", **SMALL)
    config = tmp_path / "run" / "config.yaml"
    again = teach(config=config)  # the same run: nothing is left to do
    assert again.card["cost"]["images"] == 96
    assert yaml.safe_load(config.read_text())["widths"] == [8, 8]


def test_the_command_of_the_card_names_what_differs() -> None:
    values = {"data": "/somewhere/photos", "out": "/runs/a b", "size": 32, "widths": [8, 16], "ema_half_life": None}
    command = command_of(build(TeachSettings, values))
    expected = (
        "onefold teach /somewhere/photos --set ema_half_life=null --size 32 --set 'widths=[8,16]' --out '/runs/a b'"
    )
    assert command == expected
    words = [word.partition("=")[2] for word in shlex.split(command) if "=" in word]
    assert [yaml.safe_load(word) for word in words] == [None, [8, 16]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": [8, 12]}, "multiples of 8"),
        ({"widths": [8, 8, 8, 8, 8]}, "cannot be halved 4 times"),
        ({"process": "flow", "prediction": "eps"}, "leave it at auto"),
        ({"timesteps": 50}, "end at sigma 0.81"),
        ({"widths": [0]}, "widths"),
        ({"seed": 2**63}, "seed"),
        ({"checkpoint_every": "auto"}, "'auto' is not understood"),
        ({"device": "cpu:abc"}, "unknown device 'cpu:abc'"),
        ({"batch_size": 15, "micro_batches": 2}, "multiple of 2"),
        ({"size": 16}, "smaller than"),
        ({"trackers": ["trackio"]}, "onefold\\[track\\]"),
        ({"epochs": 3}, "unknown setting 'epochs'"),
        ({"data": "digit"}, "did you mean 'digits'"),
        ({"device": "cuda"}, "sees none"),
        ({"device": "cpuu"}, "did you mean 'cpu'"),
    ],
    ids=str,
)
def test_what_cannot_be_taught_gets_one_sentence(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        teach(**{"data": "digits", "out": tmp_path / "run", **SMALL, **settings})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_nan_in_the_data_is_named(tmp_path: Path) -> None:
    images = np.zeros((20, 8, 8), dtype=np.float32)
    images[13, 2, 2] = np.nan
    np.savez(tmp_path / "bad.npz", images=images)
    with pytest.raises(UserError, match="13"):
        teach(tmp_path / "bad.npz", out=tmp_path / "run", **SMALL)


@pytest.mark.slow
def test_no_space_loses_nothing(tmp_path: Path) -> None:
    """A real process whose files may not grow beyond 50 kB: one sentence, and the same command goes on afterwards."""
    out = tmp_path / "run"
    words = [
        sys.executable,
        "-m",
        "onefold",
        "teach",
        "digits",
        "--batch-size",
        "16",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    words += ["--set", "widths=[8,8]", "--set", "checkpoint_every=32", "--set", "sample_every=32"]

    def run(budget: str, limit: int | None) -> subprocess.CompletedProcess[str]:
        def restrict() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        return subprocess.run(
            [*words, "--budget", budget], capture_output=True, text=True, timeout=120, preexec_fn=restrict
        )

    assert run("64", None).returncode == 0
    before = {p.name for p in (out / "checkpoints").iterdir()}
    full = run("128", 50_000)
    assert full.returncode == 2 and "Traceback" not in full.stderr
    assert full.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert {p.name for p in (out / "checkpoints").iterdir()} == before
    again = run("128", None)
    assert again.returncode == 0 and "going on after 64 images" in again.stderr


@pytest.mark.parametrize(("process", "labels"), [("vp", True), ("vp", False), ("flow", True)])
def test_the_page_of_a_teacher_tells_how_to_use_it(tmp_path: Path, process: str, labels: bool) -> None:
    """Its code for plain diffusers is run as it stands."""
    teach("digits", out=tmp_path / "run", **SMALL, process=process, labels=labels)
    page = (tmp_path / "run" / "teacher" / "README.md").read_text()
    assert "onefold teach digits" in page and (tmp_path / "run" / "teacher" / "samples.png").is_file()
    code = page.split("```python\n")[-1].split("```")[0]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "run").symlink_to(tmp_path / "run" / "teacher")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "elsewhere", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_trackers_get_the_numbers_of_the_log(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    teach("digits", out=out, trackers=["tensorboard"], log_every=2, **SMALL)
    folder = next(p.parent for p in out.rglob("events.out.tfevents.*") if "loss" in scalars_of(p.parent))
    told = [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars("loss")]
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert told == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in log if "loss" in row]


def scalars_of(folder: Path) -> list[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags: list[str] = EventAccumulator(str(folder)).Reload().Tags()["scalars"]
    return tags
