"""Plots of what `onefold inspect` measured: a heat map of layers, spectra. They need matplotlib, the extra [plot]."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onefold.errors import UserError, first_line
from onefold.files import atomic_file

if TYPE_CHECKING:
    from onefold.bench.layers import Activity, Layers
    from onefold.bench.spectrum import Spectrum

DOTS = 130  # an inch
MOST_NUMBERS = 60  # rows in which numbers can still be read


def need_matplotlib() -> Any:
    """Asked before the work. The class of figures: no window, and no state that others share."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            f"the picture needs matplotlib, which does not load ({first_line(error)}); install it with: pip install 'onefold[plot]', "
            "or leave --out out"
        ) from error
    return Figure


def save(figure: Any, path: Path) -> None:
    with atomic_file(path) as draft:
        figure.savefig(draft, format="png", dpi=DOTS)


def short(name: str) -> str:
    """Of a block: `down_blocks.1.attentions.0` is `down.1.attn.0`."""
    for long, few in (
        ("transformer_blocks.", "block."),
        ("_blocks.", "."),
        ("mid_block.", "mid."),
        ("attentions", "attn"),
        ("attention", "attn"),
        ("resnets", "resnet"),
        ("downsamplers", "down"),
        ("upsamplers", "up"),
    ):
        name = name.replace(long, few)
    return name


def data_text(source: str) -> str:
    """A file's name without the way to it."""
    return Path(source).name if Path(source).exists() else source


SIZES = tuple(digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 3, 5))
RATIOS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 2.0, 4.0, 10.0, 20.0, 50.0, 100.0)

# Layers ---------------------------------------------------------------------------------------------------------------


def save_layers(found: Layers, path: Path) -> None:
    """A teacher's blocks by level; a student's right of its teacher's, and then what changed."""
    names, own = found.names, rows_of(found.activity, found.names)
    if found.before is None or found.changed is None:
        tables = {found.model: own}
    else:
        before = rows_of(found.before, names)
        tables = {
            f"teacher\n{found.teacher}": before,
            f"student\n{found.model}": own,
            "student\n/ teacher": own / before,
        }
    bars = None if found.changed is None else [found.changed.blocks.get(name, math.nan) for name in names]
    wide = max(1.5, 0.48 * len(found.activity.sigmas))
    widths = [wide] * len(tables) + [1.3] * (bars is not None)
    tall = min(0.27 * len(names), 22)
    size = (max(6.5, sum(widths) + 1.0 * (len(widths) - 1) + 3), tall + 1.9)
    figure = need_matplotlib()(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
    for place, (axes, (title, table)) in enumerate(zip(panels, tables.items(), strict=False)):
        ratio = place == 2
        image = heat(axes, table, colours(table if ratio else torch.cat(list(tables.values())[:2]), ratio))
        axes.set_title(title if len(tables) > 1 else "", fontsize=10)
        axes.set_xticks(range(table.shape[1]), list(map(level_text, found.activity.sigmas)), fontsize=8)
        if place or len(tables) == 1:
            label = "student / teacher" if ratio else "residual branch / skip path (RMS)"
            bar = figure.colorbar(image, ax=axes, aspect=40, pad=0.03)
            bar.set_label(label, fontsize=9)
            plain_ticks(bar.ax, RATIOS if ratio else SIZES, image.norm)
    panels[0].set_yticks(range(len(names)), list(map(short, names)), fontsize=8)
    if bars is not None:
        changed_bars(panels[-1], bars)
    source = f"images of {data_text(found.data)}" if found.data else f"samples of {found.teacher or 'its own'}"
    figure.suptitle(
        f"How active each block is by noise level\n{found.model}, {found.count} {source}, noised", fontsize=11
    )
    figure.supxlabel("noise level sigma of x0 + sigma n", fontsize=9)
    save(figure, path)


def plain_ticks(axes: Any, known: tuple[float, ...], norm: Any) -> None:
    """0.5 and not 5 x 10^-1, and enough of them where a logarithmic scale spans little."""
    ticks = [tick for tick in known if norm.vmin <= tick <= norm.vmax]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.tick_params(labelsize=8)


def rows_of(activity: Activity, names: tuple[str, ...]) -> Tensor:
    """(names, levels), NaN for blocks that this network does not have."""
    empty = [math.nan] * len(activity.sigmas)
    return torch.tensor([activity.of(name) or empty for name in names], dtype=torch.float64)


def colours(table: Tensor, ratio: bool) -> tuple[str, Any]:
    """A name of colours and a logarithmic scale: about 1 for a ratio, over at most three decades otherwise."""
    from matplotlib.colors import LogNorm

    known = table[table.isfinite() & (table > 0)]
    if ratio:
        reach = max(1.25, float(known.log().abs().max().exp()) if len(known) else 1.0)
        return "RdBu_r", LogNorm(1 / reach, reach)
    top = float(known.max()) if len(known) else 1.0
    bottom = float(known.min()) if len(known) else 0.1
    return "viridis", LogNorm(min(max(bottom, top / 1000), top / 2), top)


def heat(axes: Any, table: Tensor, how: tuple[str, Any]) -> Any:
    """Cells with numbers, as long as they can be read."""
    colour, norm = how
    image = axes.imshow(table.clamp(min=norm.vmin).numpy(), cmap=colour, norm=norm, aspect="auto")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    if len(table) > MOST_NUMBERS:
        return image
    for row, column in table.isfinite().nonzero().tolist():
        value = float(table[row, column])
        red, green, blue, _ = image.cmap(norm(max(value, norm.vmin)))
        ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
        axes.text(column, row, number(value), ha="center", va="center", color=ink, fontsize=7)
    return image


def level_text(sigma: float) -> str:
    return f"{sigma:.2g}" if sigma < 100 or math.isinf(sigma) else f"{sigma:.0f}"


def number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def changed_bars(axes: Any, shares: list[float]) -> None:
    axes.barh(range(len(shares)), [100 * share for share in shares], color="tab:gray", height=0.7)
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 50, 100], ["0", "50", "100 %"], fontsize=8)
    axes.set_title("weights\nchanged", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(left=False)


# Spectra --------------------------------------------------------------------------------------------------------------

COLOURS = ("tab:red", "tab:blue")


def save_spectrum(found: Spectrum, path: Path) -> None:
    """Power by frequency, and below it the ratio to the data's. Ring 0 has no place on a logarithmic axis."""
    from onefold.bench.spectrum import OTHERS

    figure = need_matplotlib()(figsize=(7.2, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    rings = range(1, len(found.power))
    models = [line for line in found.lines if line.name != OTHERS]
    above.plot(rings, found.power[1:], color="black", linewidth=2.2, label=f"data: {data_text(found.data)}")
    for line in found.lines:
        style = (
            {"color": COLOURS[(len(models) - 1 - models.index(line)) % 2], "linewidth": 1.5}
            if line in models
            else {"color": "tab:gray", "linewidth": 1.2, "linestyle": ":"}
        )
        above.plot(rings, line.power[1:], label=line.name, **style)
        below.plot(rings, line.decibels[1:], marker="o", markersize=3, label=line.name, **style)
    below.axhline(0, color="black", linewidth=1.2)
    reach = max(1.0, 1.15 * max(abs(value) for line in found.lines for value in line.decibels[1:]))
    below.set_ylim(-reach, reach)
    above.set(xscale="log", yscale="log", ylabel="power (variance of a pixel in [-1, 1])")
    below.set(xlabel="spatial frequency (cycles over the shorter side)", ylabel="beside the data (dB)")
    ticks = [tick for tick in TICKS if tick < len(found.power)]
    for axes in (above, below):
        axes.axvline(min(found.size) / 2, color="tab:gray", linewidth=0.8, linestyle="--")
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    place = (min(found.size) / 2 * 1.015, 0.02)
    above.annotate(
        "corners", place, xycoords=("data", "axes fraction"), fontsize=8, color="tab:gray", rotation=90, ha="left"
    )
    above.legend(frameon=False, fontsize=9)
    figure.suptitle(f"{found.model}: power by spatial frequency, {found.count} images each", fontsize=12)
    save(figure, path)


TICKS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
