"""What training by SFD costs over the bare arithmetic of its networks, and whether its memory grows with the calls.

    python benchmarks/sfd_cost.py

Time: the engine with the real method, against the same number of forwards, backwards and Adam steps of the same networks
with no method, solver or engine around them; the bound is 5 %. Memory: the bytes that autograd keeps for an update, which
must be the same for any number of calls, and the peak of all tensors of a batch, which may grow by the stored states only.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pairs import interleave, save, summary
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from onefold.denoiser import Denoiser
from onefold.methods.sfd import SFD, SFDSettings
from onefold.settings import build
from onefold.teachers import load_teacher
from onefold.training.contract import Batch, Draw
from onefold.training.loop import Ahead, Engine
from onefold.training.start import start_processes

MEMORY_BATCH = 8  # the bytes are exact and proportional, so a small one says it all
SELDOM: dict[str, Any] = {"budget": "100h", "sample_every": "1h", "checkpoint_every": "1h", "device": "cpu"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--batches", type=int, default=1, help="of trajectories, in one timing")
    parser.add_argument("--teacher", default="fashion28")
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="of torch; one is the quietest on a shared machine")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if hasattr(os, "sched_setaffinity"):  # or the engine would prepare batches on a further core
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.threads :])
    teacher = load_teacher(arguments.teacher, device="cpu")
    with tempfile.TemporaryDirectory() as out:
        asked = {"teacher": arguments.teacher, "calls": arguments.calls, "batch_size": arguments.batch_size}
        settings = build(SFDSettings, {**SELDOM, **asked, "out": f"{out}/run"})
        small = settings.model_copy(update={"batch_size": MEMORY_BATCH})
        memory = {calls: memory_of(teacher, small, calls) for calls in (2, 4, 8)}
        seconds = interleave(
            engine_batches(teacher, settings, arguments.batches),
            plain_batches(teacher, settings, arguments.batches),
            arguments.pairs,
        )
    save("sfd_cost", {**described(settings, arguments), **summary(seconds, 1.05), **told(memory)})


def described(settings: SFDSettings, arguments: argparse.Namespace) -> dict[str, str]:
    steps = settings.calls + (settings.afs is not None)
    return {
        "what": "SFD in its engine / bare forwards, backwards and Adam steps",
        "workload": f"{arguments.batches} x {settings.batch_size} trajectories of {settings.teacher}, each batch with "
        f"{settings.parts * steps} teacher forwards and {settings.calls} student updates, {arguments.threads} thread(s)",
    }


# --- time -------------------------------------------------------------------------------------------------------------


def new_engine(teacher: Denoiser, settings: SFDSettings) -> Engine:
    accelerator = start_processes(torch.device("cpu"), settings)
    return Engine(SFD(teacher, settings), settings, settings.model_dump(mode="json"), accelerator)


def engine_batches(teacher: Denoiser, settings: SFDSettings, count: int) -> Callable[[], None]:
    engine = new_engine(teacher, settings)
    engine.open()
    engine.pace.start(0, {})
    batches = Ahead(engine.draw, 0)

    def work() -> None:
        for _ in range(count):
            engine.train_step(next(batches))
            engine.after_step()

    return work


def plain_batches(teacher: Denoiser, settings: SFDSettings, count: int) -> Callable[[], None]:
    """The forwards, backwards and Adam steps that SFD's definition asks for, on fixed numbers."""
    student = copy.deepcopy(teacher.module).requires_grad_(True).train(settings.dropout)
    optimizer = torch.optim.Adam(student.parameters(), lr=settings.lr)
    made = torch.Generator().manual_seed(0)
    size = settings.batch_size
    z, target = (torch.randn(size, *teacher.shape, generator=made) for _ in range(2))
    time, labels = torch.full((size,), 500.0), torch.arange(size) % (teacher.classes or 1)
    steps = settings.calls + (settings.afs is not None)

    def work() -> None:
        for _ in range(count):
            with torch.no_grad():
                for _ in range(settings.parts * steps):
                    teacher.module(z, time, class_labels=labels)
            for _ in range(settings.calls):
                loss = (student(z, time, class_labels=labels).sample - target).abs().sum() / size
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return work


# --- memory -----------------------------------------------------------------------------------------------------------


def memory_of(teacher: Denoiser, settings: SFDSettings, calls: int) -> dict[str, int]:
    """In bytes. `through` keeps the graph of all steps, and shows that growth would be seen."""
    own = settings.model_copy(update={"calls": calls})
    through = own.model_copy(update={"walk": "through"})
    return {
        "saved_for_an_update": saved_for_an_update(SFD(teacher, own)),
        "peak_of_a_batch": peak_of_a_batch(teacher, own),
        "states_at_the_levels": states_at_the_levels(teacher, own),
        "saved_if_walking_through": saved_for_an_update(SFD(teacher, through)),
    }


def told(memory: dict[int, dict[str, int]]) -> dict[str, Any]:
    kept = {row["saved_for_an_update"] for row in memory.values()}
    beyond = [row["peak_of_a_batch"] - row["states_at_the_levels"] for row in memory.values()]
    return {
        "memory": f"bytes, by calls, for {MEMORY_BATCH} trajectories",
        "memory_by_calls": memory,
        "saved_is_the_same_for_all_calls": len(kept) == 1,
        "peak_beyond_states_grows_by": max(beyond) - min(beyond),
    }


def saved_for_an_update(method: SFD) -> int:
    """What autograd keeps between forward and backward, weights aside: the largest of a batch's updates."""
    weights = {p.untyped_storage().data_ptr() for p in method.networks["student"].parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would refer to its own graph

    size, largest = method.settings.batch_size, 0
    batch = Batch(0, 0.0, method.prepare(Draw(0, 0, range(size), size)))
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        for update in method.updates(batch):
            largest = max(largest, sum(kept.values()))
            update.loss.backward()
            kept.clear()
    return largest


def peak_of_a_batch(teacher: Denoiser, settings: SFDSettings) -> int:
    """The most bytes of tensors above what there was before the batch; the second one, as the first makes Adam's state."""
    engine = new_engine(teacher, settings)
    engine.train_step(engine.draw(0))
    engine.method.optimizers["main"].zero_grad()  # what was there before and goes during the record is not seen to go
    drawn = engine.draw(1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        engine.train_step(drawn)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: float(event["ts"])):
        total += event["args"]["Bytes"]
        peak = max(peak, total)
    return peak


def states_at_the_levels(teacher: Denoiser, settings: SFDSettings) -> int:
    """The teacher's states that the student is compared with, and the start, in float32: what may grow with the calls."""
    states = settings.calls + (settings.afs is not None) + 1
    return states * settings.batch_size * math.prod(teacher.shape) * torch.float32.itemsize


if __name__ == "__main__":
    main()
