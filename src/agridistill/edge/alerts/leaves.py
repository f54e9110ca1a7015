"""The leaves of one plot over a window of time, in memory that does not grow with their number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# No single leaf is surer than this: a photo of something strange must not outvote all others.
_LEAST_PROBABILITY = 0.01
_FEWEST_ROWS = 16
# Rows beyond the limit, so that not each new leaf costs a pass over all of them: 1 of 16.
_SLACK = 16
_COUNT, _TIME, _CLASSES = 0, 1, 2


def logarithms(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of probabilities of any shape, each first raised to at least 0.01."""
    return np.asarray(np.log(np.maximum(probabilities, _LEAST_PROBABILITY)))


@dataclass(frozen=True)
class Leaves:
    """Leaves of a plot, oldest first. A row is one leaf, or several neighbours in time added up.

    Attributes:
        at_s: `(N,)` when a row's leaves were seen, the mean of their times.
        counts: `(N,)` how many leaves a row is, 1 and more.
        sums: `(N, K)` of their probabilities.
        logarithms: `(N, K)` sums of `logarithms` of their probabilities.
    """

    at_s: NDArray[np.float64]
    counts: NDArray[np.float64]
    sums: NDArray[np.float64]
    logarithms: NDArray[np.float32]

    def since(self, at_s: float) -> Leaves:
        """Those that were seen at a time or later."""
        first = int(np.searchsorted(self.at_s, at_s))
        return Leaves(self.at_s[first:], self.counts[first:], self.sums[first:], self.logarithms[first:])


class LeafRows:
    """Remembers the leaves of one plot: all of a window one by one while they are few, the older ones added up beyond.

    Rows that are added up are those that lie closest together for their age: the longer ago, the coarser. So windows of
    an hour and of a month, which look at the same rows, both have edges that are sharp for their length.

    Args:
        classes: how many.
        window_s: leaves that are older go.
        most: rows.
    """

    def __init__(self, classes: int, *, window_s: float, most: int) -> None:
        self._window_s, self._most = window_s, most
        # Number, sum of times and sums of probabilities: neighbours become one by adding their rows.
        self._sums = np.empty((0, _CLASSES + classes))
        # Half as wide, for devices with little memory: they decide a label, not a share.
        self._logarithms = np.empty((0, classes), np.float32)
        self._used = 0

    def add(self, probabilities: NDArray[np.float64], at_s: float) -> None:
        """Remembers a leaf in its place by time; as a rule that is behind all others."""
        if self._used == len(self._sums):
            self._make_room(max(at_s, self.newest_s) if self._used else at_s)
        place = self._used
        if place and at_s < self.newest_s:
            times = self._sums[:place, _TIME] / self._sums[:place, _COUNT]
            place = int(np.searchsorted(times, at_s, side="right"))
            for rows in (self._sums, self._logarithms):
                rows[place + 1 : self._used + 1] = rows[place : self._used].copy()
        row = self._sums[place]
        row[_COUNT], row[_TIME], row[_CLASSES:] = 1.0, at_s, probabilities
        self._logarithms[place] = logarithms(probabilities)
        self._used += 1

    @property
    def newest_s(self) -> float:
        """When the last leaf was seen; of a plot with leaves."""
        return float(self._sums[self._used - 1, _TIME] / self._sums[self._used - 1, _COUNT])

    def within(self, now_s: float) -> Leaves:
        """The leaves in the window, as long as no other is added: the arrays are those that `add` writes to."""
        rows = self._sums[: self._used]
        counts = rows[:, _COUNT]
        found = Leaves(rows[:, _TIME] / counts, counts, rows[:, _CLASSES:], self._logarithms[: self._used])
        return found.since(now_s - self._window_s)

    def _make_room(self, now_s: float) -> None:
        at_s = self.within(now_s).at_s
        first = self._used - len(at_s)
        sums, logs = self._sums[first : self._used], self._logarithms[first : self._used]
        surplus = len(at_s) - self._most
        if surplus > 0:
            starts = _starts(at_s, surplus, now_s)
            sums, logs = np.add.reduceat(sums, starts), np.add.reduceat(logs, starts)
        room = min(max(2 * len(sums), _FEWEST_ROWS), self._most + max(1, self._most // _SLACK))
        self._used = len(sums)
        self._sums, self._logarithms = _stored(sums, self._sums, room), _stored(logs, self._logarithms, room)


def _starts(at_s: NDArray[np.float64], surplus: int, now_s: float) -> NDArray[np.int64]:
    """Of each row that is left, the first of those it is made of, when `surplus` pairs become one row each."""
    older, newer = at_s[:-1:2], at_s[1::2]
    # Relative to the age, and no division by 0 for leaves of this very moment.
    spread = (newer - older) / np.maximum(now_s - older, 1e-9)
    closest = np.argpartition(spread, surplus - 1)[:surplus]
    return np.delete(np.arange(len(at_s)), 2 * closest + 1)


def _stored(rows: NDArray[Any], before: NDArray[Any], room: int) -> NDArray[Any]:
    # A large array costs more to make than to fill.
    made = before if len(before) == room else np.empty((room, rows.shape[1]), rows.dtype)
    made[: len(rows)] = rows
    return made
