"""What takes part: each method with the settings that are tried for it, at any number of calls.

The candidates are what earlier searches found (benchmarks/README.md#searches) and their neighbours: rates first, then what decides how
many images a budget buys. All of a method's candidates are written here; none is chosen by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Settings = dict[str, Any]
DATA = "DATA"  # stands for the images that the teacher learned from


@dataclass(frozen=True)
class Stage:
    """A run, and its share of the budget; a later one begins with the student of the one before."""

    method: str
    settings: Settings
    share: float = 1.0


@dataclass(frozen=True)
class Entry:
    """A row of the comparison. Its candidates are tried in order, each a list of runs that follow each other."""

    label: str
    candidates: Callable[[int], list[list[Stage]]]
    data: bool  # whether it learns from images
    counts: Sequence[int] = (1, 2, 4, 8)  # numbers of calls that it can make
    together: bool = False  # whether one student makes all of them
    imitates: bool = True  # whether it is to give its teacher's images from the same noise


def runs(method: str, *settings: Settings) -> list[list[Stage]]:
    return [[Stage(method, one)] for one in settings]


def sfd(calls: int) -> list[list[Stage]]:
    common: Settings = {"grid": "gits", "batch_size": 64, "calls": calls}
    return runs(
        "sfd",
        {**common, "pieces": 4, "lr": 1e-4},
        {**common, "pieces": 4, "lr": 2e-4},
        {**common, "pieces": 8, "lr": 1e-4},
        {**common, "pieces": 4, "lr": 2e-4, "parts": 3},
    )


def sfd_several(_: int) -> list[list[Stage]]:
    common: Settings = {"grid": "gits", "batch_size": 64, "calls": [1, 2, 4, 8]}
    return runs(
        "sfd",
        {**common, "pieces": 4, "lr": 1e-4},
        {**common, "pieces": 4, "lr": 2e-4},
        {**common, "pieces": 8, "lr": 1e-4},
    )


def second_stage(_: int) -> list[list[Stage]]:
    first: Settings = {"calls": 4, "grid": "gits", "batch_size": 64, "pieces": 4, "lr": 2e-4}
    shares = [(0.33, 3e-4), (0.33, 1e-3), (0.15, 3e-4)]
    return [
        [Stage("sfd", first, share), Stage("sfd_second", {"calls": 1, "lr": rate}, 1 - share)] for share, rate in shares
    ]


def sfddm(calls: int) -> list[list[Stage]]:
    common: Settings = {"calls": calls, "data": DATA, "preset": "paper"}
    return runs("sfddm", common, {**common, "begin": "table"})


def rollout(data: str | None) -> Callable[[int], list[list[Stage]]]:
    def candidates(calls: int) -> list[list[Stage]]:
        common: Settings = {"calls": calls, **({"data": data} if data else {})}
        near: Settings = {**common, "loss": "pseudo_huber", "weight": "x0"}
        # of one step there is but one spacing, so rates are tried instead
        others = [(3e-4, "quadratic"), (3e-4, "gits")] if calls > 1 else [(1e-3, "uniform"), (1e-4, "uniform")]
        return runs(
            "sfddm",
            {**near, "phi": "uniform", "lr": 3e-4},
            *({**near, "phi": phi, "lr": rate} for rate, phi in others),
            {**common, "loss": "l2", "weight": "truncated", "phi": "quadratic", "lr": 1e-4},
        )

    return candidates


def progressive(calls: int) -> list[list[Stage]]:
    common: Settings = {"calls": calls, "data": DATA}
    return runs(
        "progressive",
        {**common, "start": 8 * calls, "lr": 1e-4},
        {**common, "start": 8 * calls, "lr": 3e-4},
        {**common, "start": 4 * calls, "lr": 3e-4},
        {**common, "start": 8 * calls, "lr": 1e-4, "grid": "subsequence"},
    )


def consistency(calls: int) -> list[list[Stage]]:
    common: Settings = {"calls": calls, "data": DATA, "parts": max(4, 32 // calls)}
    whole = common["parts"]  # the gap that leads to the end
    return runs(
        "consistency",
        {**common, "skip": min(8, whole), "doublings": 0},
        {**common, "skip": min(8, whole) // 2, "doublings": 0},
        {**common, "parts": whole // 2, "skip": whole // 2, "doublings": 0},
        {**common, "skip": min(8, whole), "doublings": 0, "lr": 1e-3},
    )


def consistency_free(calls: int) -> list[list[Stage]]:
    common: Settings = {"calls": calls, "weight": "x0"}
    whole = max(4, 32 // calls)
    return runs(
        "consistency",
        {**common, "parts": whole},
        {**common, "parts": whole // 2},
        {**common, "parts": whole, "lr": 1e-3},
        {**common, "parts": whole, "reuse": 16},
    )


def tuning(calls: int) -> list[list[Stage]]:
    common: Settings = {"calls": calls, "data": DATA, "recipe": "tuning"}
    return runs(
        "consistency",
        {**common, "doublings": 3},
        {**common, "doublings": 3, "lr": 1e-3},
        {**common, "doublings": 4},
        {**common, "doublings": 2},
        {**common, "doublings": 3, "batch_size": 64, "lr": 6e-4},
        {**common, "doublings": 3, "level_mean": 0.0},
    )


def gdd(freeze: str) -> Callable[[int], list[list[Stage]]]:
    def candidates(calls: int) -> list[list[Stage]]:
        common: Settings = {"calls": calls, "data": DATA, **({} if freeze == "none" else {"freeze": freeze})}
        return runs(
            "gdd",
            {**common, "batch_size": 64},
            {**common, "batch_size": 32},
            {**common, "batch_size": 16, "lr": 2e-4, "lr_discriminator": 5e-4},
        )

    return candidates


ENTRIES: dict[str, Entry] = {
    "sfd": Entry("SFD", sfd, data=False),
    "sfd_v": Entry("SFD-v, one student", sfd_several, data=False, together=True),
    "second": Entry("SFD's second stage", second_stage, data=False, counts=(1,)),
    "rollout": Entry("SFDDM roll-out", rollout(DATA), data=True),
    "rollout_free": Entry("SFDDM roll-out, no data", rollout(None), data=False),
    "gdd": Entry("GDD", gdd("none"), data=True, counts=(1, 2), imitates=False),
    "gdd_i": Entry("GDD-I", gdd("gdd_i"), data=True, counts=(1, 2), imitates=False),
    "progressive": Entry("progressive", progressive, data=True),
    "consistency": Entry("consistency", consistency, data=True),
    "consistency_free": Entry("consistency, no data", consistency_free, data=False),
    "tuning": Entry("easy consistency tuning", tuning, data=True),
    "sfddm": Entry("SFDDM (paper)", sfddm, data=True),
}
