"""How several processes share a batch: each takes its rows, gradients are averaged."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from onefold.errors import UserError


def rows_of(batch_size: int, world: int, rank: int, micro_batches: int) -> list[range]:
    """The rows of a global batch that a process works on, micro-batch by micro-batch."""
    parts = world * micro_batches
    if batch_size % parts:
        raise UserError(
            f"batch_size {batch_size} does not divide into {world} process(es) times {micro_batches} micro-batch(es); use a multiple of {parts}"
        )
    size = batch_size // parts
    first = rank * micro_batches * size
    return [range(first + k * size, first + (k + 1) * size) for k in range(micro_batches)]


def average(gradients: list[Tensor], world: int, bucket: int = 1 << 25) -> None:
    """Mean over processes, in flat buckets that are all under way at once."""
    waiting = []
    for tensors in buckets(gradients, bucket):
        flat = torch.cat([t.flatten() for t in tensors])
        waiting.append((tensors, flat, dist.all_reduce(flat, async_op=True)))
    for tensors, flat, handle in waiting:
        handle.wait()
        parts = (flat / world).split([t.numel() for t in tensors])
        torch._foreach_copy_(tensors, [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])


def buckets(tensors: list[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Runs of one dtype of at most about `size` numbers."""
    run: list[Tensor] = []
    numbers = 0
    for tensor in tensors:
        if run and (tensor.dtype != run[0].dtype or numbers + tensor.numel() > size):
            yield run
            run, numbers = [], 0
        run.append(tensor)
        numbers += tensor.numel()
    if run:
        yield run
