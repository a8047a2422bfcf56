"""What the engine costs over a plain PyTorch loop that does the same work: the bound is 3 %.

    python benchmarks/engine_overhead.py

Both train the network of `fashion28` with the same batches: data, noise, forward, backward, clipping, Adam, average.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from pairs import interleave, save, summary

from onefold.data import MemoryData, Stream
from onefold.settings import build
from onefold.teaching import Teaching, TeachSettings, new_denoiser, split
from onefold.training.contract import Draw
from onefold.training.loop import Ahead, Engine
from onefold.training.start import start_processes

SETTINGS: dict[str, Any] = {
    "data": "made-up",
    "widths": [32, 48, 64],
    "sample_every": "1h",
    "checkpoint_every": "1h",
}


def engine_steps(settings: TeachSettings, steps: int) -> Callable[[], None]:
    method = make(settings)
    accelerator = start_processes(torch.device(settings.device), settings)
    engine = Engine(method, settings, settings.model_dump(mode="json"), accelerator, precision=settings.precision)
    engine.open()
    engine.pace.start(0, {})
    batches = Ahead(engine.draw, 0)

    def work() -> None:
        for _ in range(steps):
            engine.train_step(next(batches))
            engine.after_step()

    return work


def plain_steps(settings: TeachSettings, steps: int) -> Callable[[], None]:
    """The same work, as one would write it for one process."""
    method, device, size = make(settings), torch.device(settings.device), settings.batch_size
    network, optimizer = method.networks["unet"].to(device), method.optimizers["main"]
    average = copy.deepcopy(network).requires_grad_(False)
    state = {"step": 0}

    def work() -> None:
        total = torch.zeros((), device=device)
        for _ in range(steps):
            step = state["step"]
            batch = {k: v.to(device) for k, v in method.prepare(Draw(0, step, range(size), size)).items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                output = network(batch["z"], batch["time"], class_labels=batch["labels"]).sample
            loss = (output.float() - batch["target"]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 0.01)
            total += loss.detach()
            state["step"] += 1
        float(total)

    return work


def make(settings: TeachSettings) -> Teaching:
    made = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2000, 1, 28, 28), dtype=torch.uint8, generator=made)
    data = MemoryData(images, torch.arange(2000) % 10, classes=10, class_names=None, description={})
    train, held_out = split(data, 64, 0)
    denoiser = new_denoiser(data, settings).replace(precision=settings.precision)
    denoiser.module.train()
    return Teaching(denoiser, Stream(train, batch_size=settings.batch_size, seed=0), held_out, settings, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=5, help="updates in one timing")
    parser.add_argument("--threads", type=int, default=1, help="of torch; one is the quietest on a shared machine")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(range(arguments.threads)))  # or the engine would prepare batches on a further core
    with tempfile.TemporaryDirectory() as out:
        asked = {name: getattr(arguments, name) for name in ("device", "precision", "batch_size")}
        settings = build(TeachSettings, {**SETTINGS, **asked, "out": f"{out}/run", "budget": "100h"})
        seconds = interleave(
            engine_steps(settings, arguments.steps), plain_steps(settings, arguments.steps), arguments.pairs
        )
    workload = (
        f"{arguments.steps} updates of {arguments.batch_size} images 28x28, U-Net of 0.95 M parameters, "
        f"{arguments.device} in {arguments.precision}, {arguments.threads} thread(s)"
    )
    name = (
        "engine_overhead" if arguments.device == "cpu" else f"engine_overhead_{arguments.device}_{arguments.precision}"
    )
    save(name, {"what": "engine / plain loop", "workload": workload, **summary(seconds, 1.03)})


if __name__ == "__main__":
    main()
