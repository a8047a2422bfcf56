"""What each rule freezes: the published shares, every layer of the families by its class, bits that stay through training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxSingleTransformerBlock
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

import pipelines
import small
from edm_pickles import TINY
from onefold.errors import UserError
from onefold.networks.edm import EDMNetwork, build_edm
from onefold.networks.edm_layers import Block
from onefold.networks.edm_plan import DDPMPP, NCSNPP
from onefold.networks.freeze import POLICIES, Rule, freeze, role_of, roles, rule_named

# EDM networks: the published shares ----------------------------------------------------------------------------------

POLICY_NAMES = ("gdd_i", "gdd_i_qkv", "gdd_i_skip")
PUBLISHED: dict[str, tuple[str, dict[str, Any], tuple[float, ...], float]] = {
    "cifar-ncsn++": ("SongUNet", {"img_resolution": 32, **NCSNPP}, (0.8440, 0.8650, 0.9046), 8.80),
    "64-ncsn++": (
        "SongUNet",
        {"img_resolution": 64, **NCSNPP, "channel_mult": (1, 2, 2, 2)},
        (0.8384, 0.8572, 0.8970),
        10.14,
    ),
    "imagenet-adm": ("DhariwalUNet", {"img_resolution": 64, "label_dim": 1000}, (0.7877, 0.8696, 0.9017), 62.83),
    "cifar-ddpm++": ("SongUNet", {"img_resolution": 32, **DDPMPP}, (0.8540, 0.8753, 0.9154), 8.14),
}


def published(kind: str) -> EDMNetwork:
    family, arguments, _, _ = PUBLISHED[kind]
    with torch.device("meta"):
        return build_edm(family, {"in_channels": 3, "out_channels": 3, **arguments, "augment_dim": 0})


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_shares(kind: str) -> None:
    network, (_, _, shares, millions) = published(kind), PUBLISHED[kind]
    found = [freeze(network, policy) for policy in POLICY_NAMES]
    assert [frozen.share for frozen in found] == pytest.approx(shares, abs=1e-4)
    assert (found[0].total - found[0].frozen) / 1e6 == pytest.approx(millions, abs=0.006)
    assert "other" not in roles(network).values()


def test_published_shares_of_what_is_trained() -> None:
    frozen = freeze(published("cifar-ncsn++"), "gdd_i")
    shares = {role: count / frozen.total for role, count in frozen.trained.items()}
    expected = {"affine": 0.0769, "skip": 0.0396, "qkv": 0.0210, "mapping": 0.0070, "norm": 0.0008}
    assert shares == pytest.approx({**expected, "image": 0.0106 + 0.0002}, abs=1e-4)
    beginning, told = frozen.line.split("; trained: ")
    assert beginning == f"frozen: 84.4% of {frozen.total:,} parameters (gdd_i: conv, attention_out)"
    ordered = sorted(shares, key=lambda role: -shares[role])
    assert told == ", ".join(f"{role} {shares[role]:.2%}" for role in ordered)
    assert ordered == ["affine", "skip", "qkv", "image", "mapping", "norm"]


def tiny(family: str = "SongUNet", **more: Any) -> EDMNetwork:
    return randomised(build_edm(family, {**TINY, **more}))


def randomised(network: Any) -> Any:
    """Every tensor random, so that no zero hides a gradient."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network


NETWORKS: dict[str, Callable[[], Any]] = {
    "ncsn++": lambda: tiny(**{**NCSNPP, "channel_mult": [1, 2], "augment_dim": 0, "label_dim": 10}),
    "skips": lambda: tiny(encoder_type="skip", decoder_type="skip"),
    "adm": lambda: tiny("DhariwalUNet", model_channels=32, label_dim=10),
    "pixels": lambda: randomised(pipelines.pixel_unet(num_class_embeds=5)),
    "pixels-resnets": lambda: randomised(pipelines.pixel_unet(downsample_type="resnet", upsample_type="resnet")),
    "text": lambda: randomised(pipelines.text_unet(**pipelines.XL)),
    "text-resnets": lambda: randomised(
        pipelines.text_unet(
            down_block_types=("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
            up_block_types=("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        )
    ),
    "dit": lambda: randomised(pipelines.dit_pipeline(classes=5).transformer),
    "pixart": lambda: randomised(
        diffusers.PixArtTransformer2DModel(
            **HEADS,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            norm_num_groups=4,
            sample_size=8,
            cross_attention_dim=8,
            caption_channels=8,
        )
    ),
    "sd3": lambda: randomised(
        diffusers.SD3Transformer2DModel(
            **HEADS,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            joint_attention_dim=8,
            caption_projection_dim=8,
            pooled_projection_dim=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
    ),
    "flux": lambda: randomised(
        diffusers.FluxTransformer2DModel(
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            axes_dims_rope=(4, 4, 8),
        )
    ),
}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 4}

# Exactly which -------------------------------------------------------------------------------------------------------


def layers_to_freeze(module: nn.Module) -> Iterator[Any]:
    """By class: what GDD-I freezes of one module."""
    if isinstance(module, Block):
        yield from (module.conv0, module.conv1, getattr(module, "proj", None))
    elif isinstance(module, ResnetBlock2D):
        yield from (module.conv1, module.conv2)
    elif isinstance(module, Downsample2D | Upsample2D):
        yield getattr(module, "conv", None)
    elif isinstance(module, Attention | FluxAttention):
        yield from (getattr(module, "to_out", None), getattr(module, "to_add_out", None))
    elif isinstance(module, FeedForward):
        yield module
    elif isinstance(module, FluxSingleTransformerBlock):
        yield from (module.proj_mlp, module.proj_out)


def expected(network: nn.Module) -> set[str]:
    layers = [layer for module in network.modules() for layer in layers_to_freeze(module)]
    ids = {id(p) for layer in layers if isinstance(layer, nn.Module) for p in layer.parameters()}
    return {name for name, p in network.named_parameters() if id(p) in ids}


@pytest.mark.parametrize("kind", NETWORKS)
def test_exactly_these_are_frozen(kind: str) -> None:
    network = NETWORKS[kind]().requires_grad_(False)  # as teachers are
    frozen = freeze(network, "gdd_i")
    assert set(frozen.names) == expected(network) == {n for n, p in network.named_parameters() if not p.requires_grad}
    assert frozen.frozen == sum(network.get_parameter(name).numel() for name in frozen.names)
    assert frozen.total == frozen.frozen + sum(frozen.trained.values()) == sum(p.numel() for p in network.parameters())
    biases = {name.replace(".weight", ".bias") for name in frozen.names}
    assert biases & dict(network.named_parameters()).keys() <= set(frozen.names)
    for policy in POLICY_NAMES:
        found = {name for name, role in roles(network).items() if role in POLICIES[policy]}
        assert set(freeze(network, policy).names) == found
    assert freeze(network, "none").names == ()
    assert all(p.requires_grad for p in network.parameters())


def test_every_kind_of_layer_of_a_text_u_net() -> None:
    network = NETWORKS["text"]()
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    frozen = {f"{name}.{tensor}" for name in ("resnets.0.conv1", "resnets.0.conv2", "downsamplers.0.conv") for tensor in ("weight", "bias")}  # fmt: skip
    ends = ("attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")
    frozen |= {f"attentions.0.transformer_blocks.0.{end}.{tensor}" for end in ends for tensor in ("weight", "bias")}
    there = {name.removeprefix("down_blocks.0.") for name in freeze(network, "gdd_i").names if "down_blocks.0" in name}
    assert there == frozen
    told = roles(network)
    trained = {
        "conv_in.weight": "image",
        "conv_out.bias": "image",
        "conv_norm_out.weight": "norm",
        "time_embedding.linear_1.weight": "mapping",
        "add_embedding.linear_2.bias": "mapping",
        "down_blocks.0.resnets.0.norm2.bias": "norm",
        "down_blocks.0.resnets.0.time_emb_proj.weight": "affine",
        "down_blocks.1.resnets.0.conv_shortcut.weight": "skip",
        "down_blocks.0.attentions.0.norm.weight": "norm",
        "down_blocks.0.attentions.0.proj_in.weight": "other",
        "down_blocks.0.attentions.0.proj_out.weight": "other",
        f"{block}.norm3.weight": "norm",
        f"{block}.attn2.to_k.weight": "qkv",
    }
    assert {name: told[name] for name in trained} == trained


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("dec.32x32_in1.conv1.weight", "conv"),
        ("network.enc.8x8_block11.conv0.bias", "conv"),  # within another module
        ("enc.8x8_conv.weight", "image"),
        ("enc.8x8_aux_residual.weight", "image"),
        ("dec.8x8_aux_norm.weight", "norm"),
        ("enc.8x8_block0.norm2.bias", "norm"),
        ("map_layer0.weight", "mapping"),
        ("map_augment.weight", "mapping"),
        ("transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight", "mapping"),
        ("transformer_blocks.0.norm1.linear.weight", "affine"),
        ("transformer_blocks.3.scale_shift_table", "affine"),
        ("transformer_blocks.0.attn.norm_added_q.weight", "norm"),
        ("transformer_blocks.0.attn.add_q_proj.weight", "qkv"),
        ("pos_embed.proj.weight", "image"),
        ("proj_out_1.weight", "affine"),
        ("proj_out_2.weight", "image"),
        ("proj_out.weight", "image"),
        ("blocks.7.attn.proj.bias", "attention_out"),  # as the DiT of its paper
        ("blocks.7.attn.qkv.weight", "qkv"),
        ("blocks.7.mlp.fc2.weight", "feed_forward"),
        ("blocks.7.adaLN_modulation.1.weight", "affine"),
        ("x_embedder.proj.weight", "image"),
        ("t_embedder.mlp.0.weight", "mapping"),
        ("final_layer.linear.weight", "image"),
        ("conv1.weight", "other"),  # of nobody's block
        ("layer.myconv1.weight", "other"),
        ("resnets.0.conv1.inner.weight", "other"),
        ("mlp.0.weight", "other"),
    ],
)
def test_roles_by_names(name: str, role: str) -> None:
    assert role_of(name) == role


# Training ------------------------------------------------------------------------------------------------------------


def song(network: Any) -> Tensor:
    return network(torch.randn(2, 3, 8, 8), torch.tensor([0.3, 1.0]), torch.tensor([1, 2]))


def pixels(network: Any) -> Tensor:
    return network(torch.randn(2, 3, 8, 8), torch.tensor([10, 500]), class_labels=torch.tensor([1, 2])).sample


def text(network: Any) -> Tensor:
    added = {"text_embeds": torch.randn(2, 8), "time_ids": torch.randn(2, 6)}
    words = torch.randn(2, 5, 16)
    return network(torch.randn(2, 4, 8, 8), torch.tensor([10, 500]), words, added_cond_kwargs=added).sample


def dit(network: Any) -> Tensor:
    return network(torch.randn(2, 4, 8, 8), torch.tensor([10, 500]), class_labels=torch.tensor([1, 2])).sample


@pytest.mark.parametrize(
    ("kind", "call"), [("ncsn++", song), ("adm", song), ("pixels", pixels), ("text", text), ("dit", dit)]
)
def test_training_leaves_what_is_frozen(kind: str, call: Callable[[Any], Tensor]) -> None:
    torch.manual_seed(0)
    network = NETWORKS[kind]()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    call(network).square().mean().backward()  # gradients of a former life
    frozen = freeze(network, "gdd_i")
    learning = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        call(network).square().mean().backward()
        optimizer.step()
    assert len(optimizer.state) == len(learning) == len(before) - len(frozen.names)
    for name, parameter in network.named_parameters():
        if name in frozen.names:
            assert parameter.grad is None and torch.equal(parameter, before[name])
        else:
            assert parameter.grad is not None and not torch.equal(parameter, before[name])


# Rules of one's own --------------------------------------------------------------------------------------------------


def first_layer(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_parameters()][:1]


def test_layers_by_the_ends_of_their_names() -> None:
    network = small.Network()
    frozen = freeze(network, ["inner.0", "classes"])
    assert set(frozen.names) == {"inner.0.weight", "inner.0.bias", "classes.weight"}
    assert frozen.line == (
        f"frozen: {7192 / 13400:.1%} of 13,400 parameters (layers named inner.0, classes); trained: other {6208 / 13400:.2%}"
    )
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {"inner.2.weight", "inner.2.bias"}
    names = freeze(NETWORKS["ncsn++"](), ["conv1"]).names
    assert names and all(".conv1." in name for name in names)


def test_a_setting_names_a_rule() -> None:
    assert rule_named("gdd_i") == "gdd_i"
    assert rule_named(["conv1"]) == ["conv1"]
    rule = rule_named("test_freeze:first_layer")
    assert callable(rule)
    network = small.Network()
    frozen = freeze(network, rule)
    assert (frozen.names, frozen.rule) == (("classes.weight",), "first_layer")
    assert freeze(network, "test_freeze:first_layer") == frozen


def test_shared_tensors_are_frozen_by_any_name() -> None:
    network = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    network["b"].weight = network["a"].weight
    frozen = freeze(network, ["b"])
    assert (frozen.names, frozen.frozen, frozen.total) == (("a.weight", "b.bias"), 6, 14)


def test_a_copy_keeps_what_is_frozen() -> None:
    network = NETWORKS["ncsn++"]()
    frozen = freeze(network, "gdd_i")
    copied = copy.deepcopy(network)
    assert {n for n, p in copied.named_parameters() if not p.requires_grad} == set(frozen.names)


def everything(network: nn.Module) -> Iterator[str]:
    return (name for name, _ in network.named_parameters())


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("gdd", "freeze is 'gdd'; did you mean 'gdd_i'"),
        (
            "conv1",
            "freeze is 'conv1'; .* a list of the ends of layers' names, or a function as package.module:function",
        ),
        (
            "gdd_i",
            "no layer of this Network is known by its name as conv or attention_out or feed_forward; .* of: classes, inner.0, inner.2; or to none",
        ),
        (["inner.0", "inner.7"], r"freeze names 'inner.7', and no layer's name ends so; did you mean 'inner\.[02]'"),
        (["ner.0"], "freeze names 'ner.0'"),
        (["conv1"], "freeze names 'conv1', .*; known are: classes, inner.0, inner.2"),
        ([], "freeze is an empty list; .* of: classes, inner.0, inner.2; or set it to none"),
        (["inner.0", "inner.2", "classes"], "names all 13,400 parameters of the network"),
        (everything, "everything.* names all 13,400"),
        (lambda _: ["inner.0"], "names 'inner.0', which is no parameter of this Network"),
        (lambda network: list(network.parameters()), "names 'Parameter containing.* which is no parameter"),
        (lambda _: None, "gave a NoneType; it must give a list of names"),
        (lambda _: "inner.0.weight", "gave a str; it must give a list of names"),
        (lambda _: [], "names nothing"),
        ("test_freeze:lastlayer", "has no function 'lastlayer'; did you mean 'first_layer'"),
    ],
    ids=[
        "policy",
        "layer-as-policy",
        "own-network",
        "ending",
        "half-a-name",
        "far-ending",
        "empty",
        "all-layers",
        "all-parameters",
        "layer-from-function",
        "tensors",
        "none",
        "text",
        "nothing",
        "function",
    ],
)
def test_errors_leave_the_network_as_it_was(rule: Rule, said: str) -> None:
    network = small.Network()
    network.classes.weight.requires_grad_(False)
    with pytest.raises(UserError, match=said):
        freeze(network, rule)
    assert [n for n, p in network.named_parameters() if not p.requires_grad] == ["classes.weight"]
