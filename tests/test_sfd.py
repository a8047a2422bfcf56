"""SFD against its specification: what one batch does, on exact teachers and small networks."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onefold.denoiser import Conditions, Denoiser, Gaussian
from onefold.grids import karras
from onefold.losses import distance
from onefold.methods.sfd import SFD
from onefold.process import EDM, ContinuousVP, DiscreteVP, Flow, Process, beta_table
from onefold.sampling import sample
from onefold.solvers import SOLVERS, analytic_denoised, euler_step
from onefold.student import load_student
from onefold.targets import denoised_target, fine_grid, rollout
from onefold.teachers import load_teacher
from plane import (
    OVERLAPPING,
    SHIFTED,
    WATCHED,
    batch_of,
    end_distance,
    exact_teacher,
    gradient,
    sfd,
    small_network,
    teacher_states,
    train,
)
from toys import inputs_seen


class Affine(nn.Module):
    """A gain and an offset at each of three levels: all that the data of one Gaussian ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.offset = (nn.Parameter(torch.zeros(3, 2)) for _ in range(2))

    def forward(self, z_and_time: Tensor) -> Tensor:
        z, time = z_and_time[:, :2], z_and_time[:, 2]
        level = torch.bucketize(4 * time, torch.tensor([0.0, 3.0]))
        return self.gain[level] * z + self.offset[level]


# --- levels -----------------------------------------------------------------------------------------------------------


def test_the_published_levels() -> None:
    """S1: N = 2 to 4 steps, the first of them analytic."""
    levels = {
        1: [80, 3.107122, 0.006],
        2: [80, 10.929297, 0.669886, 0.006],
        3: [80, 19.003388, 3.107122, 0.268292, 0.006],
    }
    for calls, expected in levels.items():
        assert sfd(calls=calls, end="sigma_min").grid.sigmas.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize(
    ("process", "schedule", "prediction"),
    [
        (EDM(), "karras", "x0"),
        (EDM(), "logsnr", "x0"),
        (ContinuousVP(), "quadratic", "v"),
        (Flow(), "uniform", "flow"),
        (DiscreteVP.from_betas(beta_table("linear")), "subsequence", "eps"),
    ],
    ids=["karras", "logsnr", "quadratic", "uniform", "subsequence"],
)
def test_every_kth_level_of_the_teacher_is_the_student_s(
    process: Process, schedule: str, prediction: Any, end: str
) -> None:
    """S1: bitwise, or teacher and student would be compared at two levels; levels fall strictly."""
    whole_times = isinstance(process, DiscreteVP)
    teacher = Denoiser(small_network(), process, prediction=prediction, shape=(2,), continuous_time=not whole_times)
    for calls, parts in ((1, 4), (3, 1), (4, 3)):
        method = sfd(teacher, calls=calls, parts=parts, grid=schedule, end=end)
        fine = method.courses[method.calls].fine.sigmas.tolist()
        assert fine[::parts] == method.grid.sigmas.tolist() and len(fine) == parts * method.grid.calls + 1
        assert all(upper > lower for upper, lower in pairwise(fine))


def test_explicit_levels_are_taken_as_they_are() -> None:
    method = sfd(grid=[80.0, 5.0, 0.5, 0.006], calls=2, end="sigma_min")
    assert method.grid.sigmas.tolist() == [80.0, 5.0, 0.5, 0.006]
    assert method.courses[method.calls].fine.sigmas[::4].tolist() == method.grid.sigmas.tolist()
    assert len(list(method.updates(batch_of(method)))) == 2


def test_rollouts_are_the_teacher_at_the_student_s_levels() -> None:
    teacher = exact_teacher()
    grid = karras(teacher.process, 3, end="sigma_min")
    fine = fine_grid(teacher, grid, 4)
    assert fine.sigmas[::4].tolist() == grid.sigmas.tolist()
    start = grid.start_state(teacher.process, torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
    states = rollout(teacher, start, fine, 4, solver="dpmpp2m", cond={})
    _, every = SOLVERS["dpmpp2m"](teacher, start, fine.sigmas, trajectory=True)
    assert len(states) == 4
    assert all(torch.equal(state, every[4 * n]) for n, state in enumerate(states))


# --- the analytic first step ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("afs", [None, "ve", "vp"])
@pytest.mark.parametrize("calls", [1, 2, 5])
def test_one_update_for_each_call(afs: Any, calls: int) -> None:
    """T4, A1: an analytic first step has no call, no loss and no update."""
    method = sfd(afs=afs, calls=calls)
    updates = list(method.updates(batch_of(method)))
    assert len(updates) == calls and method.student.calls == calls
    assert [update.ema for update in updates] == [False] * (calls - 1) + [True]
    assert method.teacher.calls == 0 and method.target.calls == 4 * method.grid.calls  # K N, the first one real


@pytest.mark.parametrize(("calls", "factor"), [(1, 0.038914), (2, 0.136684), (3, 0.237602), (4, 0.324594)])
def test_the_first_trained_step_starts_from_the_shrunken_noise(calls: int, factor: float) -> None:
    """A1: with the published shrink factors."""
    method = sfd(afs="vp", calls=calls, end="sigma_min")
    batch, seen = batch_of(method), inputs_seen(method)
    next(iter(method.updates(batch)))
    assert torch.allclose(seen[0] / (80 * batch["z"]), torch.tensor(factor), rtol=0, atol=1e-6)
    assert not seen[0].requires_grad


# --- what a student learns that knows all -----------------------------------------------------------------------------


@pytest.mark.parametrize("walk", ["own", "teacher", "through"])
@pytest.mark.parametrize("domain", ["sample", "x0"])
def test_a_teacher_that_is_its_own_student_learns_nothing(walk: Any, domain: Any) -> None:
    """T1, S2: Euler, K = 1, no AFS: loss and gradients are exactly zero, and Adam does not move."""
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


class BeginsAnalytically(Denoiser):
    """A teacher whose own first step is the analytic one."""

    afs: Any = "vp"

    def evaluate(self, x: Tensor, sigma: Tensor, cond: Conditions) -> Tensor:
        return analytic_denoised(x, float(sigma), self.afs) if sigma > 50 else super().evaluate(x, sigma, cond)


@pytest.mark.parametrize("afs", ["ve", "vp"])
def test_an_analytic_step_of_both_or_of_the_student_alone(afs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """T1: AFS on in both is exactly no loss; a teacher without it leaves the student something to repair."""
    monkeypatch.setattr(BeginsAnalytically, "afs", afs)
    settings = {"solver": "euler", "parts": 1, "calls": 3, "afs": afs}
    both = sfd(exact_teacher(SHIFTED, kind=BeginsAnalytically), **settings)
    for update in both.updates(batch_of(both)):
        update.loss.backward()
        assert float(update.loss.detach()) == 0 and not gradient(both).any()
    alone = sfd(exact_teacher(SHIFTED), **settings)
    for update in alone.updates(batch_of(alone)):
        update.loss.backward()
        assert float(update.loss.detach()) > 0.01 and gradient(alone).any()


def test_dropout_is_the_student_s_alone() -> None:
    """T1, T2: with dropout the loss is not zero; the teacher stays in eval mode and is never touched."""
    teacher = exact_teacher()
    for module in teacher.module.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    nn.init.normal_(teacher.module.correction[-1].weight, std=0.1)  # type: ignore[union-attr, index]
    settings = {"solver": "euler", "parts": 1, "afs": None}
    active, still = sfd(teacher, **settings), sfd(teacher, **settings, dropout=False)
    assert next(iter(active.updates(batch_of(active)))).loss.item() > 0
    assert next(iter(still.updates(batch_of(still)))).loss.item() == 0
    before = copy.deepcopy(teacher.module.state_dict())
    train(active, 3)
    assert not teacher.module.training and all(p.grad is None for p in teacher.module.parameters())
    assert all(torch.equal(before[key], value) for key, value in teacher.module.state_dict().items())


# --- the teacher ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("walk", ["own", "teacher", "through"])
def test_training_leaves_weights_and_buffers_of_the_teacher(walk: Any) -> None:
    """T2: also where they could be trained, and where training mode changes buffers."""
    teacher = exact_teacher(correction=nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    teacher.module.requires_grad_(True)
    before = copy.deepcopy(teacher.module.state_dict())
    method = sfd(teacher, walk=walk)
    train(method, 2)
    assert not teacher.module.training and all(p.grad is None for p in teacher.module.parameters())
    assert all(torch.equal(before[key], value) for key, value in teacher.module.state_dict().items())
    assert not any(torch.equal(before[key], value) for key, value in method.networks["student"].state_dict().items())


def test_targets_are_constants_that_the_seed_decides() -> None:
    """T2: no graph on the teacher's states, and the same trajectory for the same seed."""
    teacher = exact_teacher()
    teacher.module.requires_grad_(True)
    method, again = sfd(teacher), sfd(exact_teacher())
    states = teacher_states(method, batch_of(method)["z"])
    assert len(states) == 4 and not any(state.requires_grad for state in states)
    others = teacher_states(again, batch_of(again)["z"])
    assert all(torch.equal(a, b) for a, b in zip(states, others, strict=True))
    assert not torch.equal(batch_of(method)["z"], batch_of(method, step=1)["z"])


# --- one step ---------------------------------------------------------------------------------------------------------


def test_a_step_s_gradient_is_that_of_the_step_alone() -> None:
    """T3, T4: the input of a step is bit for bit what the one before gave, before its update, and cut off from it."""
    method = sfd(calls=3, afs="ve")
    batch, seen = batch_of(method), inputs_seen(method)
    states = teacher_states(method, batch["z"])
    carried: Tensor | None = None
    for n, update in enumerate(method.updates(batch), start=1):
        method.optimizers["main"].zero_grad()
        update.loss.backward()
        within = gradient(method)
        x = seen[-1]
        assert not x.requires_grad and (carried is None or torch.equal(x, carried))
        sigma, to = method.grid.sigmas.tolist()[n], method.grid.sigmas.tolist()[n + 1]
        method.optimizers["main"].zero_grad()
        y = euler_step(x, method.student.denoise(x, sigma), sigma, to)
        distance("l1", y, states[n + 1]).backward()
        assert torch.equal(within, gradient(method))
        carried = y.detach()
        method.optimizers["main"].step()


def bytes_kept_for_backward(method: SFD) -> int:
    """The most that graphs hold at once while a batch is worked off."""
    held, most = 0, 0

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal held, most
            self.tensor = tensor
            held += tensor.nbytes
            most = max(most, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.tensor.nbytes

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda kept: kept.tensor):
        for update in method.updates(batch_of(method)):
            update.loss.backward()
    return most


def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    """T3: one step's graph is alive at a time, unless gradients are to flow through all of them."""
    few, many = (bytes_kept_for_backward(sfd(calls=calls)) for calls in (2, 8))
    assert few == many > 0
    few, many = (bytes_kept_for_backward(sfd(calls=calls, walk="through")) for calls in (2, 8))
    assert many > 3 * few


@pytest.mark.parametrize("walk", ["own", "through"])
def test_micro_batches_have_the_gradient_of_the_whole(walk: Any) -> None:
    """T5: at every step, whether the shares of a batch come one after the other or from several processes."""
    whole, split = sfd(calls=3, walk=walk), sfd(calls=3, walk=walk)
    shares = [split.updates(batch_of(split, size=12, rows=range(k, k + 4))) for k in (0, 4, 8)]
    for update, *parts in zip(whole.updates(batch_of(whole, size=12)), *shares, strict=True):
        for method, loss in ((whole, update.loss), (split, sum(part.loss for part in parts) / 3)):
            method.optimizers["main"].zero_grad()
            torch.as_tensor(loss).backward()
        assert torch.allclose(gradient(whole), gradient(split), rtol=1e-4, atol=1e-5)
        for method in (whole, split):
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


# --- losses and learning rate -----------------------------------------------------------------------------------------


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


def test_learning_rate_falls_once_at_half() -> None:
    """T6: exactly the given one before."""
    method = sfd(lr=1e-3, schedule="drop")
    rates = [method.learning_rate("main", 0, progress) for progress in (0, 0.25, 0.4999, 0.5, 0.75, 1.0)]
    assert rates == [1e-3] * 3 + [pytest.approx(1e-4)] * 3


def test_learning_rate_falls_along_a_cosine_after_its_warm_up() -> None:
    method = sfd(lr=1e-3, schedule="cosine", warmup=0.25)
    rates = [method.learning_rate("main", 0, progress) for progress in (0, 0.125, 1 / 3, 0.5, 1.0)]
    assert rates == pytest.approx([0, 5e-4 * (1 + math.cos(math.pi / 8)) / 2, 7.5e-4, 5e-4, 0])


# --- what a student is worth ------------------------------------------------------------------------------------------


def test_only_the_own_walk_repairs_the_analytic_step() -> None:
    """T8 in closed form: for one Gaussian every map is affine. On the teacher's walk each step is learnt to the end, and
    what the analytic step missed is carried on by the teacher's own slopes; on its own walk the student takes it back."""
    data = Gaussian(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.3]))
    left: dict[str, float] = {}
    for walk in ("own", "teacher"):
        method = sfd(exact_teacher(data, Affine()), walk=walk, lr=0.03, end="sigma_min")
        train(method, 150, 64)
        left[walk] = end_distance(method)
    states, sigma, to = teacher_states(method, WATCHED), *method.grid.sigmas.tolist()[:2]
    missed = euler_step(states[0], analytic_denoised(states[0], sigma, "ve"), sigma, to) - states[1]
    carried = float((states[-1].std(0) / states[1].std(0) * missed).norm(dim=1).mean())
    assert left["teacher"] == pytest.approx(carried, rel=0.1)
    assert left["own"] < 0.1 * carried


def test_learning_brings_the_student_to_its_teacher() -> None:
    """T8 in small: eight overlapping modes, and a mean that the analytic step misses."""
    left: dict[str, float] = {}
    for walk in ("own", "teacher"):
        method = sfd(exact_teacher(OVERLAPPING), afs="vp", walk=walk, lr=1e-2, end="sigma_min")
        untrained = end_distance(method)
        train(method, 200)
        left[walk] = end_distance(method)
    assert left["own"] < 0.2 * untrained
    assert left["own"] < 0.5 * left["teacher"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_own_walk_beats_the_teacher_s_where_the_first_step_is_analytic() -> None:
    """T8 at full length, 12,000 updates. Without an analytic step there is nothing to repair, and the walks are equals."""
    left: dict[tuple[str, str | None], float] = {}
    for afs, calls in (("vp", 2), (None, 3)):
        for walk in ("own", "teacher"):
            method = sfd(exact_teacher(SHIFTED), afs=afs, calls=calls, walk=walk, lr=5e-3, end="sigma_min")
            train(method, 12_000 // calls, 64)
            left[walk, afs] = end_distance(method)
    assert left["own", "vp"] < 0.5 * left["teacher", "vp"]
    assert 0.5 < left["own", None] / left["teacher", None] < 2


def test_a_student_s_folder_says_how_it_was_made(tmp_path: Path) -> None:
    """P1: calls, K, levels, schedule, analytic step and guidance travel with the weights, and it samples bit for bit."""
    settings = {"calls": 2, "parts": 3, "grid": "logsnr", "sigma_min": 0.02, "sigma_max": 40.0, "afs": "vp"}
    method = sfd(load_teacher("digits8", device="cpu"), **settings, guidance=2.0, end="sigma_min")
    for parameter in method.networks["student"].eval().parameters():
        parameter.data += 0.01
    student = method.as_student(method.networks)
    student.save(tmp_path / "student")
    loaded = load_student(tmp_path / "student", device="cpu")
    assert loaded.grid == method.grid and (loaded.calls, loaded.afs, loaded.grid.space) == (2, "vp", "log")
    assert loaded.grid.sigmas[[0, -1]].tolist() == [40.0, 0.02]
    assert loaded.recipe["settings"] == method.settings.model_dump(mode="json")
    assert loaded.recipe["settings"]["parts"] == 3 and loaded.recipe["settings"]["guidance"] == 2.0
    images = sample(student.denoiser, 4, seed=3, solver="euler", grid=method.grid, afs="vp")
    assert torch.equal(student.sample(4, seed=3), images) and torch.equal(loaded.sample(4, seed=3), images)


@pytest.mark.parametrize("grid", ["auto", "quadratic", "uniform", "karras", "logsnr"])
def test_a_network_of_whole_times_is_asked_at_whole_times(grid: Any) -> None:
    """Its student's levels are entries of its table, as its own are; else the first denoise would be refused."""
    process = DiscreteVP.from_betas(beta_table("linear"))
    teacher = load_teacher("digits8", device="cpu").replace(process=process, continuous_time=False)
    method = sfd(teacher, grid=grid, batch_size=2)
    assert (
        method.grid.phi is not None
        and method.courses[method.calls].fine.sigmas[::4].tolist() == method.grid.sigmas.tolist()
    )
    assert len(list(method.updates(batch_of(method, size=2)))) == 2


def test_grids_whose_last_level_is_the_lowest_end_there() -> None:
    teacher = load_teacher("digits8", device="cpu")
    ends = {grid: sfd(teacher, grid=grid).grid.end for grid in ("auto", "uniform", "quadratic", "karras", "logsnr")}
    expected = {"auto": "zero", "uniform": "zero", "quadratic": "zero", "karras": "sigma_min", "logsnr": "sigma_min"}
    assert ends == expected
    assert sfd(grid=[80.0, 5.0, 0.5, 0.0], calls=2).grid.end == "zero"
    assert sfd(grid=[80.0, 5.0, 0.5, 0.1], calls=2).grid.end == "sigma_min"
    assert sfd(teacher, grid="karras", end="zero").grid.end == "zero"
