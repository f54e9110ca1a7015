"""The leaves of the plots over a window of time, in memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BUCKETS = 400
"""Of a window: leaves of one bucket are added up, which blurs the window's edge by 1/400 of its length at most."""


@dataclass(frozen=True)
class Leaves:
    """Leaves of a plot, oldest first. A row is one leaf, or the sum of those of one bucket of time."""

    at_s: NDArray[np.float64]  # (N,) mean time of a row's leaves
    counts: NDArray[np.float64]  # (N,) number of leaves in a row, at least 1
    sums: NDArray[np.float64]  # (N, K) sums of their probabilities

    @property
    def number(self) -> int:
        """Of leaves."""
        return int(self.counts.sum())

    def since(self, at_s: float) -> Leaves:
        """Those seen at a time or later."""
        return self._rows(slice(int(np.searchsorted(self.at_s, at_s)), None))

    def before(self, at_s: float) -> Leaves:
        """Those seen before a time."""
        return self._rows(slice(0, int(np.searchsorted(self.at_s, at_s))))

    def share(self, classes: Sequence[int]) -> float:
        """Expected share of the leaves with one of these classes, 0 to 1; 0 without leaves."""
        return float(self.sums[:, list(classes)].sum() / self.number) if self.number else 0.0

    def _rows(self, rows: slice) -> Leaves:
        return Leaves(self.at_s[rows], self.counts[rows], self.sums[rows])


class LeafPool:
    """Leaves of all plots, summed in fixed buckets of time for each window.

    Args:
        classes: of the model, in the order of the probabilities.
        windows_s: lengths of the windows in seconds; a longer one counts older leaves, in longer buckets.
    """

    def __init__(self, classes: Sequence[str], windows_s: Sequence[float]) -> None:
        self._columns = 2 + len(classes)
        self._windows_s = tuple(sorted(set(windows_s)))
        self._buckets: dict[tuple[str, float], _Buckets] = {}  # by plot and window
        self._newest_s: dict[str, float] = {}
        self._came_s: dict[str, float] = {}

    def add(self, plot: str, probabilities: NDArray[np.float64], at_s: float, *, came_s: float | None = None) -> None:
        """Adds one leaf.

        Args:
            plot: its name.
            probabilities: `(K,)`, calibrated.
            at_s: when it was seen, by a monotonic clock.
            came_s: when it reached the agent, where that was later.
        """
        came_s = at_s if came_s is None else came_s
        if plot not in self._newest_s:
            self._forget_plots(came_s)
        self._came_s[plot] = came_s
        self._newest_s[plot] = newest_s = max(at_s, self._newest_s.get(plot, at_s))
        row = np.concatenate([[1.0, at_s], probabilities])
        for window_s in self._windows_s:
            length_s = window_s / BUCKETS
            buckets = self._buckets.setdefault((plot, window_s), _Buckets(self._columns))
            buckets.add(int(at_s // length_s), row, int((newest_s - window_s) // length_s))

    def newest_s(self, plot: str) -> float:
        """When the newest leaf of a plot with leaves was seen."""
        return self._newest_s[plot]

    @property
    def plots(self) -> list[str]:
        """Those with leaves."""
        return list(self._newest_s)

    def leaves(self, plot: str, window_s: float, now_s: float) -> Leaves:
        """Leaves in a window that ends now; valid until the next `add`.

        Args:
            plot: its name.
            window_s: one of the pool's windows.
            now_s: by the clock of `add`.
        """
        buckets = self._buckets.get((plot, window_s)) or _Buckets(self._columns)
        rows = buckets.rows[: buckets.used]
        return Leaves(rows[:, 1] / rows[:, 0], rows[:, 0], rows[:, 2:]).since(now_s - window_s)

    def _forget_plots(self, now_s: float) -> None:
        for plot in [plot for plot, came_s in self._came_s.items() if came_s < now_s - self._windows_s[-1]]:
            del self._newest_s[plot], self._came_s[plot]
            for window_s in self._windows_s:
                self._buckets.pop((plot, window_s), None)


class _Buckets:
    """Sums of a plot's leaves in one window, by time: rows of number, sum of times and sums of probabilities."""

    def __init__(self, columns: int) -> None:
        self.numbers, self.rows, self.used = np.empty(0, np.int64), np.empty((0, columns)), 0

    def add(self, number: int, row: NDArray[np.float64], oldest: int) -> None:
        """Adds a leaf to its bucket; buckets before the oldest go where room is needed."""
        if self.used == len(self.numbers):
            self._make_room(oldest)
        place = int(np.searchsorted(self.numbers[: self.used], number))
        if place < self.used and self.numbers[place] == number:
            self.rows[place] += row
            return
        for kept in (self.numbers, self.rows):
            kept[place + 1 : self.used + 1] = kept[place : self.used].copy()
        self.numbers[place], self.rows[place] = number, row
        self.used += 1

    def _make_room(self, oldest: int) -> None:
        first = int(np.searchsorted(self.numbers[: self.used], oldest))
        numbers, rows = self.numbers[first : self.used], self.rows[first : self.used]
        self.used = len(numbers)
        room = max(16, min(2 * self.used, 2 * BUCKETS))
        self.numbers, self.rows = np.empty(room, np.int64), np.empty((room, rows.shape[1]))
        self.numbers[: self.used], self.rows[: self.used] = numbers, rows
