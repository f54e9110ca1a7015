"""What native code writes to stdout and stderr, which Python's own redirection does not catch."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

STDOUT, STDERR = 1, 2


@contextlib.contextmanager
def held_back(*descriptors: int) -> Iterator[IO[bytes]]:
    """Sends what is written to file descriptors to a file without a name until the block ends; gives that file.

    It holds for the whole process, all threads included.

    Args:
        descriptors: `STDOUT`, `STDERR` or both; one that is closed is left alone.
    """
    _flush()
    before: dict[int, int] = {}
    with _nameless_file() as file:
        try:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    before[descriptor] = os.dup(descriptor)
                    os.dup2(file.fileno(), descriptor)
            yield file
        finally:
            _flush()
            for descriptor, saved in before.items():
                os.dup2(saved, descriptor)
                os.close(saved)


@contextlib.contextmanager
def without_lines(start: bytes) -> Iterator[None]:
    """Drops the lines on stderr that begin with `start`; all others appear when the block ends."""
    kept: list[bytes] = []
    try:
        with held_back(STDERR) as file:
            try:
                yield
            finally:
                _flush()
                file.seek(0)
                kept = [line for line in file if not line.startswith(start)]
    finally:
        with contextlib.suppress(OSError):
            for line in kept:
                os.write(STDERR, line)


def _nameless_file() -> IO[bytes]:
    # In memory where the system can: a device with a full disk must still load its model.
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("held_back"), "w+b")
    return tempfile.TemporaryFile()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
