"""Computes metrics of a model, and compares two models on the same photos, as pure functions of numpy arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Any, NamedTuple

import numpy as np
import sklearn.metrics
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import binomtest

from agridistill.preprocess import softmax

CALIBRATION_BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0

Labels = NDArray[np.int64]


class Interval(NamedTuple):
    """A confidence interval of a proportion, 0 to 1."""

    low: float
    high: float


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1 of one class; all three are None if there are no photos of the class."""

    name: Annotated[str, Field(validation_alias="class")]  # the class
    # Share of the photos predicted as this class that belong to it, 0 to 1; 0 if there are none.
    precision: float | None
    recall: float | None  # share of the photos of this class that are predicted as it, 0 to 1
    f1: float | None  # harmonic mean of precision and recall, 0 to 1
    photos: int  # number of photos of this class


def accuracy_interval(correct: NDArray[np.bool_], leaf_ids: Sequence[str]) -> Interval:
    """Computes Wilson's 95 % score interval of the accuracy, where several photos may show the same leaf.

    Photos of one leaf tend to be all right or all wrong, so n photos hold less information than n independent ones. The
    interval uses the effective sample size n / deff of Korn & Graubard (1998, "Confidence intervals for proportions
    with small expected number of positive counts estimated from survey data"), which Dean & Pagano (2015, "Evaluating
    confidence interval methods for binomial proportions in clustered surveys") recommend with Wilson's interval. deff
    is the cluster-robust variance of the mean divided by the binomial variance, at least 1. If it cannot be estimated
    (all right, all wrong, or one leaf), the photos of a leaf count as one observation: n / deff = n² / Σ n_leaf² (Kish
    1965). The arguments and errors are those of `effective_sample_size`.

    Example:
        >>> interval = accuracy_interval(np.array([True] * 9 + [False]), list("abcdefghij"))
        >>> f"{interval.low:.3f} to {interval.high:.3f}"
        '0.596 to 0.982'
    """
    size = effective_sample_size(correct, leaf_ids)
    return wilson_interval(float(np.mean(correct)), size)


def wilson_interval(rate: float, size: float, *, confidence: float = 0.95) -> Interval:
    """Computes Wilson's score interval of a proportion.

    Args:
        rate: the observed proportion, 0 to 1.
        size: number of independent observations, above 0.
        confidence: confidence level, 0 to 1.

    Example:
        >>> interval = wilson_interval(1.0, 6)
        >>> f"{interval.low:.2f} to {interval.high:.2f}"
        '0.61 to 1.00'
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (rate + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(rate * (1 - rate) / size + z * z / (4 * size * size))
    # Rounding must not put a rate of 0 or 1 outside its own interval.
    return Interval(min(max(centre - half, 0.0), rate), max(min(centre + half, 1.0), rate))


def effective_sample_size(values: NDArray[Any], leaf_ids: Sequence[str], *, pseudo_leaves: int = 0) -> float:
    """Returns how many independent photos, above 0 and at most N, would measure a mean as precisely as N photos.

    Args:
        values: `(N,)`, what is averaged: whether each photo was classified correctly, or the difference of two models.
        leaf_ids: the leaf id of each of the N photos, several of which may show one leaf.
        pseudo_leaves: number of further leaves of typical size, all of whose photos are assumed to differ by 1 from the
            mean. If few values differ from the others, one such leaf avoids the conclusion that photos of one leaf are
            independent.

    Raises a ValueError if there are no photos, or the lengths differ.
    """
    count = len(values)
    if count == 0 or len(leaf_ids) != count:
        raise ValueError(
            f"expected at least 1 photo and one leaf id for each, got {count} photos and {len(leaf_ids)} leaf ids"
        )
    _, leaf = np.unique(np.asarray(leaf_ids), return_inverse=True)
    photos_of_leaf = np.bincount(leaf)
    leaves = len(photos_of_leaf)
    residuals = np.asarray(values, np.float64) - float(np.mean(values))
    squares = float(np.sum(residuals**2))
    typical = float(np.sum(photos_of_leaf**2)) / count
    if squares == 0 or leaves == 1:
        return count / typical
    residual_of_leaf = np.bincount(leaf, weights=residuals)
    robust = leaves / (leaves - 1) * float(np.sum(residual_of_leaf**2)) + pseudo_leaves * typical**2
    independent = count / (count - 1) * squares + pseudo_leaves * typical
    return count / max(robust / independent, 1.0)


def class_scores(preds: Labels, target: Labels, classes: Sequence[str]) -> tuple[ClassScores, ...]:
    """Computes precision, recall and F1 of each class from predicted and true class indices, both `(N,)`."""
    columns = sklearn.metrics.precision_recall_fscore_support(
        target, preds, labels=range(len(classes)), zero_division=0
    )
    return tuple(
        ClassScores(name, float(precision), float(recall), float(f1), int(photos))
        if photos
        else ClassScores(name, None, None, None, 0)
        for name, precision, recall, f1, photos in zip(classes, *columns, strict=True)
    )


def macro_f1(scores: Sequence[ClassScores]) -> float:
    """Returns the mean F1 of the classes that have photos, 0 to 1; the F1 of the other classes is not defined."""
    return float(np.mean([score.f1 for score in scores if score.f1 is not None]))


def negative_log_likelihood(logits: NDArray[Any], target: Labels, temperature: float = 1.0) -> float:
    """Returns the mean of -log p(true class), in nats, for logits `(N, K)` and class indices `target` `(N,)`."""
    scaled = np.asarray(logits, np.float64) / temperature
    peak = scaled.max(axis=1)
    # The logarithm of a softmax would be minus infinity where a probability underflows.
    log_sum = peak + np.log(np.exp(scaled - peak[:, None]).sum(axis=1))
    return float(np.mean(log_sum - scaled[np.arange(len(target)), target]))


def calibration_error(probabilities: NDArray[np.float64], target: Labels, *, bins: int = CALIBRATION_BINS) -> float:
    """Computes the expected calibration error, 0 to 1: the mean gap between confidence and accuracy.

    This is equation 3 of Guo et al. 2017, arXiv 1706.04599. The probabilities are `(N, K)`, with rows that sum to 1,
    the class indices `(N,)`. The bins of the top-1 confidence have equal width; each excludes its lower edge.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == target
    inner_edges = np.linspace(0, 1, bins + 1)[1:-1]
    bin_of_photo = np.searchsorted(inner_edges, confidence, side="left")
    gap_of_bin = np.bincount(bin_of_photo, weights=confidence - correct, minlength=bins)
    return float(np.abs(gap_of_bin).sum() / len(target))


def fit_temperature(logits: NDArray[Any], target: Labels) -> float:
    """Finds the temperature, 0.05 to 20, with the least negative log-likelihood.

    The logits are `(N, K)`, the class indices `(N,)`. This likelihood is convex in 1 / T, so bisection in log T finds
    the minimum (Guo et al. 2017, arXiv 1706.04599, section 4.2). Pass validation photos, never photos that the model
    was trained on. If every photo is classified correctly, the likelihood has no maximum: each of the N labels then
    counts with probability (N + 1) / (N + 2) (Platt 1999, "Probabilistic outputs for support vector machines"), so that
    later mistakes do not get a confidence of nearly 1. Raises a ValueError if there are no photos.
    """
    if len(target) == 0:
        raise ValueError("expected at least 1 photo to fit a temperature, got none")
    count, classes = logits.shape
    all_right = np.array_equal(np.argmax(logits, axis=1), target)
    truth = (count + 1) / (count + 2) if all_right else 1.0
    others = (1 - truth) / max(1, classes - 1)
    labels = np.full((count, classes), others)
    labels[np.arange(count), target] = truth
    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    for _ in range(60):
        middle = (low + high) / 2
        if _overconfidence(logits, labels, math.exp(middle)) > 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _overconfidence(logits: NDArray[Any], labels: NDArray[np.float64], temperature: float) -> float:
    """Returns the derivative of the cross-entropy by 1 / T: it is positive if a higher temperature fits better.

    `logits` and `labels` (probabilities) are `(N, K)`.
    """
    difference = (softmax(logits, temperature) - labels) * logits
    return float(np.mean(np.sum(difference, axis=1, dtype=np.float64)))


# A threshold that almost no photo reaches is useless, and its share of right answers is measured on few photos.
_LEAST_COVERAGE = 0.1
# Least share of photos that a model must answer to be of use if it cannot reach the wanted accuracy.
_USABLE_COVERAGE = 0.5


class AbstentionPoint(NamedTuple):
    """A threshold of the top probability, below which a model abstains, with the resulting coverage and accuracy."""

    threshold: float  # photos whose top probability is lower get no answer
    coverage: float  # share of the photos that are answered, 0 to 1
    accuracy: float  # share of the answers that are right, 0 to 1
    reached: bool = True  # whether `accuracy` is at least the wanted accuracy


def abstention_point(confidence: NDArray[np.float64], correct: NDArray[np.bool_], accuracy: float) -> AbstentionPoint:
    """Finds the threshold for a wanted accuracy of the answers that gives the most answers (El-Yaniv & Wiener 2010).

    `confidence` is the top probability of each photo, `(N,)`, `correct` whether the top class is right. The result is
    the lowest threshold that reaches `accuracy` and answers at least a tenth of the photos; 0, with coverage 1, if the
    answers to all photos reach it. If no threshold does, `reached` is False, and the threshold is the one with the
    largest share of right answers among those that answer at least half of the photos. Raises a ValueError if there are
    no photos.

    Example:
        >>> abstention_point(np.array([0.9, 0.8, 0.6, 0.5]), np.array([True, True, False, True]), 1.0)
        AbstentionPoint(threshold=0.8, coverage=0.5, accuracy=1.0, reached=True)
    """
    if not len(confidence):
        raise ValueError("expected at least 1 photo to find an abstention threshold, got none")
    order = np.argsort(-confidence, kind="stable")
    ranked, right = confidence[order], np.cumsum(correct[order])
    count = np.arange(1, len(ranked) + 1)
    # Photos of equal confidence are answered together or not at all.
    last_of_equals = np.append(ranked[:-1] > ranked[1:], True)
    # A threshold of 1 answers nothing.
    can_be_one = (ranked < 1) | (count == len(ranked))
    share, possible = right / count, last_of_equals & can_be_one
    good = np.flatnonzero(possible & (share >= accuracy) & (count >= _LEAST_COVERAGE * len(ranked)))
    if len(good):
        chosen = int(good[-1])
    else:
        usable = np.flatnonzero(possible & (count >= _USABLE_COVERAGE * len(ranked)))
        chosen = int(usable[share[usable] == share[usable].max()][-1])
    everything = chosen == len(ranked) - 1
    return AbstentionPoint(
        0.0 if everything else float(ranked[chosen]),
        (chosen + 1) / len(ranked),
        float(share[chosen]),
        reached=bool(len(good)),
    )


_STEPS = 60  # bisections of a range of 2: more digits than a float64 has


class PairedDifference(NamedTuple):
    """The accuracy of a new model minus that of an old one on the same photos, with its 95 % interval."""

    points: float  # in percentage points; above 0 the new model is better
    low: float  # lower end of the interval, in percentage points
    high: float


def paired_difference(new: NDArray[np.bool_], old: NDArray[np.bool_], leaf_ids: Sequence[str]) -> PairedDifference:
    """Computes the difference in accuracy of two models, where several photos may show the same leaf.

    `new` and `old` are `(N,)`: whether each model classifies each photo correctly. The interval is Tango's score
    interval of a paired difference (1998, Statistics in Medicine 17, 891-908), with the effective sample size of the N
    differences (see `accuracy_interval`), as if the models differed on all photos of one more leaf. If they
    never differ, a bootstrap over leaves would give an interval of length 0; this one then reaches 3.84 / (n + 3.84) to
    each side, with n leaves. Raises a ValueError if there are no photos, or the lengths differ.

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
    """Returns about how many photos would exclude a loss of accuracy, if both models do as on the photos at hand.

    `loss` is in percentage points, 0 to 100; the other arguments are those of `paired_difference`. The result has two
    digits and zeros and is above N; it is None if the photos at hand exclude the loss, or if no number does.
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


def tango_interval(won: float, lost: float, size: float) -> tuple[float, float]:
    """Computes Tango's 95 % score interval, -1 to 1, of the difference of two paired proportions.

    In `won` of `size` pairs only the first is right, in `lost` only the second; these are not necessarily whole.
    """
    z = NormalDist().inv_cdf(0.975)
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

    Both arguments are `(N,)` bool: whether each model classifies each photo correctly. Returns "only_first" and
    "only_second", the number of photos that only one model classifies correctly, and the two-sided "p_value". Raises a
    ValueError if the lengths differ.

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
