"""Where a metric looks through a network like the one that a student's discriminator looked through.

A generator learns to please what its discriminator sees. A distance in features of the same or a related network then falls further
than the images get better: published, most of a lead in FID vanished in the features of CLIP. So such a metric is named, and a
distance in pixels, which knows no network, stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onefold.student import Student

UNRELATED = "fd[pixels]"
# Networks of timm are classifiers of ImageNet, as Inception is. Features of DINOv2 and CLIP had no labels of it.
OF_IMAGENET = ("inception",)


def related(recipe: Mapping[str, Any], extractor: str) -> bool:
    seen = str(recipe.get("settings", {}).get("discriminator", ""))
    return (seen.startswith("timm:") and extractor in OF_IMAGENET) or (":" in seen and seen == extractor)


def warnings(students: Sequence[Student], extractors: Sequence[str]) -> list[str]:
    """One sentence for each student and extractor that are related."""
    return [
        f"the discriminator of {student.name} looked through {student.recipe['settings']['discriminator']}, which is related to {name!r}: "
        f"distances in its features flatter this student; {UNRELATED} is unrelated"
        for student in students
        for name in dict.fromkeys(extractors)
        if related(student.recipe, name)
    ]
