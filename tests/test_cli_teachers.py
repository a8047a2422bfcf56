"""The command line with teachers from elsewhere: prompts, latents, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
from PIL import Image

import pipelines
from edm_pickles import TINY, write
from onefold.cli import main

EDM: dict[str, Any] = {"kind": "SongUNet", **TINY}


class Here:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: object) -> str:
        code = main([str(word) for word in words])
        out, err = self.capsys.readouterr()
        assert code == 0, err
        return out

    def mistake(self, *words: object) -> str:
        code = main([str(word) for word in words])
        out, err = self.capsys.readouterr()
        assert code == 2 and not out and "Traceback" not in err
        (sentence,) = [line for line in err.splitlines() if line.startswith("Error: ")]
        return sentence


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    monkeypatch.chdir(tmp_path)
    euler = {key: value for key, value in pipelines.SD.items() if key != "clip_sample"}
    noising = diffusers.EulerDiscreteScheduler(**euler, prediction_type="v_prediction")
    pipelines.text_pipeline(tmp_path, noising).save_pretrained("sd")
    Path("prompts.txt").write_text("\n".join(f"a {letter}" for letter in "abcdefghijklmnopqrst"))
    capsys.readouterr()
    return Here(capsys)


def test_from_prompts_to_a_shipped_student(here: Here) -> None:
    here("inspect", "sd", "--prompts", "prompts.txt", "--count", 2, "--device", "cpu")
    words = ("--prompts", "prompts.txt", "--calls", 2, "--budget", 8, "--batch-size", 4, "--device", "cpu")
    here("distill", "sd", *words, "--out", "run", "--set", "watched=3")
    config = Path("run/config.yaml").read_text()
    assert "prompts: prompts.txt" in config
    recipe = json.loads(Path("run/student/student.json").read_text())
    assert "--prompts prompts.txt" in recipe["command"]
    assert recipe["evidence"]["images"] == 3
    for source in ("sd", "run"):
        more = ("--calls", 2) if source == "sd" else ()
        facts = json.loads(
            here("sample", source, "--prompt", "a cat", "--count", 2, *more, "--out", f"{source}.png", "--json")
        )
        assert facts["counted_calls"] == 2
        assert Image.open(f"{source}.png").size[1] >= 16
    here("sample", "run", "--prompts", "prompts.txt", "--count", 4, "--out", "several.npz", "--guidance", 2)
    Path("others.txt").write_text("new words\na b\nmore\n")
    found = here("evaluate", "run", "--prompts", "others.txt", "--count", 3, "--metrics", "rmse", "--json")
    assert 0 < json.loads(found)["scores"]["rmse"]["value"] < 10
    here("compare", "sd", "run", "--prompts", "others.txt", "--count", 3, "--calls", 2, "--solvers", "euler")
    assert Path("comparison/report.html").stat().st_size > 10_000
    told = json.loads(here("export", "run", "--out", "shipped", "--json"))
    assert told["pipeline"] == "StableDiffusionPipeline" and told["largest_difference"] < 1e-4
    assert "was exported for plain diffusers" in here.mistake("sample", "shipped", "--prompt", "x")


def test_texts_are_asked_for(here: Here) -> None:
    for words in (("sample", "sd"), ("inspect", "sd"), ("distill", "sd", "--out", "run"), ("plan", "sd")):
        assert "give prompts" in here.mistake(*words)
    assert "prompts.txt" not in here.mistake("sample", "sd", "--prompts", "missing.txt")
    assert "is told no texts" in here.mistake("sample", "digits8", "--prompt", "a cat")


def test_a_checkpoint_is_converted_once(here: Here) -> None:
    home = Path.cwd()
    write([{"path": str(home / "net.pkl"), "preconditioning": {"kind": "EDMPrecond"}, "network": EDM}], home)
    here("export", "net.pkl", "--out", "net")
    assert {path.name for path in Path("net").iterdir()} == {"edm.json", "edm.safetensors"}
    for source in ("net.pkl", "net"):
        here("sample", source, "--count", 2, "--calls", 2, "--out", f"{source}.png")
    assert Path("net.pkl.png").read_bytes() == Path("net.png").read_bytes()
    assert "exists already" in here.mistake("export", "net.pkl", "--out", "net")
    Path("other.ckpt").write_bytes(b"x")
    assert "expected an EDM checkpoint" in here.mistake("sample", "other.ckpt")
