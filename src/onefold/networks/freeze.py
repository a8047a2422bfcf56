"""Freezing by role (GDD-I, D2O-F): the convolutions of residual blocks and the ends of attention stay as the teacher's.

The role of a parameter is told by its layer's name: as EDM networks name their layers, U-Nets and transformers of
diffusers, and the DiT of its paper. Of other networks, layers are named one by one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import nn

from onefold.errors import UserError, suggest
from onefold.imports import FORM, find_function, is_function_name
from onefold.networks.lora import kinds, named_so

Role = Literal[
    "conv",  # the two 3x3 convolutions of a residual block, also of one that halves or doubles, and those that only do so
    "attention_out",
    "feed_forward",
    "qkv",
    "skip",  # the 1x1 convolution beside a residual block
    "norm",
    "affine",  # from the embedding to scale and shift
    "mapping",  # embeds time, class and text
    "image",  # reads or writes the picture: first and last layers, and those that show it again at lower resolutions
    "other",
]
Rule: TypeAlias = str | Sequence[str] | Callable[[nn.Module], Iterable[str]]

GDD_I: tuple[Role, ...] = ("conv", "attention_out", "feed_forward")
POLICIES: Mapping[str, tuple[Role, ...]] = {
    "none": (),  # GDD
    "gdd_i": GDD_I,
    "gdd_i_qkv": (*GDD_I, "qkv"),
    "gdd_i_skip": (*GDD_I, "qkv", "skip"),
}

EDM = r"\d+x\d+_(block\d+|in\d|up|down)"  # a block
LAYERS: Mapping[Role, str] = {  # the first that matches the end of a name
    "conv": rf"{EDM}\.conv[01]|resnets\.\d+\.conv[12]|(down|up)samplers\.\d+\.conv[12]?|resnet_(down|up)\.conv[12]",
    "attention_out": rf"{EDM}\.proj|to_out(\.0)?|to_add_out|blocks\.\d+\.attn\.proj",
    "feed_forward": r"ff(_context)?\.net\.\d+(\.proj)?|ff\.conv_(inverted|depth|point)|blocks\.\d+\.mlp\.fc[12]"
    r"|single_transformer_blocks\.\d+\.proj_(mlp|out)",
    "qkv": rf"{EDM}\.qkv|to_(added_)?(q|k|v|kv|qkv)|add_[qkv]_proj|blocks\.\d+\.attn\.qkv",
    "skip": rf"{EDM}\.skip|conv_shortcut",
    "norm": r"(\w+_)?norm(\d|_\w+)?",
    "affine": rf"{EDM}\.affine|time_emb_proj|norm(\d|_\w+)?(_context)?\.linear|proj_out_1|scale_shift_table"
    r"|(adaln_single|time_embed)\.linear|adaLN_modulation\.\d",
    "image": r"\d+x\d+_(conv|aux_(residual|skip|conv))|out_conv|conv_in|conv_out|skip_conv|(pos|patch)_embed\.proj"
    r"|x_embedder(\.proj)?|final_layer\.linear|(?<!\d\.)proj_out(_2)?",  # with a number before: of a block
    "mapping": r"map_(noise|label|augment|layer\d)|(time_proj|caption_projection|encoder_hid_proj|\w*embedd(er|ing))(\.\w+)*",
}
ROLES: Mapping[Role, re.Pattern[str]] = {
    role: re.compile(rf"(.*\.)?({names})(\.(weight|bias))?") for role, names in LAYERS.items()
}


@dataclass(frozen=True)
class Frozen:
    """What a rule froze."""

    names: tuple[str, ...]  # of parameters
    frozen: int  # numbers in them
    total: int  # numbers in all parameters
    rule: str
    trained: Mapping[Role, int]

    @property
    def share(self) -> float:
        return self.frozen / self.total

    @property
    def line(self) -> str:
        trained = sorted(self.trained.items(), key=lambda item: -item[1])
        parts = ", ".join(f"{role} {count / self.total:.2%}" for role, count in trained)
        return f"frozen: {self.share:.1%} of {self.total:,} parameters ({self.rule}); trained: {parts}"


def freeze(network: nn.Module, rule: Rule) -> Frozen:
    """Parameters that the rule names have no gradient from here on, all others have one.

    A rule is a policy's name, the ends of layers' names, or a function from the network to names of parameters.
    """
    named, told = resolve(network, rule)
    aliases = dict(network.named_parameters(remove_duplicate=False))  # a shared tensor is frozen by any of its names
    chosen = {id(aliases[name]) for name in named}
    parameters = dict(network.named_parameters())
    frozen = {name: p.numel() for name, p in parameters.items() if id(p) in chosen}
    total = sum(p.numel() for p in parameters.values())
    if len(frozen) == len(parameters):
        raise UserError(
            f"freeze ({told}) names all {total:,} parameters of the network, so that none would learn; name fewer"
        )
    trained: Counter[Role] = Counter()
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in frozen)
        if name in frozen:
            parameter.grad = None
        else:
            trained[role_of(name)] += parameter.numel()
    return Frozen(tuple(frozen), sum(frozen.values()), total, told, trained)


def roles(network: nn.Module) -> dict[str, Role]:
    """By a parameter's name."""
    return {name: role_of(name) for name, _ in network.named_parameters()}


def role_of(name: str) -> Role:
    return next((role for role, pattern in ROLES.items() if pattern.fullmatch(name)), "other")


def rule_named(name: str | Sequence[str]) -> Rule:
    """The rule that a setting names."""
    if not isinstance(name, str) or name in POLICIES:
        return name
    if is_function_name(name):
        return find_function(name, "freeze")
    raise UserError(
        f"freeze is {name!r}{suggest(name, POLICIES)} (or give a list of the ends of layers' names, or a function as {FORM})"
    )


def resolve(network: nn.Module, rule: Rule) -> tuple[set[str], str]:
    """(names of parameters, the rule in words)."""
    if isinstance(rule, str):
        rule = rule_named(rule)
    if isinstance(rule, str):
        return by_policy(network, rule)
    return by_function(network, rule) if callable(rule) else by_ends(network, rule)


def by_policy(network: nn.Module, policy: str) -> tuple[set[str], str]:
    wanted, there = POLICIES[policy], roles(network)
    found = [role for role in wanted if role in there.values()]
    if wanted and not found:
        raise UserError(
            f"freeze is {policy!r}, and no layer of this {type(network).__name__} is known by its name as {' or '.join(wanted)}; "
            f"set freeze to a list of the ends of layers' names, of: {kinds(layers_of(network))}; or to none"
        )
    return {name for name, role in there.items() if role in found}, ": ".join(filter(None, [policy, ", ".join(found)]))


def by_ends(network: nn.Module, ends: Sequence[str]) -> tuple[set[str], str]:
    layers = layers_of(network)
    named, absent = named_so(layers, ends)
    known = kinds(layers)
    if absent:
        raise UserError(
            f"freeze names {absent[0]!r}, and no layer's name ends so{suggest(absent[0], known.split(', '))}"
        )
    if not named:
        raise UserError(f"freeze is an empty list; give the ends of layers' names, of: {known}; or set it to none")
    return {name for layer in named for name in layers[layer]}, f"layers named {', '.join(ends)}"


def layers_of(network: nn.Module) -> dict[str, list[str]]:
    """The modules with parameters of their own, and these parameters' names."""
    own = {name: module.named_parameters(name, recurse=False) for name, module in network.named_modules()}
    found = {layer: [name for name, _ in parameters] for layer, parameters in own.items()}
    return {layer: names for layer, names in found.items() if layer and names}


def by_function(network: nn.Module, rule: Callable[[nn.Module], Iterable[str]]) -> tuple[set[str], str]:
    called, expected = getattr(rule, "__name__", type(rule).__name__), "names out of network.named_parameters()"
    given: Any = rule(network)
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise UserError(f"freeze's function {called} gave a {type(given).__name__}; it must give a list of {expected}")
    named: list[Any] = list(given)
    known = dict(network.named_parameters(remove_duplicate=False))
    strange = [name for name in named if not isinstance(name, str) or name not in known]
    if strange:
        raise UserError(
            f"freeze's function {called} names {str(strange[0])[:100]!r}, which is no parameter of this {type(network).__name__}; "
            f"it must give {expected}"
        )
    if not named:
        raise UserError(f"freeze's function {called} names nothing; it must give {expected}, or set freeze to none")
    return set(named), called
