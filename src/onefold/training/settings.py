"""Settings of a run, whatever the method."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from onefold.settings import Settings
from onefold.training.budget import Amount, AmountOrAuto


class RunSettings(Settings):
    """What the engine needs to know, whatever the method."""

    out: str = Field(description="run folder; the same command goes on with an interrupted run")
    budget: Amount = Field("30m", description="how long to train: images (200k, 1.5M) or time (30s, 5m, 2h)")
    batch_size: int = Field(
        64, ge=1, description="images in one optimiser update, over all processes and micro-batches"
    )
    micro_batches: int = Field(
        1, ge=1, description="parts of the batch a process works through one after the other; more need less memory"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="names every random number of the run")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of the networks only; all around them is float32"
    )
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 does not clip")
    ema_half_life: float | None = Field(
        50_000, gt=0, description="half-life of the averaged weights in images; null for none"
    )
    ema_share: float | None = Field(
        0.05, gt=0, lt=1, description="caps the half-life at this share of the images seen; null for none"
    )
    compile: bool = Field(False, description="torch.compile the networks, in place")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, more time"
    )
    log_every: int = Field(50, ge=1, description="steps between lines of metrics.jsonl")
    sample_every: AmountOrAuto = Field(
        "auto",
        description="images or time between pictures with validation; auto is a twentieth of the budget, 15 s at least",
    )
    checkpoint_every: Amount = Field("2m", description="images or time between checkpoints")
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        [], description="trackers to log to beside metrics.jsonl, through accelerate"
    )
