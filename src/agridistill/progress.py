"""How long work reports how far it is, without knowing who shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

ProgressCallback = Callable[[int, int], None]
"""Called with (done, total)."""


@runtime_checkable
class StagedProgress(Protocol):
    """A callback that also takes the name of what is being done."""

    def __call__(self, done: int, total: int, /) -> None:
        """Takes how far it is."""
        ...

    def stage(self, name: str, /) -> None:
        """Takes what is done from now on, such as "converting to int8"."""
        ...


def begin(progress: ProgressCallback, stage: str) -> None:
    """Names what is done from now on; a plain callback, which has no method `stage`, is left alone."""
    if isinstance(progress, StagedProgress):
        progress.stage(stage)


def silent(done: int, total: int) -> None:
    """Shows nothing."""
