"""Confidence in the difference between two methods: photos are clustered in leaves, and a method has several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

RESAMPLES = 10_000
_CHUNK = 500


@dataclass(frozen=True)
class Difference:
    """Mean accuracy of one method minus that of another on the same photos."""

    points: float  # percentage points
    points_ci95: tuple[float, float]
    runs: tuple[int, int]  # of the two methods
    of_leaves_alone: bool  # one run of either: the interval lacks the chance in training, and is too narrow


@dataclass(frozen=True)
class McNemar:
    """Photos on which two models differ."""

    only_first: int  # correct in the first model alone
    only_second: int
    p_value: float  # two-sided, exact; too small, because photos of one leaf are not independent


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
    Tibshirani 1993, chapter 8, for clusters; the photos are the pairs), and one error of the mean over seeds. Drawing
    two or three seeds with replacement would lose most of their variance. Their error comes from Student's
    distribution instead, with their own deviation and degrees of freedom, as in its own interval.

    Args:
        method: `(S, N)`, whether each of N photos is classified correctly under each of S seeds.
        baseline: `(R, N)`, of the same photos.
        leaf_ids: of the N photos.
        paired_seeds: both have the same seeds in the same order, so that their differences are taken one by one.
        resamples: number of them.
        seed: of the drawing.

    Raises:
        ValueError: shapes that do not match.
    """
    if method.ndim != 2 or baseline.ndim != 2 or method.shape[1] != baseline.shape[1]:
        raise ValueError(f"two arrays (seeds, photos) of the same photos, got {method.shape} and {baseline.shape}")
    if len(leaf_ids) != method.shape[1] or (paired_seeds and len(method) != len(baseline)):
        raise ValueError("one leaf id for each photo, and the same seeds where they are paired")
    names, leaf = np.unique(np.asarray(leaf_ids), return_inverse=True)
    photos = np.bincount(leaf)
    gains = np.bincount(leaf, method.mean(axis=0) - baseline.mean(axis=0), len(names))
    rng = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    for start in range(0, resamples, _CHUNK):
        leaves = rng.integers(0, len(names), (min(_CHUNK, resamples - start), len(names)))
        means.append(gains[leaves].sum(axis=1) / photos[leaves].sum(axis=1))
    resampled = np.concatenate(means)
    by_seed = [method.mean(axis=1), baseline.mean(axis=1)]
    samples = [by_seed[0] - by_seed[1]] if paired_seeds else by_seed
    for values in samples:
        if len(values) > 1:
            error = np.std(values, ddof=1) / np.sqrt(len(values))
            resampled = resampled + error * rng.standard_t(len(values) - 1, len(resampled))
    # Two seeds that differ much give a wide interval, but no difference of accuracies is larger than 1.
    low, high = np.percentile(resampled, [2.5, 97.5]).clip(-1, 1)
    points = 100 * (float(method.mean()) - float(baseline.mean()))
    single = any(len(values) < 2 for values in samples)
    return Difference(points, (100 * float(low), 100 * float(high)), (len(method), len(baseline)), single)


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """McNemar's exact test of two models on the same photos (McNemar 1947; exact binomial form).

    Args:
        first: `(N,)`, whether each photo is classified correctly.
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
