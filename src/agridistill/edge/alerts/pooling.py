"""Several leaves of a plot say more than one: what they say together, over a window of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# No single leaf is surer than this: a photo of something strange must not outvote all others.
_LEAST_PROBABILITY = 0.01


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
    logarithms = np.log(np.maximum(probabilities, _LEAST_PROBABILITY)).sum(axis=0)
    weights = np.exp(logarithms - logarithms.max())
    return np.asarray(weights / weights.sum())


class LeafPool:
    """Leaves of all plots within a window of time.

    Args:
        classes: names, in the order of the probabilities.
        window_s: how long a leaf counts.
        most_leaves: of one plot that are remembered; beyond them the oldest go.
    """

    def __init__(self, classes: Sequence[str], *, window_s: float, most_leaves: int = 200) -> None:
        self._classes, self._window_s, self._most = tuple(classes), window_s, most_leaves
        self._leaves: dict[str, deque[tuple[float, NDArray[np.float64]]]] = {}

    def add(self, plot: str, probabilities: NDArray[np.float64], at_s: float) -> None:
        """Remembers one leaf.

        Args:
            plot: its name.
            probabilities: `(K,)`, calibrated.
            at_s: when it was seen, by a clock that is never set back.
        """
        if plot not in self._leaves:
            self._forget_plots(at_s)
        leaves = self._leaves.setdefault(plot, deque(maxlen=self._most))
        leaves.append((at_s, probabilities))
        self._forget(leaves, at_s)

    @property
    def plots(self) -> list[str]:
        """Those with leaves."""
        return list(self._leaves)

    def leaves(self, plot: str, now_s: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """When each leaf in the window was seen `(N,)`, and its probabilities `(N, K)`."""
        leaves = [leaf for leaf in self._leaves.get(plot, ()) if leaf[0] >= now_s - self._window_s]
        if not leaves:
            return np.empty(0), np.empty((0, len(self._classes)))
        return np.array([at_s for at_s, _ in leaves]), np.stack([probabilities for _, probabilities in leaves])

    def view(self, plot: str, now_s: float, *, within_s: float | None = None) -> PlotView | None:
        """What the plot's leaves say together now; None where there are none in the window.

        Args:
            plot: its name.
            now_s: by the clock of `add`.
            within_s: a shorter window than the pool's own.
        """
        at_s, rows = self.leaves(plot, now_s)
        if within_s is not None:
            rows = rows[at_s >= now_s - within_s]
        if not len(rows):
            return None
        pooled = pooled_probabilities(rows)
        best = int(pooled.argmax())
        shares = dict(zip(self._classes, rows.mean(axis=0).tolist(), strict=True))
        return PlotView(plot, len(rows), self._classes[best], float(pooled[best]), shares)

    def _forget(self, leaves: deque[tuple[float, NDArray[np.float64]]], now_s: float) -> None:
        while leaves and leaves[0][0] < now_s - self._window_s:
            leaves.popleft()

    def _forget_plots(self, now_s: float) -> None:
        for plot in [plot for plot, leaves in self._leaves.items() if leaves[-1][0] < now_s - self._window_s]:
            del self._leaves[plot]
