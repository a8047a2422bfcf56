"""Work in forward passes of the teacher, counted while networks run."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn

from onefold.training.work import Work


class Convolutions(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.nn.functional.silu(self.first(x)))


@pytest.fixture
def networks() -> dict[str, nn.Module]:
    return {"teacher": Convolutions(8).requires_grad_(False), "student": Convolutions(4)}


def counted(networks: dict[str, nn.Module], name: str, x: Tensor, *, quiet: bool = False) -> float:
    work = Work(networks)
    with ExitStack() as hooks:
        for hook in work.hooks():
            hooks.callback(hook.remove)
        with torch.no_grad():
            networks["teacher"](x[:1])  # one forward pass, the unit
        with torch.set_grad_enabled(not quiet):
            networks[name](x)
    return work.forwards - 1


def test_a_forward_pass_of_each_row_is_one(networks: dict[str, nn.Module]) -> None:
    assert counted(networks, "teacher", torch.zeros(5, 1, 6, 6)) == 5


def test_training_is_three_and_handing_gradients_on_two(networks: dict[str, nn.Module]) -> None:
    networks["student"] = Convolutions(8)
    assert counted(networks, "student", torch.zeros(5, 1, 6, 6)) == 15
    assert counted(networks, "student", torch.zeros(5, 1, 6, 6), quiet=True) == 5
    assert counted(networks, "teacher", torch.zeros(5, 1, 6, 6, requires_grad=True)) == 10


def test_a_smaller_network_is_less_work(networks: dict[str, nn.Module]) -> None:
    assert (
        counted(networks, "student", torch.zeros(5, 1, 6, 6)) == 7.5
    )  # half as wide, its first and last channel the same


def test_layers_that_are_frozen_cost_less(networks: dict[str, nn.Module]) -> None:
    """The first of two layers of equal work is frozen and hands nothing on; the last learns."""
    student = networks["student"] = Convolutions(8)
    student.first.requires_grad_(False)
    assert counted(networks, "student", torch.zeros(5, 1, 6, 6)) == 0.5 * 5 + 0.5 * 15


def test_of_a_compiled_network_its_share_of_the_parameters_is_counted(networks: dict[str, nn.Module]) -> None:
    student = Convolutions(8)
    student.compile(backend="eager")
    networks["student"] = student
    assert counted(networks, "student", torch.zeros(5, 1, 6, 6)) == 15


def test_what_an_adapter_works_with_is_seen(networks: dict[str, nn.Module]) -> None:
    """The weights beneath are no parameters of the adapter; its own two small layers learn."""
    pytest.importorskip("peft")
    from onefold.networks.lora import Lora

    network = nn.Sequential(OrderedDict(to_q=nn.Linear(64, 64, bias=False))).requires_grad_(False)
    pair = {"teacher": network, "student": Lora(network, 2, targets=["to_q"])}
    beneath, adapter = 4.0, 4 * 3 * 2 * (2 * 64) / 64**2
    assert counted(pair, "student", torch.zeros(4, 64)) == beneath + adapter


def test_nothing_is_left_at_the_networks(networks: dict[str, nn.Module]) -> None:
    counted(networks, "student", torch.zeros(2, 1, 6, 6))
    for network in networks.values():
        for module in network.modules():
            assert not module._forward_hooks and not module._forward_pre_hooks
