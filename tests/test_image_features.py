"""Frozen networks for pictures with a fixed random projection: what they see, what never changes, and what people get wrong."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from onefold.errors import UserError
from onefold.networks import image_features as room
from onefold.networks.image_features import ImageFeatures, Mixing, Projection, enlarged, image_features, pyramid, taps

SHAPE = (3, 16, 16)
OWN = f"{__name__}:halving"


class Halving(nn.Module):
    """Four maps of 8 to 1 pixels, with statistics that a careless train() would move, and a dropout that it would wake."""

    def __init__(self, channels: int = 3, widths: Sequence[int] = (5, 6, 7, 8)) -> None:
        super().__init__()
        pairs = zip((channels, *widths), widths, strict=False)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.Tanh(), nn.Dropout(0.5)) for a, b in pairs
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Seen(nn.Module):
    """Whatever a function makes of the images."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def halving() -> nn.Module:
    return Halving()


def seen(function: Callable[[Tensor], Any], shape: Sequence[int] = SHAPE, project: bool = False) -> ImageFeatures:
    return ImageFeatures({"mine": Seen(function)}, shape, project=project)


def images(count: int = 2, shape: Sequence[int] = SHAPE, seed: int = 1) -> Tensor:
    return 2 * torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)) - 1


def frozen_state(features: ImageFeatures) -> list[Tensor]:
    return [tensor.clone() for network in features.networks for tensor in network.state_dict().values()]


def equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


# -- a user's own ------------------------------------------------------------------------------------------------------


def test_an_own_network_gets_the_images_as_they_are() -> None:
    """No scaling, no normalisation, no third channel, no projection unless it is asked for; the noise level is not heard."""
    given: list[Tensor] = []
    features = seen(lambda x: (given.append(x), [x, x[:, :, ::2]])[1], (1, 6, 4))
    x = images(shape=(1, 6, 4))
    maps = features(x, torch.ones(2), {"labels": torch.zeros(2)})
    assert given[-1] is x and equal(maps, [x, x[:, :, ::2]])
    assert features.shapes == [(1, 6, 4), (1, 3, 4)] and not features.state_dict()
    found = image_features(OWN, shape=SHAPE)
    assert found.projections is None and [shape[0] for shape in found.shapes] == [5, 6, 7, 8]


def test_the_projection_doubles_every_map_and_has_the_channels_of_the_paper() -> None:
    features = image_features(OWN, shape=SHAPE, project=True)
    expected = [(64, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]
    assert features.shapes == expected
    assert [tuple(each.shape) for each in features(images(3), None, {})] == [(3, *shape) for shape in expected]


def test_several_networks_give_their_maps_one_after_the_other() -> None:
    a, b = Halving(), Halving()
    x = images()
    both = ImageFeatures({"a": a, "b": b}, SHAPE, project=False)
    assert equal(both(x), [*a(x), *b(x)]) and len(both.shapes) == 8


def test_nothing_learns_and_nothing_moves() -> None:
    """Parameters and statistics of the network through forward, backward, and all that is done to a discriminator."""
    features = image_features(OWN, shape=SHAPE, project=True)
    before, kept = frozen_state(features), copy.deepcopy(features.state_dict())
    x = images().requires_grad_()
    quiet = [each.detach() for each in features(x)]
    for mode in (True, False):
        nn.Sequential(features).train(mode).requires_grad_(True)
        found = features(x)
        assert equal(quiet, found)
        torch.stack([each.square().mean() for each in found]).sum().backward()
    assert x.grad is not None and bool((x.grad != 0).all())
    assert equal(before, frozen_state(features))
    after = features.state_dict()
    assert kept.keys() == after.keys() and equal([*kept.values()], [*after.values()])
    network = features.networks[0]
    assert not list(features.parameters()) and not any(weight.requires_grad for weight in network.parameters())
    assert not any(module.training for module in network.modules())


def test_the_gradient_is_that_of_the_maps() -> None:
    """In float64, to which the network goes along; the second one too, which a penalty on gradients needs."""
    features = image_features(OWN, shape=SHAPE, project=True).double()
    assert features.networks[0].get_parameter("stages.0.0.weight").dtype == torch.float64
    x = images(1).double().requires_grad_()
    coarse = lambda x: features(x)[-1]  # noqa: E731
    assert torch.autograd.gradcheck(coarse, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(coarse, x, fast_mode=True)


def test_attention_has_second_derivatives() -> None:
    def attended(x: Tensor) -> list[Tensor]:
        tokens = x.flatten(2).transpose(1, 2)
        return [F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).reshape(x.shape)]

    features = seen(attended)
    x = images().requires_grad_()
    (slope,) = torch.autograd.grad(features(x)[0].sum(), x, create_graph=True)
    (curve,) = torch.autograd.grad(slope.square().sum(), x)
    assert bool(curve.isfinite().all()) and bool((curve != 0).any())


def test_the_networks_go_where_the_projection_goes() -> None:
    features = image_features(OWN, shape=SHAPE, project=True).to("meta")
    places = [*features.state_dict().values(), *features.networks[0].state_dict().values()]
    assert {place.device.type for place in places} == {"meta"}


def test_the_state_is_the_projection_and_carries_over() -> None:
    """Equal seeds give equal projections; another's is taken over with its state, in which the network has no part."""
    one, same, other = (image_features(OWN, shape=SHAPE, project=True, seed=seed) for seed in (3, 3, 4))
    state = one.state_dict()
    assert state.keys() == same.state_dict().keys() and equal([*state.values()], [*same.state_dict().values()])
    assert all(name.startswith("projections.") for name in state) and len(state) == 16
    assert not any(torch.equal(value, other.state_dict()[name]) for name, value in state.items())
    other.load_state_dict(state)
    assert equal([*state.values()], [*other.state_dict().values()])


def test_what_a_function_draws_depends_on_the_seed_alone() -> None:
    """A network that nobody trained must be the same in every process, as it is part of no state."""
    torch.manual_seed(8)
    expected = torch.rand(3)
    torch.manual_seed(8)
    one = image_features(OWN, shape=SHAPE, seed=3)
    assert torch.equal(torch.rand(3), expected)
    two, other = (image_features(OWN, shape=SHAPE, seed=seed) for seed in (3, 4))
    assert equal(frozen_state(one), frozen_state(two)) and not equal(frozen_state(one), frozen_state(other))


def test_a_copy_is_whole() -> None:
    features = image_features(OWN, shape=SHAPE, project=True)
    other, x = copy.deepcopy(features), images()
    assert equal(features(x), other(x)) and other.networks[0] is not features.networks[0]


# -- the projection ----------------------------------------------------------------------------------------------------


def test_the_projection_is_its_formula() -> None:
    """y_2 = B_2 up(A_2 F_2), y_1 = B_1 up(y_2 + A_1 F_1), with matrices over channels; up keeps the corners."""
    maps = [torch.randn(2, 3, 4, 6), torch.randn(2, 5, 2, 3)]
    mix = Projection("mine", maps).double()
    maps = [each.double() for each in maps]

    def conv(layer: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(layer, Mixing)
        return torch.einsum("oc,nchw->nohw", layer.weight[:, :, 0, 0], x) + layer.bias.view(-1, 1, 1)

    def up(x: Tensor) -> Tensor:
        for axis in (2, 3):
            size = x.shape[axis]
            places = torch.arange(2 * size).double() * (size - 1) / (2 * size - 1)
            weights = (1 - (places[:, None] - torch.arange(size)).abs()).clamp(min=0)  # tents over the old places
            x = torch.tensordot(x, weights, ([axis], [1])).movedim(-1, axis)
        return x

    coarse = conv(mix.scales[1], up(conv(mix.channels[1], maps[1])))
    fine = conv(mix.scales[0], up(coarse + conv(mix.channels[0], maps[0])))
    found = mix(maps)
    torch.testing.assert_close(found[0], fine)
    torch.testing.assert_close(found[1], coarse)


def test_the_projection_has_the_size_of_the_published_one() -> None:
    """0.6 to 0.7 million numbers for VGG16 (taps of 128, 256, 512, 512 channels) and for DeiT-B (read out to 96 to 768)."""
    for widths in ((128, 256, 512, 512), (96, 192, 384, 768)):
        maps = [torch.zeros(1, width, 8 >> k, 8 >> k) for k, width in enumerate(widths)]
        numbers = sum(value.numel() for value in Projection("mine", maps).state_dict().values())
        channels = sum(width * (64 << k) + (64 << k) for k, width in enumerate(widths))
        assert numbers == channels + 64 * 64 + 128 * 64 + 256 * 128 + 512 * 256 + 64 + 64 + 128 + 256
        assert 600_000 < numbers < 701_000


def test_odd_sides_are_met() -> None:
    """A stride of 2 makes 7 of 13; twice that is 14."""
    features = seen(lambda x: [x, x[:, :, ::2, ::2]], (3, 13, 10), project=True)
    assert features.shapes == [(64, 26, 20), (64, 13, 10)]


def test_maps_of_one_size_become_a_pyramid() -> None:
    """14 to 56, 28, 14, 7; at the size that they have they stay, and half of it is the mean of each four."""
    maps = [torch.rand(1, 2, 14, 14) for _ in range(4)]
    found = pyramid(maps)
    assert [each.shape[-1] for each in found] == [56, 28, 14, 7]
    assert torch.equal(found[2], maps[2])
    torch.testing.assert_close(found[3], F.avg_pool2d(maps[3], 2))
    features = seen(lambda x: [x[:, :, :14, :14]] * 4, project=True)
    assert features.shapes == [(64, 112, 112), (64, 56, 56), (128, 28, 28), (256, 14, 14)]
    assert equal(pyramid(maps[:1]), maps[:1])


# -- networks of timm, with one in its place ---------------------------------------------------------------------------


class Stub(nn.Module):
    """What timm's networks are asked for. Its maps are the normalised pictures themselves, times its weight, and less of them."""

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        self.pretrained_cfg = {"mean": (0.5, 0.25, 0.0), "std": (0.5, 0.25, 2.0), "input_size": (3, 8, 8)}
        self.feature_info = [{"reduction": 2**k} for k in range(5)]
        self.stem = nn.Conv2d(1, 1, 1)
        self.head = nn.Linear(2, 3)
        self.sides: tuple[int, ...] | None = None
        nn.init.constant_(self.stem.weight, 7.0 if pretrained else 1.0)

    def prune_intermediate_layers(self, indices: int, prune_norm: bool, prune_head: bool) -> list[int]:
        assert prune_norm and prune_head
        self.head = nn.Identity()  # type: ignore[assignment]
        return list(range(5))[-indices:]

    def set_input_size(self, sides: tuple[int, ...]) -> None:
        self.sides = sides

    def forward_intermediates(self, x: Tensor, indices: list[int], intermediates_only: bool) -> list[Tensor]:
        assert intermediates_only and indices == [1, 2, 3, 4]
        x = x * self.stem.weight
        return [x, x[:, :, ::2, ::2], x[:, :, ::4, ::4], x[:, :, ::8, ::8]]


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    names = ["stub_a", "stub_b", "blind"]
    stub = SimpleNamespace(
        create_model=lambda name, pretrained: nn.Identity() if name == "blind" else Stub(pretrained),
        is_model=names.__contains__,
        list_models=lambda: names,
    )
    monkeypatch.setitem(sys.modules, "timm", stub)
    return stub


def state(scale: float = 1.0) -> dict[str, Tensor]:
    return {name: torch.full_like(value, scale) for name, value in Stub(False).state_dict().items()}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file(state(3.0), tmp_path / "stub.safetensors")
    return tmp_path / "stub.safetensors"


def stubs(shape: Sequence[int], weights: Any, **settings: Any) -> ImageFeatures:
    return image_features("timm:stub_a", shape=shape, weights=weights, project=False, **settings)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_normalised_as_the_network_wants(timm: SimpleNamespace, weights: Path, channels: int) -> None:
    """x = 0 is a grey of 1/2, of which mean and deviation of each channel make 0, 1 and 1/4; the file's weight is 3."""
    features = stubs((channels, 8, 8), weights, size=8)
    found = features(torch.zeros(2, channels, 8, 8), None, {})
    assert [tuple(each.shape) for each in found] == [(2, 3, 8, 8), (2, 3, 4, 4), (2, 3, 2, 2), (2, 3, 1, 1)]
    assert torch.equal(found[0], torch.tensor([0.0, 3.0, 0.75]).view(1, 3, 1, 1).expand(2, 3, 8, 8))


def test_pictures_are_scaled_up_and_never_down(timm: SimpleNamespace) -> None:
    """By their shorter side; pixels are squares, so between 0 and 1 lie 1/4 and 3/4, and the ends stay."""
    row = torch.tensor([[[[0.0, 1.0]]]])
    torch.testing.assert_close(enlarged(row, 2)[0, 0], torch.tensor([[0.0, 0.25, 0.75, 1.0]] * 2))
    assert enlarged(row, 1) is row
    assert stubs((3, 8, 6), "hub", size=12).shapes[0] == (3, 16, 12)
    assert stubs((3, 32, 24), "hub", size=12).shapes[0] == (3, 32, 24)
    assert stubs((3, 8, 8), "hub").shapes[0] == (3, 224, 224)


def test_networks_that_know_their_size_are_told_another(timm: SimpleNamespace) -> None:
    told = [stubs(shape, "hub", size=8).networks[0].network.sides for shape in ((3, 4, 4), (3, 4, 8))]
    assert told == [None, (8, 16)]


def test_two_networks_have_a_file_each(timm: SimpleNamespace, weights: Path) -> None:
    """`hub` in place of a file has timm fetch its own. They are projected unless it is unwanted."""
    features = image_features("timm:stub_a+stub_b", shape=(3, 8, 8), weights=[weights, "hub"], size=8)
    assert [float(network.network.stem.weight) for network in features.networks] == [3.0, 7.0]
    assert [shape[0] for shape in features.shapes] == [64, 64, 128, 256] * 2
    first, second = features.projections
    assert not torch.equal(first.channels[0].weight, second.channels[0].weight)
    assert not list(features.parameters()) and all(name.startswith("projections.") for name in features.state_dict())


def test_the_taps_of_transformers_are_spread(timm: SimpleNamespace) -> None:
    """As published, the blocks 3, 6, 9 and 12, counted from 1; of a network that halves its maps the last four."""
    assert taps([{"reduction": 16}] * 12) == [2, 5, 8, 11] and taps(Stub(False).feature_info) == 4


# -- what people get wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda x: x, "gave a Tensor, expected a list"),
        (lambda x: [], "gave no maps, expected a list"),
        (lambda x: [x, "map"], "gave a str in their list"),
        (lambda x: [x.flatten(1)], r"shape \(2, 768\) for 2 images"),
        (lambda x: [x.mean(0, keepdim=True)], r"shape \(1, 3, 16, 16\) for 2 images"),
        (lambda x: [x.long()], "torch.int64 tensor"),
        (lambda x: [x, x / 0], "not finite"),
        (lambda x: [x @ x[:, :, :3]], "'mine' failed on images of shape 3x16x16 .RuntimeError"),
    ],
    ids=["tensor", "none", "text", "vectors", "batch", "whole", "infinite", "fails"],
)
def test_what_is_no_list_of_maps_is_told(function: Callable[[Tensor], Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        seen(function)


def test_the_coarsest_first_cannot_be_projected() -> None:
    with pytest.raises(UserError, match=r"maps of 8x8, 16x16, expected the finest first"):
        seen(lambda x: [x[:, :, ::2, ::2], x], project=True)


def fails() -> nn.Module:
    raise KeyError("lost")


def no_module() -> str:
    return "network"


@pytest.mark.parametrize(
    ("source", "settings", "told"),
    [
        ("vgg16", {}, "'vgg16' are not known, expected timm:NAME, timm:NAME.NAME or package.module:function"),
        (OWN, {"weights": "a.safetensors"}, "load their weights themselves"),
        (f"{__name__}:fails", {}, "failed .KeyError: 'lost'.; mend it"),
        (f"{__name__}:no_module", {}, "returned a str, expected a torch.nn.Module"),
        (f"{__name__}:halfing", {}, "no function 'halfing'; did you mean 'halving'"),
        ("timm:stub_c", {"weights": "hub"}, "timm has no network 'stub_c'; did you mean 'stub_"),
        ("timm:zzz", {"weights": "hub"}, r"timm has no network 'zzz'; timm.list_models\(\) tells"),
        ("timm:stub_a+stub_a", {"weights": ["hub", "hub"]}, "names a network twice"),
        ("timm:blind", {"weights": "hub"}, "does not show the feature maps of 'blind'"),
        ("timm:stub_a", {"weights": "hub", "size": 0}, "size is 0"),
        ("timm:stub_a", {"weights": "hub", "shape": (4, 8, 8)}, "1 or 3 channels, not at 4x8x8"),
        (
            "timm:stub_a",
            {"weights": "hub", "shape": (2,)},
            "1 or 3 channels, not at 2; take the features of the teacher",
        ),
        ("timm:stub_a", {}, r'make each: import timm; .*create_model\("stub_a", pretrained=True\).state_dict\(\)'),
        ("timm:stub_a+stub_b", {"weights": "hub"}, r"2 network\(s\) of timm, stub_a and stub_b, .* and 1 are given"),
        ("timm:stub_a", {"weights": "no.safetensors"}, r"no.safetensors does not exist; make it: import timm"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_wrong_sources(source: str, settings: dict[str, Any], told: str, timm: SimpleNamespace) -> None:
    with pytest.raises(UserError, match=told):
        image_features(source, **{"shape": SHAPE, **settings})


def test_a_file_must_be_the_networks(timm: SimpleNamespace, tmp_path: Path) -> None:
    place = tmp_path / "other.safetensors"

    def refused(tensors: dict[str, Tensor], told: str) -> None:
        save_file(tensors, place)
        with pytest.raises(UserError, match=told):
            stubs(SHAPE, place)

    whole = state()
    refused({name: value for name, value in whole.items() if name != "head.bias"}, r"lacks head.bias, expected \[3\]")
    refused(whole | {"head.bias": torch.zeros(2)}, r"has head.bias as \[2\], expected \[3\]")
    refused(whole | {"extra": torch.zeros(2)}, "has extra, which that lacks")
    refused(whole | {"head.bias": torch.full((3,), torch.nan)}, "NaN or infinite, such as head.bias")
    torch.save(whole, place)
    with pytest.raises(UserError, match=r"is no safetensors file .*; make one: import timm"):
        stubs(SHAPE, place)


def test_a_download_that_fails_is_told(timm: SimpleNamespace) -> None:
    def fail(name: str, pretrained: bool) -> None:
        raise OSError("no route to host")

    timm.create_model = fail
    with pytest.raises(UserError, match=r"timm cannot make 'stub_a' \(no route to host\).* give a file: import timm"):
        stubs(SHAPE, "hub")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ModuleNotFoundError("No module named 'timm'"), r"pip install 'onefold\[gan\]'"),
        (RuntimeError("operator torchvision::nms does not exist"), "install the build of torchvision that belongs"),
    ],
    ids=["missing", "torchvision"],
)
def test_a_timm_that_does_not_load(monkeypatch: pytest.MonkeyPatch, error: Exception, remedy: str) -> None:
    def fail(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(room.importlib, "import_module", fail)
    with pytest.raises(UserError, match=f"{error}.*{remedy}"):
        stubs(SHAPE, "hub")


# -- timm itself, where there is one -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_timm() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # the latter of a torchvision beside another torch
        pytest.skip(f"no timm here ({error})")
    return timm


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_networks_of_timm_see_what_timm_says(name: str, real_timm: Any, tmp_path: Path) -> None:
    """Of random weights; also once the layers behind the last map are gone. In all else as the user's own."""
    torch.manual_seed(0)
    network = real_timm.create_model(name).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    features = image_features(f"timm:{name}", shape=(1, 32, 32), weights=tmp_path / "weights.safetensors", size=160)
    before, x = frozen_state(features), images(2, (1, 32, 32))
    pictures = F.interpolate(x, size=160, mode="bilinear").expand(-1, 3, -1, -1) / 2 + 0.5
    places = [network.pretrained_cfg[key] for key in ("mean", "std")]
    mean, std = (torch.tensor(place).view(3, 1, 1) for place in places)
    with torch.no_grad():
        indices = 4 if name == "test_efficientnet" else [0, 2, 3, 5]
        expected = network.forward_intermediates((pictures - mean) / std, indices=indices, intermediates_only=True)
        found = features.networks[0](x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert [shape[1] for shape in features.shapes] == [80, 40, 20, 10] and not list(features.parameters())
    x.requires_grad_()
    features.train()(x)[0].square().mean().backward()
    assert x.grad is not None and bool((x.grad != 0).any()) and equal(before, frozen_state(features))
