"""`onefold teach` as a real process, really killed: at random moments, and in the middle of writing a checkpoint."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

ARGUMENTS = [
    "teach", "digits", "--budget", "640", "--batch-size", "16", "--device", "cpu", "--set", "widths=[8]", "--set", "dropout=0.1",
    "--set", "checkpoint_every=32", "--set", "sample_every=160", "--set", "log_every=3",
]  # fmt: skip

# Counts what is synced to disk (of checkpoints: two files and their folder each), and dies at the n-th.
DYING = """
import os, signal, sys
import onefold.files
left, part, sync = int(sys.argv.pop(1)), sys.argv.pop(1), onefold.files.sync
def dying(path):
    global left
    left -= part in str(path)
    if left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)
onefold.files.sync = dying
from onefold.cli import main
sys.exit(main())
"""


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "onefold", *ARGUMENTS, "--out", str(out)]


def finish(out: Path) -> str:
    done = subprocess.run(command(out), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


def end_state(out: Path) -> dict[str, Any]:
    """All that must not depend on interruptions: everything but clocks."""
    last = sorted((out / "checkpoints").iterdir())[-1]
    facts = json.loads(json.loads((last / "state.json").read_text())["facts"])
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clocks = ("seconds", "images_per_second", "journal_bytes")
    return {
        "tensors": {k: v.numpy().tobytes() for k, v in load_file(last / "state.safetensors").items()},
        "facts": {k: v for k, v in facts.items() if k not in clocks},
        "log": [{k: v for k, v in row.items() if k not in clocks} for row in log],
        "samples": {p.name: p.read_bytes() for p in (out / "samples").iterdir()},
        "teacher": (out / "teacher" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes(),
        "best": (out / "best" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes(),
        "drafts": [p.name for p in out.rglob(".*") if p.name != ".lock"],
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("straight") / "run"
    finish(out)
    return end_state(out)


def test_killed_at_random_moments(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    out, moments, kills = tmp_path / "run", random.Random(1), 0
    while kills < 3:
        process = subprocess.Popen(command(out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        seen = steps_logged(out)
        while process.poll() is None and steps_logged(out) == seen:  # it has begun to train
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
    assert kills, "the run was never killed"
    finish(out)
    assert end_state(out) == uninterrupted


def steps_logged(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize(
    ("moment", "part"),
    [
        pytest.param(1, "", marks=pytest.mark.slow),
        (1, ".step-"),
        pytest.param(6, ".step-", marks=pytest.mark.slow),
        (13, ".step-"),
        (2, ".teacher."),
    ],
)
def test_killed_while_it_writes(tmp_path: Path, uninterrupted: dict[str, Any], moment: int, part: str) -> None:
    out = tmp_path / "run"
    dying = [sys.executable, "-c", DYING, str(moment), part, *ARGUMENTS, "--out", str(out)]
    died = subprocess.run(dying, capture_output=True, timeout=120)
    assert died.returncode == -signal.SIGKILL
    assert list(out.rglob(".*.part")), "it was killed in the middle of a file"
    finish(out)
    assert end_state(out) == uninterrupted
