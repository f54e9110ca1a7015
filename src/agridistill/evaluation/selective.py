"""When a model should rather say that it does not know."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# A threshold above which hardly a photo lies is of no use, and its share of right answers rests on a few photos.
_LEAST_COVERAGE = 0.1
# What a person may still work with where the wanted share is out of reach.
_USABLE_COVERAGE = 0.5


class AbstentionPoint(NamedTuple):
    """Below which probability a model abstains, and what that costs.

    Attributes:
        threshold: photos with a lower top probability get no answer.
        coverage: share of the photos that are answered.
        accuracy: share of the answers that are right.
        reached: whether that is the share that was wanted; where it is not, the threshold is the best usable one.
    """

    threshold: float
    coverage: float
    accuracy: float
    reached: bool = True


def abstention_point(confidence: NDArray[np.float64], correct: NDArray[np.bool_], accuracy: float) -> AbstentionPoint:
    """The lowest threshold above which the answers are right often enough (El-Yaniv & Wiener 2010, JMLR 11).

    Args:
        confidence: `(N,)`, top probability of each photo.
        correct: `(N,)`, whether the top class is right.
        accuracy: wanted of the answers, 0 to 1.

    Returns:
        Coverage 1 and threshold 0 where all answers together are good enough. Where no threshold that answers a tenth
        of the photos is good enough, the one with the largest share of right answers among those that answer at least
        half of the photos (of equals the lowest), with `reached` False: a model that never answers helps no one.

    Raises:
        ValueError: no photos.

    Example:
        >>> abstention_point(np.array([0.9, 0.8, 0.6, 0.5]), np.array([True, True, False, True]), 1.0)
        AbstentionPoint(threshold=0.8, coverage=0.5, accuracy=1.0, reached=True)
    """
    if not len(confidence):
        raise ValueError("at least 1 photo, got none")
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
