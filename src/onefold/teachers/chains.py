"""A student's own table of levels, kept in its folder as the scheduler that its network belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from onefold.denoiser import Denoiser
from onefold.errors import UserError, first_line
from onefold.networks.unet import import_diffusers
from onefold.process import DiscreteVP, Indexed, Prediction, Process
from onefold.teachers.schedulers import chain_config, read_scheduler

FOLDER = "scheduler"
LEVELS = "levels"  # in a card: those that the network knows by their number
WHOLE = "whole_times"  # in a card: the network knows the numbers of its levels alone
Noised = tuple[Process, Prediction]


def write_chain(denoiser: Denoiser, usual: Noised, draft: Path) -> bool:
    """Written where the folder would say otherwise that the network is told `usual`; whether it was."""
    process, prediction = denoiser.process, denoiser.prediction
    if not isinstance(process, DiscreteVP) or same(usual, (process, prediction)):
        return False
    config = chain_config(process.alphas_cumprod, prediction)
    import_diffusers().DDIMScheduler(**config).save_pretrained(draft / FOLDER)
    return True


def with_chain(denoiser: Denoiser, folder: Path) -> Denoiser:
    """As the folder has it, for forms that need no scheduler otherwise."""
    if not (folder / FOLDER).is_dir():
        return denoiser
    process, prediction = read_scheduler(folder / FOLDER)
    return denoiser.replace(process=process, prediction=prediction)


def same(one: Noised, other: Noised) -> bool:
    tables = [process.alphas_cumprod for process, _ in (one, other) if isinstance(process, DiscreteVP)]
    if len(tables) < 2 or tables[0].shape != tables[1].shape or one[1] != other[1]:
        return False
    return torch.allclose(tables[0], tables[1], rtol=1e-12, atol=0)


def as_told(denoiser: Denoiser, card: Mapping[str, Any], folder: Path) -> Denoiser:
    """With whole times only, or told the numbers of some levels, where the card says so."""
    whole = card.get(WHOLE, False)
    if not isinstance(whole, bool):
        raise UserError(f"{folder} says {WHOLE} {whole!r}, expected true or false; restore onefold.json")
    if card.get(LEVELS) is not None:
        denoiser = denoiser.replace(process=of_levels(denoiser.process, card[LEVELS], folder))
    return denoiser.replace(continuous_time=False) if whole else denoiser


def of_levels(process: Process, levels: Any, folder: Path) -> Indexed:
    """What no scheduler has a place for: levels that are not a variance preserving network's, told by their numbers."""
    try:
        return Indexed(process, [float(level) for level in levels])
    except (TypeError, ValueError, UserError) as error:
        raise UserError(
            f"{folder} names {LEVELS} that no network has ({first_line(error)}); restore onefold.json"
        ) from None
