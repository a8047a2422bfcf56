"""Progressive distillation against its paper: the folds, one fold's target and loss, and what folds of an exact teacher end in."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.methods.chain import STRIDED
from onefold.methods.progressive import Progressive, ProgressiveSettings
from onefold.process import EDM, ContinuousVP, DiscreteVP, Process, beta_table
from onefold.settings import build
from onefold.solvers import get_solver
from onefold.teachers.own import with_form
from onefold.training.contract import Batch, Draw
from plane import exact_teacher, small_network

MEAN, WIDTH = 0.4, 0.7  # of the Gaussian


def chosen(**settings: Any) -> ProgressiveSettings:
    return build(ProgressiveSettings, {"teacher": "toy", "method": "progressive", "out": "run", **settings})


def folds(settings: ProgressiveSettings) -> list[int]:
    return [stage.calls for stage in settings.stages()]


def batch_of(method: Progressive, step: int, size: int) -> Batch:
    return Batch(step, 0.0, method.prepare(Draw(0, step, range(size), size)))


# --- the folds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"calls": 4, "start": 32}, [16, 8, 4]),
        ({"calls": 3, "start": 27, "factor": 3}, [9, 3]),
        ({"calls": 2, "start": 4}, [2]),
        ({}, [32, 16, 8, 4]),
        ({"calls": 1, "factor": 3}, [27, 9, 3, 1]),
    ],
    ids=str,
)
def test_a_run_for_each_fold(settings: dict[str, Any], expected: list[int]) -> None:
    whole = chosen(**settings)
    stages = whole.stages()
    assert folds(whole) == expected and stages[-1] is whole
    assert [Path(stage.out) for stage in stages] == [
        *(Path("run") / "folds" / f"{calls:04}" for calls in expected[:-1]),
        Path("run"),
    ]
    assert all(stage.first == whole.first and stage.factor == whole.factor for stage in stages)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"calls": 4, "start": 24}, "start=24 does not come to 4 calls by dividing by 2; .* such as start=32"),
        ({"calls": 4, "start": 4}, "start=4 does not come to 4 calls"),
        ({"calls": 4, "start": 2}, "start=2 does not come to 4 calls"),
        ({"calls": 3, "start": 24, "factor": 3}, "dividing by 3; .* such as start=81"),
        ({"factor": 1}, "factor=1 does not fit"),
        ({"grid": "gits"}, "grid=gits is tuned for one number of steps"),
    ],
    ids=str,
)
def test_folds_that_do_not_fit(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        chosen(**settings)
    assert "\n" not in str(error.value)


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(UserError, match="unknown schedule 'karas'; did you mean 'karras'"):
        Progressive(exact_teacher(), chosen(grid="karas"))


def table(size: int = 1000) -> DiscreteVP:
    return DiscreteVP.from_betas(beta_table("linear", size))


@pytest.mark.parametrize(
    ("process", "continuous", "grid"),
    [
        (EDM(), True, "auto"),
        (EDM(), True, "logsnr"),
        (ContinuousVP(), True, "uniform"),
        (table(), True, "auto"),
        (table(), False, "auto"),
        (table(), False, "subsequence"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Process) else str(value),
)
@pytest.mark.parametrize("settings", [{"calls": 2, "start": 16}, {"calls": 2, "start": 18, "factor": 3}], ids=str)
def test_later_levels_are_earlier_ones(process: Process, continuous: bool, grid: str, settings: dict[str, Any]) -> None:
    """Bitwise: a fold's teacher is asked exactly where it has learned."""
    prediction: Any = "x0" if isinstance(process, EDM) else "v"
    teacher = Denoiser(small_network(), process, prediction=prediction, shape=(2,), continuous_time=continuous)
    made = [Progressive(teacher, stage) for stage in chosen(grid=grid, **settings).stages()]
    factor = made[0].settings.factor
    assert made[0].fine.calls == settings["start"]
    for method in made:
        assert method.fine.calls == factor * method.calls
        assert torch.equal(method.fine.sigmas[::factor], method.grid.sigmas)
        assert method.parts_of_steps.tolist() == [
            method.fine.sigmas[factor * n : factor * (n + 1) + 1].tolist() for n in range(method.calls)
        ]
    for earlier, later in pairwise(made):
        assert later.fine == earlier.grid
    if isinstance(process, DiscreteVP) and not continuous:
        for method in made:
            assert method.grid.phi is not None
            assert process.sigmas[torch.tensor(method.grid.phi).flip(0) - 1].tolist() == method.levels.tolist()


@pytest.mark.parametrize(("size", "start", "calls"), [(1000, 32, 2), (1000, 16, 1), (1024, 128, 4), (300, 64, 2)])
def test_a_subsequence_stays_one(size: int, start: int, calls: int) -> None:
    """phi_t = round(t T / T') at every fold, as if it had been made for that many steps; halves go to the even one."""
    teacher = Denoiser(small_network(), table(size), prediction="v", shape=(2,), continuous_time=False)
    for stage in chosen(calls=calls, start=start, grid="subsequence").stages():
        grid = Progressive(teacher, stage).grid
        assert grid.phi == tuple(round(t * size / stage.calls) for t in range(1, stage.calls + 1))
        assert grid.times is not None and grid.times.tolist() == [step - 1 for step in reversed(grid.phi)]


# --- one fold's target and loss ---------------------------------------------------------------------------------------


def test_two_ddim_steps_become_one() -> None:
    """The paper's Algorithm 2, by hand in its own coordinates z = alpha x + sigma eps."""
    teacher = exact_teacher(correction=small_network().double())
    method = Progressive(teacher, chosen(calls=2, start=4))
    level = torch.tensor([0, 1, 0, 1, 1])
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = noise * method.levels[level].unsqueeze(1)
    found = method.aim(x, level, {})
    for row in range(len(x)):
        levels = method.fine.sigmas[2 * level[row] : 2 * level[row] + 3]
        alphas = (1 + levels**2).rsqrt()
        sigmas = levels * alphas
        z = first = alphas[0] * x[row : row + 1]
        for k in range(2):
            clean = teacher.denoise(z / alphas[k], levels[k])
            z = alphas[k + 1] * clean + sigmas[k + 1] / sigmas[k] * (z - alphas[k] * clean)
        ratio = sigmas[2] / sigmas[0]
        wanted = (z - ratio * first) / (alphas[2] - ratio * alphas[0])
        assert torch.allclose(found[row : row + 1], wanted, rtol=1e-9, atol=1e-11)
        once = alphas[2] * wanted + ratio * (first - alphas[0] * wanted)
        assert torch.allclose(once, z, rtol=1e-9, atol=1e-11)  # the same place in one step


def test_weights() -> None:
    """SNR + 1 makes the error of x0 that of v; the truncated one is max(SNR, 1)."""
    level = torch.tensor([0, 1, 2, 3])
    generator = torch.Generator().manual_seed(0)
    x, denoised, target = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
    for name in ("v", "truncated"):
        method = Progressive(exact_teacher(), chosen(calls=4, start=8, weight=name))
        snr = 1 / method.levels**2
        expected = snr + 1 if name == "v" else torch.tensor([max(float(one), 1.0) for one in snr], dtype=torch.float64)
        assert torch.allclose(method.scales**2, expected, rtol=1e-12)
        assert min(snr) < 1 < max(snr)
        loss = method.compare(denoised, target, level)
        assert float(loss) == pytest.approx(float((expected[:, None] * (denoised - target) ** 2).mean()), rel=1e-6)
    method = Progressive(exact_teacher(), chosen(calls=4, start=8, weight="v"))
    alpha = (1 + method.levels[:, None] ** 2).rsqrt()
    sigma = method.levels[:, None] * alpha
    one, other = ((alpha * alpha * x - clean) / sigma for clean in (denoised, target))  # v = (alpha z - x0) / sigma
    assert float(method.compare(denoised, target, level)) == pytest.approx(float(((one - other) ** 2).mean()), rel=1e-6)


def test_a_teacher_that_is_asked_twice_a_step() -> None:
    """From states of any kind: K calls of the teacher and one of the student for each row; on trajectories start + calls."""
    method = Progressive(exact_teacher(), chosen(calls=2, start=6, factor=3))
    update = method.update(torch.randn(4, 2), torch.tensor([0, 1, 1, 0]), {})
    assert (method.target.calls, method.student.calls) == (3, 1) and update.loss.requires_grad
    method = Progressive(exact_teacher(), chosen(calls=2, start=6, factor=3))
    updates = list(method.updates(batch_of(method, 0, 4)))
    assert (method.target.calls, method.student.calls) == (6, 2)
    assert [update.ema for update in updates] == [False, True]


def test_the_default_solver_is_ddim_in_every_fold() -> None:
    assert {Progressive(exact_teacher(), stage).solver for stage in chosen(calls=2).stages()} == {"euler"}
    with pytest.raises(UserError, match="noised data has none"):
        Progressive(exact_teacher(), chosen(solver="ipndm3", data="digits"))


# --- exact teachers ---------------------------------------------------------------------------------------------------


class Levels(nn.Module):
    """A scale and a shift at each of some times: all that the data of one Gaussian ask for, in float64."""

    times: Tensor

    def __init__(self, times: Tensor, scales: Tensor, shifts: Tensor) -> None:
        super().__init__()
        self.register_buffer("times", times.double())
        self.scales, self.shifts = nn.Parameter(scales.double()), nn.Parameter(shifts.double())

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        level = (time[:, None] - self.times).abs().argmin(1)
        return self.scales[level].view(-1, 1, 1, 1) * z + self.shifts[level].view(-1, 1, 1, 1)


def gaussian(steps: int) -> Denoiser:
    """E[x0 | x] = (w^2 x + s^2 m) / (w^2 + s^2) at the levels of so many steps."""
    process = EDM(0.002, 80.0)
    levels = Progressive(exact_teacher(), chosen(calls=steps // 2, start=steps)).fine.sigmas[:-1]
    scale = process.scales(levels)[0]  # of the network's input
    share = WIDTH**2 / (WIDTH**2 + levels**2)
    network = Levels(process.time(levels), share / scale, (1 - share) * MEAN)
    return with_form(Denoiser(network.requires_grad_(False), process, prediction="x0", shape=(1, 2, 2)))


def ddim(model: Denoiser, method: Progressive, sigmas: Tensor, z: Tensor) -> Tensor:
    with torch.no_grad():
        images: Tensor = get_solver("euler")(model, method.grid.start_state(model.process, z), sigmas, cond={})
    return images


def fit(method: Progressive, losses: Any) -> None:
    network = method.networks["student"]
    optimizer = torch.optim.LBFGS(
        network.parameters(), max_iter=400, tolerance_grad=1e-14, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = sum(losses(method), torch.zeros((), dtype=torch.float64))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)


def on_trajectories(method: Progressive) -> list[Tensor]:
    batch = batch_of(method, 0, 32)
    batch.tensors["z"] = batch["z"].double()
    return [update.loss for update in method.updates(batch)]


def from_states(method: Progressive) -> list[Tensor]:
    """What noised data gives, without a file to read it from."""
    generator = torch.Generator().manual_seed(1)
    level = torch.arange(32) % method.calls
    clean, noise = torch.randn(2, 32, 1, 2, 2, generator=generator, dtype=torch.float64)
    x = MEAN + WIDTH * clean + method.levels[level].view(-1, 1, 1, 1) * noise
    return [method.update(x, level, {}).loss]


@pytest.mark.parametrize("losses", [on_trajectories, from_states])
def test_folds_of_a_gaussian_are_exact(losses: Any, tmp_path: Path) -> None:
    """Eight DDIM steps in four, then in two: what can be represented is found, and a fold builds on the last one's student."""
    z = torch.randn(64, 1, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    teacher, before = gaussian(8), None
    stages = chosen(calls=2, start=8, out=str(tmp_path / "run")).stages()
    for stage in stages:
        method = Progressive(teacher, stage, before)
        wanted = ddim(teacher, method, Progressive(teacher, stages[0]).fine.sigmas, z)
        plain = ddim(teacher, method, method.grid.sigmas, z)
        fit(method, losses)
        found = ddim(method.student, method, method.grid.sigmas, z)
        assert float((found - wanted).abs().max()) < 1e-6 < 1e-2 < float((plain - wanted).abs().max())
        before = Path(stage.out) / "student"
        method.as_student(method.networks).save(before)


def test_a_small_network_learns_a_mixture() -> None:
    """Six steps of an exact teacher of eight modes in three: within 5 % of the data's size, DDIM on the same levels is not."""
    method = Progressive(exact_teacher(), chosen(calls=3, start=6, lr=4e-3, batch_size=64))
    z = torch.randn(512, 2, generator=torch.Generator().manual_seed(5))
    teacher, steps = method.target, 250
    wanted = ddim(teacher, method, method.fine.sigmas, z)
    optimizer = method.optimizers["main"]
    for step in range(steps):
        for update in method.updates(batch_of(method, step, 64)):
            for group in optimizer.param_groups:
                group["lr"] = method.learning_rate("main", 0, step / steps)
            optimizer.zero_grad()
            update.loss.backward()
            optimizer.step()
    found, plain = (ddim(model, method, method.grid.sigmas, z) for model in (method.student, teacher))
    size = float(wanted.square().mean().sqrt())
    near, far = (float((images - wanted).square().mean().sqrt()) / size for images in (found, plain))
    assert near < 0.05 < 0.2 < far


def test_ddim_on_the_same_levels_stands_beside() -> None:
    method = Progressive(exact_teacher(), chosen(calls=2, start=8, watched=4))
    way = method.controls(2)[STRIDED]
    assert way["solver"] == "euler" and torch.equal(way["grid"].sigmas, method.grid.sigmas)
