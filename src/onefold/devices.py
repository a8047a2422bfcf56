"""Where to run and in which precision, chosen with a reason that can be printed."""

from __future__ import annotations

from typing import Literal

import torch

from onefold.denoiser import Precision
from onefold.errors import UserError, suggest
from onefold.progress import Tell

PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16"]


def choose_device(name: str = "auto") -> tuple[torch.device, str]:
    """A device and why it was taken."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"cuda ({torch.cuda.get_device_name()}): the fastest that torch sees"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "mps: the fastest that torch sees"
        return torch.device("cpu"), "cpu: torch sees no accelerator"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (":" in name and not index.isdecimal()):
        raise UserError(f"unknown device {name!r}{suggest(kind, ('auto', 'cpu', 'cuda', 'mps'))}")
    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not usable[kind]:
        raise UserError(f"device {name!r} was asked for, but this build of torch sees none; use --device auto")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r} was asked for, but there are {torch.cuda.device_count()}, counted from cuda:0"
        )
    return torch.device(name), f"{name}: asked for"


def choose(name: str, precision: str, tell: Tell) -> tuple[torch.device, Precision]:
    """Both, with their reasons told."""
    device, why_there = choose_device(name)
    chosen, why_so = choose_precision(precision, device)  # type: ignore[arg-type]
    tell(f"device {why_there}; precision {why_so}")
    return device, chosen


def choose_precision(name: PrecisionChoice, device: torch.device) -> tuple[Precision, str]:
    """A precision for the networks and why it was taken; everything around them stays float32."""
    if name not in ("auto", "fp32", "bf16", "fp16"):
        raise UserError(f"unknown precision {name!r}{suggest(name, ('auto', 'fp32', 'bf16', 'fp16'))}")
    if name == "fp16" and device.type == "cpu":
        raise UserError("precision 'fp16' is not for the CPU; use bf16 or fp32")
    if name != "auto":
        return name, f"{name}: asked for"
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "bf16: the device computes it natively"
    return "fp32", f"fp32: the safe choice on {device.type}"
