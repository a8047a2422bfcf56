"""Processes and devices, through accelerate."""

from __future__ import annotations

from datetime import timedelta
from importlib.util import find_spec

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from onefold.errors import UserError
from onefold.training.settings import RunSettings

PATIENCE = timedelta(hours=2)  # the others wait while the first process validates and draws


def start_processes(device: torch.device, settings: RunSettings) -> Accelerator:
    for tracker in settings.trackers:
        if find_spec(tracker) is None:
            raise UserError(f"tracker {tracker!r} is not installed; pip install 'onefold[track]'")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate takes the current one
    if not dist.is_initialized():  # accelerate remembers the device of an earlier run of this process
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",
        log_with=list(settings.trackers) or None,
        project_dir=settings.out,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
