"""Vanilla trajectory distillation, the reference of SFD's ablation: which jumps it learns, and that they are equals of SFD's."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from onefold.distilling import find
from onefold.errors import UserError
from onefold.methods import METHODS
from onefold.methods.sfd import SFDSettings
from onefold.settings import build
from onefold.solvers import euler_step
from onefold.training.contract import HOST, Batch, Draw
from small import teacher

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
AS_VANILLA: dict[str, Any] = {"teacher": "small:teacher", "out": "x", "calls": 2, "walk": "teacher", "afs": None}


@pytest.fixture
def vanilla(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(METHODS, "vanilla", ("", "", ""))  # taken out again at the end
    module = importlib.reload(importlib.import_module("vanilla"))  # enters itself
    assert find("vanilla") == (module.Vanilla, SFDSettings)
    return module


def made(vanilla: ModuleType, **settings: Any) -> Any:
    return vanilla.Vanilla(teacher(), build(SFDSettings, AS_VANILLA | settings))


def losses(method: Any, batch: Batch) -> list[float]:
    return [float(update.loss.detach()) for update in method.updates(batch)]


def test_every_jump_of_the_fine_grid_is_drawn_and_no_other(vanilla: ModuleType) -> None:
    method = made(vanilla, parts=3)
    drawn = [method.prepare(Draw(0, step, range(16), 16))[f"{HOST}from_{n}"] for step in range(8) for n in range(2)]
    assert torch.cat(drawn).unique().tolist() == [0, 1, 2, 3]  # of 7 stamps, the last start is 3
    assert not torch.equal(drawn[0], drawn[1])


def test_a_student_that_is_its_euler_teacher_of_one_part_has_nothing_to_learn(vanilla: ModuleType) -> None:
    """And with more parts it has: one step is not three."""
    for parts, nothing in ((1, True), (3, False)):
        method = made(vanilla, parts=parts, solver="euler", loss="l1")
        found = losses(method, Batch(0, 0.0, method.prepare(Draw(0, 0, range(4), 4))))
        assert len(found) == 2 and all((loss < 1e-3) is nothing for loss in found), found


def test_from_the_levels_of_sampling_its_losses_are_sfd_s(vanilla: ModuleType) -> None:
    method = made(vanilla, parts=3)
    sfd = find("sfd")[0](teacher(), method.settings)
    prepared = method.prepare(Draw(0, 0, range(4), 4))
    starts = {f"{HOST}from_{n}": torch.full((4,), 3 * n) for n in range(2)}
    assert losses(method, Batch(0, 0.0, prepared | starts)) == pytest.approx(
        losses(sfd, Batch(0, 0.0, prepared)), rel=1e-4
    )


@pytest.mark.parametrize(("sigma", "to"), [(4.0, 1.5), (0.3, 0.0), (math.inf, 80.0)])
def test_rows_step_as_euler_does(vanilla: ModuleType, sigma: float, to: float) -> None:
    x, denoised = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    levels: list[Tensor] = [torch.tensor([level, own], dtype=torch.float64) for level, own in ((sigma, 2.0), (to, 1.0))]
    steps = vanilla.row_steps(x[:2], denoised[:2], *levels)
    assert torch.allclose(steps[0], euler_step(x[0], denoised[0], sigma, to))
    assert torch.allclose(steps[1], euler_step(x[1], denoised[1], 2.0, 1.0))


def test_settings_that_it_would_not_follow_are_refused(vanilla: ModuleType) -> None:
    with pytest.raises(UserError, match="set walk=teacher"):
        made(vanilla, walk="own")
