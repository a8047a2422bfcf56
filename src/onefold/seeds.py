"""Randomness as a function: every draw is named by integers, never by what was drawn before it.

Image i of a sampling run depends on (seed, i) alone, and training noise on (seed, step, index), so neither the batch
size, nor the number of processes, nor an interruption changes what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

MASK = (1 << 64) - 1

# Streams keep draws apart that are named by the same numbers.
NOISE, LABEL, LEVEL, SHUFFLE, FLIP, DROP, STEP, ADAPTER, NETWORK = range(9)


def mix(*words: int) -> int:
    """A 64-bit hash of integers (the SplitMix64 finaliser over a running state)."""
    state = 0
    for word in words:
        state = (state + (word & MASK) + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


def generator(*words: int) -> torch.Generator:
    """A CPU generator whose stream is named by integers."""
    return torch.Generator().manual_seed(mix(*words))


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """For layers that draw their weights from torch's own generator, whose state comes back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def uniform(*words: int) -> float:
    """One number in [0, 1) with 53 random bits."""
    return (mix(*words) >> 11) * 2.0**-53


def integer(bound: int, *words: int) -> int:
    return int(uniform(*words) * bound)


def image_seed(seed: int, index: int) -> int:
    """What `torch.Generator().manual_seed` takes for the noise of image `index` of a seed."""
    return mix(seed, NOISE, index)


class ImageNoise:
    """Noise for the images of a batch, each from a stream of its own: the first draw is the start, later ones are the
    solver's."""

    def __init__(self, seed: int, indices: Sequence[int], shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.streams = [torch.Generator().manual_seed(image_seed(seed, index)) for index in indices]

    def __call__(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=stream) for stream in self.streams])


NoiseSource = Callable[[], Tensor]
