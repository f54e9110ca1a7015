"""Converters speak to their own developers; users hear only what fails."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from agridistill.progress import STDERR, STDOUT, captured_output


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences prints, warnings and logs until the block ends, those of native code as well; exceptions pass."""
    unheard = io.StringIO()
    before = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        captured_output(STDOUT, STDERR),
        contextlib.redirect_stdout(unheard),
        contextlib.redirect_stderr(unheard),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)
