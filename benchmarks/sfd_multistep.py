"""Beyond the paper: students whose steps remember what the network said before, beside the usual ones.

python benchmarks/sfd_multistep.py digits8 --calls 2 3 4 --budget 3200

A student of SFD makes Euler steps. Here it makes those of DPM-Solver++ (2M) or of iPNDM-3 instead, in training and in sampling, so it
begins as near to its teacher as these solvers are; all else is the same. Compared at equal budgets, to the teacher's fine solution.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pairs import save
from torch import Tensor

import onefold
from onefold.bench.ways import FINE
from onefold.losses import root_mean_square
from onefold.methods import METHODS
from onefold.methods.sfd import SFD, SFDSettings  # noqa: F401  (found here by name)
from onefold.solvers import analytic_denoised
from onefold.student import Student
from onefold.targets import half_step_ratio, rollout
from onefold.training.contract import Batch, Networks, Update

UNSEEN = 1_000_000


class Remembering(SFD):
    """SFD whose student steps by a solver with a memory."""

    kind = ""
    stepping: type[Student] = Student

    def updates(self, batch: Batch) -> Iterator[Update]:
        cond, course = batch.conditions, self.courses[self.calls]
        x = course.grid.start_state(self.teacher.process, batch["z"])
        states = rollout(self.target, x, course.fine, self.settings.parts, solver=self.settings.solver, cond=cond)
        said: list[tuple[float, Tensor]] = []  # (level, denoised) or (level, direction), the newest last
        for n, (sigma, to) in enumerate(course.steps):
            analytic = n == 0 and self.afs is not None
            denoised = analytic_denoised(x, sigma, self.afs) if analytic else self.student.denoise(x, sigma, cond)  # type: ignore[arg-type]
            y, new = self.step(x, denoised, sigma, to, said)
            if not analytic:
                loss = self.loss(x, y, denoised, states[n + 1], sigma, to)
                yield Update(loss, ema=n == course.grid.calls - 1, logs={f"loss_{n}": loss})
            said = [*said, (sigma, new.detach())]
            x = y.detach()

    def step(
        self, x: Tensor, denoised: Tensor, sigma: float, to: float, said: list[tuple[float, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        if self.kind == "dpmpp2m":
            bent = denoised
            if said and to > 0:
                last, before = said[-1]
                level = torch.tensor([last, sigma, to], dtype=torch.float64)
                bent = denoised + float(half_step_ratio(level[0], level[1], level[2])) * (denoised - before)
            return to / sigma * x + (1 - to / sigma) * bent, denoised
        direction = (x - denoised) / sigma
        history = [direction, *(value for _, value in reversed(said))][:3]
        weights = {1: (1.0,), 2: (1.5, -0.5), 3: (23 / 12, -16 / 12, 5 / 12)}[len(history)]
        whole = sum((weight * value for weight, value in zip(weights, history, strict=True)), torch.zeros_like(x))
        return x + (to - sigma) * whole, direction

    def sampler(self, networks: Networks) -> Student:
        return self.stepping(*vars(super().sampler(networks)).values())


class BentStudent(Student):
    @property
    def way(self) -> dict[str, Any]:
        return {**super().way, "solver": "dpmpp2m"}


class PndmStudent(Student):
    @property
    def way(self) -> dict[str, Any]:
        return {**super().way, "solver": "ipndm3"}


class Bent(Remembering):
    kind, stepping = "dpmpp2m", BentStudent


class Pndm(Remembering):
    kind, stepping = "ipndm3", PndmStudent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--calls", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--budget", default="3200")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--count", type=int, default=256)
    arguments = parser.parse_args()
    METHODS["sfd2m"] = (__name__, "Bent", "SFDSettings")
    METHODS["sfdpndm"] = (__name__, "Pndm", "SFDSettings")
    kinds = {"sfd": "euler", "sfd2m": "dpmpp2m", "sfdpndm": "ipndm3"}
    teacher = onefold.load_teacher(arguments.teacher, device="cpu", precision="fp32")
    how: dict[str, Any] = {"first": UNSEEN}
    reference = onefold.sample(teacher, arguments.count, solver=FINE[0], calls=FINE[1], **how)
    rows = []
    for calls in arguments.calls:
        for seed in arguments.seeds:
            for method, solver in kinds.items():
                with tempfile.TemporaryDirectory() as out:
                    student = onefold.distill(
                        teacher,
                        method,
                        out=Path(out) / "run",
                        calls=calls,
                        budget=arguments.budget,
                        seed=seed,
                        device="cpu",
                        watched=8,
                        sample_every="10h",
                    )
                    way = {**student.way, "solver": solver}
                    drawn = onefold.sample(student.denoiser, arguments.count, **way, **how)
                    begun = onefold.sample(teacher, arguments.count, **way, **how)
                row = {
                    "calls": calls,
                    "seed": seed,
                    "steps of": solver,
                    "begun": root_mean_square(begun, reference),
                    "distance": root_mean_square(drawn, reference),
                    "seconds": student.recipe["cost"]["seconds"],
                }
                print(row, flush=True)
                rows.append(row)
                save(f"sfd_multistep_{arguments.teacher}", {"what": __doc__.splitlines()[0], "rows": rows}, show=False)


if __name__ == "__main__":
    main()
