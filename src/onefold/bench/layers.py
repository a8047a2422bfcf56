"""How active each block of a network is by noise level, and what distillation made of it.

r(sigma) = |residual branch| / |skip path| of a block, root mean squares over images x0 + sigma n: a block that adds nothing
to what passes it has 0. Hooks see the skip path s and the sum y = (s + branch) / scale, so no forward is written again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from onefold import seeds
from onefold.bench import plots
from onefold.bench.evidence import Pictures, levels_of
from onefold.bench.inspection import open_with_teacher, read_data
from onefold.bench.same_noise import Meter
from onefold.conditions import Conditions
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.grids import LOG_AXIS, ladder
from onefold.networks.edm_layers import Block
from onefold.process import as_sigma
from onefold.progress import Progress, Tell, silent
from onefold.sampling import batches, chosen_labels, sample
from onefold.student import Student

LEVELS = 12  # of a teacher
ROOM = 8  # levels of a student, with two numbers each, in a table
COUNT = 64  # images
QUICK = 10  # calls of a teacher's own samples, where there is no data
PICTURE = "layers.png"


class Point(NamedTuple):
    """Where a hook looks."""

    module: nn.Module
    side: Literal["input", "output"]


@dataclass(frozen=True)
class Residual:
    """A sum inside a network: where its skip path passes, and where the sum does, which is `scale` times too small."""

    name: str
    weights: tuple[str, ...]  # what the names of its parameters begin with
    skip: Point
    total: Point
    scale: float = 1.0


@dataclass(frozen=True)
class Activity:
    """`matrix` (blocks, levels), float64; blocks in the order in which the network asks them."""

    names: tuple[str, ...]
    sigmas: tuple[float, ...]
    matrix: Tensor

    def of(self, name: str) -> list[float] | None:
        """At each level; None for a block that this network does not have."""
        values: list[float] | None = self.matrix[self.names.index(name)].tolist() if name in self.names else None
        return values

    def as_dict(self) -> dict[str, Any]:
        sigmas = [str(sigma) if sigma == float("inf") else sigma for sigma in self.sigmas]
        return {"blocks": list(self.names), "sigmas": sigmas, "matrix": self.matrix.tolist()}


@dataclass(frozen=True)
class Changes:
    """The share of weights, 0 to 1, that lie in tensors which are not bitwise the teacher's: 0 is frozen."""

    blocks: Mapping[str, float]
    elsewhere: float  # outside of all blocks
    whole: float


@dataclass(frozen=True)
class Layers:
    model: str
    teacher: str | None  # of a student
    data: str | None  # None: samples of the teacher's own
    count: int
    seed: int
    activity: Activity
    before: Activity | None  # a student's teacher at the student's levels
    changed: Changes | None  # in the student
    picture: str | None
    seconds: float

    @property
    def names(self) -> tuple[str, ...]:
        """All blocks, those first that the model itself has."""
        before = self.before.names if self.before else ()
        return tuple(dict.fromkeys((*self.activity.names, *before)))

    @property
    def shown(self) -> list[int]:
        """Levels that a table has room for."""
        last, most = len(self.activity.sigmas) - 1, LEVELS if self.before is None else ROOM
        return sorted({round(index * last / (most - 1)) for index in range(most)})

    def header(self) -> list[str]:
        sigmas = [plots.level_text(self.activity.sigmas[level]) for level in self.shown]
        return ["block", *sigmas, *([] if self.changed is None else ["changed"])]

    def cells(self) -> list[list[str]]:
        """Rows of the printed table: a block, its activity at each level shown (the teacher's before the student's), its changes."""
        rows = []
        for name in self.names:
            values = [one.of(name) for one in (self.before, self.activity) if one is not None]
            texts = [" ".join("-" if v is None else plots.number(v[level]) for v in values) for level in self.shown]
            share = [] if self.changed is None else [share_text(self.changed.blocks.get(name))]
            rows.append([plots.short(name), *texts, *share])
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Plain values; inf is the string "inf"."""
        tables = {"activity": self.activity.as_dict(), "before": self.before.as_dict() if self.before else None}
        changed = None if self.changed is None else vars(self.changed) | {"blocks": dict(self.changed.blocks)}
        return vars(self) | tables | {"changed": changed}


def share_text(share: float | None) -> str:
    return "-" if share is None else "frozen" if share == 0 else f"{share:.1%}"


# Blocks ---------------------------------------------------------------------------------------------------------------


def residuals(network: nn.Module) -> list[Residual]:
    return [found for key, child in network.named_children() for found in inside(child, key)]


def inside(module: nn.Module, name: str) -> list[Residual]:
    """Of EDM's networks and of diffusers', which are told by their attributes; elsewhere the members of lists that are
    called blocks, if they have nothing of that kind inside."""
    holder, _, number = name.rpartition(".")
    skip, total = Point(module, "input"), Point(module, "output")
    if isinstance(module, Block):
        return of_edm(module, name)
    if hasattr(module, "conv_shortcut") and hasattr(module, "output_scale_factor"):
        return [Residual(name, (name,), shortcut(module), total, scale_of(module, "output_scale_factor"))]
    if getattr(module, "residual_connection", False) is True:
        return [Residual(name, (name,), skip, total, scale_of(module, "rescale_output_factor"))]
    plain = [Residual(name, (name,), skip, total)]
    if holder.endswith("attentions"):  # transformers inside a U-Net, each with a sum around it
        return plain
    found = [one for key, child in module.named_children() for one in inside(child, f"{name}.{key}")]
    listed = number.isdigit() and holder.endswith("blocks") and any(module.children())
    return plain if listed and not found else found


def scale_of(module: Any, name: str) -> float:
    return float(getattr(module, name))


def of_edm(block: Block, name: str) -> list[Residual]:
    """The convolutions, and the attention that follows them in some blocks."""
    skip = Point(block, "input") if block.skip is None else Point(block.skip, "output")
    scale, end = 1 / block.skip_scale, Point(block, "output")
    if not block.heads:
        return [Residual(name, (name,), skip, end, scale)]
    middle = Point(block.norm2, "input")
    attention = tuple(f"{name}.{layer}" for layer in ("norm2", "qkv", "proj"))
    return [
        Residual(name, (name,), skip, middle, scale),
        Residual(f"{name}.attention", attention, middle, end, scale),
    ]


def shortcut(resnet: Any) -> Point:
    """What the skip path of diffusers' block ends with: a convolution, a change of size (its first call is the skip's), or nothing."""
    resized = getattr(resnet, "upsample", None) or getattr(resnet, "downsample", None)
    for module in (resnet.conv_shortcut, resized):
        if isinstance(module, nn.Module):
            return Point(module, "output")
    return Point(resnet, "input")


# Activity -------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def activity(
    denoiser: Denoiser,
    states: Tensor,
    sigmas: Sequence[float],
    cond: Conditions | None = None,
    *,
    batch_size: int = 64,
    progress: Progress = silent,
) -> Activity:
    """`states` (levels, N, ...) are x0 + sigma n at each of these levels, and `cond` is what the N images are told. The
    network runs once an image, without guidance, in float32."""
    plain, device, told = denoiser.replace(precision="fp32", guidance=1.0), denoiser.device, dict(cond or {})
    columns: list[dict[str, float]] = []
    with watching(blocks_of(denoiser)) as sums:
        for level, (x, sigma) in enumerate(zip(states, sigmas, strict=True)):
            sums.clear()
            for rows in batches(0, len(x), batch_size):
                part = slice(rows.start, rows.stop)
                plain.denoise(x[part].to(device), sigma, {key: value[part].to(device) for key, value in told.items()})
            columns.append({name: float((branch / skip).sqrt()) for name, (branch, skip) in sums.items()})
            progress(level + 1, len(sigmas))
    names = tuple(columns[0])
    if not names:
        raise no_blocks(denoiser)
    matrix = torch.tensor([[column[name] for column in columns] for name in names], dtype=torch.float64)
    if not bool(matrix.isfinite().all()):
        row, column = (~matrix.isfinite()).nonzero()[0].tolist()
        raise UserError(
            f"block {names[row]!r} of {denoiser.name!r} gives NaN or infinite numbers at sigma {sigmas[column]:.3g}, so it has no "
            "activity; look at the model with `onefold inspect` alone"
        )
    return Activity(names, tuple(sigmas), matrix)


def blocks_of(denoiser: Denoiser) -> list[Residual]:
    found = residuals(denoiser.network) if isinstance(denoiser.network, nn.Module) else []
    if not found:
        raise no_blocks(denoiser)
    return found


def no_blocks(denoiser: Denoiser) -> UserError:
    kind = type(denoiser.network).__name__ if isinstance(denoiser.network, nn.Module) else "plain function"
    return UserError(
        f"no residual block is found in the network of {denoiser.name!r}, a {kind}; layers are shown of U-Nets and transformers "
        "of diffusers, of EDM's networks, and of others that keep their blocks in a ModuleList called blocks"
    )


@contextmanager
def watching(parts: Sequence[Residual]) -> Iterator[dict[str, Tensor]]:
    """Sums of squares (branch, skip path) by block, over all that the network is asked inside."""
    sums: dict[str, Tensor] = {}
    handles = [handle for part in parts for handle in hooked(part, sums)]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def hooked(part: Residual, sums: dict[str, Tensor]) -> list[Any]:
    held: list[Tensor] = []  # the skip path of a sum that is not made yet

    def on_skip(values: list[Tensor]) -> None:
        if not held:
            held.extend(values[:1])

    def on_total(values: list[Tensor]) -> None:
        skip = held.pop() if held else None
        same = [value for value in values if skip is not None and value.shape == skip.shape]
        if skip is not None and same:
            squares = torch.stack([(part.scale * same[0] - skip).square().sum(), skip.square().sum()])
            sums[part.name] = squares if part.name not in sums else sums[part.name] + squares

    return [attach(part.skip, on_skip), attach(part.total, on_total)]


def attach(point: Point, look: Callable[[list[Tensor]], None]) -> Any:
    if point.side == "input":
        return point.module.register_forward_pre_hook(
            lambda _module, args, named: look(floats((*args, *named.values()))), with_kwargs=True
        )
    return point.module.register_forward_hook(lambda _module, _args, output: look(floats(output)))


def floats(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values.float()]
    listed = values.values() if isinstance(values, Mapping) else values
    return [value.float() for value in listed if isinstance(value, Tensor) and value.is_floating_point()]


# What distillation changed --------------------------------------------------------------------------------------------


def changes(student: nn.Module, teacher: nn.Module, parts: Sequence[Residual]) -> Changes:
    """Weights without a counterpart of their shape are changed ones."""
    former = dict(teacher.named_parameters())
    counts = {key: [0, 0] for key in ("", *(part.name for part in parts))}
    for name, weight in student.named_parameters():
        count = counts[owner_of(name, parts)]
        count[0] += 0 if same(weight, former.get(name)) else weight.numel()
        count[1] += weight.numel()
    shares = {name: changed / max(total, 1) for name, (changed, total) in counts.items()}
    changed, total = (sum(column) for column in zip(*counts.values(), strict=True))
    elsewhere = shares.pop("")
    return Changes(shares, elsewhere, changed / max(total, 1))


def owner_of(weight: str, parts: Sequence[Residual]) -> str:
    """The block whose beginning of the name fits best; "" outside of all."""
    fitting = [(len(start), part.name) for part in parts for start in part.weights if weight.startswith(f"{start}.")]
    return max(fitting, default=(0, ""))[1]


def same(weight: Tensor, former: Tensor | None) -> bool:
    return former is not None and former.shape == weight.shape and bool(torch.equal(weight, former.to(weight)))


# The command's part ---------------------------------------------------------------------------------------------------


def inspect_layers(
    model: str | Path | Denoiser | Student,
    data: Any = None,
    *,
    teacher: str | Path | Denoiser | None = None,
    prompts: Any = None,
    count: int = COUNT,
    seed: int = 0,
    batch_size: int = 64,
    out: str | Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Layers:
    """The activity of a teacher's blocks over its noise levels, or of a student's beside its teacher's at the student's levels.

    The images that are noised are `data`'s, or else samples of the teacher's own. `out` is a folder for a heat map.
    """
    begin, report = time.perf_counter(), progress or silent
    if out is not None:
        plots.need_matplotlib()
    pupil, owner = open_with_teacher(model, teacher, prompts, device=device, precision=precision, tell=tell)
    looked = owner if pupil is None else pupil.denoiser
    parts, sigmas = blocks_of(looked), levels_of_teacher(owner) if pupil is None else levels_of_student(pupil)
    work = len(sigmas) * (1 if pupil is None else 2) * count
    meter = Meter(report, work + (QUICK * count if data is None else 0))
    source, clean = (
        (None, own_samples(owner, count, seed, batch_size, meter))
        if data is None
        else read_data(owner, data, count, device, most=count)
    )
    states, how = noised(clean.images, sigmas, seed), {"batch_size": batch_size}
    both = [
        activity(one, states, sigmas, one.conditions(clean.labels), progress=meter.part(count), **how)
        for one in ([looked] if pupil is None else [looked, owner])
    ]
    found = Layers(
        model=looked.name,
        teacher=None if pupil is None else owner.name,
        data=source,
        count=len(clean.images),
        seed=seed,
        activity=both[0],
        before=None if pupil is None else both[1],
        changed=None if pupil is None else changes(looked.module, owner.module, parts),
        picture=None if out is None else str(Path(out) / PICTURE),
        seconds=round(time.perf_counter() - begin, 1),
    )
    if out is not None:
        plots.save_layers(found, Path(out) / PICTURE)
    return found


def levels_of_teacher(teacher: Denoiser) -> list[float]:
    process = teacher.process
    return levels_of(teacher, tuple(ladder(LOG_AXIS, process.sigma_min, process.sigma_top, LEVELS).tolist()))


def levels_of_student(student: Student) -> list[float]:
    """Where its network is asked, from low to high."""
    levels: list[float] = student.grid.sigmas[:-1].tolist()
    return levels[student.afs is not None :][::-1]


def own_samples(teacher: Denoiser, count: int, seed: int, batch_size: int, meter: Meter) -> Pictures:
    """Clean states: of a model of latents, latents."""
    made = sample(
        teacher.replace(codec=None), count, calls=QUICK, seed=seed, batch_size=batch_size, progress=meter.part(QUICK)
    )
    return Pictures(made, chosen_labels(teacher, seed, range(count), None))


def noised(images: Tensor, sigmas: Sequence[float], seed: int) -> Tensor:
    """(levels, N, ...), with other noise at each level, and other than what samples of this seed came from; at sigma = inf the
    noise alone, which is what a denoiser takes there."""
    states = []
    for level, sigma in enumerate(as_sigma(list(sigmas)).tolist()):
        noise = seeds.ImageNoise(seeds.mix(seed, 1 + level), range(len(images)), images.shape[1:])()
        states.append(noise if sigma == float("inf") else images.float() + sigma * noise)
    return torch.stack(states)
