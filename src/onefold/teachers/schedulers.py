"""What a scheduler's config says of a model: its noise process and what its network predicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from onefold.errors import UserError, suggest
from onefold.files import read_json
from onefold.process import EDM, DiscreteVP, Flow, Prediction, Process, beta_table, zero_terminal_snr

DIFFUSERS_NAMES: dict[Prediction, str] = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
OUR_NAMES = {theirs: ours for ours, theirs in DIFFUSERS_NAMES.items()}
MOST_STEPS = 100_000  # of a table
LEAST, MOST = 1e-12, 1e6  # of a number that is no list: what single precision can calculate with


def read_scheduler(folder: Path) -> tuple[Process, Prediction]:
    """Of the folder `scheduler`; every mistake in the file is one sentence."""
    path = folder / "scheduler_config.json"
    config = read_json(path)
    try:
        return process_of(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(
            f"{path} has values that no scheduler has ({error}); restore it from where the model came"
        ) from None


def process_of(config: Mapping[str, Any]) -> tuple[Process, Prediction]:
    kind = config.get("_class_name")
    if (
        kind in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
        and {"sigma_min", "sigma_max", "sigma_data"} <= config.keys()
    ):
        if config.get("prediction_type", "epsilon") != "epsilon":
            raise UserError(
                f"{kind} with prediction_type {config['prediction_type']!r} is not supported; expected epsilon, EDM's own"
            )
        return EDM(*sigmas_of(config)), "edm"
    if kind == "CMStochasticIterativeScheduler" and {"sigma_min", "sigma_max", "sigma_data"} <= config.keys():
        low, *others = sigmas_of(config)
        return EDM(low, *others, floor=low, time_scale=1000.0), "edm"
    if kind == "FlowMatchEulerDiscreteScheduler" and "num_train_timesteps" in config:
        return Flow(positive(config, "num_train_timesteps")), "flow"
    if not {"beta_schedule", "beta_start", "beta_end", "num_train_timesteps"} <= config.keys():
        raise UserError(
            f"scheduler {kind!r} is not known; known are those with a beta schedule, EDMEuler, CMStochasticIterative and FlowMatchEulerDiscrete"
        )
    kind = config.get("prediction_type", "epsilon")
    if kind not in OUR_NAMES:
        raise UserError(f"prediction type {kind!r} is not known{suggest(str(kind), OUR_NAMES)}")
    return DiscreteVP(alphas_cumprod(config)), OUR_NAMES[kind]


def sigmas_of(config: Mapping[str, Any]) -> tuple[float, float, float]:
    low, high, data = (positive(config, name) for name in ("sigma_min", "sigma_max", "sigma_data"))
    if low >= high:
        raise ValueError(f"sigma_min is {low:g}, expected less than sigma_max, {high:g}")
    return low, high, data


def alphas_cumprod(config: Mapping[str, Any]) -> torch.Tensor:
    betas = config.get("trained_betas")
    if betas is None:
        ends = {"start": positive(config, "beta_start"), "end": positive(config, "beta_end")}
        betas = beta_table(str(config["beta_schedule"]), steps_of(config), **ends)
    given = torch.as_tensor(betas, dtype=torch.float64)
    if given.ndim != 1 or not 1 <= len(given) <= MOST_STEPS:
        raise ValueError(
            f"trained_betas has the shape {tuple(given.shape)}, expected a list of up to {MOST_STEPS:,} numbers"
        )
    table = (1 - given).cumprod(0)
    rescaled = config.get("rescale_betas_zero_snr", False)
    if not isinstance(rescaled, bool):
        raise ValueError(f"rescale_betas_zero_snr is {rescaled!r}, expected true or false")
    return zero_terminal_snr(table) if rescaled else table


def steps_of(config: Mapping[str, Any]) -> int:
    steps = positive(config, "num_train_timesteps")
    if steps != int(steps) or steps > MOST_STEPS:
        raise ValueError(f"num_train_timesteps is {steps:g}, expected a whole number up to {MOST_STEPS:,}")
    return int(steps)


def positive(config: Mapping[str, Any], name: str) -> float:
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not LEAST <= value <= MOST:
        raise ValueError(f"{name} is {value!r}, expected a positive number up to {MOST:g}")
    return float(value)


def betas_of(table: torch.Tensor) -> list[float]:
    """The trained_betas whose running product is this table of alphas_cumprod: 1 - A[t] / A[t - 1]."""
    before = torch.cat([torch.ones(1, dtype=torch.float64), table[:-1]])
    betas: list[float] = (1 - table / before).tolist()
    return betas


def chain_config(table: torch.Tensor, prediction: Prediction) -> dict[str, Any]:
    """A DDIMScheduler that visits every level of the table and tells the network its number, the highest first."""
    return {
        "num_train_timesteps": len(table),
        "trained_betas": betas_of(table),
        "prediction_type": DIFFUSERS_NAMES[prediction],
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "clip_sample": False,
    }
