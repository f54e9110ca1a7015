"""Several leaves of a plot say more than one: what they say together, over a window of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agridistill.edge.alerts.leaves import LeafRows, Leaves, logarithms


@dataclass(frozen=True)
class PlotView:
    """What the leaves of a plot say together.

    Attributes:
        plot: its name.
        leaves: in the window.
        label: the condition that fits all of them best, were the plot to have one.
        probability: of that label, 0 to 1.
        shares: of each condition the expected share of the leaves; they sum to 1.
    """

    plot: str
    leaves: int
    label: str
    probability: float
    shares: Mapping[str, float]


def pooled_probabilities(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of each class for photos of one condition: the product of theirs, normalised.

    Each photo's probabilities are first raised to at least 0.01, so that one strange photo cannot forbid a class.

    Args:
        probabilities: `(N, K)`, calibrated, N >= 1.

    Returns:
        `(K,)`, sums to 1.

    Raises:
        ValueError: no photos.

    Example:
        >>> pooled_probabilities(np.array([[0.6, 0.4], [0.6, 0.4]])).round(3)
        array([0.692, 0.308])
    """
    if probabilities.ndim != 2 or not len(probabilities):
        raise ValueError(f"probabilities (N, K) of at least 1 photo, got shape {probabilities.shape}")
    return _normalised(logarithms(probabilities).sum(axis=0))


def _normalised(summed: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(summed - summed.max())
    return np.asarray(weights / weights.sum())


class LeafPool:
    """Leaves of all plots within a window of time.

    Args:
        classes: names, in the order of the probabilities.
        window_s: how long a leaf counts.
        most_leaves: of one plot that are surely remembered one by one; of more the older ones are added up with their
            neighbours in time. All of them count; only when each was seen is less sharp then.
    """

    def __init__(self, classes: Sequence[str], *, window_s: float, most_leaves: int = 200) -> None:
        self._classes, self._window_s, self._most = tuple(classes), window_s, most_leaves
        self._rows: dict[str, LeafRows] = {}
        self._came_s: dict[str, float] = {}

    def add(self, plot: str, probabilities: NDArray[np.float64], at_s: float, *, came_s: float | None = None) -> None:
        """Remembers one leaf.

        Args:
            plot: its name.
            probabilities: `(K,)`, calibrated.
            at_s: when it was seen, by a clock that is never set back.
            came_s: when it was known of, where that was later.
        """
        came_s = at_s if came_s is None else came_s
        if plot not in self._rows:
            self._forget_plots(came_s)
            self._rows[plot] = self._no_rows()
        self._rows[plot].add(probabilities, at_s)
        self._came_s[plot] = came_s

    def newest_s(self, plot: str) -> float:
        """When the last leaf of a plot with leaves was seen."""
        return self._rows[plot].newest_s

    @property
    def plots(self) -> list[str]:
        """Those with leaves."""
        return list(self._rows)

    def leaves(self, plot: str, now_s: float) -> Leaves:
        """Those in the window, as long as no other is added."""
        return (self._rows.get(plot) or self._no_rows()).within(now_s)

    def view(self, plot: str, now_s: float, *, within_s: float | None = None) -> PlotView | None:
        """What the plot's leaves say together now; None where there are none in the window.

        Args:
            plot: its name.
            now_s: by the clock of `add`.
            within_s: a shorter window than the pool's own.
        """
        leaves = self.leaves(plot, now_s)
        if within_s is not None:
            leaves = leaves.since(now_s - within_s)
        number = leaves.counts.sum()
        if not number:
            return None
        pooled = _normalised(leaves.logarithms.sum(axis=0, dtype=np.float64))
        best = int(pooled.argmax())
        shares = dict(zip(self._classes, (leaves.sums.sum(axis=0) / number).tolist(), strict=True))
        return PlotView(plot, int(number), self._classes[best], float(pooled[best]), shares)

    def _no_rows(self) -> LeafRows:
        return LeafRows(len(self._classes), window_s=self._window_s, most=self._most)

    def _forget_plots(self, now_s: float) -> None:
        for plot in [plot for plot, came_s in self._came_s.items() if came_s < now_s - self._window_s]:
            del self._rows[plot], self._came_s[plot]
