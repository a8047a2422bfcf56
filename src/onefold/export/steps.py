"""A student's sampling as plain numbers: what its pipeline has to do with the network's output at each call."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch

from onefold.denoiser import Denoiser
from onefold.process import as_sigma, to_x0
from onefold.solvers import analytic_denoised, euler_step
from onefold.student import Student


class Step(NamedTuple):
    """u = network(scale x, time), D = skip (scale x) + out u, x = keep x + add D."""

    scale: float
    time: float
    skip: float
    out: float
    keep: float
    add: float


def evaluated(student: Student) -> list[float]:
    """The levels at which the network is called, and the end; an analytic first step calls nothing."""
    levels: list[float] = student.grid.sigmas.tolist()
    return levels[1:] if student.afs else levels


def start_scale(student: Student) -> float:
    """x = scale z is the state at the first evaluated level."""
    grid, one = student.grid, torch.ones((), dtype=torch.float64)
    x = grid.start_state(student.denoiser.process, one)
    if student.afs:
        sigma, to = grid.sigmas[:2].tolist()
        x = euler_step(x, analytic_denoised(x, sigma, student.afs), sigma, to)
    return float(x)


def steps_of(student: Student) -> list[Step]:
    return [step_of(student.denoiser, sigma, to) for sigma, to in pairwise(evaluated(student))]


def step_of(denoiser: Denoiser, sigma: float, to: float) -> Step:
    process, one, none = denoiser.process, *as_sigma([1.0, 0.0])
    a, b = process.scales(sigma)
    skip, out = (
        float(to_x0(denoiser.prediction, output, z, a, b, process.sigma_data, process.floor))
        for output, z in ((none, one), (one, none))
    )
    time = float(process.time(as_sigma(sigma)))
    if math.isinf(sigma):  # x is the network's own input, and one step goes to D + to x
        return Step(1.0, time, skip, out, to, 1.0)
    return Step(float(a), time, skip, out, to / sigma, 1 - to / sigma)
