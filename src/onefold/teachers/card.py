"""The page of a teacher: what it is, from what, at what cost, and how to use it with and without onefold."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from onefold.card import PICTURE

STOCK = """```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{folder}")
images = pipe(batch_size=8, {labels}num_inference_steps=50).images
```"""

PARTS = """There is no stock pipeline for flow models of pixels; the parts are stock:
```python
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained("{folder}/unet")
scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained("{folder}/scheduler")
scheduler.set_timesteps(50)
x = torch.randn(8, {shape})
with torch.no_grad():
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t.expand(8){condition}).sample, t, x).prev_sample
```"""


def page(card: Mapping[str, Any], folder: str, evidence: str = "", place: str | None = None) -> str:
    """Markdown that the Hugging Face hub shows as a model card. `place` is the folder for diffusers, where onefold knows the
    teacher by name."""
    shape = "x".join(map(str, card["shape"]))
    classes = f"{card['classes']} classes" if card["classes"] else "no classes"
    cost, data = card["cost"], card["data"]
    time = f"{cost['seconds']:.0f} s" if cost["seconds"] < 120 else f"{cost['seconds'] / 60:.0f} minutes"
    seconds = f"{time} on {cost['device']}, {cost['processes']} process{'es' * (cost['processes'] > 1)}"
    rows = [
        ("images", f"{shape}, {classes}"),
        ("network", f"UNet2DModel, {card['parameters']:,} parameters"),
        ("noise", f"{card['process']}, predicts {card['prediction']}"),
        ("data", f"{data['source']}, {data['count']:,} images"),
        ("cost", f"{cost['images']:,} images seen, {seconds}"),
        ("command", f"`{card['command']}`"),
        ("versions", ", ".join(f"{name} {version}" for name, version in card["versions"].items())),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""---
library_name: diffusers
tags: [diffusion, onefold]
---
# {card["name"]}

A diffusion model taught with onefold.

![samples]({PICTURE})

| | |
|---|---|
{table}
{evidence}
With onefold:
```python
import onefold

images = onefold.sample("{folder}", 64, calls=8, seed=0)
```
With diffusers alone:
{elsewhere(card, place or folder)}
"""


def measured(results: Mapping[str, Any], calls: Sequence[int] = (4, 10)) -> str:
    """What a comparison (results.json) says of the teacher with the solver and grid that it is at its best with."""
    best = next(row for row in results["rows"] if row["kind"] == "best")
    usual = {"kind": "solver", "solver": best["solver"], "grid": best["grid"]}
    rows = [row for row in results["rows"] if usual.items() <= row.items() and row["calls"] in calls] + [best]
    fd = next(one for one in results["metrics"] if one["key"].startswith("fd["))

    def shown(row: Mapping[str, Any], key: str) -> str:
        return "{value:.3f} ± {spread:.3f}".format(**row["scores"][key])

    table = "\n".join(f"| {row['calls']} | {shown(row, 'rmse')} | {shown(row, fd['key'])} |" for row in rows)
    words = shlex.split(results["provenance"]["commands"][0])
    command = shlex.join(words[: words.index("--out")] if "--out" in words else words)
    return f"""
Measured on {results["count"]} images from the same noise, with {best["solver"]} on {best["grid"]}:

| calls | RMSE to the fine solution | Fréchet distance, `{fd["key"]}` |
|---|---|---|
{table}
| real images | | {fd["floor"]["value"]:.3f}, {fd["floor"]["about"]} |

The fine solution is {results["fine"]}; made with `{command}`.
"""


def elsewhere(card: Mapping[str, Any], folder: str) -> str:
    labelled = card["classes"] is not None
    labels = f"torch.arange(8) % {card['classes']}"
    if card["process"] == "flow":
        shape = ", ".join(map(str, card["shape"]))
        return PARTS.format(folder=folder, shape=shape, condition=f", class_labels={labels}" if labelled else "")
    return STOCK.format(folder=folder, labels=f"class_labels={labels}, " if labelled else "")
