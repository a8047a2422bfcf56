"""SFDDM in the plane, section 4.2 of its specification: a ring of eight Gaussians, a small network that learnt it, and students.

Plain SFDDM comes as near to the data as its teacher's DDIM on the same steps, and no nearer; with a roll-out as the target it does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onefold.denoiser import Denoiser, GaussianMixture
from onefold.grids import subsequence
from onefold.losses import root_mean_square
from onefold.methods.chain import LEVEL
from onefold.methods.sfddm import SFDDM, SFDDMSettings
from onefold.process import DiscreteVP, beta_table, from_x0
from onefold.sampling import sample
from onefold.settings import build
from onefold.teachers.own import with_form
from onefold.training.contract import Batch

ANGLES = torch.arange(8, dtype=torch.float64) * math.pi / 4
RING = 0.7 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1).reshape(8, 1, 1, 2)
DATA = GaussianMixture(RING, 0.05)
LINEAR = DiscreteVP.from_betas(beta_table("linear", 1024))
SHAPE, COUNT = (1, 1, 2), 4096


class Sinusoid(nn.Module):
    """Of a time from 0 to 1023, at 32 frequencies from 1 down to 1/1000."""

    def forward(self, time: Tensor) -> Tensor:
        angle = time.float().unsqueeze(1) * torch.logspace(0, -3, 32)
        return torch.cat([angle.sin(), angle.cos()], 1)


class Plane(nn.Module):
    """An MLP of three layers that reads the time as U-Nets do."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.time_proj = Sinusoid()
        self.time_embedding = nn.ModuleDict({"linear_1": nn.Linear(64, width)})
        self.first, self.last = nn.Linear(2, width), nn.Linear(width, 2)
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        heard = self.time_embedding["linear_1"](self.time_proj(time))
        state = nn.functional.silu(self.first(z.flatten(1)) + heard)
        for layer in self.hidden:
            state = nn.functional.silu(layer(state) + heard)
        out: Tensor = self.last(state)
        return out.reshape(z.shape)


def drawn(count: int, seed: int) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return DATA.draw(count, generator)[0].float(), generator


def taught(steps: int, size: int) -> Denoiser:
    """By denoising score matching, as a v-prediction; the rate falls to nothing."""
    torch.manual_seed(0)
    network = Plane()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    images, generator = drawn(steps * size, 0)
    for step, x0 in enumerate(images.split(size)):
        index = torch.randint(1024, (size,), generator=generator)
        z, (a, b) = torch.randn(size, *SHAPE, generator=generator), LINEAR.scales(LINEAR.sigmas[index])
        a, b = (scale.float().reshape(-1, 1, 1, 1) for scale in (a, b))
        noised = a * x0 + b * z
        loss = (network(noised, index) - from_x0("v", x0, noised, a, b)).square().mean()
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    teacher = Denoiser(network.eval().requires_grad_(False), LINEAR, prediction="v", shape=SHAPE)
    teacher.name = "plane"
    return with_form(teacher)


def points(folder: Path) -> str:
    """The ring as a file of pictures of two pixels, which the settings ask for; training draws its own."""
    images = (drawn(64, 9)[0].clamp(-1, 1) * 127.5 + 127.5).round().byte()[:, 0]
    np.savez(folder / "ring.npz", images=images.numpy())
    return str(folder / "ring.npz")


def student(teacher: Denoiser, folder: Path, **settings: Any) -> SFDDM:
    paper = {"preset": "paper", "data": points(folder), "batch_size": 128, "lr": 2e-3, "time_lr": 1.0}
    return SFDDM(teacher, build(SFDDMSettings, {"teacher": "plane", "out": "x", **paper, **settings}))


def batches(method: SFDDM, steps: int, size: int) -> Iterator[Batch]:
    images, generator = drawn(steps * size, 1)
    for step, x0 in enumerate(images.split(size)):
        level = torch.randint(len(method.levels), (size,), generator=generator)
        z = torch.randn(size, *SHAPE, generator=generator)
        yield Batch(step, step / steps, {"images": x0, "z": z, LEVEL: level})


def train(method: SFDDM, steps: int, size: int = 128) -> None:
    optimizer = method.optimizers["main"]
    for batch in batches(method, steps, size):
        for update in method.updates(batch):
            for group in optimizer.param_groups:
                group["lr"] = method.learning_rate("main", 0, batch.progress) * group.get("scale", 1.0)
            optimizer.zero_grad()
            update.loss.backward()
            optimizer.step()


def sliced(images: Tensor) -> float:
    """Sliced Wasserstein-2 to the data, over 64 directions."""
    angle = torch.arange(64, dtype=torch.float64) * math.pi / 64
    directions = torch.stack([angle.cos(), angle.sin()])
    one, other = (each.double().flatten(1) @ directions for each in (images, drawn(len(images), 5)[0]))
    return float((one.sort(0).values - other.sort(0).values).square().mean().sqrt())


def images_of(method: SFDDM) -> Tensor:
    network = {**method.networks, "student": method.networks["student"].eval()}
    return method.as_student(network).sample(COUNT, seed=3, batch_size=COUNT)


def strided(teacher: Denoiser, phi: Any) -> Tensor:
    grid = subsequence(LINEAR, list(phi))
    images: Tensor = sample(teacher, COUNT, seed=3, solver="euler", grid=grid, batch_size=COUNT)
    return images


@pytest.fixture(scope="module")
def teacher() -> Denoiser:
    return taught(900, 256)


def test_the_teacher_knows_the_ring(teacher: Denoiser) -> None:
    """In 32 steps; in four it is far off."""
    fine, coarse = (sliced(strided(teacher, range(step, 1025, step))) for step in (32, 256))
    assert fine < 0.15 and coarse > 0.25 and sliced(drawn(COUNT, 7)[0]) < 0.05


def test_a_student_becomes_the_strided_teacher(teacher: Denoiser, tmp_path: Path) -> None:
    """Invariants 12 and 16: told its index, with the teacher's weights, on the same noise; and no nearer to the data."""
    method = student(teacher, tmp_path, calls=4)
    assert method.grid.phi == (256, 512, 768, 1024)
    aim = strided(teacher, method.grid.phi)
    apart = [root_mean_square(images_of(method), aim)]
    for _ in range(2):
        train(method, 150)
        apart.append(root_mean_square(images_of(method), aim))
    assert apart[0] > 3 * apart[1] and apart[1] > apart[2] and apart[2] < 0.04
    images = images_of(method)
    shuffled = root_mean_square(images[torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))], aim)
    assert shuffled > 5 * apart[2]
    assert sliced(images) == pytest.approx(sliced(aim), rel=0.1)


def test_a_roll_out_goes_beyond_it(teacher: Denoiser, tmp_path: Path) -> None:
    """Invariant 16: with 16 teacher steps in each of its four, at most half of the strided teacher's distance to the data."""
    method = student(teacher, tmp_path, calls=4, parts=16, begin="folded", weight="truncated")
    aim = strided(teacher, method.grid.phi)
    assert root_mean_square(images_of(method), aim) < 1e-5
    train(method, 80)
    assert sliced(images_of(method)) < 0.5 * sliced(aim)


@pytest.mark.slow
@pytest.mark.parametrize("calls", [4, 16])
def test_students_at_full_length(calls: int, tmp_path: Path) -> None:
    """Section 4.2 with its settings: teacher's weights and own index, 4,000 batches of 256; roll-outs 3,000."""
    teacher = taught(4000, 256)
    plain = student(teacher, tmp_path, calls=calls, batch_size=256)
    further = student(teacher, tmp_path, calls=calls, batch_size=256, parts=16, begin="teacher", weight="truncated")
    aim = strided(teacher, plain.grid.phi)
    train(plain, 4000, 256)
    train(further, 3000, 256)
    images = images_of(plain)
    found = {"strided": sliced(aim), "plain": sliced(images), "roll-out": sliced(images_of(further))}
    print(found, "RMS to strided", root_mean_square(images, aim))
    assert found["plain"] == pytest.approx(found["strided"], rel=0.1)
    assert found["roll-out"] < (0.5 if calls == 4 else 1.0) * found["strided"]
