"""Losses and penalties of a discriminator in closed form, and heads that judge each image alone."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onefold import seeds
from onefold.adversarial import (
    approximate_r1,
    discriminator_loss,
    generator_loss,
    mean_convention,
    r1,
    share_right,
)
from onefold.networks.discriminator import Discriminator, plain

KINDS = ["non_saturating", "hinge", "relativistic"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeds.generator(seed), dtype=torch.float64)


def logits(seed: int) -> list[Tensor]:
    """Of two heads with unequal numbers of positions."""
    return [noise(6, 9, seed=seed), noise(6, 1, seed=seed + 100)]


def negated(of: list[Tensor]) -> list[Tensor]:
    return [-each for each in of]


def twice(of: list[Tensor]) -> list[Tensor]:
    return [torch.cat([each, each]) for each in of]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_given_twice_has_the_same_loss(kind: str) -> None:
    """The published code sums over the images of a GPU."""
    real, fake = logits(1), logits(2)
    torch.testing.assert_close(generator_loss(kind, twice(fake), twice(real)), generator_loss(kind, fake, real))
    torch.testing.assert_close(discriminator_loss(kind, twice(real), twice(fake)), discriminator_loss(kind, real, fake))


@pytest.mark.parametrize("kind", KINDS)
def test_real_and_made_change_places_with_the_sign(kind: str) -> None:
    real, fake = logits(1), logits(2)
    swapped = discriminator_loss(kind, negated(fake), negated(real))
    torch.testing.assert_close(swapped, discriminator_loss(kind, real, fake))


def test_who_cannot_tell_loses_two_log_two() -> None:
    nothing = [torch.zeros(4, 3)]
    assert float(discriminator_loss("non_saturating", nothing, nothing)) == pytest.approx(2 * math.log(2))
    same = logits(3)
    assert float(discriminator_loss("non_saturating", same, same)) > 2 * math.log(2)
    assert float(discriminator_loss("relativistic", same, same)) == pytest.approx(math.log(2))
    assert float(discriminator_loss("hinge", nothing, nothing)) == pytest.approx(2)


def test_every_head_counts_alike() -> None:
    """However many positions it has."""
    real, fake = [torch.full((2, 100), 3.0), torch.full((2, 1), 1.0)], [torch.full((2, 100), 0.5), torch.zeros(2, 1)]
    expected = (F.softplus(-real[0][0, 0]) + F.softplus(-real[1][0, 0])) / 2
    expected = expected + (F.softplus(fake[0][0, 0]) + F.softplus(fake[1][0, 0])) / 2
    torch.testing.assert_close(discriminator_loss("non_saturating", real, fake), expected)
    wanted = (F.softplus(-fake[0][0, 0]) + F.softplus(-fake[1][0, 0])) / 2
    torch.testing.assert_close(generator_loss("non_saturating", fake), wanted)
    assert float(generator_loss("hinge", fake)) == pytest.approx(-0.25)


def test_share_that_is_told_right() -> None:
    assert float(share_right([torch.tensor([[1.0], [-1.0]])], [torch.tensor([[-1.0], [-2.0]])])) == 0.75


def linear(w: Tensor) -> list[Tensor]:
    """Two heads whose mean over positions, then over heads, is w x."""
    return [torch.stack([2 * w, 4 * w], 1), -w.unsqueeze(1)]


def test_r1_of_a_linear_discriminator() -> None:
    w, x = noise(12), noise(5, 3, 4, seed=1)

    def judge(x: Tensor) -> list[Tensor]:
        return linear(x.flatten(1) @ w)

    assert float(r1(judge, x)) == pytest.approx(float(w.square().sum()) / 2, rel=1e-5)
    assert float(r1(lambda x: [(0 * x).flatten(1).sum(1, keepdim=True) + 3], x)) == 0


def test_r1_can_be_learned_from() -> None:
    w = noise(4).requires_grad_(True)
    r1(lambda x: [(x.square() @ w).unsqueeze(1)], noise(3, 4, seed=1)).backward()
    x = noise(3, 4, seed=1)
    torch.testing.assert_close(w.grad, (4 * x.square() * w.detach()).mean(0), check_dtype=False, rtol=1e-5, atol=1e-6)


def test_approximate_r1_of_a_linear_discriminator() -> None:
    """E | l(x) - l(x + s eta) |^2 = s^2 |w|^2, wherever x lies."""
    w, s = noise(4), 0.03
    for x in (noise(200_000, 4, seed=1), 50 + noise(200_000, 4, seed=2)):
        shifted = x + s * noise(200_000, 4, seed=3)
        found = float(approximate_r1([(x @ w).unsqueeze(1)], [(shifted @ w).unsqueeze(1)]))
        assert found == pytest.approx(s**2 * float(w.square().sum()), rel=0.02)


def test_the_published_weight_beside_means() -> None:
    """A sum over B images and n networks with J logits each, and R1 of the sum of all logits, divided by B n."""
    gamma, b, n, j = 1e-4, 8, 2, 5
    w = noise(12)
    heads = [w] * n

    def mean_judge(x: Tensor) -> list[Tensor]:
        return [(x @ head).unsqueeze(1).expand(-1, j) for head in heads]

    x = noise(b, 12, seed=4)
    theirs = gamma / 2 * (n * j * w).square().sum() / (b * n)  # beside a loss that was divided by B n
    ours = mean_convention(gamma, [j] * n, b) * r1(mean_judge, x)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


# -- heads -------------------------------------------------------------------------------------------------------------


def heads(*shape: int, classes: int | None = None) -> Discriminator:
    with seeds.drawing(0):
        return Discriminator(plain, [shape], width=16, classes=classes)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (2, 3, 5), (4, 1, 9), (7, 6), (2,)], ids=str)
def test_an_image_is_judged_alone(shape: tuple[int, ...]) -> None:
    """Maps, tokens and vectors; no neighbour in the batch changes a logit, in training as well."""
    judge, x = heads(*shape).train(), torch.randn(5, *shape, generator=seeds.generator(1))
    (together,) = judge(x)
    assert together.shape[0] == 5 and together.ndim == 2
    alone = torch.cat([judge(row.unsqueeze(0))[0] for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_classes_are_heard_where_there_are_some() -> None:
    x, labels = torch.randn(4, 1, 8, 8, generator=seeds.generator(1)), torch.tensor([0, 1, 2, 3])
    told, deaf = heads(1, 8, 8, classes=4), heads(1, 8, 8)
    assert not torch.allclose(told(x, None, {"labels": labels})[0], told(x, None, {"labels": labels.flip(0)})[0])
    torch.testing.assert_close(deaf(x, None, {"labels": labels})[0], deaf(x)[0], rtol=0, atol=0)
    nothing, unknown = (told(x, None, {"labels": torch.full((4,), number)})[0] for number in (-1, 4))
    torch.testing.assert_close(nothing, unknown, rtol=0, atol=0)  # both are no class
