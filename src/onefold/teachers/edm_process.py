"""The four ways in which Karras et al. wrap a network, as processes. Classes and fields are named as in the checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from onefold.errors import UserError, suggest
from onefold.process import EDM, VE, ContinuousVP, DiscreteVP, Prediction, Process
from onefold.settings import Settings, build


class Preconditioning(Settings):
    prediction: ClassVar[Prediction] = "eps"
    output: ClassVar[Literal["plain", "negated", "mean"]] = "plain"  # which of a network's outputs is the prediction

    def process(self) -> Process:
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, **self.model_dump(mode="json")}

    def check(self, inputs: int, outputs: int) -> None:
        most = 2 if self.output == "mean" else 1
        if not inputs <= outputs <= most * inputs:
            raise UserError(
                f"a network of {inputs} channels with {outputs} outputs does not fit {type(self).__name__}; "
                f"it must give {' to '.join(str(inputs * n) for n in range(1, most + 1))}"
            )


class EDMPrecond(Preconditioning):
    """The paper's own. A range from 0 to inf in a checkpoint stands for any; then it is the paper's, 0.002 to 80."""

    prediction = "edm"
    sigma_min: float = Field(0.002, gt=0, le=1e6)
    sigma_max: float = Field(80.0, gt=0, le=1e6)
    sigma_data: float = Field(0.5, gt=0, le=1e6)

    @model_validator(mode="before")
    @classmethod
    def any_range(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        without = {"sigma_min": 0, "sigma_max": math.inf}
        return {key: value for key, value in values.items() if not (key in without and value == without[key])}

    def process(self) -> Process:
        return EDM(self.sigma_min, self.sigma_max, self.sigma_data)

    @model_validator(mode="after")
    def rising(self) -> Self:
        check_range(self.sigma_min, self.sigma_max)
        return self


class VPPrecond(Preconditioning):
    beta_d: float = Field(19.9, gt=0, le=100)
    beta_min: float = Field(0.1, gt=0, le=100)
    M: int = Field(1000, ge=2, le=1_000_000)
    epsilon_t: float = Field(1e-5, gt=0, lt=1)

    def process(self) -> Process:
        ends = self.beta_min, self.beta_min + self.beta_d
        return ContinuousVP(*ends, t_min=self.epsilon_t, time_scale=float(self.M - 1))


class VEPrecond(Preconditioning):
    """x0 = x + sigma F: the network gives minus the noise."""

    output = "negated"
    sigma_min: float = Field(0.02, gt=0, le=1e6)
    sigma_max: float = Field(100.0, gt=0, le=1e6)

    def process(self) -> Process:
        return VE(self.sigma_min, self.sigma_max, "log")

    @model_validator(mode="after")
    def rising(self) -> Self:
        check_range(self.sigma_min, self.sigma_max)
        return self


class iDDPMPrecond(Preconditioning):
    """The cosine table of M steps, no step keeping less than the share C_1 of the signal's power."""

    output = "mean"
    C_1: float = Field(0.001, gt=0, lt=1)
    C_2: float = Field(0.008, gt=0, lt=1)
    M: int = Field(1000, ge=2, le=100_000)

    def process(self) -> Process:
        steps = torch.arange(self.M + 1, dtype=torch.float64) / self.M
        power = torch.cos((steps + self.C_2) / (1 + self.C_2) * math.pi / 2) ** 2
        return DiscreteVP((power[1:] / power[:-1]).clamp(min=self.C_1).cumprod(0))


def check_range(low: float, high: float) -> None:
    if low >= high:
        raise UserError(f"sigma_min is {low}, expected less than sigma_max, {high}; mend the range")


KINDS: dict[str, type[Preconditioning]] = {
    kind.__name__: kind for kind in (EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond)
}


def preconditioning(kind: str, values: Mapping[str, Any]) -> Preconditioning:
    if kind not in KINDS:
        raise UserError(f"preconditioning {kind[:80]!r} is not known{suggest(kind[:80], KINDS)}")
    return build(KINDS[kind], values)
