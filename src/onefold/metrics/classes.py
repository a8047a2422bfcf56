"""What a classifier says of generated images: whether they show what was asked, and how clear and varied they are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from onefold import seeds
from onefold.errors import UserError
from onefold.metrics.statistics import finite_rows


def class_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose likeliest class is the label they were asked for."""
    logits, labels = finite_rows(logits), labels.detach().cpu()
    if labels.shape != (len(logits),) or not len(labels):
        raise UserError(f"{len(logits)} images have labels of shape {tuple(labels.shape)}; give one label an image")
    wrong = labels[(labels < 0) | (labels >= logits.shape[1])]
    if len(wrong):
        raise UserError(
            f"label {int(wrong[0])} is none of the classifier's classes 0 to {logits.shape[1] - 1}; use the labels it was trained with"
        )
    return float((logits.argmax(1) == labels).double().mean())


class ClassScore(NamedTuple):
    """Over the splits: 1 where all images look alike to the classifier, the number of classes at best."""

    mean: float
    std: float


def class_score(logits: Tensor, *, splits: int = 10, seed: int = 0) -> ClassScore:
    """exp(E KL(p(class | image) || p(class))) (Salimans 2016) of random splits; with Inception's logits alone it is IS."""
    logits = finite_rows(logits).double()
    if not 1 <= splits <= len(logits):
        raise UserError(f"splits is {splits}, expected 1 to {len(logits)}, the number of images; lower it")
    # labels often repeat in a pattern, so neighbours are no fair sample
    order = torch.randperm(len(logits), generator=seeds.generator(seed))
    scores = torch.stack([score(part) for part in logits[order].tensor_split(splits)])
    return ClassScore(float(scores.mean()), float(scores.std(correction=0)))


def score(logits: Tensor) -> Tensor:
    logs = logits.log_softmax(1)
    shares = logs.exp()
    # xlogy: a class that no image shows says nothing
    together = shares.mean(0)
    return ((shares * logs).sum(1).mean() - torch.xlogy(together, together).sum()).exp()
