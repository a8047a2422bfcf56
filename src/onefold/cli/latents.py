"""Noise that is read for sampling, and the states on the way that are written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onefold.cli.common import must_be_new
from onefold.errors import UserError, first_line
from onefold.files import atomic_file, must_be_plain, must_be_writable, place_of

if TYPE_CHECKING:
    from torch import Tensor


def read_noise(source: Path) -> Tensor:
    """One array of numbers; nothing pickled is read, and memory is taken only for what the file really holds."""
    import numpy as np
    import torch

    path = place_of(source)
    try:
        must_be_plain(path)
        with path.open("rb") as file:
            if file.read(6) != np.lib.format.MAGIC_PREFIX:
                raise ValueError("it is no .npy file")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"it holds {array.dtype}, not floats")
        return torch.from_numpy(np.array(array, dtype=np.float32))
    except Exception as error:  # noqa: BLE001  (a damaged header breaks in many ways)
        why = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"--noise {source} cannot be read ({why}); save a float array with numpy.save, one noise for each image"
        ) from None


def check_latents(latents: Path, out: Path, *, overwrite: bool) -> None:
    """Asked before the work."""
    if latents.suffix.lower() != ".npz":
        raise UserError(f"--latents {latents} must end in .npz; it holds the arrays states and sigmas")
    if latents.absolute() == out.absolute():
        raise UserError(f"--latents and --out are both {out}; choose two names")
    must_be_new([latents], overwrite=overwrite, option="--latents")
    must_be_writable(latents.parent)


def with_levels(model: Any, way: dict[str, Any]) -> dict[str, Any]:
    """The same way with its levels as a Grid, made as sampling makes it, so that they can stand beside the states."""
    from onefold.sampling import plan_grid

    grid, end, afs = way["grid"], way.get("end", "zero"), way["afs"]
    return {**way, "grid": plan_grid(model, way["solver"], way.get("calls", 1), grid, end, afs)}


def save_latents(states: Tensor, sigmas: Tensor, path: Path) -> None:
    import numpy as np

    with atomic_file(path) as draft, draft.open("wb") as file:
        np.savez(file, states=states.float().numpy(), sigmas=sigmas.double().numpy())
