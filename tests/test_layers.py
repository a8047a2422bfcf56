"""`onefold inspect --layers`: how active each block of a network is, and what a student changed in it."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from PIL import Image
from torch import Tensor, nn

import pipelines
from edm_pickles import TINY
from onefold.bench.layers import Activity, activity, changes, inspect_layers, noised, residuals
from onefold.bench.plots import short
from onefold.cli import main
from onefold.denoiser import Denoiser, GaussianMixture
from onefold.errors import UserError
from onefold.grids import make_grid
from onefold.networks.edm import build_edm
from onefold.networks.edm_layers import Block, Style
from onefold.process import EDM
from onefold.student import Student
from onefold.teachers import load_teacher

X = torch.randn(6, 8, 4, 4, generator=torch.Generator().manual_seed(0))
RMS = float(X.square().mean().sqrt())


def around(network: nn.Module, call: Any = None) -> Denoiser:
    """Reads x0 from a network that sees the state as it is and sigma as its time."""
    made = Denoiser(network, EDM(), prediction="x0", shape=X.shape[1:], call=call or (lambda net, z, time, _: net(z)))
    made.name = "toy"
    return made.replace(process=PlainProcess())


class PlainProcess(EDM):
    """The network sees x itself."""

    def alpha(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)


def activity_of(module: nn.Module, states: Tensor = X, **how: Any) -> Activity:
    return activity(around(module, **how), states[None], [1.0], batch_size=4)


# --- closed forms -----------------------------------------------------------------------------------------------------


class Grow(nn.Module):
    """y = x + share x, told with other tensors before and after it."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.inner = share, nn.Identity()

    def forward(self, hidden_states: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        return told, self.inner(hidden_states) + self.share * told.reshape(-1, 1, 1, 1) * hidden_states


class Stack(nn.Module):
    def __init__(self, *shares: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(Grow, shares))
        self.norm_blocks = nn.ModuleList([nn.LayerNorm(4)])  # a layer is no block

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        for block in reversed(self.blocks):
            _, z = block(hidden_states=z, told=time)
        return self.norm_blocks[0](z)


def test_plain_blocks_have_the_ratio_that_they_were_made_with() -> None:
    """The branch is share * time * x: blocks in the order in which they are asked, levels in the order given."""
    denoiser = around(Stack(0.5, 0.125), lambda network, z, time, _: network(z, time))
    sigmas = [0.25, 2.0, 8.0]
    seen = activity(denoiser, noised(X, sigmas, 0), sigmas, batch_size=4)
    times = denoiser.process.time(torch.tensor(sigmas, dtype=torch.float64))
    assert seen.names == ("blocks.1", "blocks.0") and seen.sigmas == tuple(sigmas)
    wanted = torch.tensor([0.125, 0.5], dtype=torch.float64)[:, None] * times.abs()
    assert torch.allclose(seen.matrix, wanted, rtol=1e-5)
    assert seen.of("blocks.2") is None and not denoiser.network.blocks[0]._forward_hooks


class One(nn.Module):
    """A network of one block."""

    def __init__(self, block: nn.Module, *told: Any) -> None:
        super().__init__()
        self.inner, self.told = block, told

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, *(torch.zeros(len(x), one) if one else None for one in self.told))


@torch.no_grad()
def constant(layer: Any, value: float) -> None:
    layer.weight.zero_()
    layer.bias.fill_(value)


@pytest.mark.parametrize("scale", [1.0, math.sqrt(2)])
def test_resnets_of_diffusers(scale: float) -> None:
    """A branch that is 0.3 everywhere over what passes: x, twice x through a convolution, x made larger or smaller."""
    how: dict[str, Any] = {"in_channels": 8, "temb_channels": 5, "groups": 4, "output_scale_factor": scale}
    plain, larger, smaller = ResnetBlock2D(**how), ResnetBlock2D(**how, up=True), ResnetBlock2D(**how, down=True)
    wide = ResnetBlock2D(**how, out_channels=16)
    with torch.no_grad():
        wide.conv_shortcut.weight.copy_(2 * torch.eye(8).repeat(2, 1)[:, :, None, None])
        wide.conv_shortcut.bias.zero_()
    shrunk = float(nn.functional.avg_pool2d(X, 2).square().mean().sqrt())
    for block, passed in ((plain, RMS), (wide, 2 * RMS), (larger, RMS), (smaller, shrunk)):
        constant(block.conv2, 0.3)
        seen = activity_of(Cut(One(block, 5)))
        assert seen.names == ("inner.inner",)
        assert float(seen.matrix) == pytest.approx(0.3 / passed, rel=1e-5)


class Cut(nn.Module):
    """Gives the state back, whatever the shape of what is inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        self.inner(x)
        return x


def test_attention_of_diffusers() -> None:
    block = Attention(8, heads=2, dim_head=4, residual_connection=True, rescale_output_factor=2.0, norm_num_groups=4)
    constant(block.to_out[0], -0.7)
    seen = activity_of(One(block))
    assert seen.names == ("inner",) and float(seen.matrix) == pytest.approx(0.7 / RMS, rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, math.sqrt(0.5)])
@pytest.mark.parametrize("width", [8, 12])
def test_edm_blocks_and_their_attention(scale: float, width: int) -> None:
    """Sums are scaled: the branches are 0.3 and 0.2 everywhere, the second over what the first sum left."""
    style = Style(5, (1, 1), 0.0, 1e-5, scale, False, False, 4, "adm")
    block = Block(8, width, style, attention=True)
    constant(block.conv1, 0.3)
    constant(block.proj, 0.2)
    skip = X if block.skip is None else block.skip(X).detach()
    seen = activity_of(Cut(One(block, 5)))
    size = float(skip.square().mean().sqrt())
    middle = scale * float((skip + 0.3).square().mean().sqrt())
    assert seen.names == ("inner.inner", "inner.inner.attention")
    assert seen.matrix.flatten().tolist() == pytest.approx([0.3 / size, 0.2 / middle], rel=1e-5)


# --- networks ---------------------------------------------------------------------------------------------------------


def names_of(network: nn.Module) -> list[str]:
    return [one.name for one in residuals(network)]


def test_blocks_are_found_in_every_family() -> None:
    song = build_edm("SongUNet", TINY)
    assert "dec.4x4_block1.attention" in names_of(song) and len(names_of(song)) == 11 + 3 - 1
    assert names_of(build_edm("DhariwalUNet", TINY))
    assert names_of(pipelines.dit_pipeline().transformer) == ["transformer_blocks.0", "transformer_blocks.1"]
    texts = names_of(pipelines.text_unet())
    assert "down_blocks.0.attentions.0" in texts and not any("transformer" in name for name in texts)
    assert short("down_blocks.1.attentions.0") == "down.1.attn.0" and short("enc.8x8_block0") == "enc.8x8_block0"


def test_transformers_run() -> None:
    def call(network: Any, z: Tensor, time: Tensor, _: Any) -> Tensor:
        labels = torch.zeros(len(z), dtype=torch.long)
        return network(z, timestep=time, class_labels=labels).sample[:, :4]

    states = torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    seen = activity(around(pipelines.dit_pipeline().transformer, call), states, [1.0])
    assert seen.names == ("transformer_blocks.0", "transformer_blocks.1") and bool((seen.matrix > 0).all())


def test_networks_without_blocks_and_broken_ones_are_told() -> None:
    for denoiser in (around(nn.Conv2d(8, 8, 1)), GaussianMixture(torch.zeros(1, 8, 4, 4), 0.1)):
        with pytest.raises(UserError, match="no residual block is found"):
            activity(denoiser, X[None], [1.0])
    with pytest.raises(UserError, match="block 'blocks.0' of 'toy' gives NaN"):
        activity(around(Stack(math.nan), lambda network, z, time, _: network(z, time)), X[None], [1.0])


# --- teachers and students --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher() -> Denoiser:
    return load_teacher("digits8", device="cpu")


CHANGED = "mid_block.resnets.1"


@pytest.fixture(scope="module")
def pupil(teacher: Denoiser) -> Student:
    """One block's last layer is doubled, and nothing else is changed."""
    network = copy.deepcopy(teacher.module)
    layer = network.get_submodule(f"{CHANGED}.conv2")
    with torch.no_grad():
        for weight in layer.parameters():
            weight.mul_(2)
    recipe = {"method": "none", "teacher": {"name": "digits8", "sha256": teacher.card["sha256"]}}
    grid = make_grid("quadratic", teacher.process, 2)
    return Student(teacher.replace(network=network, name="pupil"), grid, None, recipe)


def test_a_teacher_over_its_levels(teacher: Denoiser) -> None:
    found = inspect_layers(teacher, count=4)
    assert found.activity.matrix.shape == (12, 12) and found.before is None and found.data is None
    assert found.activity.sigmas[0] == teacher.process.sigma_min
    assert found.activity.sigmas[-1] == pytest.approx(teacher.process.sigma_max)
    assert found.activity.names[0] == "down_blocks.0.resnets.0" and found.activity.names[-1] == "up_blocks.1.resnets.1"
    assert found.activity.matrix.equal(inspect_layers(teacher, count=4).activity.matrix)
    assert not found.activity.matrix.equal(inspect_layers(teacher, count=4, seed=1).activity.matrix)


def test_a_student_beside_its_teacher(pupil: Student) -> None:
    """The branch is twice as large, after what is unchanged and before what follows."""
    found = inspect_layers(pupil, "digits", count=6, device="cpu")
    assert found.teacher == "digits8" and found.before is not None and found.changed is not None
    assert found.activity.sigmas == tuple(pupil.grid.sigmas[:-1].flip(0).tolist())
    ratio = found.activity.matrix / found.before.matrix
    place = found.activity.names.index(CHANGED)
    assert torch.allclose(ratio[:place], torch.ones(1, dtype=torch.float64), rtol=1e-5)
    assert torch.allclose(ratio[place], torch.full((2,), 2.0, dtype=torch.float64), rtol=1e-5)
    assert not torch.allclose(ratio[place + 1], torch.ones(1, dtype=torch.float64), rtol=1e-3)
    block = pupil.denoiser.module.get_submodule(CHANGED)
    doubled = sum(weight.numel() for weight in block.get_submodule("conv2").parameters())
    share = doubled / sum(weight.numel() for weight in block.parameters())
    assert {name: value for name, value in found.changed.blocks.items() if value} == {CHANGED: share}
    assert found.changed.elsewhere == 0
    assert found.changed.whole == doubled / sum(weight.numel() for weight in pupil.denoiser.module.parameters())


def test_changed_weights_belong_to_the_nearest_block() -> None:
    network = build_edm("SongUNet", {**TINY, "channel_mult": [1, 2]})
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.get_parameter("enc.4x4_block0.qkv.weight").add_(1)
        other.map_layer0.weight.add_(1)
    found = changes(other, network, residuals(network))
    assert [name for name, share in found.blocks.items() if share] == ["enc.4x4_block0.attention"]
    assert 0 < found.elsewhere < 1
    wide = build_edm("SongUNet", {**TINY, "model_channels": 16})
    assert (
        changes(wide, network, residuals(wide)).whole > 0.99
    )  # but for what has the same shape and value, such as out biases


def test_a_student_of_one_call_is_looked_at_where_it_is_asked(teacher: Denoiser, pupil: Student) -> None:
    grid = make_grid("quadratic", teacher.process, 1)
    one = Student(pupil.denoiser, grid, None, pupil.recipe)
    assert inspect_layers(one, count=2).activity.sigmas == (float(grid.sigmas[0]),)


def test_at_infinity_the_state_is_noise() -> None:
    clean = torch.full((3, 1, 4, 4), 9.0)
    states = noised(clean, [1.0, math.inf], 5)
    assert float(states[1].abs().max()) < 5 < float(states[0].mean())
    assert not torch.allclose(states[0] - clean, states[1])


def test_a_missing_matplotlib_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'onefold\[plot\]'"):
        inspect_layers("nowhere", out=tmp_path)


def test_the_command(pupil: Student, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pupil.save(tmp_path / "pupil")
    words = ["inspect", str(tmp_path / "pupil"), "--layers", "--count", "4", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "mid.resnet.1" in said and "frozen" in said and "Each cell: the teacher digits8" in said
    assert max(map(len, said.splitlines())) <= 120
    with Image.open(tmp_path / "out" / "layers.png") as picture:
        assert picture.format == "PNG"
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["layers"]
    assert found["changed"]["blocks"][CHANGED] > 0 and len(found["before"]["matrix"]) == 12
    assert main(["inspect", "digits8", "--layers", "--teacher", "digits8"]) == 2
    assert "is no student" in capsys.readouterr().err
    assert main(["inspect", "digits8", "--teacher", "digits8"]) == 2
    assert "for --layers or --spectrum" in capsys.readouterr().err
