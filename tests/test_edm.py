"""EDM networks against hand-computed values, published sizes and their checkpoints' names; checkpoints and their folders."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from edm_pickles import TINY, write
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.networks.edm import EDMNetwork, build_edm
from onefold.networks.edm_layers import Block, Conv, Fourier, Style, Waves
from onefold.networks.edm_plan import DDPMPP, NCSNPP
from onefold.process import EDM, VE, ContinuousVP, DiscreteVP, beta_table
from onefold.sampling import sample
from onefold.teachers.edm import (
    CARD,
    WEIGHTS,
    convert,
    edm_denoiser,
    load_edm_folder,
    read_checkpoint,
    save_edm,
)
from onefold.teachers.edm_process import EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond, preconditioning

DOUBLE = torch.float64
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm++": ("SongUNet", {}),
    "ncsn++": ("SongUNet", {k: v for k, v in NCSNPP.items() if k != "channel_mult"}),
    "skips": ("SongUNet", {"encoder_type": "skip", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1]}),
    "adm": ("DhariwalUNet", {"model_channels": 64}),
}


def tiny(kind: str, seed: int = 0, **changes: Any) -> EDMNetwork:
    """Every tensor random, so that no zero hides a mistake."""
    family, more = KINDS[kind]
    network = build_edm(family, {**TINY, **more, **changes})
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return network


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Sizes and names


def frozen(network: EDMNetwork) -> int:
    """Parameters of the blocks' 3x3 convolutions and attention outputs, the share that is known for each network."""
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    layers = [layer for block in blocks for layer in (block.conv0, block.conv1, getattr(block, "proj", None))]
    return sum(p.numel() for layer in layers if layer is not None for p in layer.parameters())


@pytest.mark.parametrize(
    ("family", "arguments", "millions", "share"),
    [
        ("SongUNet", {"img_resolution": 32, **DDPMPP}, 55.73, 0.8540),
        ("SongUNet", {"img_resolution": 32, **NCSNPP}, 56.40, 0.8440),
        ("SongUNet", {"img_resolution": 64, **NCSNPP, "channel_mult": (1, 2, 2, 2)}, 62.76, 0.8384),
        ("DhariwalUNet", {"img_resolution": 64, "label_dim": 1000}, 295.9, 0.7877),
    ],
)
def test_published_networks_have_their_published_sizes(
    family: str, arguments: dict[str, Any], millions: float, share: float
) -> None:
    with torch.device("meta"):
        network = build_edm(family, {"in_channels": 3, "out_channels": 3, **arguments})
    # the sizes are known without the augmentation's embedding
    count = sum(p.numel() for name, p in network.named_parameters() if name != "map_augment.weight")
    assert count / 1e6 == pytest.approx(millions, abs=0.05 if millions > 100 else 0.005)
    assert frozen(network) / count == pytest.approx(share, abs=5e-5)


def names(network: EDMNetwork) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_tensors_are_named_as_in_checkpoints() -> None:
    song = names(tiny("ncsn++", label_dim=10))
    assert song["map_noise.freqs"] == (8,)
    assert song["map_label.weight"] == (16, 10)
    assert song["map_label.bias"] == (16,)
    assert song["map_augment.weight"] == (16, 9)
    assert song["map_layer0.weight"] == (32, 16)
    assert song["enc.8x8_conv.weight"] == (8, 3, 3, 3)
    assert song["enc.4x4_down.conv0.resample_filter"] == song["enc.4x4_down.skip.resample_filter"] == (1, 1, 4, 4)
    assert song["enc.4x4_down.skip.weight"] == (8, 8, 1, 1)
    assert song["enc.4x4_aux_residual.weight"] == (8, 3, 3, 3)
    assert song["enc.4x4_block0.qkv.weight"] == (48, 16, 1, 1)
    assert song["dec.4x4_in0.proj.bias"] == (16,)
    assert song["dec.4x4_block1.affine.weight"] == (16, 32)
    assert song["dec.8x8_aux_norm.weight"] == (8,)
    assert song["dec.8x8_aux_conv.weight"] == (3, 8, 3, 3)
    assert "dec.4x4_block0.qkv.weight" not in song  # the decoder attends in a level's last block only
    adm = names(tiny("adm", label_dim=10))
    assert adm["map_label.weight"] == (256, 10)
    assert adm["enc.4x4_block0.affine.weight"] == (256, 256)
    assert adm["dec.4x4_block0.qkv.weight"] == (384, 128, 1, 1)
    assert adm["enc.4x4_down.skip.resample_filter"] == (1, 1, 2, 2)
    assert adm["out_conv.weight"] == (3, 64, 3, 3)
    assert not {"map_label.bias", "enc.4x4_down.skip.weight", "map_noise.freqs"} & adm.keys()
    skips = names(tiny("skips"))
    assert skips["enc.4x4_aux_down.resample_filter"] == skips["dec.8x8_aux_up.resample_filter"] == (1, 1, 4, 4)
    assert skips["enc.4x4_aux_skip.weight"] == (8, 3, 1, 1)
    assert skips["dec.4x4_aux_conv.weight"] == (3, 16, 3, 3)


# Layers by hand


def test_box_filters_are_means_and_repetitions() -> None:
    x = torch.randn(2, 3, 4, 4)
    blocks = x.reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
    assert torch.allclose(Conv(3, 3, 0, resample="down")(x), blocks)
    assert torch.equal(Conv(3, 3, 0, resample="up")(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_wide_filters_spread_an_impulse() -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 1] = 1
    row = torch.tensor([1.0, 3.0, 3.0, 1.0])
    larger = Conv(1, 1, 0, resample="up", taps=(1, 3, 3, 1))(x)
    expected = torch.zeros(8, 8)
    expected[1:5, 1:5] = torch.outer(row, row) / 16  # four times the mean-preserving filter
    assert torch.allclose(larger[0, 0], expected)
    smaller = Conv(1, 1, 0, resample="down", taps=(1, 3, 3, 1))(x)
    assert torch.allclose(smaller[0, 0], torch.tensor([[9.0, 3.0], [3.0, 1.0]]) / 64)


def test_filtering_after_a_convolution_is_one_operation_with_it() -> None:
    fused = Conv(2, 3, 3, resample="down", taps=(1, 3, 3, 1), fused=True)
    assert fused.weight is not None
    assert fused.bias is not None
    torch.nn.init.normal_(fused.weight)
    torch.nn.init.normal_(fused.bias)
    x = torch.randn(1, 2, 6, 6)
    padded = F.pad(x, (2, 2, 2, 2))
    whole = F.conv2d(padded, fused.weight)
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    mean = sum(row[i] * row[j] * whole[:, :, i : i + 5, j : j + 5] for i in range(4) for j in range(4))
    assert isinstance(mean, Tensor)
    assert torch.allclose(fused(x), mean[:, :, ::2, ::2] + fused.bias[:, None, None], atol=1e-5)


def test_times_become_waves() -> None:
    time = torch.tensor([0.7, -1.0], dtype=DOUBLE)
    cosines, sines = Waves(4, reaches=True)(time)
    assert torch.allclose(cosines, torch.stack([time.cos(), (time * 1e-4).cos()], 1))
    _, sines = Waves(4, reaches=False)(time)
    assert torch.allclose(sines, torch.stack([time.sin(), (time * 1e-2).sin()], 1))
    fourier = Fourier(4)
    cosines, _ = fourier(time)
    assert torch.allclose(cosines, (2 * math.pi * time[:, None] * fourier.freqs).cos())


def test_embeddings_by_hand() -> None:
    time, labels = torch.tensor([0.3]), torch.tensor([2])
    song, adm = tiny("ddpm++", label_dim=4), tiny("adm", label_dim=4)
    waves = [torch.tensor([0.3 * 1e-4 ** (k / 3) for k in range(4)])]
    told = torch.cat([waves[0].sin(), waves[0].cos()])
    told = told + song.map_label.weight[:, 2] * 2 + song.map_label.bias  # type: ignore[union-attr]
    hidden = F.silu(song.map_layer1(F.silu(song.map_layer0(told))))  # type: ignore[operator]
    assert torch.allclose(song.embed(time, labels)[0], hidden, atol=1e-6)
    angles = torch.tensor([0.3 * 1e-4 ** (k / 32) for k in range(32)])
    inner = adm.map_layer1(F.silu(adm.map_layer0(torch.cat([angles.cos(), angles.sin()]))))  # type: ignore[operator]
    hidden = F.silu(inner + adm.map_label.weight[:, 2])  # type: ignore[union-attr]
    assert torch.allclose(adm.embed(time, labels)[0], hidden, atol=1e-5)


def style(*, film: bool) -> Style:
    return Style(5, (1, 1), 0.0, 1e-6, math.sqrt(0.5), film, True, 4, "song")


@pytest.mark.parametrize("film", [False, True])
def test_a_block_by_hand(film: bool) -> None:
    torch.manual_seed(0)
    block = Block(4, 8, style(film=film), attention=True)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    given, told = torch.randn(2, 4, 3, 3), torch.randn(2, 5)

    def conv(layer: Any, h: Tensor) -> Tensor:
        return F.conv2d(h, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)

    h = conv(block.conv0, F.silu(F.group_norm(given, 1, block.norm0.weight, block.norm0.bias, 1e-6)))
    told_h = F.linear(told, block.affine.weight, block.affine.bias)[:, :, None, None]
    if film:
        h = F.group_norm(h, 2, block.norm1.weight, block.norm1.bias, 1e-6) * (1 + told_h[:, :8]) + told_h[:, 8:]
    else:
        h = F.group_norm(h + told_h, 2, block.norm1.weight, block.norm1.bias, 1e-6)
    x = (conv(block.conv1, F.silu(h)) + conv(block.skip, given)) * math.sqrt(0.5)
    qkv = conv(block.qkv, F.group_norm(x, 2, block.norm2.weight, block.norm2.bias, 1e-6))
    mixed = torch.zeros(2, 8, 3, 3)
    for head in range(2):  # channels of qkv: (head, channel, which of the three)
        q, k, v = (qkv[:, 12 * head + which : 12 * head + 12 : 3].flatten(2) for which in range(3))
        weights = (q.transpose(1, 2) @ k / 2).softmax(-1)
        mixed[:, 4 * head : 4 * head + 4] = (v @ weights.transpose(1, 2)).reshape(2, 4, 3, 3)
    expected = (x + conv(block.proj, mixed)) * math.sqrt(0.5)
    assert torch.allclose(block(given, told), expected, atol=1e-5)


# Networks by hand


def silent(network: EDMNetwork) -> EDMNetwork:
    """Every residual branch gives 0; 1x1 shortcuts and the outer convolutions pass on the first channels as they are."""
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    for name, parameter in network.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.ones_(parameter)
        inner = any(part in name for part in ("conv0", "conv1", "qkv", "proj"))
        if parameter.ndim == 4 and not inner:
            middle = parameter.shape[-1] // 2
            for channel in range(min(parameter.shape[:2])):
                parameter.data[channel, channel, middle, middle] = 1
    return network


def test_a_silent_network_scales_as_its_skips_say() -> None:
    flat: dict[str, Any] = {
        "attn_resolutions": [8],
        "channel_mult": [1],
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 4,
    }
    z, half = torch.randn(2, 4, 4, 4, dtype=DOUBLE), math.sqrt(0.5)
    song = silent(tiny("ddpm++", **flat)).double()
    # block0 and in0 each have attention, which scales a second time; in1 has none; block0 and block1 of the decoder
    x = z * half**2 * half**2 * half * half * half**2
    expected = F.silu(F.group_norm(x, 1, eps=1e-6))
    assert torch.allclose(song(z, torch.zeros(2)), expected)
    adm = silent(tiny("adm", **{**flat, "model_channels": 64})).double()
    wide = torch.cat([z, z.new_zeros(2, 60, 4, 4)], 1)
    expected = F.silu(F.group_norm(wide, 16, eps=1e-5))[:, :4]
    assert torch.allclose(adm(z, torch.zeros(2)), expected)


def test_the_encoder_sees_the_image_again() -> None:
    """The last features of a silent encoder, whose attention at 4x4 scales once more."""
    z, half = torch.randn(1, 3, 8, 8, dtype=DOUBLE), math.sqrt(0.5)
    small = F.avg_pool2d(z, 2)
    for kind, entry in {
        "ddpm++": small * half**2,  # block0 at 8x8, then the block that halves
        "skips": small * half**2 + small,
        "ncsn++": (small * half**2 + small) * half,
    }.items():
        box: dict[str, Any] = {"resample_filter": [1, 1], "embedding_type": "positional"}
        network = silent(tiny(kind, **box)).double()
        x, skips = network.encode(z, torch.zeros(1, 32, dtype=DOUBLE))
        assert torch.allclose(x[:, :3], entry * half**2), kind
        assert [tuple(skip.shape[1:]) for skip in skips] == [(8, 8, 8), (8, 8, 8), (8, 4, 4), (16, 4, 4)]
        assert torch.allclose(skips[2][:, :3], entry)


def test_an_image_adds_up_over_the_decoder() -> None:
    network = tiny("skips").double()
    z, time = torch.randn(1, 3, 8, 8, dtype=DOUBLE), torch.zeros(1)
    whole = network(z, time)
    conv: Any = network.dec["8x8_aux_conv"]
    torch.nn.init.zeros_(conv.weight), torch.nn.init.zeros_(conv.bias)
    coarse = network(z, time)
    embedding = network.embed(time.double(), None)
    features: list[Tensor] = []
    network.dec["8x8_aux_norm"].register_forward_hook(lambda _m, _i, output: features.append(output))
    x, skips = network.encode(z, embedding)
    network.decode(x, skips, embedding)
    fresh = tiny("skips").double().dec["8x8_aux_conv"]
    assert torch.allclose(whole, coarse + fresh(F.silu(features[0])))
    assert coarse.abs().max() > 0


def test_labels_are_numbers_and_none_is_zeros(kind: str) -> None:
    network = tiny(kind, label_dim=4).eval()
    z, time = torch.randn(3, 3, 8, 8), torch.zeros(3)
    labelled = network(z, time, torch.tensor([0, 3, 0]))
    free = network(z, time)
    assert torch.equal(free, network(z, time, torch.tensor([-1, -1, 4])))
    assert not torch.allclose(labelled, free)
    alone = network(z[1:2], time[:1], torch.tensor([3]))
    assert torch.allclose(labelled[1:2], alone, atol=1e-5)


@torch.no_grad()
def test_precisions_agree(kind: str) -> None:
    network = tiny(kind, label_dim=4).eval()
    z, time, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.1, -1.0]), torch.tensor([1, -1])
    single = network(z, time, labels)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(z, time, labels)
    double = network.double()(z.double(), time.double(), labels)
    assert torch.allclose(single.double(), double, atol=1e-3 * float(double.abs().max()))
    assert torch.allclose(low.double(), double, atol=0.1 * float(double.abs().max()))


def test_fresh_networks_return_c_skip_x(kind: str) -> None:
    torch.manual_seed(0)
    family, more = KINDS[kind]
    teacher = edm_denoiser(build_edm(family, {**TINY, **more}), EDMPrecond())
    x = torch.randn(2, 3, 8, 8)
    for sigma in (0.01, 1.0, 50.0):
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / math.sqrt(sigma**2 + 0.25)
        near = 0 if family == "DhariwalUNet" else 1e-3 * c_out  # the others start near zero, not at it
        assert torch.allclose(teacher(x * sigma, sigma), c_skip * sigma * x, atol=near + 1e-6)


def test_fresh_networks_train_all_over(kind: str) -> None:
    torch.manual_seed(0)
    family, more = KINDS[kind]
    network = build_edm(family, {**TINY, **more, "label_dim": 2, "augment_dim": 9})
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    z, time, labels = torch.randn(8, 3, 8, 8), torch.randn(8), torch.arange(8) % 2
    target = labels[:, None, None, None] * 2.0 - 1 + 0.5 * z
    losses = []
    for _ in range(15):
        loss = (network(z, time, labels) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    still = {name for name, parameter in network.named_parameters() if torch.equal(parameter, before[name])}
    assert still == {"map_augment.weight"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"img_resolution": 9}, "multiple of 2"),
        ({"model_channels": 132, "channel_mult": [1]}, "multiples of 4"),
        ({"channel_mult": [1] * 11}, "channel_mult"),
        ({"num_blocks": 10**9}, "num_blocks"),
        ({"encoder_type": "none"}, "encoder_type"),
        ({"resample_filter": [1, 2, 1]}, "even number of taps"),
        ({"resample_filter": [0, 0]}, "even number of taps"),
        ({"attn_resolution": [4]}, "did you mean 'attn_resolutions'"),
    ],
)
def test_wrong_architectures_are_told(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_edm("SongUNet", {**TINY, **changes})
    with pytest.raises(UserError, match="SongUnet.*did you mean 'SongUNet'"):
        build_edm("SongUnet", TINY)


# Preconditionings by hand


def test_wrapped_as_the_paper_says() -> None:
    network, x = tiny("ddpm++"), torch.randn(2, 3, 8, 8)
    for sigma in (0.05, 1.3, 30.0):
        edm = edm_denoiser(network, EDMPrecond(sigma_data=0.7))
        total = sigma**2 + 0.49
        output = network(x / math.sqrt(total), torch.full((2,), math.log(sigma) / 4))
        expected = 0.49 / total * x + sigma * 0.7 / math.sqrt(total) * output
        assert torch.allclose(edm(x, sigma), expected, atol=1e-4)
        ve = edm_denoiser(network, VEPrecond())
        expected = x + sigma * network(x, torch.full((2,), math.log(sigma / 2)))
        assert torch.allclose(ve(x, sigma), expected, rtol=1e-4, atol=1e-4)
        vp = edm_denoiser(network, VPPrecond())
        # sigma^2 + 1 = exp(beta_d t^2 / 2 + beta_min t)
        t = (math.sqrt(0.01 + 2 * 19.9 * math.log1p(sigma**2)) - 0.1) / 19.9
        expected = x - sigma * network(x / math.sqrt(sigma**2 + 1), torch.full((2,), 999 * t))
        assert torch.allclose(vp(x, sigma), expected, rtol=1e-3, atol=1e-3 * sigma)


def test_the_cosine_table_is_the_paper_s() -> None:
    """u_{j-1}^2 + 1 = (u_j^2 + 1) / max(alpha_bar(j-1) / alpha_bar(j), C_1), from u_M = 0 on."""
    process = iDDPMPrecond().process()
    assert isinstance(process, DiscreteVP)

    def power(j: int) -> float:
        return math.sin(0.5 * math.pi * j / 1000 / 1.008) ** 2

    level = [0.0]
    for j in range(1000, 0, -1):
        level.append(math.sqrt((level[-1] ** 2 + 1) / max(power(j - 1) / power(j), 0.001) - 1))
    assert torch.allclose(process.sigmas, torch.tensor(level[1:], dtype=DOUBLE), rtol=1e-6)
    same = DiscreteVP.from_betas(beta_table("squaredcos_cap_v2"))
    assert torch.allclose(process.sigmas, same.sigmas, rtol=1e-6)
    network = tiny("adm", out_channels=6)
    teacher, x = edm_denoiser(network, iDDPMPrecond()), torch.randn(1, 3, 8, 8)
    sigma = float(process.sigmas[200])
    expected = x - sigma * network(x / math.sqrt(1 + sigma**2), torch.tensor([200.0]))[:, :3]
    assert torch.allclose(teacher(x, sigma), expected, atol=1e-4)


def test_ranges() -> None:
    usual = preconditioning("EDMPrecond", {"sigma_min": 0, "sigma_max": math.inf, "sigma_data": 0.5}).process()
    assert (usual.sigma_min, usual.sigma_max, usual.sigma_data) == (0.002, 80.0, 0.5)
    own = preconditioning("EDMPrecond", {"sigma_min": 0.01, "sigma_max": 50.0}).process()
    assert isinstance(own, EDM)
    assert (own.sigma_min, own.sigma_max) == (0.01, 50.0)
    ve, vp = VEPrecond().process(), VPPrecond().process()
    assert isinstance(ve, VE)
    assert isinstance(vp, ContinuousVP)
    assert (ve.sigma_min, ve.sigma_max) == (0.02, 100.0)
    assert vp.sigma_min == pytest.approx(math.sqrt(math.expm1(1e-6 + 9.95e-10)), rel=1e-6)
    assert vp.sigma_max == pytest.approx(math.sqrt(math.expm1(10.05)), rel=1e-6)
    for kind, values, said in (
        ("EDMPrecond", {"sigma_min": 5.0, "sigma_max": 1.0}, "sigma_min is 5.0"),
        ("EDMPrecond", {"sigma_data": math.nan}, "sigma_data"),
        ("VPPrecond", {"beta": 1}, "unknown setting 'beta'"),
        ("Precond", {}, "preconditioning 'Precond' is not known"),
    ):
        with pytest.raises(UserError, match=said):
            preconditioning(kind, values)


def test_networks_that_do_not_fit_their_wrapping() -> None:
    with pytest.raises(UserError, match="3 channels with 6 outputs"):
        edm_denoiser(tiny("adm", out_channels=6), EDMPrecond())
    edm_denoiser(tiny("adm", out_channels=6), iDDPMPrecond())


# Checkpoints

RANGE = {"kind": "EDMPrecond", "sigma_min": 0.0, "sigma_max": math.inf, "sigma_data": 0.5}
VP = {"kind": "VPPrecond", "beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5, "sigma_min": 1e-3}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "edm-ddpm++": ("ddpm++", {"augment_dim": 9}, RANGE),
    "edm-ncsn++": ("ncsn++", {"label_dim": 10, "label_dropout": 0.1}, RANGE),
    "edm-skips": ("skips", {}, RANGE),
    "edm-adm": ("adm", {"label_dim": 10}, RANGE),
    "vp": ("ddpm++", {}, VP),
    "ve": ("ncsn++", {}, {"kind": "VEPrecond", "sigma_min": 0.02, "sigma_max": 100.0}),
    "iddpm": ("adm", {"out_channels": 6}, {"kind": "iDDPMPrecond", "C_1": 0.001, "C_2": 0.008, "M": 1000}),
}


def arguments_of(case: str) -> tuple[str, dict[str, Any]]:
    kind, changes, _ = CASES[case]
    family, more = KINDS[kind]
    return family, {**TINY, **more, **changes}


@pytest.fixture(scope="session")
def pickles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process writes them all: the classes that the files name exist there only."""
    folder = tmp_path_factory.mktemp("pickles")
    orders = []
    for case in CASES:
        family, arguments = arguments_of(case)
        for protocol in (3, 4, 5) if case == "edm-ncsn++" else (4,):
            path = folder / (f"{case}.pkl" if protocol == 4 else f"{case}-{protocol}.pkl")
            order = {"network": {"kind": family, **arguments}, "preconditioning": CASES[case][2]}
            orders.append({**order, "path": str(path), "protocol": protocol, "seed": 7})
    write(orders, folder)
    return folder


def direct(case: str) -> Denoiser:
    torch.manual_seed(7)
    family, arguments = arguments_of(case)
    wrapped = {k: v for k, v in CASES[case][2].items() if k != "kind" and (k, v) != ("sigma_min", 1e-3)}
    return edm_denoiser(build_edm(family, arguments), preconditioning(CASES[case][2]["kind"], wrapped), case)


def assert_same(one: Denoiser, other: Denoiser) -> None:
    ours, theirs = one.module.state_dict(), other.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert repr(one.process.sigma_max) == repr(other.process.sigma_max)
    x = torch.randn(2, 3, 8, 8) * 3
    cond = {"labels": torch.tensor([1, 4])} if one.classes else {}
    assert torch.equal(one(x, 3.0, cond), other(x, 3.0, cond))
    assert (one.shape, one.classes, one.null, one.prediction) == (
        other.shape,
        other.classes,
        other.null,
        other.prediction,
    )


@pytest.mark.parametrize("case", CASES)
def test_checkpoints_are_what_was_written(case: str, pickles: Path) -> None:
    teacher = read_checkpoint(pickles / f"{case}.pkl")
    assert_same(teacher, direct(case))
    assert teacher.name == case
    assert len(teacher.card["sha256"]) == 64
    assert not teacher.module.training
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert "torch_utils" not in sys.modules


@pytest.mark.parametrize("protocol", [3, 5])
def test_every_protocol_that_keeps_bytes(protocol: int, pickles: Path) -> None:
    assert_same(read_checkpoint(pickles / f"edm-ncsn++-{protocol}.pkl"), direct("edm-ncsn++"))


def test_a_checkpoint_samples_guided_or_not(pickles: Path) -> None:
    teacher = read_checkpoint(pickles / "edm-ncsn++.pkl")
    assert teacher.null == {"labels": -1}
    plain = sample(teacher, 2, calls=3, seed=0)
    guided = sample(teacher.replace(guidance=2.0), 2, calls=3, seed=0)
    assert plain.shape == (2, 3, 8, 8)
    assert not torch.equal(plain, guided)
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(teacher(x, 1.0), teacher(x, 1.0, {"labels": torch.tensor([-1])}))
    with pytest.raises(UserError, match="class-conditional"):
        read_checkpoint(pickles / "edm-adm.pkl")(x, 1.0)


@pytest.mark.parametrize("case", CASES)
def test_conversion_keeps_everything(case: str, pickles: Path, tmp_path: Path) -> None:
    convert(pickles / f"{case}.pkl", tmp_path / "teacher")
    assert sorted(path.name for path in (tmp_path / "teacher").iterdir()) == [CARD, WEIGHTS]
    teacher = load_edm_folder(tmp_path / "teacher")
    assert_same(teacher, read_checkpoint(pickles / f"{case}.pkl"))
    assert teacher.home == tmp_path / "teacher"
    assert teacher.card["source"] == f"{case}.pkl"
    save_edm(teacher.replace(name="again"), tmp_path / "again")
    again = load_edm_folder(tmp_path / "again")
    assert_same(again, teacher)
    assert again.name == "again"
    assert again.card["sha256"] == teacher.card["sha256"]


def test_a_trained_copy_is_saved_in_the_same_form(pickles: Path, tmp_path: Path) -> None:
    teacher = read_checkpoint(pickles / "edm-adm.pkl")
    with torch.no_grad():
        next(teacher.module.parameters()).add_(1)
    save_edm(teacher, tmp_path / "student")
    assert_same(load_edm_folder(tmp_path / "student"), teacher)
    with pytest.raises(UserError, match="not an EDM network"):
        save_edm(Denoiser(torch.nn.Identity(), EDM(), prediction="edm", shape=(3, 8, 8)), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def edited(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, **changes}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "has format 2"),
        ({"network": None}, "'network'"),
        ({"network": {"kind": ["SongUNet"]}}, "'network'"),
        ({"network": {"kind": "Unet"}}, "not an EDM network"),
        ({"network": {"kind": "SongUNet", "img_resolution": "many"}}, "img_resolution"),
        ({"preconditioning": {"kind": "os.system"}}, "os.system"),
        ({"preconditioning": {"kind": "EDMPrecond", "sigma_data": [1]}}, "sigma_data"),
        ({"sha256": "0"}, "checksum"),
    ],
)
def test_edited_folders_are_told(changes: dict[str, Any], said: str, pickles: Path, tmp_path: Path) -> None:
    convert(pickles / "vp.pkl", tmp_path / "teacher")
    edited(tmp_path / "teacher", **changes)
    with pytest.raises(UserError, match=said):
        load_edm_folder(tmp_path / "teacher")


def test_damaged_folders_are_told(pickles: Path, tmp_path: Path) -> None:
    from onefold.files import sha256

    folder = tmp_path / "teacher"
    convert(pickles / "vp.pkl", folder)
    weights = load_file(folder / WEIGHTS)
    smaller = {**weights, "map_layer0.weight": torch.zeros(3, 3)}
    smaller.pop("map_layer1.bias")
    save_file(smaller, folder / WEIGHTS)
    edited(folder, sha256=sha256(folder / WEIGHTS))
    with pytest.raises(UserError, match=r"map_layer0.weight has shape \(3, 3\), expected .* is one of 2 "):
        load_edm_folder(folder)
    (folder / WEIGHTS).write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    edited(folder, sha256=sha256(folder / WEIGHTS))
    with pytest.raises(UserError, match="holds no tensors that can be read"):
        load_edm_folder(folder)
    (folder / CARD).write_text("[" * 100_000)
    with pytest.raises(UserError, match="not readable as JSON"):
        load_edm_folder(folder)
