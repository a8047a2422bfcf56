"""The command line from end to end: each command as a real process, the rest of their options and mistakes in this one."""

from __future__ import annotations

import errno
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onefold.cli import main

TINY = ("--set", "widths=[8,8]", "--set", "sample_every=1M", "--batch-size", "32", "--device", "cpu")


def start(*words: object, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "onefold", *map(str, words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def onefold(*words: object, folder: Path, code: int = 0) -> tuple[str, str]:
    process = start(*words, folder=folder)
    out, err = process.communicate(timeout=150)
    assert process.returncode == code, out + err
    return out, err


def one_sentence(out: str, err: str) -> str:
    """What a mistake must lead to: nothing on stdout, one sentence on stderr, no traceback."""
    assert not out
    assert "Traceback" not in err
    sentences = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(sentences) == 1, err
    return sentences[0]


class Here:
    """The command line in this process, which has torch already, in an empty folder."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return (code, *self.capsys.readouterr())

    def sampled(self, out: str, *words: object) -> dict[str, Any]:
        code, printed, err = self("sample", "digits8", "--out", out, "--calls", 3, "--json", *words)
        assert code == 0, err
        facts: dict[str, Any] = json.loads(printed)
        return facts

    def mistake(self, *words: object) -> str:
        code, out, err = self(*words)
        assert code == 2, out + err
        return one_sentence(out, err)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    monkeypatch.chdir(tmp_path)
    return Here(capsys)


# Each command as a process --------------------------------------------------------------------------------------------


def test_version_and_help(tmp_path: Path) -> None:
    assert re.fullmatch(r"onefold \d+\.\d+\.\d+\n", onefold("--version", folder=tmp_path)[0])
    out, err = onefold(folder=tmp_path)
    assert all(command in out for command in ("teach", "sample", "teachers", "demo"))
    assert not err


def test_teach_then_sample_from_what_it_names(tmp_path: Path) -> None:
    words = ("teach", "digits", "--out", "run", "--budget", "640", *TINY)
    out, err = onefold(*words, folder=tmp_path)
    assert "teaching: 640/640 images" in err
    assert "\x1b" not in err
    run = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "metrics.jsonl", "samples", "checkpoints", "teacher"} <= run
    named = shlex.split(out.partition("Pictures of it:")[2])
    onefold(*named[named.index("sample") :], "--calls", 2, folder=tmp_path)
    assert (tmp_path / named[-1]).exists()


def test_teachers(tmp_path: Path) -> None:
    out, _ = onefold("teachers", folder=tmp_path)
    assert "digits8" in out
    assert "fashion28" in out


def test_sample_tells_people_what_it_did(tmp_path: Path) -> None:
    out, err = onefold("sample", "digits8", "--count", 4, "--calls", 5, folder=tmp_path)
    assert "4 images with 5 calls each" in out
    assert "samples.png" in out
    assert "sampling: 4/4 images" in err
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.width >= 2 * 8


def test_demo_distils_draws_and_names_commands_that_work(tmp_path: Path) -> None:
    out, _ = onefold("demo", "--teacher", "digits8", "--count", 3, "--budget", 64, folder=tmp_path)
    assert re.search(r"^euler on karras, 4 calls +4 +\d\.\d+", out, re.MULTILINE)
    assert re.search(r"^student digits8.*, 4 calls +4 +\d\.\d+", out, re.MULTILINE)
    with Image.open(tmp_path / "demo" / "comparison.png") as picture:
        assert picture.width > picture.height / 3
    named = [shlex.split(line) for line in out.partition("Try next:")[2].splitlines()]
    sampling = next(words for words in named if "sample" in words)
    onefold(*sampling[sampling.index("sample") :], folder=tmp_path)
    assert (tmp_path / sampling[sampling.index("--out") + 1]).exists()
    comparing = next(words for words in named if "compare" in words)
    onefold(*comparing[comparing.index("compare") : -1], 3, folder=tmp_path)
    assert (tmp_path / "comparison" / "report.html").exists()


def test_a_mistake_in_a_real_process(tmp_path: Path) -> None:
    sentence = one_sentence(*onefold("sample", "nobody", folder=tmp_path, code=2))
    assert sentence.startswith("Error: unknown teacher 'nobody'")


def test_debug_shows_where(tmp_path: Path) -> None:
    _, err = onefold("sample", "x", "--out", "x.jpg", "--debug", folder=tmp_path, code=2)
    assert "Traceback" in err
    assert "Error: --out x.jpg ends in '.jpg'" in err


def test_each_process_says_who_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    _, err = onefold("sample", "x", "--out", "x.jpg", folder=tmp_path, code=2)
    assert err.startswith("[rank 1] Error: ")


def test_ctrl_c_ends_with_one_sentence_and_a_checkpoint(tmp_path: Path) -> None:
    process = start("teach", "digits", "--out", "run", *TINY, "--budget", "100M", folder=tmp_path)
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


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    line = f"{shlex.quote(sys.executable)} -m onefold teach --settings --json | true"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert not done.stderr


# Their options --------------------------------------------------------------------------------------------------------


def test_settings_are_listed(here: Here) -> None:
    _, out, _ = here("teach", "--settings")
    assert re.search(r"^batch_size +64 +\S", out, re.MULTILINE)
    fields = json.loads(here("teach", "--settings", "--json")[1])
    assert all(field["description"] for field in fields.values())


def test_options_config_and_set_are_one(here: Here) -> None:
    """Options and --set come before the file's values; the same command on a finished run does no harm."""
    Path("c.yaml").write_text("data: digits\nout: run\nbudget: '1M'\nbatch_size: 16\nwidths: [8, 8]\nlr: 1.0\n")
    words = ("teach", "--config", "c.yaml", "--budget", 64, "--set", "lr=1e-3", "--device", "cpu", "--json")
    for _ in range(2):
        code, out, err = here(*words)
        assert code == 0, err
        assert json.loads(out) == {"teacher": "run/teacher", "name": "run", "shape": [1, 8, 8], "classes": 10}
    written = Path("run/config.yaml").read_text()
    assert "lr: 0.001\n" in written
    assert "batch_size: 16\n" in written


def test_cards_as_json(here: Here) -> None:
    cards = json.loads(here("teachers", "--json")[1])
    assert cards["digits8"]["shape"] == [1, 8, 8]
    assert cards["fashion28"]["classes"] == 10


def test_sample_counts_its_calls(here: Here) -> None:
    facts = here.sampled("grid.png", "--count", 6, "--batch-size", 4, "--solver", "euler")
    assert facts["counted_calls"] == 3
    assert facts["images_per_second"] > 0
    assert here.sampled("guided.png", "--count", 2, "--guidance", 2)["counted_calls"] == 6


def test_sample_makes_arrays_and_repeats_labels(here: Here) -> None:
    here.sampled("five.npz", "--count", 5, "--labels", "3,7-8")
    with np.load("five.npz") as arrays:
        assert arrays["images"].shape == (5, 8, 8, 1)
        assert arrays["images"].dtype == np.uint8
        assert arrays["labels"].tolist() == [3, 7, 8, 3, 7]


def test_sample_makes_a_folder_and_goes_on_in_it(here: Here) -> None:
    """Image i depends on (seed, i) only: three and two more are the first five."""
    here.sampled("parts", "--count", 3)
    here.sampled("parts", "--count", 2, "--first", 3, "--batch-size", 1)
    here.sampled("whole.npz", "--count", 5)
    names = sorted(path.name for path in Path("parts").iterdir())
    assert names == [f"{index:06}.png" for index in range(5)]
    parts = np.stack([np.asarray(Image.open(Path("parts") / name)) for name in names])
    with np.load("whole.npz") as arrays:
        assert abs(parts.astype(int) - arrays["images"][..., 0]).max() <= 1


def test_overwrite_is_an_explicit_wish(here: Here) -> None:
    Path("old.png").write_text("old")
    assert "old.png exists already" in here.mistake("sample", "digits8", "--out", "old.png")
    here.sampled("old.png", "--count", 1, "--overwrite")
    with Image.open("old.png") as picture:
        assert picture.format == "PNG"


def test_sample_starts_from_a_file_and_writes_its_states(here: Here) -> None:
    from onefold.seeds import ImageNoise

    np.save("z.npy", ImageNoise(5, range(3), (1, 8, 8))().numpy())
    here.sampled("seeded.npz", "--count", 3, "--seed", 5)
    facts = here.sampled("given.npz", "--count", 3, "--noise", "z.npy", "--labels", 1, "--latents", "states.npz")
    assert facts["noise"] == "z.npy" and facts["latents"] == "states.npz"
    here.sampled("same.npz", "--count", 3, "--seed", 5, "--labels", 1)
    with np.load("given.npz") as given, np.load("same.npz") as same, np.load("states.npz") as path:
        assert np.array_equal(given["images"], same["images"])
        assert path["states"].shape == (4, 3, 1, 8, 8) and path["states"].dtype == np.float32
        assert len(path["sigmas"]) == 4 and path["sigmas"][-1] == 0 and path["sigmas"].dtype == np.float64
        clean = (path["states"][-1, :, 0].clip(-1, 1) + 1) * 127.5
        assert abs(clean - given["images"][..., 0]).max() <= 0.51
    assert "states.npz exists already; choose another --latents" in here.mistake(
        "sample", "digits8", "--out", "more.png", "--latents", "states.npz"
    )


def test_sample_clips(here: Here) -> None:
    words = ("--count", 4, "--solver", "euler", "--guidance", 8, "--latents")
    here.sampled("free.png", *words, "free.npz")
    assert here.sampled("clipped.png", *words, "clipped.npz", "--clip", "static")["clip"] == "static"
    with np.load("free.npz") as free, np.load("clipped.npz") as clipped:
        assert abs(free["states"][-1]).max() > 1.1
        assert abs(clipped["states"][-1]).max() <= 1


def test_sample_adds_noise_to_the_steps_of_a_student(here: Here) -> None:
    from onefold.grids import karras
    from onefold.student import Student
    from onefold.teachers import load_teacher

    teacher = load_teacher("digits8", device="cpu")
    student = Student(teacher, karras(teacher.process, 3), None, {"method": "none", "teacher": {"name": "digits8"}})
    student.save("pupil")
    words = ("sample", "pupil", "--count", 2, "--device", "cpu", "--json", "--out")
    code, printed, err = here(*words, "pupil.npz", "--eta", 1, "--latents", "pupil-states.npz")
    assert code == 0, err
    assert json.loads(printed)["solver"] == "ddim" and json.loads(printed)["eta"] == 1
    with np.load("pupil-states.npz") as path:
        assert np.allclose(path["states"][-1], student.sample(2, eta=1.0).numpy(), atol=1e-5)
        assert path["sigmas"].tolist() == student.grid.sigmas.tolist()
    assert here.mistake(*words, "no.npz", "--eta", 1, "--solver", "heun").endswith("leave out --solver")
    assert "eta is 2.0" in here.mistake(*words, "no.npz", "--eta", 2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.npy", "no such file"),
        ("text.npy", "no .npy file"),
        ("pickle.npy", "Python objects"),
        ("short.npy", "cannot be read"),
        ("whole.npy", "it holds int64, not floats"),
        ("folder.npy", "it is a folder"),
        ("wrong.npy", "noise has shape (3, 1, 8, 8), expected shape (64, 1, 8, 8)"),
    ],
)
def test_noise_that_is_none(name: str, said: str, here: Here) -> None:
    Path("text.npy").write_text("noise")
    np.save("pickle.npy", np.array([{}]), allow_pickle=True)
    np.save("whole.npy", np.zeros((64, 1, 8, 8), np.int64))
    np.save("wrong.npy", np.zeros((3, 1, 8, 8)))
    Path("short.npy").write_bytes(Path("wrong.npy").read_bytes()[:300])
    Path("folder.npy").mkdir()
    assert said.lower() in here.mistake("sample", "digits8", "--noise", name).lower()


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
        ("sample x --latents y.npy", "--latents y.npy must end in .npz"),
        ("sample x --out y.npz --latents y.npz", "choose two names"),
        ("teach", "teach needs DATA"),
        ("teach digits", "teach needs --out"),
        ("teach digits --out r --set lr", "--set takes key=value, not 'lr'"),
        ("teachers now", "unexpected extra argument"),
    ],
)
def test_mistakes_in_the_line(line: str, said: str, here: Here) -> None:
    Path("file").touch()
    Path("there.png").touch()
    Path("there").mkdir()
    Path("there", "000001.png").touch()
    assert said in here.mistake(*line.split())
    assert not Path("r").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sample digist8", "did you mean 'digits8'?"),
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
def test_mistakes_that_the_library_finds(line: str, said: str, here: Here) -> None:
    assert said in here.mistake(*line.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--solver", "dpm2mm"), "unknown solver 'dpm2mm'; did you mean"),
        (("--grid", "karas"), "karas"),
        (("--labels", "10"), "0 to 9"),
        (("--end", "never"), "never"),
        (("--afs", "always"), "always"),
        (("--clip", "statik"), "did you mean 'static'?"),
        (("--eta", "1"), "solver 'ipndm3' has no setting 'eta'"),
        (("--precision", "fp8"), "fp8"),
    ],
)
def test_mistakes_with_a_teacher(words: tuple[str, ...], said: str, here: Here) -> None:
    assert said in here.mistake("sample", "digits8", *words, "--out", "x.png")
    assert not Path("x.png").exists()


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "x.png"),
            "no space left on device (x.png); free some space",
            2,
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "permission denied (x); change the permissions", 2),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."), "micro_batches", 2),
        (ValueError("odd\nlong story"), "unexpected ValueError: odd; run it again with --debug", 1),
    ],
)
def test_what_goes_wrong_around_us(
    error: Exception, said: str, code: int, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("onefold.teachers.bundled", fail)
    got, out, err = here("teachers")
    assert got == code
    assert said in one_sentence(out, err)
