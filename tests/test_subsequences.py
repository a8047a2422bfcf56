"""Sub-sequences: which steps of a discrete teacher a student keeps, and the levels they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from onefold.errors import UserError
from onefold.grids import karras, logsnr, quadratic, subsequence
from onefold.kept import WAYS, kept_steps
from onefold.process import EDM, DiscreteVP, beta_table, zero_terminal_snr
from onefold.subsequences import Anchor, concentrated, even_steps, rising, scattered

DOUBLE = torch.float64
LINEAR = DiscreteVP.from_betas(beta_table("linear"))
PUBLISHED = DiscreteVP.from_betas(beta_table("sigmoid_alpha", 1024))
TABLES = {
    "linear": LINEAR,
    "scaled_linear": DiscreteVP.from_betas(beta_table("scaled_linear", start=0.00085, end=0.012)),
    "cosine": DiscreteVP.from_betas(beta_table("squaredcos_cap_v2")),
    "published": PUBLISHED,
    "zero-snr": DiscreteVP(zero_terminal_snr(LINEAR.alphas_cumprod)),
    "short": DiscreteVP.from_betas(beta_table("linear", 70, 1e-3, 0.2)),
}


def rises(phi: tuple[int, ...]) -> bool:
    return all(lower < upper for lower, upper in pairwise(phi))


# --- the student's table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 16, 100, 128, 1000])
def test_student_levels_are_the_teachers_bit_for_bit(steps: int) -> None:
    grid = subsequence(LINEAR, steps)
    assert grid.phi is not None
    index = torch.tensor(grid.phi) - 1
    assert torch.equal(grid.sigmas[:-1].flip(0), LINEAR.sigmas[index])
    # a'_t = A_phi_t / A_phi_(t-1) with A_0 = 1 multiply up to the table again
    table = torch.cat([torch.ones(1, dtype=DOUBLE), LINEAR.alphas_cumprod[index]])
    ratios = table[1:] / table[:-1]
    assert bool(((ratios > 0) & (ratios < 1)).all())
    assert torch.allclose(ratios.cumprod(0), LINEAR.alphas_cumprod[index], rtol=1e-12, atol=0)
    assert torch.allclose(1 / (1 + grid.sigmas[:-1].flip(0) ** 2), LINEAR.alphas_cumprod[index], rtol=1e-12, atol=0)


@pytest.mark.parametrize("how", WAYS)
def test_kept_steps_make_a_grid_of_the_table_s_own_levels(how: str) -> None:
    phi = kept_steps(PUBLISHED, 16, how)
    grid = subsequence(PUBLISHED, phi)
    assert grid.phi == phi
    assert torch.equal(grid.sigmas[:-1].flip(0), PUBLISHED.sigmas[torch.tensor(phi) - 1])


# --- even steps -------------------------------------------------------------------------------------------------------


def test_the_two_anchors() -> None:
    assert even_steps(1024, 128) == tuple(range(8, 1025, 8))
    assert [step - 1 for step in even_steps(1024, 128, anchor="start")] == list(range(0, 1024, 8))
    assert [step - 1 for step in even_steps(1024, 100, anchor="start")] == [1024 * i // 100 for i in range(100)]


@pytest.mark.parametrize(
    ("steps", "index", "signal"),
    [
        (128, 1016, "0.0020855"),
        (32, 992, "0.0098"),
        (16, 960, "0.021823"),
        (8, 896, "0.0524"),
        (4, 768, "0.148"),
        (2, 512, "0.498"),
        (1, 0, "0.9997"),
    ],
)
def test_the_published_runs_start_at_these_levels(steps: int, index: int, signal: str) -> None:
    grid = subsequence(PUBLISHED, steps, anchor="start")
    assert grid.phi is not None
    assert grid.phi[-1] == index + 1
    given = float(PUBLISHED.alphas_cumprod[index])
    assert f"{given:.{len(signal) - 2}f}" == signal
    assert float(grid.sigmas[0]) == pytest.approx(math.sqrt((1 - given) / given), rel=1e-12)


def test_the_published_sigmoid_is_that_of_the_signal() -> None:
    def v(t: float) -> float:
        return 1 / (1 + math.exp(-(6 * t - 3)))

    table = PUBLISHED.alphas_cumprod
    for step in (1, 100, 512, 1023):
        assert float(table[step - 1]) == pytest.approx((v(1) - v(step / 1024)) / (v(1) - v(0)), rel=1e-9)
    assert float(table[-1] / table[-2]) == pytest.approx(1e-3, rel=1e-9)  # the last beta would be 1


@pytest.mark.parametrize("anchor", ["end", "start"])
@pytest.mark.parametrize(("total", "steps"), [(1000, 3), (1000, 999), (1024, 100), (7, 5), (1000, 16), (5, 5), (1, 1)])
def test_steps_that_do_not_divide(total: int, steps: int, anchor: Anchor) -> None:
    phi = even_steps(total, steps, anchor=anchor)
    assert len(phi) == steps
    assert rises(phi)
    assert 1 <= phi[0] <= phi[-1] <= total
    assert (phi[-1] == total) if anchor == "end" else (phi[0] == 1)
    if anchor == "end":
        assert all(abs(step - t * total / steps) <= 0.5 for t, step in enumerate(phi, 1))


def test_ratio_mode_refuses_remainders() -> None:
    assert even_steps(1000, 8, strict=True) == tuple(range(125, 1001, 125))
    with pytest.raises(UserError, match="do not divide"):
        even_steps(1000, 3, strict=True)


# --- concentrated -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "zero_based"),
    [
        (9, [*range(0, 193, 64), *range(496, 529, 4), 832, 896, 960]),
        (5, [*range(0, 321, 64), *range(504, 521, 4), *range(704, 961, 64)]),
        (3, [*range(0, 385, 64), *range(508, 517, 4), *range(640, 961, 64)]),
    ],
)
def test_published_concentrated_steps(inside: int, zero_based: list[int]) -> None:
    phi = concentrated(1024, 16, inside / 16, anchor="start")
    assert [step - 1 for step in phi] == zero_based


def test_concentrated_steps_that_reach_the_top() -> None:
    assert concentrated(1024, 16, 3 / 16) == (*range(64, 449, 64), 508, 512, 516, *range(704, 1025, 64))
    assert concentrated(1024, 16, 0.25)[6:10] == (506, 510, 514, 518)  # an even number lies about the middle too
    assert concentrated(8, 4, 0.5) == (2, 4, 5, 8)  # a spacing of 1 at least


@pytest.mark.parametrize(("total", "steps"), [(1000, 5), (1000, 16), (1000, 64), (1024, 256), (100, 10), (37, 7)])
def test_concentrated_steps_are_even_outside_and_close_inside(total: int, steps: int) -> None:
    phi = concentrated(total, steps, 0.4)
    inside = round(0.4 * steps)
    lower, upper = math.ceil((steps - inside) / 2), (steps - inside) // 2
    even = even_steps(total, steps)
    assert len(phi) == steps
    assert rises(phi)
    assert phi[:lower] == even[:lower]
    assert phi[-upper:] == even[-upper:]
    middle = phi[lower:-upper]
    assert abs(sum(middle) / inside - total / 2) <= 0.5
    assert all(abs(b - a - max(1, total / 256)) < 1 for a, b in pairwise(middle))


@pytest.mark.parametrize(
    ("total", "steps", "share", "message"),
    [
        (1024, 16, 0.0, "share of concentrated steps is 0"),
        (1024, 16, 1.5, "at most 1"),
        (1024, 16, math.nan, "share of concentrated steps is nan"),
        (1024, 16, 0.01, "puts 0 of 16"),
        (1024, 16, 1.0, "puts 16 of 16"),
        (1024, 2, 0.4, "puts 1 of 2"),
        (1024, 512, 0.4, "overlaps"),
        (8, 9, 0.5, "do not fit"),
    ],
)
def test_clusters_that_do_not_fit(total: int, steps: int, share: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        concentrated(total, steps, share)


# --- scattered --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "steps"), [(1024, 16), (1000, 7), (10, 10), (10, 9), (1000, 1)])
def test_scattered_steps_fall_into_cells_of_their_own(total: int, steps: int) -> None:
    phi = scattered(total, steps, seed=3)
    assert phi == scattered(total, steps, seed=3)
    assert len(phi) == steps
    assert phi[-1] == total
    for t, step in enumerate(phi, 1):
        assert (t - 1) * total // steps < step <= t * total // steps


def test_scattered_steps_depend_on_the_seed_and_fill_their_cell() -> None:
    draws = [scattered(12, 3, seed) for seed in range(100)]
    assert {phi[0] for phi in draws} == {1, 2, 3, 4}
    assert {phi[1] for phi in draws} == {5, 6, 7, 8}


# --- rising -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "times", "phi"),
    [
        (100, [1.2, 7.6, 99.9], (1, 8, 100)),
        (100, [0.1, 50.0, 103.0], (1, 50, 100)),
        (100, [1.0, 1.1, 1.4, 2.2, 9.0, 100.0], (1, 2, 3, 4, 9, 100)),
        (100, [5.0, 99.0, 99.8, 100.0], (5, 98, 99, 100)),
        (4, [4.0, 4.0, 4.0, 4.0], (1, 2, 3, 4)),
        (4, [1.0, 1.0, 1.0, 4.0], (1, 2, 3, 4)),
        (3, [3.0], (3,)),
    ],
)
def test_times_become_steps_of_their_own(total: int, times: list[float], phi: tuple[int, ...]) -> None:
    before = list(times)
    assert rising(total, times) == phi
    assert times == before


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0, 1.2, 1.4, 2.0], "4 steps do not fit"),
        ([2.0, 1.0], "must be finite and rise"),
        ([1.0, math.inf], "must be finite and rise"),
        ([math.nan, 1.0], "must be finite and rise"),
        ([], "number of steps is 0"),
    ],
)
def test_times_that_make_no_steps(times: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rising(3, times)


# --- by name ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [3, 4, 16, 64])
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("table", TABLES)
def test_every_name_serves_every_table(table: str, how: str, steps: int) -> None:
    process = TABLES[table]
    total = len(process.sigmas)
    phi = kept_steps(process, steps, how)
    assert len(phi) == steps
    assert rises(phi)
    assert 1 <= phi[0] <= phi[-1] <= total
    assert (phi[0] == 1) if how == "start" else (phi[-1] == total)


@pytest.mark.parametrize("how", [way for way in WAYS if way not in ("start", "concentrated")])
def test_one_step_is_the_last_and_all_steps_are_all(how: str) -> None:
    assert kept_steps(LINEAR, 1, how) == (1000,)
    assert kept_steps(LINEAR, 1000, how) == tuple(range(1, 1001))


def test_names_are_those_of_the_generators() -> None:
    assert kept_steps(LINEAR, 7, "uniform") == even_steps(1000, 7)
    assert kept_steps(LINEAR, 7, "start") == even_steps(1000, 7, anchor="start")
    assert kept_steps(LINEAR, 16, "concentrated") == concentrated(1000, 16, 0.4)
    assert kept_steps(LINEAR, 16, "concentrated:0.2") == concentrated(1000, 16, 0.2)
    assert kept_steps(LINEAR, 16, "scattered", seed=5) == scattered(1000, 16, 5) != scattered(1000, 16)


@pytest.mark.parametrize("schedule", [karras, logsnr, quadratic])
def test_spaced_names_are_the_snapped_grids_where_these_exist(schedule: Callable[..., Any]) -> None:
    assert kept_steps(LINEAR, 8, schedule.__name__) == schedule(LINEAR, 8).snap(LINEAR).phi


def test_lists_are_taken_and_left_alone() -> None:
    phi = [1, 7, 500]
    assert kept_steps(LINEAR, 3, phi) == kept_steps(LINEAR, 3, torch.tensor(phi)) == (1, 7, 500)
    assert subsequence(LINEAR, phi).phi == (1, 7, 500)
    assert subsequence(LINEAR, torch.tensor(phi)) == subsequence(LINEAR, phi)
    assert phi == [1, 7, 500]
    assert subsequence(LINEAR, 1).phi == (1000,)
    assert subsequence(LINEAR, range(1, 1001)).phi == subsequence(LINEAR, 1000).phi
    with pytest.raises(UserError, match="has 3 steps, but calls is 4"):
        kept_steps(LINEAR, 4, phi)


@pytest.mark.parametrize(
    "phi", [[], [5, 3], [3, 3], [0, 5], [-2, 5], [1, 1001], [1001, 3], [1.5, 3], [1, True], ["1", 2]]
)
def test_bad_lists_are_refused_and_left_alone(phi: list[Any]) -> None:
    before = list(phi)
    with pytest.raises(UserError):
        subsequence(LINEAR, phi)
    with pytest.raises(UserError):
        kept_steps(LINEAR, len(phi), phi)
    assert phi == before


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, True])
def test_impossible_numbers_of_steps(steps: Any, how: str) -> None:
    with pytest.raises(UserError, match="the number of steps|do not fit"):
        kept_steps(LINEAR, steps, how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unifrom", "did you mean 'uniform'"),
        ("concentrate:0.4", "did you mean 'concentrated'"),
        ("karras:7", "only 'concentrated' takes a number; write 'karras'"),
        ("concentrated:much", "write the share as a number"),
        ("concentrated:2", "at most 1"),
        ("gits", "known are"),
    ],
)
def test_mistaken_names(how: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        kept_steps(LINEAR, 16, how)


def test_subsequences_need_a_table() -> None:
    with pytest.raises(UserError, match="no table"):
        subsequence(EDM(), 4)
    with pytest.raises(UserError, match="no table"):
        kept_steps(EDM(), 4, "uniform")
