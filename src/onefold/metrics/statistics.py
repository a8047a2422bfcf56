"""What is known of a set of images through one extractor: mean and covariance of their features, and files of them.

Files have the field's common form, an `.npz` with `mu` and `sigma`, so statistics come from other tools and go to them;
ours say besides how many images there were, which extractor saw them and where they came from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onefold.data import read_npz
from onefold.errors import UserError
from onefold.files import atomic_file, place_of

KEYS = ("mu", "sigma", "count", "extractor", "provenance", "features")
# Of the largest variance: what rounding in single precision may do to a covariance, and no more.
ROUNDING = 1e-3


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of features. An unknown `count` is 0, an unknown `extractor` is empty."""

    mean: Tensor  # float64 (D,)
    covariance: Tensor  # float64 (D, D), divided by count - 1
    count: int
    extractor: str
    provenance: dict[str, Any]  # data, command, versions, the extractor's identity, ...
    features: Tensor | None = None  # float32 (M, D): further real images, not counted in mean and covariance

    def save(self, path: str | Path) -> None:
        """An `.npz` with what is known, whole or not at all."""
        arrays: dict[str, Any] = {"mu": self.mean.numpy(), "sigma": self.covariance.numpy()}
        if self.count:
            arrays["count"] = np.int64(self.count)
        if self.extractor:
            arrays["extractor"] = np.array(self.extractor)
        if self.provenance:
            arrays["provenance"] = np.array(json.dumps(self.provenance))
        if self.features is not None:
            arrays["features"] = half_precision(self.features).numpy()
        with atomic_file(Path(path).expanduser()) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **arrays)


def half_precision(features: Tensor) -> Tensor:
    """float16, unless that makes one infinite."""
    half = features.half()
    return half if bool(half.isfinite().all()) else features.float()


def load_statistics(path: str | Path) -> Statistics:
    """Ours, or any `.npz` with `mu` and `sigma`; what could not be used later is refused here."""
    source, place = str(path), place_of(path)
    if not place.is_file():
        raise UserError(
            f"there are no statistics {source!r}, expected an .npz file with 'mu' and 'sigma'; mend the path"
        )
    try:
        arrays = read_npz(source, place, KEYS)
    except PermissionError as error:
        raise UserError(
            f"statistics {source!r} may not be read ({error.strerror}); change their permissions"
        ) from error
    for key in ("mu", "sigma"):
        if key not in arrays:
            held = ", ".join(arrays) or "nothing"
            raise UserError(f"{source} holds {held}, expected 'mu' and 'sigma'; compute the statistics again")
    numbers: dict[str, NDArray[Any]] = {
        key: numeric(arrays[key], key, source) for key in ("mu", "sigma", "features") if key in arrays
    }
    check_shapes(numbers, source)
    features = numbers.get("features")
    return Statistics(
        mean=torch.from_numpy(numbers["mu"].astype(np.float64)),
        covariance=as_covariance(torch.from_numpy(numbers["sigma"].astype(np.float64)), source),
        count=read_count(arrays, source),
        extractor=str(arrays.get("extractor", "")),
        provenance=read_provenance(arrays, source),
        features=None if features is None else torch.from_numpy(features.astype(np.float32)),
    )


def numeric(array: NDArray[Any], key: str, source: str) -> NDArray[Any]:
    if array.dtype.kind not in "fiu":
        raise UserError(f"{key!r} of {source} has the type {array.dtype}, expected real numbers; compute it again")
    if not np.isfinite(array).all():
        raise UserError(f"{key!r} of {source} holds NaN or infinity, expected numbers; compute the statistics again")
    return array


def check_shapes(numbers: dict[str, NDArray[Any]], source: str) -> None:
    size, features = numbers["mu"].size, numbers.get("features")
    fits = size > 0 and numbers["mu"].shape == (size,) and numbers["sigma"].shape == (size, size)
    if not fits or (features is not None and features.shape[1:] != (size,)):
        told = ", ".join(f"{key!r} of shape {array.shape}" for key, array in numbers.items())
        raise UserError(f"{source} holds {told}, expected (D,), (D, D) and (M, D); compute the statistics again")


def as_covariance(matrix: Tensor, source: str) -> Tensor:
    """Exactly symmetric; more than rounding away from a covariance is refused."""
    slack = ROUNDING * float(matrix.diagonal().amax().clamp(min=0))
    gap = float((matrix - matrix.T).abs().amax())
    if gap > slack:
        raise UserError(f"'sigma' of {source} is not symmetric (by up to {gap:.3g}); compute the statistics again")
    symmetric = (matrix + matrix.T) / 2
    # a Cholesky decomposition of S + slack I exists only if no eigenvalue of S lies below -slack
    shift = max(slack, torch.finfo(torch.float64).tiny) * torch.eye(len(matrix), dtype=torch.float64)
    if int(torch.linalg.cholesky_ex(symmetric + shift).info):
        raise UserError(f"'sigma' of {source} has negative eigenvalues, so it is no covariance; compute it again")
    return symmetric


def read_count(arrays: Mapping[str, NDArray[Any]], source: str) -> int:
    count = numeric(arrays["count"], "count", source) if "count" in arrays else np.zeros(1)
    if count.size != 1 or count.min() < 0:
        raise UserError(
            f"'count' of {source} is {count.tolist()}, expected how many images there were; remove it or compute it again"
        )
    return int(count.sum())


def read_provenance(arrays: Mapping[str, NDArray[Any]], source: str) -> dict[str, Any]:
    try:
        return dict(json.loads(str(arrays.get("provenance", "{}"))))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"'provenance' of {source} is no JSON object; remove it or compute it again") from error


class Moments:
    """Mean and scatter of features, added up batch by batch; sizes and order of batches change rounding alone."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)  # sum of (x - mean) (x - mean)^T

    def add(self, features: Tensor) -> Self:
        """A batch N D; N may be 0."""
        rows = finite_rows(features).double()
        if len(rows):
            mean = rows.mean(0)
            self.join(len(rows), mean, rows - mean)
        return self

    def merge(self, other: Moments) -> Self:
        """What another process or group has seen."""
        if other.count:
            self.join(other.count, other.mean, other.scatter[:0])
            self.scatter += other.scatter
        return self

    def join(self, count: int, mean: Tensor, rows: Tensor) -> None:
        """S = S_a + S_b + n_a n_b / (n_a + n_b) d d^T with d = m_b - m_a (Chan, Golub and LeVeque 1983), S_b = rows^T rows."""
        if not self.count:
            self.mean, self.scatter = torch.zeros_like(mean), torch.zeros(2 * mean.shape, dtype=torch.float64)
        if mean.shape != self.mean.shape:
            raise UserError(
                f"features have {len(mean)} dimensions, expected {len(self.mean)} as before; use one extractor for all images"
            )
        total, between = self.count + count, mean - self.mean
        rows = torch.cat([rows, (self.count * count / total) ** 0.5 * between.unsqueeze(0)])
        self.scatter.addmm_(rows.T, rows)
        self.mean += count / total * between
        self.count = total

    def statistics(
        self, extractor: str = "", provenance: Mapping[str, Any] | None = None, features: Tensor | None = None
    ) -> Statistics:
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images, got {self.count}; give more images")
        covariance = (self.scatter + self.scatter.T) / (2 * (self.count - 1))
        return Statistics(self.mean.clone(), covariance, self.count, extractor, dict(provenance or {}), features)


def finite_rows(features: Tensor) -> Tensor:
    """Features N D on the CPU, in the type they came in."""
    if features.ndim != 2:
        raise UserError(f"features have the shape {tuple(features.shape)}, expected N D; give one row an image")
    features = features.detach().cpu()
    broken = int((~features.isfinite()).any(1).sum())
    if broken:
        raise UserError(
            f"the features of {broken} of {len(features)} images are NaN or infinite, expected numbers; look at those images"
        )
    return features


def comparable_rows(generated: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    generated, real = finite_rows(generated), finite_rows(real)
    if generated.shape[1] != real.shape[1]:
        raise UserError(
            f"generated features have {generated.shape[1]} dimensions but real ones {real.shape[1]}; use one extractor for both"
        )
    return generated, real
