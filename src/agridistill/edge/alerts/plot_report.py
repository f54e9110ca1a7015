"""What others read of a plot: the same leaves, ill classes and words as in its alerts and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agridistill.edge.alerts.defaults import DEFAULT_SHARE
from agridistill.edge.words import plain_label

NO_LEAVES = "No recent leaves"


@dataclass(frozen=True)
class PlotReport:
    """A plot's condition now.

    Attributes:
        plot: its name.
        seen_s: when its last leaf was seen, seconds since 1970 by the device's clock.
        leaves: in the window that ends with the last leaf; 0 where that was longer ago than the window.
        ill_share: of them, 0 to 1: the mean of their probabilities of all ill classes, as an alert counts them.
        label: where the plot is ill the most frequent ill class, else the most frequent class; None without leaves.
        shares: of each class the mean of the leaves' probabilities; they sum to 1, empty without leaves.
    """

    plot: str
    seen_s: float
    leaves: int = 0
    ill_share: float = 0.0
    label: str | None = None
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def ill_leaves(self) -> int:
        """How many leaves are expected to be ill."""
        return round(self.ill_share * self.leaves)

    @property
    def probability(self) -> float | None:
        """The share of the label, 0 to 1; None without leaves."""
        return None if self.label is None else self.shares.get(self.label, 0.0)

    @property
    def condition(self) -> str:
        """The label in words."""
        return NO_LEAVES if self.label is None else plain_label(self.label)


def label_of(shares: Mapping[str, float], ill_share: float, worst: str | None, warned: str | None) -> str | None:
    """The class that names a plot's condition.

    Args:
        shares: of all classes.
        ill_share: of the ill ones.
        worst: the most frequent ill class.
        warned: the class of the plot's open alert; None without one.

    Example:
        >>> label_of({"healthy": 0.6, "rust": 0.25, "blight": 0.15}, 0.4, "rust", None)
        'rust'
        >>> label_of({"healthy": 0.9, "rust": 0.1}, 0.1, "rust", None)
        'healthy'
    """
    if warned is not None:
        return warned
    if worst is not None and ill_share >= DEFAULT_SHARE:
        return worst
    return max(shares, key=lambda name: shares[name], default=None)
