"""Versions and hardware that a result depends on."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("onefold", "torch", "diffusers", "accelerate"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            found[package] = "unknown"
    return found


def hardware() -> dict[str, str | int | None]:
    """The machine a result was measured on; torch is asked for a GPU only when it is there already."""
    found: dict[str, str | int | None] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "platform": platform.platform(terse=True),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
