"""Progress callbacks, and the rules for writing to stderr while work runs.

Only one console, one live display and one process of a run write there, so that their lines do not mix.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from rich.console import Console

ProgressCallback = Callable[[int, int], None]
"""Called with (done, total): how many units of work are done, and how many there are."""

STDOUT, STDERR = 1, 2
_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")


@runtime_checkable
class StagedProgress(Protocol):
    """A progress callback that also takes the name of the current stage."""

    def __call__(self, done: int, total: int, /) -> None:
        """Receives the progress within the current stage."""
        ...

    def stage(self, name: str, /) -> None:
        """Starts a stage, such as "converting to int8"."""
        ...


def begin(progress: ProgressCallback, stage: str) -> None:
    """Starts a stage of a `StagedProgress`; does nothing for a callback without a method `stage`."""
    if isinstance(progress, StagedProgress):
        progress.stage(stage)


def silent(done: int, total: int) -> None:
    """Does nothing; this is the progress callback if the caller passes none."""


def is_first_process(processes: int) -> bool:
    """Returns whether this is the process of a run that prints and writes the run folder: the one with rank 0.

    torchrun and Slurm set each process's rank in the environment; Lightning sets it for the processes that it starts.
    With one process the environment is ignored.
    """
    return processes == 1 or all(os.environ.get(name, "0") == "0" for name in _RANKS)


@functools.cache
def stderr_console() -> Console:
    """Returns the only console that prints to stderr."""
    from rich.console import Console

    return Console(file=_terminal_copy(), stderr=True, highlight=False, soft_wrap=True, markup=False)


def _terminal_copy() -> IO[str] | None:
    """Opens the terminal of stderr a second time, so that silencing a library does not stop the progress display."""
    try:
        if sys.stderr is None or not sys.stderr.isatty():
            return None
        return os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors)
    except (OSError, ValueError):
        return None


class Display(Protocol):
    """A live display in the last lines of the terminal."""

    def hide(self) -> None:
        """Removes the display from the terminal."""
        ...

    def show(self, label: str) -> None:
        """Draws the display again: the running progress bar, or the label if there is none."""
        ...


displays: list[Display] = []
"""The displays that are drawn now; the one who draws a display adds and removes it."""


@contextmanager
def hidden_displays(then: str) -> Iterator[None]:
    """Hides all `displays` while the block draws another one; after it, they show the label `then`."""
    hidden = list(displays)
    for display in hidden:
        display.hide()
    try:
        yield
    finally:
        for display in hidden:
            display.show(then)


@contextmanager
def captured_output(*descriptors: int) -> Iterator[IO[bytes]]:
    """Redirects `STDOUT`, `STDERR` or both of the whole process, also of native code, to a temporary file, yielded."""
    _flush()
    before: dict[int, int] = {}
    with _unnamed_file() as file:
        try:
            for descriptor in descriptors:
                with suppress(OSError):
                    before[descriptor] = os.dup(descriptor)
                    os.dup2(file.fileno(), descriptor)
            yield file
        finally:
            _flush()
            for descriptor, saved in before.items():
                os.dup2(saved, descriptor)
                os.close(saved)


@contextmanager
def stderr_without_lines(start: bytes) -> Iterator[None]:
    """Holds back stderr during the block, then prints its lines except those that begin with `start`."""
    kept: list[bytes] = []
    try:
        with captured_output(STDERR) as file:
            try:
                yield
            finally:
                _flush()
                file.seek(0)
                kept = [line for line in file if not line.startswith(start)]
    finally:
        with suppress(OSError):
            for line in kept:
                os.write(STDERR, line)


@contextmanager
def quiet_loggers(*names: str) -> Iterator[None]:
    """Lets loggers write only errors during the block."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _unnamed_file() -> IO[bytes]:
    # Kept in memory if the system can: a device with a full disk must still load its model.
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("captured"), "w+b")
    import tempfile

    return tempfile.TemporaryFile()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
