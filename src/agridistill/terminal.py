"""The terminal on stderr: one console for all that is drawn there, and one display at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from rich.console import Console


def _own_stream() -> IO[str] | None:
    """A duplicate of a terminal on stderr: what silences a library must not stop the display. None without one."""
    try:
        if sys.stderr is None or not sys.stderr.isatty():
            return None
        return os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors)
    except (OSError, ValueError):
        return None


stderr = Console(file=_own_stream(), stderr=True, highlight=False, soft_wrap=True)


class Display(Protocol):
    """What is drawn over and over in the last lines of the terminal."""

    def hide(self) -> None:
        """Takes it away."""
        ...

    def show(self, label: str) -> None:
        """Draws it again, with a new label where it is not in the middle of a pass."""
        ...


_displays: list[Display] = []


@contextmanager
def registered(display: Display) -> Iterator[None]:
    """Lets `alone` hide a display until the block ends."""
    _displays.append(display)
    try:
        yield
    finally:
        _displays.remove(display)


@contextmanager
def alone(then: str) -> Iterator[None]:
    """Hides the registered displays while the block draws one of its own: two would overwrite each other.

    Args:
        then: label of the hidden displays when they come back: what is done after the block.
    """
    hidden = list(_displays)
    for display in hidden:
        display.hide()
    try:
        yield
    finally:
        for display in hidden:
            display.show(then)
