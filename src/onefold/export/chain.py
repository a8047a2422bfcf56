"""Students that are ordinary diffusion models of few steps: a DDIM scheduler with just their levels, each told by its number."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from onefold.export.hosts import CHAIN, PIXELS, Stock, host_of
from onefold.export.steps import start_scale, steps_of
from onefold.networks.folding import fold_to_index, takes_indices
from onefold.networks.unet import import_diffusers
from onefold.process import DiscreteVP
from onefold.recipes import SAME
from onefold.student import Student
from onefold.teachers.schedulers import chain_config

ROUNDING = 3e-5  # of sqrt(alphas_cumprod), by which an image is divided where noise is predicted


def knows_indices(student: Student) -> bool:
    """Its process has the grid's levels and no others, so that the network's own time is a level's number."""
    process, levels = student.denoiser.process, student.grid.sigmas[:-1].flip(0)
    same = isinstance(process, DiscreteVP) and process.sigmas.shape == levels.shape
    return same and bool(torch.isclose(process.sigmas, levels, rtol=SAME, atol=0).all()) and is_plain(student)  # type: ignore[attr-defined]


def is_plain(student: Student) -> bool:
    """From unit noise in the network's own coordinates down to 0, a call a level."""
    top = float(student.grid.sigmas[0])
    at_prior = math.isinf(top) or math.isclose(start_scale(student), math.hypot(1, top), rel_tol=1e-9)
    return student.afs is None and student.grid.end == "zero" and at_prior


def chain_form(student: Student) -> Stock | str:
    """The network is told 0, 1, ...: it knows them, or they are folded into it."""
    levels = student.grid.sigmas[:-1].flip(0)
    table = torch.where(torch.isinf(levels), 0.0, 1 / (1 + levels**2))
    config = chain_config(table, student.denoiser.prediction)
    # pipelines of texts want to see this offset, and trailing steps do not use it
    scheduler = import_diffusers().DDIMScheduler(**config, steps_offset=1)
    kept = scheduler.alphas_cumprod.double()
    if student.denoiser.prediction == "eps" and not torch.allclose(kept.sqrt(), table.sqrt(), rtol=ROUNDING, atol=0):
        return "the stock scheduler rounds so high a level too much for a network that predicts noise"
    host = host_of(student)
    real = [step.time for step in reversed(steps_of(student))]
    adapt: Any = as_it_is if knows_indices(student) else partial(fold_to_index, real=real)
    return Stock(scheduler, CHAIN if host is PIXELS and student.denoiser.classes is None else host, adapt)


def can_learn_indices(student: Student) -> bool:
    return is_plain(student) and takes_indices(student.denoiser.module, student.calls)


def as_it_is(network: Any) -> Any:
    return network
