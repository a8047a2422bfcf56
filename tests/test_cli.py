"""The command line from end to end, each command as a real process; and what it says to mistakes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

TINY = ("--set", "widths=[8,8]", "--batch-size", "32", "--device", "cpu")


def start(*words: object, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "onefold", *map(str, words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"},
    )


def onefold(*words: object, folder: Path, code: int = 0) -> tuple[str, str]:
    process = start(*words, folder=folder)
    out, err = process.communicate(timeout=150)
    assert process.returncode == code, out + err
    return out, err


def mistake(*words: object, folder: Path) -> str:
    """A line that must fail as a user's mistake: code 2, nothing on stdout, one sentence, no traceback."""
    out, err = onefold(*words, folder=folder, code=2)
    assert not out
    sentences = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(sentences) == 1, err
    assert "Traceback" not in err
    return sentences[0]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher made by `onefold teach` in a few seconds."""
    folder = tmp_path_factory.mktemp("taught")
    out, err = onefold("teach", "digits", "--out", "run", "--budget", "640", *TINY, folder=folder)
    assert "run/teacher" in out
    assert re.search(r"teaching: 640/640 images", err)
    return folder / "run" / "teacher"


# What works -----------------------------------------------------------------------------------------------------------


def test_version_and_help(tmp_path: Path) -> None:
    assert re.fullmatch(r"onefold \d+\.\d+\.\d+\n", onefold("--version", folder=tmp_path)[0])
    out, err = onefold(folder=tmp_path)
    assert all(command in out for command in ("teach", "sample", "teachers", "demo"))
    assert not err


def test_teach_leaves_a_whole_run_folder(teacher: Path) -> None:
    run = teacher.parent
    assert {"config.yaml", "metrics.jsonl", "samples", "checkpoints", "teacher"} <= {
        path.name for path in run.iterdir()
    }


def test_the_same_command_on_a_finished_run_does_no_harm(teacher: Path) -> None:
    words = ("teach", "digits", "--out", "run", "--budget", "640", *TINY, "--json")
    out, _ = onefold(*words, folder=teacher.parents[1])
    assert json.loads(out) == {"teacher": "run/teacher", "name": "run", "shape": [1, 8, 8], "classes": 10}


def test_settings_are_listed(tmp_path: Path) -> None:
    out, _ = onefold("teach", "--settings", folder=tmp_path)
    assert re.search(r"^batch_size +64 +\S", out, re.MULTILINE)
    fields = json.loads(onefold("teach", "--settings", "--json", folder=tmp_path)[0])
    assert all(field["description"] for field in fields.values())


def test_teachers(tmp_path: Path) -> None:
    out, _ = onefold("teachers", folder=tmp_path)
    assert "digits8" in out
    assert "fashion28" in out
    cards = json.loads(onefold("teachers", "--json", folder=tmp_path)[0])
    assert cards["digits8"]["shape"] == [1, 8, 8]
    assert cards["fashion28"]["classes"] == 10


def sampled(teacher: Path, folder: Path, out: str, *words: object) -> dict[str, Any]:
    printed, _ = onefold("sample", teacher, "--out", out, "--calls", 3, "--json", *words, folder=folder)
    facts: dict[str, Any] = json.loads(printed)
    return facts


def test_sample_makes_one_picture(teacher: Path, tmp_path: Path) -> None:
    facts = sampled(teacher, tmp_path, "grid.png", "--count", 6, "--solver", "euler")
    assert facts["counted_calls"] == 3
    assert facts["images_per_second"] > 0
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width >= 3 * 8
        assert picture.height >= 2 * 8


def test_sample_makes_arrays_and_repeats_labels(teacher: Path, tmp_path: Path) -> None:
    sampled(teacher, tmp_path, "five.npz", "--count", 5, "--labels", "3,7-8")
    with np.load(tmp_path / "five.npz") as arrays:
        assert arrays["images"].shape == (5, 8, 8, 1)
        assert arrays["images"].dtype == np.uint8
        assert arrays["labels"].tolist() == [3, 7, 8, 3, 7]


def test_sample_makes_a_folder_and_goes_on_in_it(teacher: Path, tmp_path: Path) -> None:
    """Image i depends on (seed, i) only: three and two more are the first five."""
    sampled(teacher, tmp_path, "parts", "--count", 3)
    sampled(teacher, tmp_path, "parts", "--count", 2, "--first", 3, "--batch-size", 1)
    sampled(teacher, tmp_path, "whole.npz", "--count", 5)
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert names == [f"{index:06}.png" for index in range(5)]
    parts = np.stack([np.asarray(Image.open(tmp_path / "parts" / name)) for name in names])
    with np.load(tmp_path / "whole.npz") as arrays:
        assert abs(parts.astype(int) - arrays["images"][..., 0]).max() <= 1


def test_guidance_counts_its_calls(teacher: Path, tmp_path: Path) -> None:
    assert sampled(teacher, tmp_path, "guided.png", "--count", 2, "--guidance", 2)["counted_calls"] == 6


def test_sample_tells_people_what_it_did(teacher: Path, tmp_path: Path) -> None:
    out, err = onefold("sample", teacher, "--count", 4, "--calls", 5, folder=tmp_path)
    assert "4 images with 5 calls each" in out
    assert "samples.png" in out
    assert "sampling: 4/4 images" in err
    assert "\x1b" not in err


def test_demo_compares_and_draws(teacher: Path, tmp_path: Path) -> None:
    out, _ = onefold("demo", "--teacher", teacher, "--count", 3, "--quick", folder=tmp_path)
    assert re.search(r"^euler +\d\.\d+", out, re.MULTILINE)
    assert "*" in out
    with Image.open(tmp_path / "demo" / "solvers.png") as picture:
        assert picture.width > picture.height / 3


def test_the_commands_that_demo_names_work(teacher: Path, tmp_path: Path) -> None:
    out, _ = onefold("demo", "--teacher", teacher, "--count", 2, "--quick", folder=tmp_path)
    named = [line.split() for line in out.partition("Try next:")[2].splitlines() if " sample " in line]
    assert named
    for words in named:
        onefold(*words[words.index("sample") :], folder=tmp_path)
        assert (tmp_path / words[words.index("--out") + 1]).exists()


# What is said to mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sampel", "no such command 'sampel'. Did you mean 'sample'?"),
        ("sample x --cout 3", "no such option '--cout'; did you mean '--count'?"),
        ("sample x --count three", "not 'three'"),
        ("sample x --count 0", "greater than or equal to 1, not '0'"),
        ("sample", "missing argument"),
        ("sample x --labels 1,b", "--labels '1,b' is not a list of whole numbers"),
        ("sample x --labels 9-0", "names no number"),
        ("sample x --out y.jpg", "ends in '.jpg'; use .png"),
        ("sample x --out file/y.png", "file is a file"),
        ("sample x --out there.png", "there.png exists already; choose another --out or add --overwrite"),
        ("sample x --count 3 --out there", "000001.png exists already"),
        ("teach", "teach needs DATA"),
        ("teach digits", "teach needs --out"),
        ("teach digits --out r --set lr", "--set takes key=value, not 'lr'"),
        ("teachers now", "unexpected extra argument"),
    ],
)
def test_mistakes_in_the_line(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "there.png").touch()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "000001.png").touch()
    assert said in mistake(*line.split(), folder=tmp_path)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sample fashoin28", "did you mean 'fashion28'?"),
        ("teach nowhere --out r", "nowhere"),
        ("teach digits --out r --budget soon", "'soon'"),
        ("teach digits --out r --set btach_size=3", "did you mean 'batch_size'?"),
        ("teach digits --out r --set lr=fast", "'fast'"),
        ("teach digits --out r --set lr=-1", "greater than 0"),
        ("teach digits --out r --process ve", "process"),
        ("teach digits --out r --device gpu", "'gpu'"),
        ("teach digits --out r --size 2", "size"),
        ("teach digits --out r --config nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_mistakes_that_the_library_finds(line: str, said: str, tmp_path: Path) -> None:
    assert said in mistake(*line.split(), folder=tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--solver", "dpm2mm"), "unknown solver 'dpm2mm'; did you mean"),
        (("--grid", "karas"), "karas"),
        (("--labels", "10"), "0 to 9"),
        (("--end", "never"), "never"),
        (("--afs", "always"), "always"),
        (("--precision", "fp8"), "fp8"),
    ],
)
def test_mistakes_with_a_teacher(words: tuple[str, ...], said: str, teacher: Path, tmp_path: Path) -> None:
    assert said in mistake("sample", teacher, *words, "--out", "x.png", folder=tmp_path)
    assert not (tmp_path / "x.png").exists()


def test_debug_shows_where(tmp_path: Path) -> None:
    _, err = onefold("sample", "nobody", "--debug", folder=tmp_path, code=2)
    assert "Traceback" in err
    assert "Error: unknown teacher 'nobody'" in err


def test_each_process_says_who_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    _, err = onefold("sample", "x", "--out", "x.jpg", folder=tmp_path, code=2)
    assert err.startswith("[rank 1] Error: ")


def test_overwrite_is_an_explicit_wish(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "old.png").write_text("old")
    sampled(teacher, tmp_path, "old.png", "--count", 1, "--overwrite")
    with Image.open(tmp_path / "old.png") as picture:
        assert picture.format == "PNG"


def test_ctrl_c_ends_with_one_sentence_and_the_run_goes_on(tmp_path: Path) -> None:
    words = ("teach", "digits", "--out", "run", *TINY)
    process = start(*words, "--budget", "100M", folder=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("run/samples/*.png")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert not out
    assert "Traceback" not in err
    assert "the same command goes on" in err.splitlines()[-1]
    assert list(tmp_path.glob("run/checkpoints/step-*"))
