"""Processes of one run that go on together or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed

from agridistill.errors import AgriDistillError, PeerError

Gather = Callable[[Any], Sequence[Any]]
"""Gives every process what each of them passed, in the order of their ranks."""


def alone(own: Any) -> Sequence[Any]:
    """The gathering of a single process."""
    return [own]


def gather_all(own: Any) -> Sequence[Any]:
    """The gathering of all processes of the default group; of this one where there is none."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return alone(own)
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return gathered


@contextmanager
def all_or_none(gather: Gather, rank: int) -> Iterator[None]:
    """Waits for all processes at its end; the error that one of them met there stops every one.

    Raises:
        PeerError: another process met an error, and tells it. The first one that met any raises its own.
    """
    met: Exception | None = None
    try:
        yield
    except Exception as error:  # whatever it is, the others must not wait for this process
        met = error
    told = gather(_parts(met))
    first = next((number for number, parts in enumerate(told) if parts is not None), None)
    if first is None:
        return
    if met is not None and first == rank:
        raise met
    raise PeerError(*told[first]) from met


def _parts(error: Exception | None) -> tuple[str, str, str] | None:
    if error is None:
        return None
    if isinstance(error, AgriDistillError):
        return error.expected, error.got, error.remedy
    return "all processes of this run to go on", f"{type(error).__name__} in one of them", "see what it told"
