"""A set of 64-bit numbers that takes little memory."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

_MOST_RECENT = 2000
_CHUNK = 8192  # what is worked on at once, so that no step takes as much memory as the numbers themselves


class Hashes:
    """Numbers, eight bytes each: 100,000 photos in a folder take less than a megabyte."""

    def __init__(self) -> None:
        self._sorted: NDArray[np.int64] = np.empty(0, np.int64)
        self._recent: set[int] = set()

    def add(self, number: int) -> None:
        """Takes one in."""
        self._recent.add(number)
        if len(self._recent) > _MOST_RECENT:
            self._merge()

    def __contains__(self, number: int) -> bool:
        return number in self._recent or bool(self._in_sorted(np.array([number], np.int64))[0])

    def include(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of them are there."""
        self._merge()
        return self._in_sorted(numbers)

    def keep(self, present: array[int]) -> None:
        """Forgets all others."""
        numbers = np.frombuffer(present, np.int64) if present else np.empty(0, np.int64)
        self._merge()
        chunks = [numbers[begin : begin + _CHUNK] for begin in range(0, len(numbers), _CHUNK)]
        kept = [chunk[self._in_sorted(chunk)] for chunk in chunks]
        self._sorted = np.concatenate([np.empty(0, np.int64), *kept])
        self._sorted.sort()

    def _in_sorted(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        if not len(self._sorted):
            return np.zeros(len(numbers), np.bool_)
        places = np.minimum(np.searchsorted(self._sorted, numbers), len(self._sorted) - 1)
        return np.asarray(self._sorted[places] == numbers, np.bool_)

    def _merge(self) -> None:
        if not self._recent:
            return
        self._sorted = np.concatenate([self._sorted, np.fromiter(self._recent, np.int64, len(self._recent))])
        self._sorted.sort()
        self._recent.clear()
