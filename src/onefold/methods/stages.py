"""What a student cost that was made in several runs, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def added(before: Mapping[str, Any], now: Mapping[str, Any], each: str, calls: int) -> dict[str, Any]:
    """The cost of all runs so far, and under the name `each` that of each, with its student's number of calls."""
    own = {"calls": calls, **{key: now[key] for key in ("images", "steps", "seconds")}}
    if not before:
        return {**now, each: [own]}
    sums = {key: round(before[key] + now[key], 1) for key in ("images", "steps", "seconds")}
    names = before["calls"].keys() | now["calls"].keys()
    network_calls = {name: before["calls"].get(name, 0) + now["calls"].get(name, 0) for name in sorted(names)}
    if "forwards" in before:
        sums["forwards"] = before["forwards"] + now["forwards"]
    else:  # of a run by an earlier version, nobody knows
        now = {key: value for key, value in now.items() if key != "forwards"}
    return {**now, **sums, "calls": network_calls, each: [*before.get(each, ()), own]}
