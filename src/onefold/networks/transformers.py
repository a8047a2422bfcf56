"""The library `transformers`: imported when it is needed, quiet, and with one sentence where it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from onefold.errors import UserError, first_line, root


def import_class(asker: str, kind: str) -> Any:
    """transformers imports torchvision when it is installed, and one that was built for another torch breaks it."""
    try:
        import transformers

        return getattr(transformers, kind)
    except Exception as error:
        remedy = "install it with: pip install 'onefold[text]'"
        if "torchvision" in str(root(error)):
            remedy = "pip uninstall torchvision, or install the build that belongs to this torch"
        raise UserError(
            f"{asker} needs transformers with its {kind}, which does not load ({first_line(root(error))}); {remedy}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No bar and no report of transformers: what is wrong is told by the one sentence of an error."""
    try:
        from transformers.utils import logging
    except (ImportError, RuntimeError):  # who needs it will say so
        yield
        return
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
