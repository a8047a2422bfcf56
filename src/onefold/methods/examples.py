"""The user's images as a method sees them: in the teacher's shape, with the teacher's classes, the same for any number of processes."""

from __future__ import annotations

import torch
from torch import Tensor

from onefold.data import ImageData, Stream, load_data
from onefold.denoiser import Denoiser
from onefold.errors import UserError
from onefold.training.contract import Draw


class Examples:
    """An endless shuffled stream of images, with the number that stands for what each shows."""

    def __init__(
        self, teacher: Denoiser, source: str | ImageData, *, batch_size: int, seed: int, flip: bool = False
    ) -> None:
        self.teacher = teacher
        data = source if isinstance(source, ImageData) else fitting(teacher, source)
        self.stream = Stream(data, batch_size=batch_size, seed=seed, flip=flip)

    @property
    def without_class(self) -> bool:
        """The teacher is told classes, and the data has others or none."""
        return self.teacher.classes is not None and self.stream.data.classes != self.teacher.classes

    def batch(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """Images for these rows, and their numbers; those without a class are told so."""
        images, labels = self.stream.batch(draw.step, draw.rows)
        if self.teacher.classes is None:
            return images, None
        if labels is None or self.without_class:
            labels = torch.full((len(images),), self.teacher.null["labels"])
        return images, labels

    def clean(self, images: Tensor) -> Tensor:
        """What the teacher's network denoises: the images, or their latents."""
        codec = self.teacher.codec
        return images if codec is None else codec.latents(images)


def fitting(teacher: Denoiser, source: str) -> ImageData:
    shape = teacher.image_shape
    if teacher.encode_texts is not None:
        raise UserError(
            f"{teacher.name!r} is told a text with each image, and data has none; leave the data out, and states are the teacher's own"
        )
    if len(shape) != 3:
        raise UserError(f"{teacher.name!r} makes no pictures but {shape}, so no data can be read for it; leave it out")
    channels, height, width = shape
    try:
        data = load_data(source, size=height if height == width else None, channels=channels)
    except UserError as error:
        told, _, remedy = str(error).partition(";")
        if "--size" not in remedy:
            raise
        raise UserError(
            f"{told}; {teacher.name!r} makes {height}x{width} images, give data at least as large"
        ) from None
    if tuple(data.shape) != shape:
        raise UserError(
            f"the data's images are {data.shape}, those of {teacher.name!r} {shape}; give data of that shape"
        )
    if teacher.classes is not None and data.classes != teacher.classes and "labels" not in teacher.null:
        raise UserError(
            f"{teacher.name!r} is told one of {teacher.classes} classes with each image, the data has {data.classes or 'none'}; "
            "give data with these classes, or leave it out"
        )
    return data
