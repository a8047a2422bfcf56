"""SFD-v's step condition: it begins as the teacher, says different things for different counts, and folds into biases."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import pipelines
import small
from edm_pickles import TINY
from onefold.errors import UserError
from onefold.networks.edm import build_edm
from onefold.networks.edm_plan import DDPMPP, NCSNPP
from onefold.networks.step_condition import TIME_READERS, StepCondition, size
from onefold.teachers import load_teacher
from onefold.training.ema import Averages

COUNTS = (2, 3, 4, 5)
KINDS = ("unet", "scale and shift", "text", "dit", "ddpm++", "ncsn++", "adm", "own")


def network_of(kind: str) -> Any:
    """Every tensor random, so that no zero hides a mistake."""
    torch.manual_seed(0)
    if kind in ("unet", "scale and shift"):
        network = pipelines.pixel_unet(resnet_time_scale_shift="default" if kind == "unet" else "scale_shift")
    elif kind == "text":
        network = pipelines.text_unet()
    elif kind == "dit":
        network = pipelines.dit_pipeline().transformer
    elif kind == "own":
        network = small.Network()
    else:
        family = "DhariwalUNet" if kind == "adm" else "SongUNet"
        more = {"ncsn++": {k: v for k, v in NCSNPP.items() if k != "channel_mult"}, "adm": {"model_channels": 64}}
        network = build_edm(family, {**TINY, **more.get(kind, {})})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def conditioned(network: nn.Module, init: Literal["zero", "official"] = "zero", spread: bool = False) -> StepCondition:
    layers = ("inner.0",) if isinstance(network, small.Network) else TIME_READERS
    step = StepCondition(network, COUNTS, layers=layers, init=init, seed=1)
    if spread:
        generator = torch.Generator().manual_seed(5)
        for row in step.rows.values():
            row.weight.data = torch.randn(row.weight.shape, generator=generator)
    return step


def output(network: Any, kind: str) -> Tensor:
    """For one image, at a time of its kind."""
    channels = {"text": 4, "dit": 4, "own": 1}.get(kind, 3)
    z = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    time, labels = torch.tensor([3, 600]), torch.tensor([1, 4])
    if kind == "own":
        answer: Tensor = network(z, time, labels)
    elif kind in ("ddpm++", "ncsn++", "adm"):
        answer = network(z, torch.tensor([0.3, -1.2]), None)
    elif kind == "dit":
        answer = network(z, time, class_labels=labels).sample
    elif kind == "text":
        words = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2))
        answer = network(z, time, encoder_hidden_states=words).sample
    else:
        answer = network(z, time).sample
    return answer


def outputs(step: StepCondition, kind: str) -> Iterator[Tensor]:
    for calls in COUNTS:
        step.told(calls)
        yield output(step, kind)


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).abs().max() / theirs.abs().max()).detach())


@pytest.fixture
def step() -> StepCondition:
    """A small one that says something."""
    return conditioned(network_of("unet"), spread=True)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_begins_as_the_network_and_folds_into_its_biases(kind: str) -> None:
    network = network_of(kind)
    before, original = {k: v.clone() for k, v in network.state_dict().items()}, output(network, kind)
    begun = conditioned(copy.deepcopy(network))
    assert all(torch.equal(answer, original) for answer in outputs(begun, kind))
    step = conditioned(network, spread=True)
    answers = list(outputs(step, kind))
    assert min(apart(a, b) for a in answers for b in [*answers, original] if a is not b) > 1e-3
    for calls, answer in zip(COUNTS, answers, strict=True):
        folded = step.folded(calls)
        assert type(folded) is type(network) and folded.state_dict().keys() == before.keys()
        assert apart(output(folded, kind), answer) < 1e-6
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_each_block_and_the_end_of_a_transformer_are_told() -> None:
    unet, dit, adm = (conditioned(network_of(kind)) for kind in ("unet", "dit", "adm"))
    blocks = sum(type(module).__name__ == "ResnetBlock2D" for module in unet.network.modules())
    assert len(unet.rows) == blocks and all(name.endswith("/time_emb_proj") for name in unet.rows)
    assert set(dit.rows) == {"transformer_blocks/0/norm1/linear", "transformer_blocks/1/norm1/linear", "proj_out_1"}
    assert len(adm.rows) == sum(type(module).__name__ == "Block" for module in adm.network.modules())


def test_a_folded_network_shares_all_other_weights(step: StepCondition) -> None:
    folded, replaced = dict(step.folded(3).named_parameters()), step.biases(3)
    for name, weight in step.network.named_parameters():
        assert (folded[name] is weight) == (name not in replaced)
        if name in replaced:
            assert torch.equal(folded[name], replaced[name]) and not torch.equal(weight, replaced[name])
    assert len(replaced) == len(step.rows) and not any(value.requires_grad for value in replaced.values())


def test_a_folded_network_hears_of_no_count(step: StepCondition) -> None:
    """Neither of what the step condition is told later, nor by a hook."""
    folded = step.folded(2)
    with torch.no_grad():
        answer = output(folded, "unet")
        step.told(5)
        output(step, "unet")
    output(step, "unet")  # with gradients, which keeps the rows
    assert torch.equal(output(folded, "unet"), answer)
    assert not any(module._forward_hooks for module in folded.modules())


def test_every_weight_learns_and_rows_of_zero_learn_first() -> None:
    step = conditioned(network_of("unet"))
    step.told(4)
    output(step, "unet").square().mean().backward()
    assert all(float(row.weight.grad.abs().max()) > 0 for row in step.rows.values())
    assert all(float(weight.grad.abs().max()) == 0 for weight in step.mlp.parameters())  # type: ignore[union-attr]
    step = conditioned(network_of("unet"), spread=True)
    output(step.folded(4), "unet").square().mean().backward()
    assert all(weight.grad is None for part in (step.mlp, step.rows) for weight in part.parameters())
    step.told(4)
    output(step, "unet").square().mean().backward()
    assert all(weight.grad is not None and float(weight.grad.abs().max()) > 0 for weight in step.parameters())


def test_rows_are_computed_once_a_call(step: StepCondition) -> None:
    asked = list[int]()
    step.mlp.register_forward_hook(lambda *_: asked.append(1))
    list(outputs(step, "unet"))
    assert len(asked) == len(COUNTS)


def test_recomputing_activations_gives_the_same_gradients() -> None:
    """Though before it goes backward the network is asked for other counts, without gradients, and a copy of it with them."""
    gradients = []
    for recompute in (False, True):
        step = conditioned(network_of("unet"), spread=True).train()
        if recompute:
            step.enable_gradient_checkpointing()
        step.told(3)
        loss = output(step, "unet").square().mean()
        with torch.no_grad():
            list(outputs(step, "unet"))
        list(outputs(copy.deepcopy(step), "unet"))
        loss.backward()
        gradients.append([weight.grad for weight in step.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_a_compiled_network_is_compiled_once_for_all_counts() -> None:
    step, graphs = conditioned(network_of("own"), spread=True), list[object]()

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Any:
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        plain = list(outputs(step, "own"))
        step.compile(backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(outputs(step, "own"), plain, strict=True))
    assert len(graphs) == 1


def test_low_precision_keeps_its_type(step: StepCondition) -> None:
    step.told(2)
    plain = output(step, "unet").detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert apart(output(step, "unet").float(), plain) < 0.05
    half = step.to(torch.bfloat16)
    assert {value.dtype for value in half.biases(2).values()} == {torch.bfloat16}


def test_a_copy_is_told_for_itself(step: StepCondition) -> None:
    step.told(2)
    output(step, "unet")  # leaves rows that carry gradients, which cannot be copied
    other = copy.deepcopy(step)
    for row in other.rows.values():
        row.weight.data.mul_(2)
    other.told(5)
    theirs, ours = output(other, "unet"), output(step, "unet")
    assert apart(theirs, ours) > 1e-3
    step.told(2)
    assert torch.equal(output(step, "unet"), ours) and torch.equal(output(other, "unet"), theirs)
    assert apart(output(other.folded(5), "unet"), theirs) < 1e-6
    assert not {id(weight) for weight in step.parameters()} & {id(weight) for weight in other.parameters()}


def test_an_average_follows(step: StepCondition) -> None:
    step.told(3)
    averages = Averages({"student": step}, 10.0, None)
    for row in step.rows.values():
        row.weight.data.mul_(2)
    averages.update(10, 10)
    average = averages.networks["student"]
    for name, row in step.rows.items():
        assert torch.allclose(average.get_submodule("rows").get_submodule(name).weight, 0.75 * row.weight)


def test_weights_come_back_by_name(step: StepCondition) -> None:
    other = conditioned(network_of("unet"))
    other.load_state_dict(step.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(outputs(step, "unet"), outputs(other, "unet"), strict=True))


def test_modes_and_what_families_read_reach_the_network(step: StepCondition) -> None:
    assert step.config["sample_size"] == 8
    step.train()
    assert step.network.training and not step.eval().network.training
    with pytest.raises(AttributeError, match="nonsense"):
        _ = step.nonsense


def test_the_official_start_is_drawn_from_the_seed() -> None:
    state, original = torch.get_rng_state(), output(network_of("unet"), "unet")
    torch.set_rng_state(state)
    drawn = [conditioned(network_of("unet"), "official") for _ in range(2)]
    answers = [list(outputs(step, "unet")) for step in drawn]
    assert all(apart(answer, original) > 1e-5 for answer in answers[0])
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))
    other = StepCondition(network_of("unet"), COUNTS, init="official", seed=2)
    assert not torch.equal(next(outputs(other, "unet")), answers[0][0])


def test_what_it_was_not_trained_for_is_refused(step: StepCondition) -> None:
    with pytest.raises(UserError, match="was told none"):
        output(step, "unet")
    for ask in (step.told, step.biases, step.folded):
        with pytest.raises(UserError, match="trained for 2, 3, 4 and 5 calls, not 7; ask for one of these"):
            ask(7)
    only = StepCondition(network_of("unet"), [3])
    assert only.calls == 3
    with pytest.raises(UserError, match="trained for 3 calls, not 2"):
        only.told(2)


@pytest.mark.parametrize("layers", [TIME_READERS, ("inner.0", "nowhere"), ()])
def test_a_network_without_such_layers_says_what_to_name(layers: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"set step_layers: name .* of: inner\.0, inner\.2"):
        StepCondition(small.Network(), COUNTS, layers=layers)
    with pytest.raises(UserError, match="of: none, it has no such layers"):
        StepCondition(nn.Sequential(nn.Linear(2, 2, bias=False)), COUNTS, layers=layers)


def test_it_is_small() -> None:
    """The official one is 8 % of CIFAR-10's network; that of eight pixels is small itself."""
    digits = StepCondition(load_teacher("digits8", device="cpu").module, COUNTS)
    assert digits.note == "step condition for 2, 3, 4, 5 calls at 8 layers: 86,272 weights, 12.3% of the network's"
    with torch.device("meta"):
        cifar = build_edm("SongUNet", {"img_resolution": 32, "in_channels": 3, "out_channels": 3, **DDPMPP})
    step = StepCondition(cifar, COUNTS)
    assert size(step) / size(step.network) == pytest.approx(1.02, abs=5e-4)
    assert step.note.endswith("2.0% of the network's")
