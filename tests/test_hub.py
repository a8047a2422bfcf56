"""Teachers from the Hugging Face hub: its own client, against a hub on the loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hub import hub
from onefold.errors import UserError
from onefold.teachers import ASSETS, find_folder
from onefold.teachers.hub import looks_like_hub, wanted

SAMPLE = "import sys; from onefold.cli import main; sys.exit(main(sys.argv[1:]))"


def onefold(tmp_path: Path, endpoint: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", SAMPLE, *arguments],
        capture_output=True,
        text=True,
        timeout=150,
        cwd=tmp_path,
        env=os.environ | own | environment,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model with all that a repository holds beside it."""
    model = tmp_path / "repos" / "someone" / "digits"
    shutil.copytree(ASSETS / "digits8", model)
    (model / "onefold.json").unlink()
    (model / "pickled.ckpt").write_bytes(b"x" * 1000)
    (model / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"x")
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    (model / "safety_checker").mkdir()
    (model / "safety_checker" / "model.safetensors").write_bytes(b"x")
    return model


def test_a_model_is_downloaded_once_and_then_offline(tmp_path: Path, repository: Path) -> None:
    words = ["sample", "someone/digits", "--count", "2", "--calls", "2", "--json", "--labels", "0,1"]
    with hub(repository.parents[1]) as (endpoint, asked):
        done = onefold(tmp_path, endpoint, *words, "--out", "a.png")
        assert done.returncode == 0, done.stderr
        assert "someone/digits: 0.00 GB in" in done.stderr
        assert json.loads(done.stdout)["teacher"] == "someone/digits"
        needed = {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json"}
        needed |= {"unet/diffusion_pytorch_model.safetensors"}
        got = {name.removeprefix("someone/digits/") for name in asked}
        assert needed <= got and not any(
            "fp16" in name or ".bin" in name or "safety" in name or "ckpt" in name for name in got
        )
    again = onefold(tmp_path, endpoint, *words, "--out", "b.png")  # the hub is down
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_wrong_names_and_no_network_are_one_sentence(tmp_path: Path, repository: Path) -> None:
    with hub(repository.parents[1]) as (endpoint, _):
        wrong = onefold(tmp_path, endpoint, "sample", "someone/digitz")
    down = onefold(tmp_path, endpoint, "sample", "someone/digits")
    offline = onefold(tmp_path, endpoint, "sample", "someone/digits", HF_HUB_OFFLINE="1")
    assert "no model on the hub that you may see" in wrong.stderr
    assert "the hub cannot be reached" in down.stderr and "the hub cannot be reached" in offline.stderr
    for done in (wrong, down, offline):
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) <= 1


def test_a_repository_that_is_no_pipeline_is_refused(tmp_path: Path, repository: Path) -> None:
    (repository / "model_index.json").unlink()
    with hub(repository.parents[1]) as (endpoint, asked):
        done = onefold(tmp_path, endpoint, "sample", "someone/digits")
    assert done.returncode == 2 and "has no model_index.json" in done.stderr
    assert not asked


def test_what_is_wanted() -> None:
    files = [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "tokenizer/merges.txt",
        "README.md",
        "v1.safetensors",
    ]
    sharded = [f"unet/diffusion_pytorch_model-{n}-of-00002.safetensors" for n in ("00001", "00002")]
    sharded += ["unet/diffusion_pytorch_model.safetensors.index.json"]
    half = ["unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"]
    half += ["vae/diffusion_pytorch_model.non_ema.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    chosen = set(wanted([*files, *sharded, *half], "x/y"))
    assert chosen == {*files[:4], *sharded, half[1], half[3]}
    half_shards = [name.replace(".safetensors", ".fp16.safetensors") for name in sharded[:2]]
    assert set(half_shards) <= set(wanted(["model_index.json", *half_shards], "x/y"))


def test_what_is_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks_like_hub("google/ddpm-cifar10-32") and looks_like_hub("a/b@refs/pr/1")
    for name in ("digits8", "./a/b", "~/a", "/a/b", "a/b/c", "../a"):
        assert not looks_like_hub(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="neither bundled nor a folder"):  # a slip in a path asks no hub
        find_folder("runs/typo", print)
