"""Budgets and intervals: "200k" or "1.5M" images, "30s", "5m" or "2h" of time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from onefold.errors import UserError

MOST = 1e12  # of any unit
IMAGES = {"": 1, "k": 1_000, "M": 1_000_000}
SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Budget:
    """Images or seconds, never both."""

    images: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str | int) -> Budget:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]?)\s*", str(text))
        number, unit = (float(match[1]), match[2]) if match else (0.0, "?")
        if not 0 < number < MOST or unit not in IMAGES | SECONDS:
            raise UserError(
                f"budget {str(text)!r} is not understood; write images as 200k or 1.5M, time as 30s, 5m or 2h"
            )
        if unit in SECONDS:
            return cls(seconds=number * SECONDS[unit])
        return cls(images=max(1, round(number * IMAGES[unit])))

    def progress(self, images: int, seconds: float) -> float:
        """The share that is used up; 1 and more means done."""
        if self.images is not None:
            return images / self.images
        assert self.seconds is not None
        return seconds / self.seconds

    def share(self, parts: int) -> Budget:
        """The interval that divides this budget into parts."""
        if self.images is not None:
            return Budget(images=max(1, self.images // parts))
        assert self.seconds is not None
        return Budget(seconds=self.seconds / parts)

    def at_least(self, seconds: float) -> Budget:
        """An interval in time that is not shorter than this."""
        return self if self.seconds is None else Budget(seconds=max(self.seconds, seconds))

    def __str__(self) -> str:
        return f"{self.images:,} images" if self.images is not None else f"{self.seconds:g} s"


def readable(value: Any) -> str:
    """As it was written; a plain number means images."""
    Budget.parse(value)
    return str(value)


Amount = Annotated[str, BeforeValidator(readable)]
AmountOrAuto = Annotated[str, BeforeValidator(lambda value: value if value == "auto" else readable(value))]
