"""Vanilla trajectory distillation: what SFD (arXiv 2409.19681) starts from and is measured against.

The student learns at all stamps of the teacher's fine grid, not only at those that its sampling uses, and always from the teacher's
states. With K the teacher's steps in one of the student's, a draw starts at any stamp i from 0 to K N - K:

    y = r x_i + (1 - r) D(x_i, sigma_i),   r = sigma_{i+K} / sigma_i,   L = | y - x_{i+K} |

Importing it enters the method "vanilla"; its settings are SFD's. A batch costs as much as SFD's without an analytic first step: one
roll-out and N updates.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from onefold.denoiser import Denoiser, spread
from onefold.errors import UserError
from onefold.losses import distance
from onefold.methods import METHODS
from onefold.methods.sfd import SFD, SFDSettings
from onefold.targets import fine_grid, rollout
from onefold.training.contract import HOST, Batch, Draw, Update


class Vanilla(SFD):
    """Vanilla trajectory distillation: every jump of K steps along the teacher's trajectory, whether sampling makes it or not."""

    def __init__(self, teacher: Denoiser, settings: SFDSettings) -> None:
        if settings.walk != "teacher" or settings.domain != "sample":
            raise UserError(
                f"vanilla distillation compares states on the teacher's own way, not walk={settings.walk} and "
                f"domain={settings.domain}; set walk=teacher and domain=sample"
            )
        super().__init__(teacher, settings)
        self.stamps = fine_grid(teacher, self.grid, settings.parts)

    def prepare(self, draw: Draw) -> dict[str, Tensor]:
        """Beside the noise, for each update and row the stamp to start from."""
        starts = self.stamps.calls - self.settings.parts + 1
        return super().prepare(draw) | {f"{HOST}from_{n}": draw.integers(starts, n) for n in range(self.calls)}

    def updates(self, batch: Batch) -> Iterator[Update]:
        chosen, cond = self.settings, batch.conditions
        x = self.grid.start_state(self.teacher.process, batch["z"])
        states = torch.stack(rollout(self.target, x, self.stamps, 1, solver=chosen.solver, cond=cond))
        row = torch.arange(len(x))
        for n in range(self.calls):
            start = batch[f"{HOST}from_{n}"]
            end = start + chosen.parts
            sigma, to = self.stamps.sigmas[start], self.stamps.sigmas[end]
            y = row_steps(states[start, row], self.student.denoise(states[start, row], sigma, cond), sigma, to)
            loss = distance(chosen.loss, y, states[end, row], chosen.reduction)
            yield Update(loss, ema=n == self.calls - 1, logs={f"loss_{n}": loss})


def row_steps(x: Tensor, denoised: Tensor, sigma: Tensor, to: Tensor) -> Tensor:
    """`solvers.euler_step` where every row has levels of its own."""
    r = to / sigma  # 0 from inf, where x is unit noise
    return spread(torch.where(torch.isinf(sigma), to, r), x) * x + spread(1 - r, x) * denoised


METHODS["vanilla"] = (__name__, Vanilla.__name__, SFDSettings.__name__)
