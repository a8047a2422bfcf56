"""GITS: the dynamic programme, what it knows of a teacher, and how good its grids are where the truth is known."""

from __future__ import annotations

import json
import math
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import onefold
from onefold.cli import main
from onefold.denoiser import Conditions, Denoiser, Gaussian, GaussianMixture
from onefold.distilling import distill
from onefold.errors import UserError
from onefold.gits import best_path, fine_levels, gits_grid, jump_costs, measure_jumps
from onefold.grids import Grid, karras, make_grid
from onefold.losses import root_mean_square
from onefold.methods.sfd import SFD
from onefold.process import EDM, ContinuousVP, DiscreteVP, Flow, Process, beta_table, zero_terminal_snr
from onefold.sampling import plan_grid, sample
from onefold.solvers import SOLVERS
from onefold.student import load_student
from onefold.targets import fine_grid
from onefold.teachers import load_teacher
from onefold.training.contract import Draw

LINEAR = DiscreteVP.from_betas(beta_table("linear"))
ZERO_TERMINAL = DiscreteVP(zero_terminal_snr(LINEAR.alphas_cumprod))
MEANS = 1.6 * torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.8


def mixture(process: Process | None = None, std: float = 0.4) -> GaussianMixture:
    return GaussianMixture(MEANS, std, process=process)


# --- the dynamic programme --------------------------------------------------------------------------------------------


def random_costs(levels: int, seed: int) -> Tensor:
    costs = torch.rand(levels, levels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return costs.masked_fill(torch.ones(levels, levels).tril().bool(), math.inf)


def value(costs: Tensor, path: tuple[int, ...], gamma: float) -> float:
    return sum(gamma**k * float(costs[i, j]) for k, (i, j) in enumerate(pairwise(path)))


@pytest.mark.parametrize("gamma", [0.7, 1.0, 1.15, 2.0])
@pytest.mark.parametrize("levels", [2, 3, 6, 9])
def test_no_subset_of_levels_is_better(levels: int, gamma: float) -> None:
    """gamma^k on the k-th jump: what comes later counts more, for gamma above 1."""
    costs = random_costs(levels, seed=levels)
    for jumps in range(1, levels):
        subsets = combinations(range(1, levels - 1), jumps - 1)
        best = min(((0, *inner, levels - 1) for inner in subsets), key=lambda path: value(costs, path, gamma))
        assert best_path(costs, jumps, gamma) == list(best)


# --- what a jump costs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [80.0, math.inf])
def test_costs_of_one_gaussian_are_those_of_the_closed_form(top: float) -> None:
    """All is linear in the noise there: with u = sqrt(s^2 + sigma^2) the state is m + u z, D = m + s^2 / u z, and Euler lands
    (r u + (1 - r) s^2 / u - u') z off."""
    mean, std, levels = 0.3, 0.5, [top, 7.0, 0.9, 0.2, 0.0]
    exact = Gaussian(torch.full((3,), mean, dtype=torch.float64), std)
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = z if math.isinf(top) else exact.flow(z, math.inf, top)
    states = [start, *(exact.flow(z, math.inf, level) for level in levels[1:])]
    denoised = [exact.denoise(state, level) for state, level in zip(states[:-1], levels, strict=False)]
    costs = jump_costs(states, denoised, levels, None)
    for (i, s), (j, t) in combinations(enumerate(levels), 2):
        u, to = math.hypot(std, s), math.hypot(std, t)
        off = t - to if math.isinf(s) else t / s * u + (1 - t / s) * std**2 / u - to
        assert float(costs[i, j]) == pytest.approx(off**2 * float(z.square().mean()), rel=1e-9)
    assert bool(torch.isinf(costs[torch.ones(5, 5).tril().bool()]).all())


@pytest.mark.parametrize("afs", ["ve", "vp"])
def test_an_analytic_first_step_costs_what_it_misses(afs: Any) -> None:
    """Only the jumps from the start change: there D is 0 (ve), or x (1 - sigma / sqrt(1 + sigma^2))."""
    teacher = mixture()
    fine = fine_levels(teacher, 8, "zero")
    plain, analytic = measure_jumps(teacher, fine), measure_jumps(teacher, fine, afs=afs)
    assert torch.equal(plain.costs[1:], analytic.costs[1:])
    assert analytic.fine.start == ("ve" if afs == "ve" else "prior")
    x = torch.full((1, 4), 3.0, dtype=torch.float64)
    known = x * 0 if afs == "ve" else x * (1 - 80 / math.hypot(1, 80))
    costs = jump_costs([x, x * 0], [x, x], [80.0, 8.0], afs)
    assert float(costs[0, 1]) == pytest.approx(float((0.1 * x + 0.9 * known).square().mean()), rel=1e-9)


class Counting(nn.Module):
    """The exact mixture, asked through a network."""

    def __init__(self, exact: GaussianMixture) -> None:
        super().__init__()
        self.exact, self.seen = exact, list[float]()

    def forward(self, z: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        sigma = (4 * time.double()).exp()
        self.seen += sigma.tolist()
        return self.exact.closed_form(z * (sigma[0] ** 2 + 0.25).sqrt(), sigma[:1], **cond)


def test_a_jump_costs_no_call_and_the_tuning_none_of_the_teacher_s() -> None:
    network = Counting(mixture())
    teacher = Denoiser(network, EDM(), prediction="x0", shape=(1, 4, 4))
    grid = gits_grid(teacher, 4, trajectories=20, fine=10)
    assert len(network.seen) == 20 * 10 and teacher.calls == 0
    network.seen.clear()
    images = sample(teacher, 2, calls=4, grid="gits", solver="euler")
    assert teacher.calls == 4 and len(network.seen) == 16 * 60 + 2 * 4
    assert torch.allclose(images, sample(teacher, 2, calls=4, grid=gits_grid(teacher, 4), solver="euler"), atol=1e-6)
    assert grid.calls == 4


def test_classes_take_turns() -> None:
    seen: list[Tensor] = []
    exact = GaussianMixture(MEANS, 0.2, labels=range(5))

    class Watched(GaussianMixture):
        def evaluate(self, x: Tensor, sigma: Tensor, cond: Conditions) -> Tensor:
            seen.append(cond["labels"])
            return exact.evaluate(x, sigma, cond)

    gits_grid(Watched(MEANS, 0.2, labels=range(5)), 3, trajectories=18, fine=5)
    assert seen[0].tolist() == [index % 5 for index in range(16)] and seen[-1].tolist() == [1, 2]


# --- how good the grids are -------------------------------------------------------------------------------------------

PROCESSES = {"edm": EDM(), "flow": Flow(), "vp": LINEAR}


@pytest.mark.parametrize("name", PROCESSES)
def test_it_beats_karras_and_comes_near_the_best_of_all_subsets(name: str) -> None:
    """Overlapping modes, other noise than it was tuned on, Euler's error at the end against a solution by 300 calls."""
    process = PROCESSES[name]
    teacher = mixture(process)
    z = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(5))

    def end(grid: Grid, solver: str = "euler") -> Tensor:
        return SOLVERS[solver](teacher, grid.start_state(process, z), grid.sigmas)

    truth = end(make_grid("auto", process, 300), "ipndm4")
    fine = fine_levels(teacher, 12, "zero")
    jumps = measure_jumps(teacher, fine)
    for calls in (4, 5, 6):
        chosen = root_mean_square(end(jumps.grid(calls)), truth)
        subsets = (fine.sigmas[[0, *inner, 12]] for inner in combinations(range(1, 12), calls - 1))
        best = min(root_mean_square(end(Grid(levels)), truth) for levels in subsets)
        assert chosen <= 1.1 * best
        assert chosen < root_mean_square(end(karras(process, calls)), truth)
        assert root_mean_square(end(gits_grid(teacher, calls)), truth) < 1.1 * best  # of many more subsets


def test_it_beats_the_usual_grid_of_a_bundled_teacher() -> None:
    teacher = load_teacher("digits8", device="cpu")
    best = sample(teacher, 32, calls=64, solver="dpmpp3m_exact")
    for solver in ("euler", "ipndm3"):
        tuned, usual = (sample(teacher, 32, calls=4, solver=solver, grid=grid) for grid in ("gits", "auto"))
        assert root_mean_square(tuned, best) < root_mean_square(usual, best)


# --- that it is a grid like the named ones ----------------------------------------------------------------------------


@pytest.mark.parametrize("afs", [None, "ve"])
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize(
    "process", [EDM(), Flow(), LINEAR, ZERO_TERMINAL, ContinuousVP()], ids=lambda p: type(p).__name__
)
def test_it_starts_and_ends_as_the_named_ones(process: Process, end: Any, afs: Any) -> None:
    teacher = mixture(process)
    for calls in (1, 2, 5):
        tuned = plan_grid(teacher, "euler", calls, "gits", end, afs)
        named = plan_grid(teacher, "euler", calls, "auto", end, afs)
        assert tuned.calls == named.calls and (tuned.start, tuned.end) == (named.start, named.end)
        assert tuned.sigmas[[0, -1]].tolist() == named.sigmas[[0, -1]].tolist()
        assert tuned.times is not None and torch.equal(tuned.times, process.time(tuned.sigmas[:-1]))
        fine = fine_levels(teacher, 60, end).sigmas.tolist()
        assert set(tuned.sigmas.tolist()) <= set(fine)
        images = sample(teacher, 2, solver="euler", calls=calls, grid="gits", end=end, afs=afs)
        assert bool(images.isfinite().all())


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("table", [LINEAR, DiscreteVP(LINEAR.alphas_cumprod[::100])], ids=["1000", "10"])
def test_networks_of_whole_times_are_asked_at_whole_times(table: DiscreteVP, end: Any) -> None:
    teacher = mixture(table).replace(continuous_time=False)
    grid = gits_grid(teacher, 4, end=end)
    assert grid.phi is not None and grid.times is not None
    assert table.sigmas[torch.tensor(grid.phi) - 1].flip(0).tolist() == grid.sigmas[:-1].tolist()
    assert (grid.times + 1).flip(0).tolist() == list(grid.phi)
    assert grid.snap(table) == grid


def test_given_ends_are_kept() -> None:
    grid = gits_grid(mixture(), 3, end="sigma_min", sigma_min=0.1, sigma_max=40.0)
    assert grid.sigmas[[0, -1]].tolist() == [40.0, 0.1]


@pytest.mark.parametrize("process", [EDM(), Flow(), LINEAR], ids=lambda p: type(p).__name__)
def test_each_interval_sub_divides(process: Process) -> None:
    teacher = mixture(process)
    grid = gits_grid(teacher, 4)
    fine = fine_grid(teacher, grid, 3)
    assert fine.sigmas[::3].tolist() == grid.sigmas.tolist() and fine.calls == 12
    assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid


def test_seed_and_settings_decide_it() -> None:
    """Whatever the precision of the network, and whatever images are sampled with it."""
    teacher = load_teacher("digits8", device="cpu")
    small: dict[str, Any] = {"trajectories": 4, "fine": 20}
    grid = gits_grid(teacher, 5, **small)
    assert gits_grid(teacher, 5, **small) == grid == gits_grid(teacher.replace(precision="bf16"), 5, **small)
    fine = fine_levels(teacher, 20, "zero")
    assert not torch.equal(measure_jumps(teacher, fine).costs, measure_jumps(teacher, fine, seed=1).costs)


class Nowhere(GaussianMixture):
    def evaluate(self, x: Tensor, sigma: Tensor, cond: Conditions) -> Tensor:
        return super().evaluate(x, sigma, cond) * math.nan


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: gits_grid(mixture(), 61),
            "61 calls do not fit into the 60 levels of the fine grid; ask for at most 60",
        ),
        (lambda: gits_grid(mixture(), 8, fine=7), "8 calls do not fit into the 7 levels"),
        (
            lambda: gits_grid(mixture(DiscreteVP(LINEAR.alphas_cumprod[::100])).replace(continuous_time=False), 11),
            "11 calls do not fit into the 10 levels",
        ),
        (lambda: gits_grid(mixture(), 0), "calls is 0"),
        (lambda: gits_grid(mixture(), 4, trajectories=0), "the number of trajectories is 0"),
        (lambda: gits_grid(mixture(), 4, gamma=0.0), "gamma is 0, expected a number above 0"),
        (lambda: gits_grid(mixture(), 4, gamma=math.nan), "gamma is nan"),
        (lambda: gits_grid(mixture(), 4, solver="heun"), "'heun' does not follow a trajectory with one call a level"),
        (lambda: gits_grid(mixture(), 4, solver="ancestral"), "'ancestral' does not follow"),
        (lambda: gits_grid(mixture(), 4, solver="ipndm"), "unknown solver 'ipndm'; did you mean"),
        (lambda: gits_grid(Nowhere(MEANS, 0.2), 4), "gives NaN or infinite numbers along its trajectories"),
        (lambda: make_grid("gits", EDM(), 4), "asks the teacher, not the process"),
        (lambda: sample(mixture(), 1, grid="git"), "did you mean 'gits'"),
    ],
)
def test_mistakes_get_one_sentence(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


# --- its name, where grids are named ----------------------------------------------------------------------------------


def test_the_command_knows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "digits8", "--count", "2", "--calls", "4", "--grid", "gits", "--out", str(tmp_path / "x.npz")]
    assert main([*words, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["grid"] == "gits" and done["counted_calls"] == 4


SMALL: dict[str, Any] = {"budget": "192", "batch_size": 32, "device": "cpu", "watched": 8, "sample_every": "96"}


def test_a_student_keeps_its_tuned_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its folder; and in the checkpoints, so that a run goes on bit-equal even where the teacher would be tuned anew."""
    settings = {**SMALL, "calls": 2, "grid": "gits", "checkpoint_every": "64"}
    straight = distill("digits8", "sfd", out=tmp_path / "straight", **settings)
    teacher = load_teacher("digits8", device="cpu")
    assert straight.grid == gits_grid(teacher, 3, afs="ve") and straight.calls == 2
    assert load_student(tmp_path / "straight", device="cpu").grid == straight.grid
    prepare = SFD.prepare

    def stop(self: SFD, draw: Draw) -> dict[str, Tensor]:
        if draw.step == 5:
            raise KeyboardInterrupt
        return prepare(self, draw)

    monkeypatch.setattr(SFD, "prepare", stop)
    with pytest.raises(KeyboardInterrupt):
        distill("digits8", "sfd", out=tmp_path / "halved", **settings)
    monkeypatch.setattr(SFD, "prepare", prepare)
    monkeypatch.setattr("onefold.methods.sfd.grid_for", lambda *_, **__: pytest.fail("tuned again"))
    again = distill("digits8", "sfd", out=tmp_path / "halved", **settings)
    a, b = straight.denoiser.module.state_dict(), again.denoiser.module.state_dict()
    assert again.grid == straight.grid and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_does_not_go_on_with_another_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a named schedule ever change with the version."""
    settings = {**SMALL, "calls": 2, "budget": "64", "checkpoint_every": "32"}
    distill("digits8", "sfd", out=tmp_path / "run", **settings)
    monkeypatch.setattr("onefold.methods.sfd.usual_schedule", lambda _: "uniform")
    with pytest.raises(UserError, match="the grid of this run changed"):
        distill("digits8", "sfd", out=tmp_path / "run", **{**settings, "budget": "96"})


def test_it_is_a_public_way_to_sample() -> None:
    images = onefold.sample(mixture(), 3, grid="gits", calls=3)
    assert images.shape == (3, 1, 4, 4)
