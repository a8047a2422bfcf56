"""Grids: schedules, sub-sequences, sub-division, snapping and the journey through JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from onefold.errors import UserError
from onefold.grids import (
    SCHEDULES,
    Grid,
    explicit,
    karras,
    logsnr,
    make_grid,
    quadratic,
    subsequence,
    uniform,
)
from onefold.process import EDM, VE, ContinuousVP, DiscreteVP, Flow, Process, beta_table, zero_terminal_snr

DOUBLE = torch.float64
LINEAR = DiscreteVP.from_betas(beta_table("linear"))
ZERO_SNR = DiscreteVP(zero_terminal_snr(LINEAR.alphas_cumprod))
PROCESSES: dict[str, Process] = {
    "edm": EDM(),
    "ve": VE(),
    "vp": ContinuousVP(),
    "discrete": LINEAR,
    "zero-snr": ZERO_SNR,
    "flow": Flow(),
}
NAMED = [
    (process, schedule)
    for process in PROCESSES
    for schedule in SCHEDULES
    if not (schedule == "quadratic" and process in ("edm", "ve"))
    and not (schedule == "subsequence" and process not in ("discrete", "zero-snr"))
]


def close(given: Tensor, expected: list[float] | Tensor, rel: float = 1e-12) -> bool:
    return torch.allclose(given, torch.as_tensor(expected, dtype=DOUBLE), rtol=rel, atol=0)


# --- values and ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "levels",
    [
        [80, 3.107122, 0.006],
        [80, 10.929297, 0.669886, 0.006],
        [80, 19.003388, 3.107122, 0.268292, 0.006],
        [80, 25.963283, 6.787685, 1.289125, 0.145405, 0.006],
        [80, 31.729821, 10.929297, 3.107122, 0.669886, 0.093615, 0.006],
    ],
)
def test_published_power_schedules(levels: list[float]) -> None:
    grid = karras(EDM(), len(levels) - 1, end="sigma_min", sigma_min=0.006)
    assert float((grid.sigmas - torch.tensor(levels, dtype=DOUBLE)).abs().max()) < 1e-6


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("calls", [1, 2, 3, 10])
@pytest.mark.parametrize(("name", "schedule"), NAMED)
def test_every_schedule_falls_between_exact_ends(name: str, schedule: str, calls: int, end: str) -> None:
    process = PROCESSES[name]
    grid = make_grid(schedule, process, calls, end=end)  # type: ignore[arg-type]
    assert grid.calls == calls
    assert len(grid.sigmas) == calls + 1
    assert bool((grid.sigmas[1:] < grid.sigmas[:-1]).all())
    assert float(grid.sigmas[0]) == process.sigma_max
    assert float(grid.sigmas[-1]) == (0 if end == "zero" else process.sigma_min)
    assert grid.times is not None
    assert torch.equal(grid.times, process.time(grid.sigmas[:-1]))


@pytest.mark.parametrize("schedule", [karras, logsnr])
def test_last_call_before_zero_is_at_sigma_min(schedule: Callable[..., Grid]) -> None:
    grid = schedule(EDM(), 5, sigma_min=0.01, sigma_max=50.0)
    assert grid.sigmas[[0, -2, -1]].tolist() == [50.0, 0.01, 0.0]


def test_schedules_are_even_along_their_axis() -> None:
    def even(values: Tensor) -> bool:
        return torch.allclose(values.diff(), values.diff().mean().expand(len(values) - 1), rtol=1e-9)

    assert even(karras(EDM(), 9, rho=5.0, end="sigma_min").sigmas ** (1 / 5))
    assert even(logsnr(EDM(), 9, end="sigma_min").sigmas.log())
    for process in PROCESSES.values():
        assert even(process.time(uniform(process, 9, end="sigma_min").sigmas))
    assert even(ContinuousVP().time(quadratic(ContinuousVP(), 9).sigmas).sqrt())
    assert even(Flow().time(uniform(Flow(), 9).sigmas))


def test_uniform_time_to_zero_is_what_flow_models_use() -> None:
    assert close(uniform(Flow(), 4).sigmas[1:], [3.0, 1.0, 1 / 3, 0.0])
    grid = uniform(Flow(), 4, sigma_min=0.01)  # an explicit last level is honoured
    assert grid.sigmas[-2:].tolist() == [0.01, 0.0]


@pytest.mark.parametrize("steps", [1, 4, 8, 250])
def test_uniform_time_on_a_table_is_the_subsequence_where_steps_divide(steps: int) -> None:
    assert close(uniform(LINEAR, steps).sigmas, subsequence(LINEAR, steps).sigmas)


def test_quadratic_steps_are_those_of_ddim() -> None:
    """tau_i = T (i / N)^2 in 1-based steps."""
    grid = quadratic(LINEAR, 10)
    assert grid.times is not None
    assert torch.allclose(
        grid.times + 1, torch.tensor([10.0 * i**2 for i in range(10, 0, -1)], dtype=DOUBLE), rtol=1e-9
    )


@pytest.mark.parametrize("process", [EDM(), VE()])
def test_quadratic_needs_a_time_that_begins_at_zero(process: Process) -> None:
    with pytest.raises(UserError, match="use karras"):
        quadratic(process, 4)


@pytest.mark.parametrize("schedule", [karras, logsnr])
def test_from_inf_the_schedule_goes_on_at_the_finite_top(schedule: Callable[..., Grid]) -> None:
    for process in (Flow(sigma_top=60.0), ZERO_SNR):
        grid = schedule(process, 5)
        assert grid.sigmas[0] == math.inf
        assert torch.equal(grid.sigmas[1:], schedule(process, 4, sigma_max=process.sigma_top).sigmas)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: karras(EDM(), 0), "calls is 0"),
        (lambda: karras(EDM(), True), "calls is True"),
        (lambda: karras(EDM(), 2.5), "calls is 2.5"),  # type: ignore[arg-type]
        (lambda: karras(EDM(), 2, rho=0), "rho is 0"),
        (lambda: karras(EDM(), 2, end="zer"), "did you mean 'zero'"),  # type: ignore[arg-type]
        (lambda: logsnr(EDM(), 2, sigma_min=90.0), "from 80 down to 90"),
        (lambda: logsnr(EDM(), 2, sigma_min=-1.0), "from 80 down to -1"),
        (lambda: karras(DiscreteVP([0.5]), 2), "fall strictly"),
        (lambda: make_grid("karas", EDM(), 2), "did you mean 'karras'"),
        (lambda: make_grid("karras", EDM()), "needs the number of calls"),
        (lambda: make_grid([3.0, 1.0], EDM(), 5), "calls is 5"),
        (lambda: explicit([]), "two levels at least"),
        (lambda: explicit([1.0, 2.0]), "fall strictly"),
        (lambda: explicit([1.0, math.nan, 0.0]), "fall strictly"),
        (lambda: explicit([2.0, 1.0, 0.0], end="sigma_min"), "end is 'sigma_min'"),
        (lambda: Grid(torch.tensor([2.0, 1.0])), "end is 'zero'"),
        (lambda: Grid(torch.tensor([2.0, 0.0]), start="prio"), "did you mean 'prior'"),  # type: ignore[arg-type]
        (lambda: Grid(torch.tensor([2.0, 0.0]), phi=(1, 2)), "phi has 2 entries"),
    ],
)
def test_mistakes_are_named(make: Callable[[], Grid], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


# --- sub-division -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("calls", [1, 2, 5])
@pytest.mark.parametrize(("name", "schedule"), NAMED)
def test_subdivision_keeps_the_levels_bitwise(name: str, schedule: str, calls: int, end: str) -> None:
    process = PROCESSES[name]
    grid = make_grid(schedule, process, calls, end=end)  # type: ignore[arg-type]
    for parts in (1, 2, 4):
        fine = grid.subdivide(parts, process)
        assert torch.equal(fine.sigmas[::parts], grid.sigmas)
        assert fine.calls == parts * calls
        assert (fine.start, fine.end) == (grid.start, grid.end)
        assert bool(torch.isfinite(fine.sigmas[1:]).all())
    assert grid.subdivide(1, process) == grid


@pytest.mark.parametrize("schedule", [karras, logsnr, uniform])
def test_subdivision_is_the_schedule_with_more_steps(schedule: Callable[..., Grid]) -> None:
    for process in (EDM(), ContinuousVP(), LINEAR):
        fine = schedule(process, 3, end="sigma_min").subdivide(4, process)
        assert close(fine.sigmas, schedule(process, 12, end="sigma_min").sigmas, rel=1e-10)
    for process in (ContinuousVP(), LINEAR):
        assert close(quadratic(process, 3).subdivide(4, process).sigmas, quadratic(process, 12).sigmas, rel=1e-9)
    for process in (ContinuousVP(), Flow(), LINEAR, ZERO_SNR):
        assert close(uniform(process, 3).subdivide(4, process).sigmas, uniform(process, 12).sigmas, rel=1e-10)


def test_subdivided_subsequence_runs_through_the_steps_between() -> None:
    fine = subsequence(LINEAR, 4).subdivide(5, LINEAR).snap(LINEAR)
    assert fine == subsequence(LINEAR, 20)


def test_subdividing_needs_the_process_for_its_time_alone() -> None:
    assert karras(EDM(), 3).subdivide(2).times is None
    with pytest.raises(UserError, match="subdivide\\(parts, process\\)"):
        uniform(Flow(), 3).subdivide(2)
    with pytest.raises(UserError, match="sub-steps is 0"):
        karras(EDM(), 3).subdivide(0)


def test_explicit_levels_are_subdivided_along_the_seventh_root() -> None:
    fine = explicit([80.0, 0.006], end="sigma_min").subdivide(4)
    assert close(fine.sigmas, karras(EDM(), 4, end="sigma_min", sigma_min=0.006).sigmas)
    to_zero = explicit([2.0]).subdivide(2).sigmas
    assert close(to_zero, [2.0, 2.0 / 2**7, 0.0])
    # and so is the interval to 0 of a schedule whose own axis does not reach 0
    assert close(logsnr(EDM(), 3).subdivide(2).sigmas[-3:], [0.002, 0.002 / 2**7, 0.0])


def test_intervals_at_inf_are_subdivided_in_flow_time() -> None:
    assert close(explicit([math.inf]).subdivide(4).sigmas[1:], [3.0, 1.0, 1 / 3, 0.0])


# --- snapping, starting, travelling -----------------------------------------------------------------------------------


def test_snap_moves_to_the_nearest_entry() -> None:
    grid = logsnr(LINEAR, 6, end="sigma_min")
    snapped = grid.snap(LINEAR)
    assert snapped.phi is not None
    for before, after in zip(grid.sigmas, snapped.sigmas, strict=True):
        assert after in LINEAR.sigmas
        distance = (LINEAR.sigmas.log() - before.log()).abs()
        assert float((after.log() - before.log()).abs()) <= float(distance.min()) * 1.0001 + 1e-12
    assert torch.equal(snapped.sigmas[:-1].flip(0), LINEAR.sigmas[torch.tensor(snapped.phi) - 1])
    assert snapped.snap(LINEAR) == snapped


def test_snap_keeps_zero_and_inf() -> None:
    snapped = uniform(ZERO_SNR, 3).snap(ZERO_SNR)
    assert (float(snapped.sigmas[0]), float(snapped.sigmas[-1])) == (math.inf, 0.0)
    assert snapped.phi == (333, 667, 1000)


def test_snap_refuses_levels_that_collapse() -> None:
    with pytest.raises(UserError, match="same entry"):
        karras(LINEAR, 100).snap(LINEAR)
    with pytest.raises(UserError, match="no table"):
        karras(EDM(), 3).snap(EDM())


def test_start_states() -> None:
    z = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    top = LINEAR.sigma_max
    assert torch.allclose(karras(LINEAR, 2).start_state(LINEAR, z), math.sqrt(1 + top**2) * z)
    assert torch.equal(karras(LINEAR, 2, start="ve").start_state(LINEAR, z), top * z)
    assert torch.equal(karras(EDM(), 2, sigma_max=7.0).start_state(EDM(), z), 7 * z)
    for start in ("prior", "ve"):
        assert torch.equal(uniform(Flow(), 2, start=start).start_state(Flow(), z), z)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "schedule"), NAMED)
def test_json_round_trip_is_exact(name: str, schedule: str) -> None:
    grid = make_grid(schedule, PROCESSES[name], 7)
    text = json.dumps(grid.to_dict(), allow_nan=False)
    again = Grid.from_dict(json.loads(text))
    assert again == grid
    assert hash(again) == hash(grid)
    assert torch.equal(again.sigmas, grid.sigmas)
    assert again.sigmas.dtype == DOUBLE
    assert ('"inf"' in text) == (PROCESSES[name].sigma_max == math.inf)


def test_grids_differ_by_level_start_and_axis() -> None:
    grid = karras(EDM(), 4)
    others = [
        karras(EDM(), 5),
        karras(EDM(), 4, start="ve"),
        karras(EDM(), 4, rho=3.0),
        karras(EDM(), 4, end="sigma_min"),
        Grid(grid.sigmas),
    ]
    assert all(grid != other for other in others)
    assert len({grid, *others, karras(EDM(), 4)}) == 6


def test_bad_dicts_are_refused() -> None:
    values = karras(EDM(), 4).to_dict()
    with pytest.raises(UserError, match="did you mean 'start'"):
        Grid.from_dict({**values, "strat": "ve"})
    with pytest.raises(UserError, match="needs its 'sigmas'"):
        Grid.from_dict({"start": "ve"})


def test_a_grid_owns_its_levels() -> None:
    levels = torch.tensor([2.0, 1.0, 0.0], dtype=DOUBLE)
    grid = Grid(levels)
    levels[0] = 9
    assert float(grid.sigmas[0]) == 2


def test_make_grid_takes_names_lists_and_grids() -> None:
    grid = karras(EDM(), 3)
    assert make_grid("karras", EDM(), 3) == make_grid(grid, EDM()) == make_grid(grid, EDM(), 3) == grid
    assert make_grid([80.0, 2.0], EDM()).sigmas.tolist() == [80.0, 2.0, 0.0]
    assert make_grid([80.0, 2.0, 0.0], EDM()).sigmas.tolist() == [80.0, 2.0, 0.0]
    ended = make_grid(torch.tensor([80.0, 2.0]), EDM(), end="sigma_min")
    assert (ended.calls, ended.end) == (1, "sigma_min")
    assert ended.times is not None


@pytest.mark.parametrize("schedule", ["karras", "logsnr", "uniform", "quadratic"])
@pytest.mark.parametrize("calls", [1, 2, 10, 32, 64, 100, 400])
def test_no_call_is_made_below_the_lowest_level(schedule: str, calls: int) -> None:
    for process in (LINEAR, ContinuousVP(), ZERO_SNR):
        evaluated = make_grid(schedule, process, calls).sigmas[:-1]
        assert len(evaluated) == calls and float(evaluated[-1]) >= process.sigma_min * (1 - 1e-12)


def test_many_quadratic_calls_can_be_snapped() -> None:
    assert quadratic(LINEAR, 20).snap(LINEAR).calls == 20
    assert subsequence(LINEAR, np.int64(4)) == subsequence(LINEAR, 4)  # type: ignore[arg-type]


def test_auto_is_the_process_s_usual_schedule() -> None:
    for process, expected in ((LINEAR, quadratic), (ContinuousVP(), quadratic), (Flow(), uniform), (EDM(), karras)):
        assert make_grid("auto", process, 6) == expected(process, 6)
    with pytest.raises(UserError, match="did you mean 'auto'"):
        make_grid("autto", LINEAR, 6)


def test_snapping_apart_gives_each_level_an_entry_of_its_own() -> None:
    process = DiscreteVP.from_betas(beta_table("linear", 8))
    grid = quadratic(process, 8)
    with pytest.raises(UserError, match="snap to the same entry"):
        grid.snap(process)
    assert grid.snap(process, apart=True).phi == tuple(range(1, 9))
    few = quadratic(process, 2)
    assert few.snap(process, apart=True) == few.snap(process)
