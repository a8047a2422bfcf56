"""SFD's published loop, written plainly, beside onefold's engine on the same network: trajectories a second.

    python benchmarks/sfd_loop.py digits8 --pieces 4
    python benchmarks/sfd_loop.py fashion28 --device cuda --precision bf16 --batch-size 128 --pieces 4 --compile

The plain loop is what the paper describes: a batch of noise, K steps of DPM-Solver++ (3M) for each of the student's, one Adam step a student
step, gradients made finite, and each loss read back to be logged. onefold runs the same steps from the same settings; a batch of its teacher is
`--pieces` times as wide as an update of its student. Both are timed in turns.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from pairs import interleave, save, summary
from torch import Tensor

from onefold.denoiser import Denoiser
from onefold.methods.sfd import SFD, SFDSettings
from onefold.settings import build
from onefold.solvers import analytic_denoised, euler_step
from onefold.targets import fine_grid, rollout
from onefold.teachers import load_teacher
from onefold.training.loop import Ahead, Engine
from onefold.training.start import start_processes

SELDOM: dict[str, Any] = {"budget": "100h", "sample_every": "1h", "checkpoint_every": "1h"}
PUBLISHED: dict[str, Any] = {
    "parts": 4,
    "solver": "dpmpp3m",
    "loss": "l1",
    "dropout": True,
    "schedule": "drop",
    "lr": 5e-5,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16, help="of an update of the student, in both")
    parser.add_argument("--pieces", type=int, default=4)
    parser.add_argument("--compile", action="store_true", help="ours alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", help="of both")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1, help="of torch; one is the quietest on a shared machine")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as out:
        wide = {"batch_size": arguments.pieces * arguments.batch_size, "pieces": arguments.pieces}
        named = {
            "teacher": arguments.teacher,
            "calls": arguments.calls,
            "device": arguments.device,
            "out": f"{out}/run",
        }
        how = {"precision": arguments.precision, "compile": arguments.compile}
        settings = build(SFDSettings, {**SELDOM, **PUBLISHED, **named, **how, **wide})
        teacher = load_teacher(arguments.teacher, device=arguments.device, precision=arguments.precision)
        seconds = interleave(ours(teacher, settings), plain(teacher, settings), arguments.pairs)
    result = summary(seconds, 1.0)
    faster = {"plain_over_ours": round(1 / result["median_ratio"], 3)}
    what = {"what": "SFD in its engine / the published loop", "settings": {**vars(arguments)}}
    save(f"sfd_loop_{arguments.teacher}_{arguments.device}", {**what, **faster, **result})


def ours(teacher: Denoiser, settings: SFDSettings) -> Callable[[], None]:
    """One wide batch."""
    accelerator = start_processes(torch.device(settings.device), settings)
    facts = settings.model_dump(mode="json")
    engine = Engine(SFD(teacher, settings), settings, facts, accelerator, precision=settings.precision)
    engine.open()
    engine.pace.start(0, {})
    batches = Ahead(engine.draw, 0)

    def work() -> None:
        engine.train_step(next(batches))
        engine.after_step()
        wait(settings.device)

    return work


def plain(teacher: Denoiser, settings: SFDSettings) -> Callable[[], None]:
    """As many trajectories, batch by batch as the student takes them."""
    course = SFD(teacher, settings).courses[settings.calls]
    student = teacher.replace(network=copy.deepcopy(teacher.module).requires_grad_(True).train())
    optimizer = torch.optim.Adam(student.module.parameters(), lr=settings.lr)
    fine, size = fine_grid(teacher, course.grid, settings.parts), settings.batch_size // settings.pieces

    def one_batch() -> None:
        x = course.grid.start_state(teacher.process, torch.randn(size, *teacher.shape, device=settings.device))
        labels = None if teacher.classes is None else torch.randint(teacher.classes, (size,), device=settings.device)
        cond = teacher.conditions(labels)
        states = rollout(teacher, x, fine, settings.parts, solver=settings.solver, cond=cond)
        for loss, output in steps(student, x, states, course.grid.sigmas.tolist(), settings.afs, cond):
            optimizer.zero_grad()
            loss.backward()
            for parameter in student.module.parameters():
                if parameter.grad is not None:
                    torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
            optimizer.step()
            output.append(loss.item())

    def work() -> None:
        for _ in range(settings.pieces):
            one_batch()
        wait(settings.device)

    return work


def steps(
    student: Denoiser, x: Tensor, states: list[Tensor], levels: list[float], afs: Any, cond: dict[str, Tensor]
) -> Iterator[tuple[Tensor, list[float]]]:
    logged: list[float] = []
    for n, (sigma, to) in enumerate(pairwise(levels)):
        if n == 0 and afs:
            x = euler_step(x, analytic_denoised(x, sigma, afs), sigma, to)
            continue
        y = euler_step(x, student.denoise(x, sigma, cond), sigma, to)
        yield (y - states[n + 1]).abs().sum() / len(x), logged
        x = y.detach()


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
