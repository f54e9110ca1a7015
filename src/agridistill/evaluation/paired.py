"""Compares two models on the same photos: the interval of their difference in accuracy, and McNemar's test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from agridistill.evaluation.metrics import effective_sample_size

_STEPS = 60  # bisections of a range of 2: more digits than a float64 has


class PairedDifference(NamedTuple):
    """The accuracy of a new model minus that of an old one on the same photos, with its 95 % interval."""

    points: float  # in percentage points; above 0 the new model is better
    low: float  # lower end of the interval, in percentage points
    high: float


def paired_difference(new: NDArray[np.bool_], old: NDArray[np.bool_], leaf_ids: Sequence[str]) -> PairedDifference:
    """Computes the difference in accuracy of two models, where several photos may show the same leaf.

    The interval is Tango's score interval of a paired difference (1998, Statistics in Medicine 17, 891-908), with the
    effective sample size of the N differences (see `metrics.accuracy_interval`), as if the models differed on all
    photos of one more leaf. If they never differ, a bootstrap over leaves would give an interval of length 0; this one
    then reaches 3.84 / (n + 3.84) to each side, with n leaves.

    Args:
        new: `(N,)`, whether the new model classifies each photo correctly.
        old: `(N,)`, the same for the old model.
        leaf_ids: the leaf id of each of the N photos.

    Raises:
        ValueError: there are no photos, or the lengths differ.

    Example:
        >>> found = paired_difference(np.array([True] * 125), np.array([True] * 125), list(map(str, range(125))))
        >>> f"{found.points:.1f} ({found.low:.2f} to {found.high:.2f})"
        '0.0 (-2.98 to 2.98)'
    """
    _require_pairs(new, old)
    gains = new.astype(np.int64) - old
    size = effective_sample_size(gains, leaf_ids, pseudo_leaves=1)
    won, lost = float(np.mean(gains > 0)), float(np.mean(gains < 0))
    low, high = tango_interval(won * size, lost * size, size)
    return PairedDifference(100 * (won - lost), 100 * low, 100 * high)


def photos_to_exclude(
    loss: float, new: NDArray[np.bool_], old: NDArray[np.bool_], leaf_ids: Sequence[str]
) -> int | None:
    """Returns about how many photos would exclude a loss, if both models do as on the photos at hand.

    Args:
        loss: the loss of accuracy, in percentage points, 0 to 100.
        new: `(N,)`, as for `paired_difference`.
        old: `(N,)`, the same for the old model.
        leaf_ids: the leaf id of each of the N photos.

    Returns:
        A number of two digits and zeros, above N; None if the photos at hand exclude it, or if no number does.
    """
    gains = new.astype(np.int64) - old
    size = effective_sample_size(gains, leaf_ids, pseudo_leaves=1)
    won, lost = size * float(np.mean(gains > 0)), size * float(np.mean(gains < 0))

    def is_open(times: float) -> bool:
        """Whether so many times the photos leave the loss possible."""
        return tango_interval(times * won, times * lost, times * size)[0] < -loss / 100

    if not is_open(1.0) or is_open(1e4):
        return None
    needed = len(new) * _last(is_open, 1.0, 1e4)
    digit = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return int(math.ceil(round(needed / digit, 6)) * digit)


def tango_interval(won: float, lost: float, size: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Computes Tango's score interval of the difference of two paired proportions.

    Args:
        won: number of pairs in which only the first is right; not necessarily whole.
        lost: number of pairs in which only the second is right.
        size: number of pairs, above 0 and at least `won + lost`.
        confidence: confidence level, 0 to 1.

    Returns:
        Both ends, -1 to 1.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    difference = (won - lost) / size

    def is_possible(delta: float) -> bool:
        """Whether the score test does not reject the difference `delta`."""
        linear = (2 * size - won + lost) * delta - won - lost
        constant = -lost * delta * (1 - delta)
        # The share of pairs that only the second gets right, most likely if `delta` is the difference.
        lost_share = (math.sqrt(max(linear**2 - 8 * size * constant, 0.0)) - linear) / (4 * size)
        variance = size * (2 * lost_share + delta * (1 - delta))
        return (won - lost - size * delta) ** 2 <= z * z * max(variance, 0.0)

    return _last(is_possible, difference, -1.0), _last(is_possible, difference, 1.0)


def _last(holds: Callable[[float], bool], start: float, end: float) -> float:
    """Returns the value between `start`, where `holds` is true, and `end` up to which it stays true, by bisection."""
    if holds(end):
        return end
    for _ in range(_STEPS):
        middle = (start + end) / 2
        start, end = (middle, end) if holds(middle) else (start, middle)
    return start


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> dict[str, int | float]:
    """Computes McNemar's exact test of two models on the same photos (McNemar 1947; exact binomial form).

    The test assumes independent photos. Photos of one leaf are not, so the p-value is too small.

    Args:
        first: `(N,)` bool: whether the first model classifies each photo correctly.
        second: `(N,)` bool: the same for the second model.

    Returns:
        "only_first" and "only_second": the number of photos that only the first or only the second model classifies
        correctly; and "p_value": the two-sided p-value.

    Raises:
        ValueError: the lengths differ.

    Example:
        >>> mcnemar(np.array([True, True, False]), np.array([True, False, False]))
        {'only_first': 1, 'only_second': 0, 'p_value': 1.0}
    """
    _require_pairs(first, second)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return {"only_first": only_first, "only_second": only_second, "p_value": p_value}


def _require_pairs(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> None:
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"expected two arrays (N,) of the same photos, got shapes {first.shape} and {second.shape}")
