"""The same command in several processes gives the weights of one, and a failure of one stops all."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

ARGUMENTS = [
    "teach", "digits", "--budget", "320", "--batch-size", "16", "--device", "cpu", "--set", "widths=[8,16]",
    "--set", "checkpoint_every=160", "--set", "sample_every=160", "--set", "log_every=5", "--set", "lr=3e-5",
]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "onefold"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]


def run(start: list[str], out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*start, *ARGUMENTS, *more, "--out", str(out)], capture_output=True, text=True, timeout=170)


def weights(out: Path) -> dict[str, Tensor]:
    tensors = load_file(sorted((out / "checkpoints").iterdir())[-1] / "state.safetensors")
    return {k: v for k, v in tensors.items() if k.startswith(("network.", "average."))}


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[k].flatten().double() for k in sorted(tensors)])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    done = run([sys.executable, "-m", "onefold"], out)
    assert done.returncode == 0, done.stderr
    return out


def test_two_processes_equal_one(tmp_path: Path, one: Path) -> None:
    done = run(TORCHRUN, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    close(weights(one), weights(tmp_path / "two"))
    log = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    alone = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [row["step"] for row in alone]  # each line is written once
    for a, b in zip(log, alone, strict=True):
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=1e-3)
    assert sorted(p.name for p in (tmp_path / "two" / "samples").iterdir()) == [f"{n:010d}.png" for n in (0, 160, 320)]


@pytest.mark.slow
def test_two_micro_batches_equal_one(tmp_path: Path, one: Path) -> None:
    done = run([sys.executable, "-m", "onefold"], tmp_path / "two", "--set", "micro_batches=2")
    assert done.returncode == 0, done.stderr
    close(weights(one), weights(tmp_path / "two"))


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Equal up to the order of sums. Adam divides by the gradient's size, so where that is about rounding error (a few
    biases before a norm) single weights may move apart by a step; all together they may not."""
    assert a.keys() == b.keys()
    assert float((flat(a) - flat(b)).norm() / flat(a).norm()) < 1e-4


DUEL = """
import sys
import time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from toys import engine
engine(Path(sys.argv[1]), checkpoint_every="1h", log_every=4, clip=0.1).run()
"""


def test_two_processes_equal_one_in_double_precision(tmp_path: Path) -> None:
    """Networks, averages and optimisers of two kinds, where rounding cannot hide a mistake."""
    script = tmp_path / "duel.py"
    script.write_text(DUEL)
    for name, start in (("one", [sys.executable]), ("two", ACCELERATE)):
        command = [*start, str(script), str(tmp_path / name), str(Path(__file__).parent)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert float((flat(one) - flat(two)).abs().max()) < 1e-14


FAILING = """
import os, sys
import onefold.data
fetch = onefold.data.Stream.batch
def failing(self, step, rows=None):
    if step == 7 and os.environ["RANK"] == "1":
        from onefold.errors import UserError
        raise UserError("image 42 cannot be decoded; replace it")
    return fetch(self, step, rows)
onefold.data.Stream.batch = failing
from onefold.cli import main
sys.exit(main())
"""


def test_a_failure_of_one_stops_all_with_its_message(tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    start = [*TORCHRUN[:-2], str(script)]
    done = run(start, tmp_path / "run")
    assert done.returncode != 0
    assert "[rank 1] Error: image 42 cannot be decoded; replace it" in done.stderr
    assert "SIGTERM" in done.stderr or "Stopping" in done.stderr or "exitcode" in done.stderr


@pytest.mark.slow
def test_two_processes_agree_on_the_time(tmp_path: Path) -> None:
    """A budget in time ends both at the same step, or one of them would wait for ever."""
    done = run(TORCHRUN, tmp_path / "two", "--budget", "3s", "--set", "log_every=1")
    assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["seconds"] for row in log if "loss" in row]
    assert 2.0 < seconds[-1] < 15.0 and len(seconds) > 3


def test_two_processes_killed_go_on(tmp_path: Path, one: Path) -> None:
    out = tmp_path / "two"
    command = [*TORCHRUN, *ARGUMENTS, "--set", "checkpoint_every=32", "--budget", "100M", "--out", str(out)]
    launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while launcher.poll() is None and len(list(out.glob("checkpoints/step-*"))) < 2:
        time.sleep(0.01)
    everybody = [*psutil.Process(launcher.pid).children(recursive=True), psutil.Process(launcher.pid)]
    assert len(everybody) >= 3
    for process in everybody:
        process.kill()
    launcher.wait()
    psutil.wait_procs(everybody, timeout=30)
    newest = max(int(p.name[5:]) for p in out.glob("checkpoints/step-*"))
    budget = str(16 * (newest + 4))
    done = run(TORCHRUN, out, "--budget", budget)
    assert done.returncode == 0 and f"going on after {16 * newest:,} images" in done.stderr, done.stderr
    alone = run([sys.executable, "-m", "onefold"], tmp_path / "one", "--budget", budget)
    assert alone.returncode == 0, alone.stderr
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in log if "loss" in row]
    assert [row["step"] for row in losses] == sorted({row["step"] for row in losses})
    again = run(TORCHRUN, out, "--budget", budget)  # finished already: nothing to do, and nobody waits
    assert again.returncode == 0, again.stderr


STOPPING = """
import os, sys, threading, signal, time
from onefold.cli import main
if os.environ["RANK"] == "1":
    def ask():
        while not os.path.exists(sys.argv[-1] + "/metrics.jsonl"):
            time.sleep(0.05)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=ask, daemon=True).start()
sys.exit(main())
"""


def test_a_wish_to_stop_of_any_process_stops_all(tmp_path: Path) -> None:
    script = tmp_path / "stopping.py"
    script.write_text(STOPPING)
    done = run([*TORCHRUN[:-2], str(script)], tmp_path / "run", "--budget", "100M")
    assert done.returncode != 0 and "the same command goes on from there" in done.stderr
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
