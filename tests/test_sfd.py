"""SFD against its specification: what one batch does, on exact teachers and small networks."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onefold.denoiser import Denoiser, GaussianMixture
from onefold.grids import Grid, karras
from onefold.losses import distance
from onefold.methods.sfd import SFD, SFDSettings
from onefold.process import EDM
from onefold.settings import build
from onefold.solvers import SOLVERS, euler_step
from onefold.targets import denoised_target, fine_grid, rollout
from onefold.training.contract import Batch, Draw

CIRCLE = torch.stack([torch.tensor([math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)]) for k in range(8)])


class Corrected(nn.Module):
    """The exact denoiser of eight points on a circle, and a small network that corrects it (nothing at first)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.exact = GaussianMixture(CIRCLE.double(), 0.3)
        self.hidden = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Dropout(0.0))
        self.out = nn.Linear(width, 2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        sigma = (4 * time).exp().unsqueeze(1)
        x = z * (sigma**2 + 0.25).sqrt()
        exact = self.exact.closed_form(x, sigma[:, 0].double().cpu())
        return exact + self.out(self.hidden(torch.cat([z, time.unsqueeze(1)], 1)))


def circle_teacher(width: int = 64) -> Denoiser:
    torch.manual_seed(0)
    teacher = Denoiser(Corrected(width).eval().requires_grad_(False), EDM(0.006, 80.0), prediction="x0", shape=(2,))
    teacher.name = "circle"
    return teacher


def sfd(teacher: Denoiser | None = None, **settings: Any) -> SFD:
    values = {"teacher": "circle", "out": "x", "calls": 2, "lr": 1e-3, "batch_size": 32, **settings}
    return SFD(teacher or circle_teacher(), build(SFDSettings, values))


def batch_of(method: SFD, step: int = 0, size: int = 32) -> Batch:
    return Batch(step, 0.0, method.prepare(Draw(0, step, range(size), size)))


def train(method: SFD, steps: int, size: int = 32) -> None:
    """The engine's part, in short."""
    for index in range(steps):
        batch = batch_of(method, index, size)
        for update in method.updates(batch):
            optimizer = method.optimizers["main"]
            for group in optimizer.param_groups:
                group["lr"] = method.learning_rate("main", 0, index / steps)
            optimizer.zero_grad()
            update.loss.backward()
            optimizer.step()


@pytest.mark.parametrize("afs", [None, "ve", "vp"])
@pytest.mark.parametrize("calls", [1, 2, 5])
def test_one_update_for_each_call(afs: Any, calls: int) -> None:
    """T4, A1: an analytic first step has no call, no loss and no update."""
    method = sfd(afs=afs, calls=calls)
    updates = list(method.updates(batch_of(method)))
    assert len(updates) == calls and method.student.calls == calls
    assert [update.ema for update in updates] == [False] * (calls - 1) + [True]
    assert method.teacher.calls == 0 and method.target.calls == 4 * method.grid.calls  # K N, the first one real


def test_the_published_levels() -> None:
    teacher = circle_teacher()
    levels = {
        1: [80, 3.107122, 0.006],
        2: [80, 10.929297, 0.669886, 0.006],
        3: [80, 19.003388, 3.107122, 0.268292, 0.006],
    }
    for calls, expected in levels.items():
        assert sfd(teacher, calls=calls).grid.sigmas.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("walk", ["own", "teacher", "through"])
@pytest.mark.parametrize("domain", ["sample", "x0"])
def test_a_teacher_that_is_its_own_student_learns_nothing(walk: Any, domain: Any) -> None:
    """T1: Euler, K = 1, no AFS: loss and gradients are exactly zero, and Adam does not move."""
    method = sfd(solver="euler", parts=1, afs=None, walk=walk, domain=domain)
    before = copy.deepcopy(method.networks["student"].state_dict())
    for update in method.updates(batch_of(method)):
        update.loss.backward()
        assert float(update.loss.detach()) <= (1e-5 if domain == "x0" else 0.0)
        if domain == "sample":
            assert all(p.grad is None or not p.grad.any() for p in method.networks["student"].parameters())
            method.optimizers["main"].step()
    if domain == "sample":
        after = method.networks["student"].state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_dropout_is_the_student_s_alone() -> None:
    """T1, T2: with dropout the loss is not zero; the teacher stays in eval mode and is never touched."""
    teacher = circle_teacher()
    for module in teacher.module.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    nn.init.normal_(teacher.module.out.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    settings = {"solver": "euler", "parts": 1, "afs": None}
    active, still = sfd(teacher, **settings), sfd(teacher, **settings, dropout=False)
    assert next(iter(active.updates(batch_of(active)))).loss.item() > 0
    assert next(iter(still.updates(batch_of(still)))).loss.item() == 0
    before = copy.deepcopy(teacher.module.state_dict())
    train(active, 3)
    assert not teacher.module.training and all(p.grad is None for p in teacher.module.parameters())
    assert all(torch.equal(before[key], value) for key, value in teacher.module.state_dict().items())


def test_a_step_s_gradient_is_that_of_the_step_alone() -> None:
    """T3, T4: the input of a step is what the one before gave, before its update, and cut off from it."""
    method = sfd(calls=3, afs="ve")
    batch = batch_of(method)
    inputs: list[Tensor] = []
    carried: Tensor | None = None
    denoise = method.student.denoise

    def spy(x: Tensor, sigma: Any, cond: Any = None) -> Tensor:
        inputs.append(x)
        return denoise(x, sigma, cond)

    method.student.denoise = spy  # type: ignore[method-assign]
    states = rollout(
        method.target,
        method.grid.start_state(method.teacher.process, batch["z"]),
        method.fine,
        4,
        solver="dpmpp3m",
        cond={},
    )
    for n, update in enumerate(method.updates(batch), start=1):
        method.optimizers["main"].zero_grad()
        update.loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in method.networks["student"].parameters() if p.grad is not None])
        x = inputs[-1]
        assert not x.requires_grad
        sigma, to = method.levels[n], method.levels[n + 1]
        method.optimizers["main"].zero_grad()
        y = euler_step(x, denoise(x, sigma), sigma, to)
        distance("l1", y, states[n + 1]).backward()
        alone = torch.cat([p.grad.flatten() for p in method.networks["student"].parameters() if p.grad is not None])
        assert torch.allclose(gradient, alone, atol=1e-5)
        assert carried is None or torch.allclose(x, carried)
        carried = y.detach()
        method.optimizers["main"].step()


def test_loss_domains_differ_by_the_step_s_share() -> None:
    """T5: |y - y*| = (1 - r) |D - D*|."""
    x, denoised, target = (torch.randn(4, 3, dtype=torch.float64) for _ in range(3))
    sigma, to = 3.0, 0.5
    r = to / sigma
    left = (euler_step(x, denoised, sigma, to) - target).abs()
    right = (1 - r) * (denoised - denoised_target(x, target, sigma, to)).abs()
    assert torch.allclose(left, right, atol=1e-12)


@pytest.mark.parametrize(("sigma", "to"), [(80.0, 10.0), (3.0, 0.0), (math.inf, 5.0)])
def test_one_step_equivalents_invert_the_step(sigma: float, to: float) -> None:
    x, target = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    assert torch.allclose(euler_step(x, denoised_target(x, target, sigma, to), sigma, to), target, atol=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["l1", "l2", "huber", "pseudo_huber"])
def test_losses_do_not_depend_on_micro_batches(kind: Any, reduction: Any) -> None:
    a, b = torch.randn(6, 2, 3), torch.randn(6, 2, 3)
    whole = distance(kind, a, b, reduction)
    parts = sum(distance(kind, a[k : k + 2], b[k : k + 2], reduction) for k in (0, 2, 4)) / 3
    assert torch.allclose(whole, torch.as_tensor(parts), rtol=1e-5)
    assert float(distance(kind, a, a, reduction)) == pytest.approx(0, abs=1e-7)


def test_losses_by_hand() -> None:
    a, b = torch.tensor([[3.0, 0.5]]), torch.tensor([[0.0, 0.0]])
    assert float(distance("l1", a, b)) == pytest.approx(3.5)
    assert float(distance("l1", a, b, "mean")) == pytest.approx(1.75)
    assert float(distance("l2", a, b)) == pytest.approx(9.25)
    assert float(distance("huber", a, b)) == pytest.approx(2.5 + 0.125)
    c = 0.00054 * 2**0.5
    assert float(distance("pseudo_huber", a, b)) == pytest.approx((9.25 + c**2) ** 0.5 - c)


def test_rollouts_are_the_teacher_at_the_student_s_levels() -> None:
    teacher = circle_teacher()
    grid = karras(teacher.process, 3, end="sigma_min")
    fine = fine_grid(teacher, grid, 4)
    assert fine.sigmas[::4].tolist() == grid.sigmas.tolist()
    start = grid.start_state(teacher.process, torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
    states = rollout(teacher, start, fine, 4, solver="dpmpp2m", cond={})
    _, every = SOLVERS["dpmpp2m"](teacher, start, fine.sigmas, trajectory=True)
    assert len(states) == 4
    assert all(torch.equal(state, every[4 * n]) for n, state in enumerate(states))


def test_learning_rate_falls_once_at_half() -> None:
    method = sfd(lr=1e-3)
    rates = [method.learning_rate("main", 0, progress) for progress in (0, 0.25, 0.4999, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([1e-3] * 3 + [1e-4] * 3)


def test_explicit_levels_are_taken_as_they_are() -> None:
    method = sfd(grid=[80.0, 5.0, 0.5, 0.006], calls=2)
    assert method.grid.sigmas.tolist() == [80.0, 5.0, 0.5, 0.006]
    assert isinstance(method.grid, Grid) and method.fine.sigmas[::4].tolist() == method.grid.sigmas.tolist()
    assert len(list(method.updates(batch_of(method)))) == 2


def end_distance(method: SFD) -> float:
    """Mean distance of the student's end points to the teacher's (its K steps in each interval), for the same fresh noise."""
    z = torch.randn(512, 2, generator=torch.Generator().manual_seed(123))
    teacher = method.teacher
    network = method.networks["student"].eval()
    student = teacher.replace(network=network)
    with torch.no_grad():
        ends = SOLVERS["euler"](student, 80.0 * z, method.grid.sigmas, afs=method.afs)
        truth = rollout(teacher, 80.0 * z, method.fine, 4, solver="dpmpp3m", cond={})[-1]
    network.train()
    return float((ends - truth).norm(dim=1).mean())


def test_learning_brings_the_student_to_its_teacher() -> None:
    method = sfd(calls=2, lr=3e-3, batch_size=128)
    untrained = end_distance(method)
    train(method, 600, 128)
    assert end_distance(method) < 0.5 * untrained
