"""Distances of features: against hand-made ones, for networks of every kind, without a trace in the network; LPIPS and its file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import onefold
import pipelines
import small
from edm_pickles import TINY
from onefold import seeds
from onefold.codec import Codec
from onefold.conditions import Conditions
from onefold.denoiser import Denoiser, Gaussian
from onefold.errors import UserError
from onefold.networks.edm import build_edm
from onefold.networks.unet import call_unet
from onefold.perceptual import Lpips, TeacherFeatures, load_lpips, make_perceptual
from onefold.process import EDM, DiscreteVP, Flow, beta_table, zero_terminal_snr
from onefold.teachers import texts
from onefold.teachers.dit import call_dit

VP = DiscreteVP.from_betas(beta_table("linear"))
SIGMA = 0.1


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeds.generator(seed))


def two_layers() -> nn.Module:
    with seeds.drawing(0):
        return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.SiLU(), nn.Conv2d(3, 2, 3, padding=1))


def call_without_time(network: Any, z: Tensor, time: Tensor, cond: Conditions) -> Tensor:
    output: Tensor = network(z)
    return output


def plain(network: nn.Module | None = None, **more: Any) -> Denoiser:
    """A denoiser whose network hears no time."""
    settings = {"prediction": "x0", "shape": (2, 4, 4), "call": call_without_time, **more}
    return Denoiser(network or two_layers(), settings.pop("process", VP), **settings)


def pixel() -> Denoiser:
    return Denoiser(pipelines.pixel_unet(3), VP, prediction="eps", shape=(3, 8, 8), call=call_unet)


def text() -> Denoiser:
    call = partial(texts.call_unet, widths={"encoder_hidden_states": 16})
    return Denoiser(pipelines.text_unet(), VP, prediction="eps", shape=(4, 8, 8), call=call)


def edm() -> Denoiser:
    network = build_edm("SongUNet", {**TINY, "channel_mult": [1, 2, 2], "num_blocks": 2, "label_dim": 3})
    return Denoiser(network, EDM(), prediction="edm", shape=(3, 8, 8), classes=3)


def dit() -> Denoiser:
    network = pipelines.dit_pipeline(classes=5).transformer
    return Denoiser(network, VP, prediction="eps", shape=(4, 8, 8), call=call_dit, classes=5)


LABELS = {"labels": torch.tensor([0, 2])}
KINDS: dict[str, tuple[Callable[[], Denoiser], Conditions, list[str]]] = {
    "pixel U-Net": (pixel, {}, ["down_blocks.0", "down_blocks.1", "mid_block"]),
    "text U-Net": (
        text,
        {"encoder_hidden_states": noise(2, 12, 16, seed=9)},
        ["down_blocks.0", "down_blocks.1", "mid_block"],
    ),
    "EDM": (edm, LABELS, ["enc.8x8_block1", "enc.4x4_block1", "enc.2x2_block1"]),
    "DiT": (dit, LABELS, ["transformer_blocks.0", "transformer_blocks.1"]),
}


def build(kind: str) -> tuple[Denoiser, Conditions, list[str]]:
    make, cond, layers = KINDS[kind]
    with seeds.drawing(0):
        return make(), cond, layers


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


# A teacher's features


def test_distance_is_that_of_a_hand_computation() -> None:
    denoiser = plain()
    first, _, second = denoiser.network
    a, b = noise(3, 2, 4, 4), noise(3, 2, 4, 4, seed=1)

    def by_hand(x: Tensor) -> list[Tensor]:
        inner = first(x / (1 + SIGMA**2) ** 0.5)
        outer = second(inner * inner.sigmoid())
        return [f / f.square().sum(1, keepdim=True).sqrt() for f in (inner, outer)]

    expected = sum((((u - v) ** 2).sum(1)).mean() for u, v in zip(by_hand(a), by_hand(b), strict=True)) / 2
    torch.testing.assert_close(TeacherFeatures(denoiser, SIGMA, ["0", "2"])(a, b), expected)


def test_tokens_have_their_channels_last() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(4, 5)])

        def forward(self, z: Tensor) -> Tensor:
            tokens = self.blocks[0](z.flatten(2))
            return z + tokens.mean()

    denoiser = plain(Tokens())
    a, b = noise(3, 2, 2, 2), noise(3, 2, 2, 2, seed=1)
    u, v = (F.normalize(denoiser.network.blocks[0](x.flatten(2) / (1 + SIGMA**2) ** 0.5), dim=2) for x in (a, b))
    torch.testing.assert_close(TeacherFeatures(denoiser, SIGMA)(a, b), ((u - v) ** 2).sum(2).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_every_kind_have_usual_layers(kind: str) -> None:
    denoiser, cond, layers = build(kind)
    distance = TeacherFeatures(denoiser, SIGMA)
    assert distance.layers == tuple(layers)
    a, b = noise(2, *denoiser.shape), noise(2, *denoiser.shape, seed=1)
    output = a.clone().requires_grad_()
    value = distance(output, b.requires_grad_(), cond)
    assert value.shape == ()
    assert value.dtype == torch.float32
    value.backward()
    assert 0 < float(value.detach()) < 4  # unit vectors
    assert float(output.grad.abs().sum()) > 0
    assert b.grad is None
    assert all(parameter.grad is None for parameter in denoiser.module.parameters())
    assert float(distance(a, a, cond)) == 0
    torch.testing.assert_close(distance(b, a, cond), value)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 28])
def test_three_depths_of_a_transformer(count: int) -> None:
    network = nn.Module()
    network.blocks = nn.ModuleList(nn.Identity() for _ in range(count))
    network.weight = nn.Parameter(torch.zeros(1))
    expected = {1: [0], 2: [0, 1], 3: [0, 1, 2], 4: [1, 2, 3], 28: [9, 18, 27]}[count]
    assert TeacherFeatures(plain(network), SIGMA).layers == tuple(f"blocks.{depth}" for depth in expected)


def test_conditions_change_the_distance() -> None:
    denoiser, cond, _ = build("text U-Net")
    distance = TeacherFeatures(denoiser, SIGMA)
    a, b = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
    assert float(distance(a, b, cond)) != float(distance(a, b, {name: -5 * value for name, value in cond.items()}))


def test_network_is_left_as_it_was() -> None:
    network = nn.Sequential(two_layers(), nn.Dropout(0.5)).train()
    network[0][0].requires_grad_(False)
    denoiser = plain(network)
    a = noise(2, 2, 4, 4).requires_grad_()
    value = TeacherFeatures(denoiser, SIGMA, ["1"])(a, a.detach())
    assert float(value.detach()) == 0  # nothing was dropped
    assert all(module.training for module in network.modules())
    assert [parameter.requires_grad for parameter in network.parameters()] == [False, False, True, True]
    assert hooks(network) == 0


def test_no_hook_outlives_an_error() -> None:
    class Fails(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            raise RuntimeError("out of order")

    network = nn.Sequential(nn.Conv2d(2, 2, 1), Fails()).train()
    with pytest.raises(RuntimeError, match="out of order"):
        TeacherFeatures(plain(network), SIGMA, ["0", "1"])(noise(2, 2, 4, 4), noise(2, 2, 4, 4))
    assert hooks(network) == 0
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_calls_are_counted_and_guidance_makes_no_more() -> None:
    teacher = small.teacher().replace(guidance=3.0)
    teacher.network.inner[2] = asked = Counted(teacher.network.inner[2])
    distance = TeacherFeatures(teacher, SIGMA, ["inner.0", "inner.1"])
    distance(noise(2, 1, 8, 8), noise(2, 1, 8, 8, seed=1), LABELS)
    assert teacher.calls == 2
    assert asked.count == 0  # what comes after the last layer is not needed


class Counted(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.count = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        output: Tensor = self.inner(x)
        return output


def test_dead_features_give_a_finite_gradient() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU())
    nn.init.constant_(network[0].bias, -100.0)
    output = noise(2, 2, 4, 4).requires_grad_()
    TeacherFeatures(plain(network), SIGMA, ["1"])(output, noise(2, 2, 4, 4, seed=1)).backward()
    assert bool(output.grad.isfinite().all())


def test_low_precision_ends_in_float32() -> None:
    a, b = noise(2, 2, 4, 4), noise(2, 2, 4, 4, seed=1)
    exact, coarse = (TeacherFeatures(plain(precision=p), SIGMA, ["0"])(a, b) for p in ("fp32", "bf16"))
    assert coarse.dtype == torch.float32
    assert float(exact) != float(coarse)
    torch.testing.assert_close(coarse, exact, rtol=0.02, atol=0)


def test_level_is_one_that_the_network_knows() -> None:
    assert TeacherFeatures(plain(), VP.sigma_min, ["0"]).sigma == VP.sigma_min
    printed = float(f"{VP.sigma_min:.6g}")
    assert TeacherFeatures(plain(), printed, ["0"]).sigma >= VP.sigma_min
    whole = TeacherFeatures(plain(continuous_time=False), SIGMA, ["0"])
    assert float((VP.sigmas - whole.sigma).abs().min()) < 1e-12
    assert whole.sigma == pytest.approx(SIGMA, rel=0.1)
    whole(noise(2, 2, 4, 4), noise(2, 2, 4, 4))
    dark = DiscreteVP(zero_terminal_snr(VP.alphas_cumprod))
    highest = TeacherFeatures(plain(process=dark, continuous_time=False), dark.sigma_top, ["0"]).sigma
    assert highest == pytest.approx(dark.sigma_top)


@pytest.mark.parametrize(
    ("process", "sigma"), [(EDM(), 0.001), (EDM(), 100.0), (VP, 0.0), (Flow(), float("inf")), (VP, float("nan"))]
)
def test_level_outside_the_process_is_refused(process: Any, sigma: float) -> None:
    with pytest.raises(UserError, match="knows levels from .* choose one"):
        TeacherFeatures(plain(process=process), sigma, ["0"])


def test_networks_without_usual_layers_are_refused() -> None:
    with pytest.raises(UserError, match=r"a Sequential is no U-Net .* layers=\[...\]"):
        TeacherFeatures(plain(), SIGMA)
    with pytest.raises(UserError, match="no layer '7' to take features from"):
        TeacherFeatures(plain(), SIGMA, ["0", "7"])
    with pytest.raises(UserError, match="empty list"):
        TeacherFeatures(plain(), SIGMA, [])
    with pytest.raises(UserError, match="no trainable network"):
        TeacherFeatures(Gaussian(torch.zeros(2, 4, 4), 1.0), SIGMA)


def test_layers_without_features_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two, self.unused = Two(), nn.Identity()

        def forward(self, z: Tensor) -> Tensor:
            first: Tensor = self.two(z)[0]
            return first

    a = noise(1, 2, 4, 4)
    with pytest.raises(UserError, match="'two' does not give one tensor"):
        TeacherFeatures(plain(Odd()), SIGMA, ["two"])(a, a)
    with pytest.raises(UserError, match="'unused' was not asked"):
        TeacherFeatures(plain(Odd()), SIGMA, ["unused"])(a, a)


class Two(nn.Module):
    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z, z


def test_distance_grows_with_noise_and_blur() -> None:
    teacher = onefold.load_teacher("digits8", device="cpu")
    labels = {"labels": torch.arange(10)}
    images = onefold.sample(teacher, 10, calls=8, seed=0, labels=range(10))
    distance = TeacherFeatures(teacher, 0.1)
    dirt = noise(*images.shape, seed=1)
    noisy = [float(distance(images + share * dirt, images, labels)) for share in (0.05, 0.2, 0.5)]
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blurred = [float(distance(torch.lerp(images, soft, share), images, labels)) for share in (0.2, 0.5, 1.0)]
    assert 0 < noisy[0] < noisy[1] < noisy[2]
    assert 0 < blurred[0] < blurred[1] < blurred[2]


# LPIPS


def vgg() -> nn.Sequential:
    """VGG16's convolutions, in its own places."""
    layers: list[nn.Module] = []
    width = 3
    for wide in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        layers += [nn.MaxPool2d(2)] if not wide else [nn.Conv2d(width, wide, 3, padding=1), nn.ReLU()]
        width = wide or width
    return nn.Sequential(*layers)


ENDS = {3: 1, 8: 2, 15: 3, 22: 4, 29: 5}  # the ReLU after which a slice ends


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    generator = seeds.generator(0)
    found = {}
    for name, tensor in vgg().state_dict().items():
        place = int(name.partition(".")[0])
        number = next(number for end, number in ENDS.items() if place <= end)
        fan = tensor[0].numel() if tensor.ndim > 1 else 100
        found[f"net.slice{number}.{name}"] = torch.randn(tensor.shape, generator=generator) * (2 / fan) ** 0.5
    for number, width in enumerate((64, 128, 256, 512, 512)):
        found[f"lin{number}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    return found


def straight(state: dict[str, Tensor], a: Tensor, b: Tensor, pool: type[nn.Module] = nn.MaxPool2d) -> Tensor:
    """Of images in [-1, 1] of the full size."""
    network = vgg()
    network.load_state_dict({name.split(".", 2)[2]: value for name, value in state.items() if name.startswith("net.")})
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    a, b, total = (a - shift) / scale, (b - shift) / scale, torch.zeros(())
    for place, layer in enumerate(network):
        layer = pool(2) if isinstance(layer, nn.MaxPool2d) else layer
        a, b = layer(a), layer(b)
        if place in ENDS:
            off = F.normalize(a, dim=1) - F.normalize(b, dim=1)
            total = total + F.conv2d(off**2, state[f"lin{ENDS[place] - 1}.model.1.weight"]).mean()
    return total


@pytest.mark.parametrize(("pooling", "pool"), [("max", nn.MaxPool2d), ("average", nn.AvgPool2d)])
def test_lpips_is_that_of_a_straight_computation(state: dict[str, Tensor], pooling: Any, pool: type[nn.Module]) -> None:
    a, b = (noise(2, 3, 32, 32, seed=seed).clamp(-1, 1) for seed in (0, 1))
    output = a.clone().requires_grad_()
    distance = Lpips(state, size=32, pooling=pooling)
    value = distance(output, b)
    torch.testing.assert_close(value, straight(state, a, b, pool), rtol=1e-4, atol=0)
    value.backward()
    assert bool(output.grad.isfinite().all())
    assert float(output.grad.abs().sum()) > 0
    assert float(distance(a, a)) == 0
    torch.testing.assert_close(distance(b, a), value)


def test_lpips_takes_other_ranges_sizes_and_grey(state: dict[str, Tensor]) -> None:
    distance = Lpips(state, size=32)
    a, b = (noise(1, 1, 12, 16, seed=seed).clamp(-1, 1) for seed in (0, 1))
    value = distance(a, b)
    enlarged = (F.interpolate(x, (32, 43), mode="bilinear").repeat(1, 3, 1, 1) for x in (a, b))
    torch.testing.assert_close(value, straight(state, *enlarged), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        Lpips(state, size=32, range=(0, 255))(127.5 * (a + 1), 127.5 * (b + 1)), value, rtol=1e-3, atol=0
    )
    for channels in (2, 4):
        with pytest.raises(UserError, match=f"1 or 3 channels, not {channels}"):
            distance(noise(1, channels, 8, 8), noise(1, channels, 8, 8))


def test_lpips_file_round_trip(state: dict[str, Tensor], tmp_path: Path) -> None:
    """With what else the original's state holds."""
    place = tmp_path / "lpips.safetensors"
    also = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "lins.0.model.1.weight": torch.ones(1, 64, 1, 1)}
    save_file({**state, **also}, place)
    a, b = noise(1, 3, 16, 16), noise(1, 3, 16, 16, seed=1)
    read = load_lpips(place, size=16, pooling="average")(a, b)
    assert float(read) == float(Lpips(state, size=16, pooling="average")(a, b))


def test_what_is_no_lpips_file_is_told(state: dict[str, Tensor], tmp_path: Path) -> None:
    place = tmp_path / "lpips.safetensors"
    with pytest.raises(
        UserError, match=r"perceptual weights missing: .*lpips\.safetensors does not exist; .*save_file"
    ):
        load_lpips(place)
    torch.save({"lin0": torch.zeros(1)}, place)
    with pytest.raises(UserError, match="is no safetensors file .*save_file"):
        load_lpips(place)
    with pytest.raises(UserError, match="is no safetensors file"):
        load_lpips(tmp_path)
    save_file({"conv.weight": torch.zeros(1)}, place)
    with pytest.raises(UserError, match=r"it lacks net\.slice1\.0\.weight, expected \[64, 3, 3, 3\]; .*save_file"):
        load_lpips(place)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("lin4.model.1.weight", torch.ones(1, 256, 1, 1), r"lin4.* as \[1, 256, 1, 1\], expected \[1, 512, 1, 1\]"),
        ("lin5.model.1.weight", torch.ones(1), "has lin5.model.1.weight, which that does not know"),
        ("lin1.model.1.weight", torch.full((1, 128, 1, 1), -1.0), "weights below 0"),
        ("net.slice1.0.bias", torch.full((64,), torch.nan), "NaN"),
    ],
)
def test_wrong_tensors_are_told(state: dict[str, Tensor], name: str, value: Tensor, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Lpips({**state, name: value})


def test_wrong_settings_are_told(state: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match="size is 8"):
        Lpips(state, size=8)
    with pytest.raises(UserError, match="low end first"):
        Lpips(state, range=(1, -1))
    with pytest.raises(UserError, match="pooling is 'mean'"):
        Lpips(state, pooling="mean")  # type: ignore[arg-type]


# By name


def test_distances_are_made_by_name(state: dict[str, Tensor], tmp_path: Path) -> None:
    denoiser = pixel()
    assert make_perceptual("none", denoiser, sigma=SIGMA) is None
    made = make_perceptual("teacher", denoiser, sigma=SIGMA, layers=["mid_block"])
    assert isinstance(made, TeacherFeatures)
    assert made.layers == ("mid_block",)
    save_file(state, tmp_path / "w.safetensors")
    made = make_perceptual("lpips", denoiser, sigma=SIGMA, lpips_weights=tmp_path / "w.safetensors")
    assert isinstance(made, Lpips)
    with pytest.raises(UserError, match="perceptual weights missing"):
        make_perceptual("lpips", denoiser, sigma=SIGMA)
    with pytest.raises(UserError, match="did you mean 'lpips'"):
        make_perceptual("lpip", denoiser, sigma=SIGMA)  # type: ignore[arg-type]


def test_lpips_is_refused_for_what_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 or 3 channels, not 2"):
        make_perceptual("lpips", plain(), sigma=SIGMA, lpips_weights=tmp_path)
    codec = Codec(nn.Identity(), (3, 8, 8), nn.Identity(), nn.Identity())
    with pytest.raises(UserError, match="gives latents"):
        make_perceptual("lpips", pixel().replace(codec=codec), sigma=SIGMA, lpips_weights=tmp_path)
