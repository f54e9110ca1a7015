"""How sure a difference between two methods is: photos come in leaves, and a method has several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

RESAMPLES = 10_000
_AT_ONCE = 500


@dataclass(frozen=True)
class Difference:
    """Mean accuracy of one method minus that of another on the same photos.

    Attributes:
        points: in percentage points.
        points_ci95: its 95 % interval.
        seeds: of the one and of the other.
    """

    points: float
    points_ci95: tuple[float, float]
    seeds: tuple[int, int]


@dataclass(frozen=True)
class McNemar:
    """Photos on which two models differ.

    Attributes:
        only_first: right in the first alone.
        only_second: right in the second alone.
        p_value: two-sided, exact. It takes photos for independent; those of one leaf are not, so it is too small.
    """

    only_first: int
    only_second: int
    p_value: float


def paired_difference(
    method: NDArray[np.bool_],
    baseline: NDArray[np.bool_],
    leaf_ids: Sequence[str],
    *,
    paired_seeds: bool,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Difference in accuracy with its percentile bootstrap interval over leaves and seeds.

    Each resample draws as many leaves as there are, each with all its photos and for both methods alike (Efron and
    Tibshirani 1993, chapter 8, for clusters; the photos are the pairs), and as many seeds. One seed tells nothing of
    the spread between seeds: the interval is then of leaves alone.

    Args:
        method: `(S, N)`, whether each of N photos is right under each of S seeds.
        baseline: `(R, N)`, of the same photos.
        leaf_ids: of the N photos.
        paired_seeds: the same seeds in the same order in both, which are drawn together.
        resamples: number of them.
        seed: of the drawing.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if method.ndim != 2 or baseline.ndim != 2 or method.shape[1] != baseline.shape[1]:
        raise ValueError(f"two arrays (seeds, photos) of the same photos, got {method.shape} and {baseline.shape}")
    if len(leaf_ids) != method.shape[1] or (paired_seeds and len(method) != len(baseline)):
        raise ValueError("one leaf id for each photo, and the same seeds where they are paired")
    names, leaf = np.unique(np.asarray(leaf_ids), return_inverse=True)
    photos = np.bincount(leaf)
    first, second = _right_by_leaf(method, leaf, len(names)), _right_by_leaf(baseline, leaf, len(names))
    rng = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    for start in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - start)
        leaves = rng.integers(0, len(names), (count, len(names)))
        ours = rng.integers(0, len(first), (count, len(first)))
        theirs = ours if paired_seeds else rng.integers(0, len(second), (count, len(second)))
        total = photos[leaves].sum(axis=1)
        # How often each leaf and each seed was drawn; the mean over what was drawn is then two products.
        drawn = np.stack([np.bincount(row, minlength=len(names)) for row in leaves])
        right = _mean_of_drawn(first, ours) - _mean_of_drawn(second, theirs)
        means.append((drawn * right).sum(axis=1) / total)
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    points = 100 * (float(method.mean()) - float(baseline.mean()))
    return Difference(points, (100 * float(low), 100 * float(high)), (len(method), len(baseline)))


def _right_by_leaf(correct: NDArray[np.bool_], leaf: NDArray[np.int64], leaves: int) -> NDArray[np.float64]:
    """`(seeds, leaves)`: photos of each leaf that are right."""
    return np.stack([np.bincount(leaf, row, leaves) for row in correct])


def _mean_of_drawn(right: NDArray[np.float64], drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """`(resamples, leaves)`: photos that are right, mean over the seeds of each resample."""
    weights = np.stack([np.bincount(row, minlength=len(right)) for row in drawn]) / len(right)
    return np.asarray(weights @ right)


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """McNemar's exact test of two models on the same photos (McNemar 1947; exact binomial form).

    Args:
        first: `(N,)`, whether each photo is right.
        second: `(N,)`, of the same photos.

    Raises:
        ValueError: lengths that differ.

    Example:
        >>> mcnemar(np.array([True, True, False]), np.array([True, False, False]))
        McNemar(only_first=1, only_second=0, p_value=1.0)
    """
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"two arrays of the same photos, got {first.shape} and {second.shape}")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return McNemar(only_first, only_second, p_value)
