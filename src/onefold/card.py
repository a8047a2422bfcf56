"""The page of a student, for its own folder and for what is exported: what it is, at what cost, beside which control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onefold.progress import duration

PICTURE = "samples.png"

NAMES = {
    "progressive": "progressive distillation",
    "gdd": "GDD",
    "sfd_second": "SFD and its second stage",
}  # of methods that are not called by their letters

PAGE = """---
library_name: diffusers
tags: [diffusion, distillation, few-step, onefold]
---
# {name}

{what}

![samples of the student, and of its teacher from the same noise]({picture})

{usage}

| | |
|---|---|
{table}

Made with onefold; every number of its recipe is in `{facts}`.
"""


def page(facts: Mapping[str, Any], name: str, usage: str, file: str, extra: Mapping[str, str] | None = None) -> str:
    """Markdown that the Hugging Face hub shows as a model card; a row for everything that is known."""
    rows = {**described(facts), **(extra or {})}
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    numbers = [*map(int, facts.get("further_grids", ())), facts["calls"]]
    calls = f"{' or '.join(map(str, sorted(numbers)))} network call{'s' * (facts['calls'] != 1)}"
    what = f"`{facts['teacher']['name']}` in {calls}, distilled with {NAMES.get(facts['method'], facts['method'].upper())}."
    return PAGE.format(name=name, what=what, picture=PICTURE, usage=usage, table=table, facts=file)


def described(facts: Mapping[str, Any]) -> dict[str, str]:
    rows = {"noise levels": levels(facts)}
    cost = facts.get("cost")
    if cost:
        processes = f", {cost['processes']} processes" * (cost["processes"] > 1)
        calls = "".join(f", {count:,} calls of the {name}" for name, count in cost["calls"].items())
        kept = ", beside trajectories of the teacher that a cache had" * bool(facts.get("settings", {}).get("cache"))
        rows["cost"] = (
            f"{cost['images']:,} images{in_runs(cost)}{calls}, {duration(cost['seconds'])} on {cost['device']}{processes}{kept}"
        )
    for calls, evidence in (facts.get("by_calls") or {"": facts.get("evidence")}).items():
        if evidence:
            rows["evidence" + f", {calls} calls" * bool(calls)] = compared(evidence)
    if facts.get("first_stage", {}).get("distance"):
        rows["first stage"] = f"{facts['first_stage']['distance']:.4f} by the same measure, before it became one call"
    if facts.get("frozen"):
        rows["frozen"] = facts["frozen"].removeprefix("frozen: ")
    if facts.get("published"):
        rows["published"] = facts["published"]
    if facts.get("settings", {}).get("guidance", 1.0) != 1.0:
        rows["guidance"] = f"{facts['settings']['guidance']:g}, folded into the network"
    if facts.get("command"):
        rows["command"] = f"`{facts['command']}`"
    if facts["teacher"].get("sha256"):
        rows["teacher's weights"] = f"sha256 `{facts['teacher']['sha256']}`"
    if facts.get("versions"):
        rows["versions"] = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return rows


def in_runs(cost: Mapping[str, Any]) -> str:
    """In how many runs it was spent, where there were several."""
    if "stages" in cost:
        return " in both stages"
    return f" in {len(cost['folds'])} folds" if len(cost.get("folds", ())) > 1 else ""


def compared(evidence: Mapping[str, Any]) -> str:
    best = evidence["best_solver"]
    return (
        f"{evidence['measure']}, {evidence['images']} images: student {evidence['student']:.4f}, "
        f"the teacher at as many calls {evidence['solvers'][best]:.4f} ({best}, the best solver)"
        + at_its_best(evidence)
    )


def at_its_best(evidence: Mapping[str, Any]) -> str:
    """Where the measure is not the distance to that very teacher."""
    best = evidence.get("teacher")
    return f", in {best['calls']} calls {best['value']:.4f}" if best else ""


def levels(facts: Mapping[str, Any]) -> str:
    grids = sorted([*facts.get("further_grids", {}).values(), facts["grid"]], key=lambda grid: len(grid["sigmas"]))
    shown = "; ".join(", ".join(f"{float(level):.4g}" for level in grid["sigmas"]) for grid in grids)
    first = " (the first step is analytic and costs no call)" if facts["afs"] else ""
    return f"sigma {shown}{first}"
