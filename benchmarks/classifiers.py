"""Trains the small classifiers that come with the package, and writes what they see of the bundled teachers' data.

python benchmarks/classifiers.py digits-cnn
python benchmarks/classifiers.py fashion-cnn --data fashion_mnist.npz

The file of Fashion-MNIST holds train_images, train_labels, test_images and test_labels. The classifier goes to
src/onefold/assets/extractors, the statistics to the folder of the teacher that was taught on the same data.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from onefold import seeds
from onefold.data import load_data, to_float
from onefold.files import atomic_folder
from onefold.metrics.extractors import Extractor, find_extractor
from onefold.metrics.extractors.bundled import FACTS, FOLDER, WEIGHTS, Classifier, load_classifier
from onefold.metrics.frechet import frechet_distance
from onefold.metrics.statistics import Moments
from onefold.teachers import ASSETS, bundled
from onefold.version import versions


@dataclass(frozen=True)
class Plan:
    """How one of them is trained."""

    teacher: str
    what: str
    layers: list[list[int]]  # width and stride
    epochs: int
    rate: float
    shift: int  # pixels at most
    flip: bool
    batch: int = 128
    decay: float = 0.05


PLANS = {
    "digits-cnn": Plan(
        teacher="digits8",
        what="classifier of scikit-learn's 8x8 digits",
        layers=[[32, 1], [64, 1], [64, 2], [32, 1]],
        epochs=80,
        rate=4e-3,
        shift=1,
        flip=False,
        batch=64,
    ),
    "fashion-cnn": Plan(
        teacher="fashion28",
        what="classifier of Fashion-MNIST",
        layers=[[16, 1], [32, 2], [64, 1], [128, 2], [64, 1]],
        epochs=15,
        rate=4e-3,
        shift=2,
        flip=True,
    ),
}
HELD_OUT = 500  # of the digits, which come without a test set


@dataclass(frozen=True)
class Split:
    """uint8 images and labels to train on and held out, and the fingerprint of the teacher's data."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    fingerprint: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PLANS)
    parser.add_argument("--data", type=Path, help="the .npz of Fashion-MNIST")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if (arguments.data is None) != (arguments.name == "digits-cnn"):
        parser.error("fashion-cnn needs --data, digits-cnn has its own")
    plan = PLANS[arguments.name]
    split = digits(arguments.seed) if arguments.data is None else from_file(arguments.data, arguments.seed)
    if split.fingerprint != bundled()[plan.teacher]["data"]["fingerprint"]:
        parser.error(f"these are not the images that {plan.teacher} was taught on")
    words = [f"benchmarks/{Path(sys.argv[0]).name}", *(Path(word).name for word in sys.argv[1:])]
    command = " ".join(["python", *words])
    write_classifier(arguments.name, plan, split, arguments.seed, command)
    write_reference(find_extractor(arguments.name), plan, split, arguments.seed, command)


def digits(seed: int) -> Split:
    data = load_data("digits")
    order = torch.randperm(len(data), generator=seeds.generator(seed, seeds.SHUFFLE))
    (test, test_labels), (train, labels) = data.fetch(order[:HELD_OUT]), data.fetch(order[HELD_OUT:])
    assert labels is not None
    assert test_labels is not None
    return Split(train, labels, test, test_labels, data.description["fingerprint"])


def from_file(path: Path, seed: int) -> Split:
    """The images held out are shuffled: files often go through the classes in turn, and then the first n are no sample."""
    data = load_data(path)
    images, labels = data.fetch(range(len(data)))
    assert labels is not None
    with np.load(path, allow_pickle=False) as arrays:
        test = torch.from_numpy(arrays["test_images"]).reshape(-1, *data.shape)
        test_labels = torch.from_numpy(arrays["test_labels"].astype(np.int64))
    order = torch.randperm(len(test), generator=seeds.generator(seed, seeds.SHUFFLE))
    return Split(images, labels, test[order], test_labels[order], data.description["fingerprint"])


# The classifier -------------------------------------------------------------------------------------------------------


def write_classifier(name: str, plan: Plan, split: Split, seed: int, command: str) -> None:
    """Accuracy is that of the weights as they are stored."""
    begin = time.process_time()
    network = train(plan, split, seed)
    seconds = time.process_time() - begin
    facts: dict[str, Any] = {
        "name": name,
        "what": plan.what,
        "shape": list(split.images.shape[1:]),
        "classes": int(split.labels.max()) + 1,
        "layers": plan.layers,
        "features": plan.layers[-1][0],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    half = {key: value.half().contiguous() for key, value in network.state_dict().items()}
    with atomic_folder(FOLDER / name) as draft:
        save_file(half, draft / WEIGHTS)
        (draft / FACTS).write_text(json.dumps(facts))
        test = accuracy(load_classifier(draft), split.test_images, split.test_labels)
        before = accuracy(network, split.test_images, split.test_labels)
        print(
            f"held out: {test:.4f} as stored, {before:.4f} in single precision, {seconds:.0f} core seconds", flush=True
        )
        facts |= {
            "test_accuracy": test,
            "test_images": len(split.test_images),
            "training": {
                "data": bundled()[plan.teacher]["data"]["source"],
                "fingerprint": split.fingerprint,
                "images": len(split.images),
                "epochs": plan.epochs,
                "batch": plan.batch,
                "optimizer": f"AdamW, weight decay {plan.decay}, rate {plan.rate}, warm-up and cosine to 0",
                "augmentation": f"shifts by up to {plan.shift} px" + (", flips" if plan.flip else ""),
                "seed": seed,
                "core_seconds": round(seconds),
            },
            "command": command,
            "versions": versions(),
        }
        (draft / FACTS).write_text(json.dumps(facts, indent=1) + "\n")


def train(plan: Plan, split: Split, seed: int) -> Classifier:
    torch.manual_seed(seed)
    network = Classifier(split.images.shape[1], plan.layers, int(split.labels.max()) + 1)
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), plan.rate, weight_decay=plan.decay)
    steps = plan.epochs * math.ceil(len(split.images) / plan.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step / steps))
    for epoch in range(plan.epochs):
        losses = []
        for rows in torch.randperm(len(split.images)).split(plan.batch):
            images = augmented(to_float(split.images[rows]), plan).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(network(images)[1], split.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        print(f"epoch {epoch + 1}/{plan.epochs}: loss {torch.stack(losses).mean():.4f}", flush=True)
    return network.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


def share(done: float) -> float:
    """Of the learning rate: a tenth of the training rises, the rest falls as a cosine."""
    return done / 0.1 if done < 0.1 else 0.5 + 0.5 * math.cos(math.pi * (done - 0.1) / 0.9)


def augmented(images: Tensor, plan: Plan) -> Tensor:
    """Each image shifted into black, half of them mirrored where a mirror image is of the same class."""
    (count, _, height, width), reach = images.shape, plan.shift
    padded = F.pad(images, [reach] * 4, value=-1.0)
    top, left = torch.randint(0, 2 * reach + 1, (2, count, 1))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    if plan.flip:
        columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    return padded[torch.arange(count).view(-1, 1, 1), :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    right = [
        network(to_float(part))[1].argmax(1) == chosen
        for part, chosen in zip(images.split(1000), labels.split(1000), strict=True)
    ]
    return torch.cat(right).double().mean().item()


# The reference --------------------------------------------------------------------------------------------------------


def write_reference(extractor: Extractor, plan: Plan, split: Split, seed: int, command: str) -> None:
    """Mean and covariance over the images that were trained on; the features of those that were held out."""
    seen = Moments()
    for vectors in features_of(extractor, split.images):
        seen.add(vectors)
    held_out = torch.cat(list(features_of(extractor, split.test_images)))
    provenance = {
        "data": bundled()[plan.teacher]["data"]["source"],
        "fingerprint": split.fingerprint,
        "images": f"{seen.count:,} the classifier was trained on; features: {len(held_out):,} held out",
        "seed": seed,
        "identity": extractor.identity,
        "command": command,
        "versions": versions(),
    }
    statistics = seen.statistics(extractor.name, provenance, held_out)
    statistics.save(ASSETS / plan.teacher / "reference.npz")
    rest = Moments().add(held_out).statistics(extractor.name)
    print(f"fd[{extractor.name}] of the held-out images: {frechet_distance(rest, statistics):.4f}")


def features_of(extractor: Extractor, images: Tensor) -> Iterator[Tensor]:
    for part in images.split(1000):
        yield extractor.extract(to_float(part)).vectors


if __name__ == "__main__":
    main()
