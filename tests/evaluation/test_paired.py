"""The interval of a paired difference against its definition and published values; McNemar's test by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from agridistill.evaluation.metrics import (
    accuracy_interval,
    mcnemar,
    paired_difference,
    photos_to_exclude,
    tango_interval,
)


def reference_interval(won: int, lost: int, size: int) -> tuple[float, float]:
    """Both roots of the score test, whose nuisance parameter is found by maximising the likelihood numerically."""

    def statistic(delta: float) -> float:
        def minus_log_likelihood(lost_share: float) -> float:
            shares = np.array([lost_share + delta, lost_share, 1 - 2 * lost_share - delta])
            return -float(scipy.special.xlogy([won, lost, size - won - lost], np.maximum(shares, 1e-300)).sum())

        low, high = max(0.0, -delta), (1 - delta) / 2
        found = scipy.optimize.minimize_scalar(
            minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
        )
        variance = size * (2 * found.x + delta - delta**2)
        return (won - lost - size * delta) / math.sqrt(variance)

    z, difference, edge = scipy.stats.norm.ppf(0.975), (won - lost) / size, 1e-7
    low = scipy.optimize.brentq(lambda delta: statistic(delta) - z, -1 + edge, difference - edge)
    return low, scipy.optimize.brentq(lambda delta: statistic(delta) + z, difference + edge, 1 - edge)


@pytest.mark.parametrize(("won", "lost", "size"), [(1, 7, 21), (7, 1, 21), (12, 9, 100), (3, 30, 80), (0, 4, 40)])
def test_the_interval_inverts_the_score_test(won: int, lost: int, size: int) -> None:
    assert tango_interval(won, lost, size) == pytest.approx(reference_interval(won, lost, size), abs=1e-4)


def test_the_interval_is_the_published_one() -> None:
    # Fagerland, Lydersen and Laake 2014, BMC Medical Research Methodology 14, airway hyper-responsiveness.
    assert tango_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize("size", [1, 20, 125, 500])
def test_models_that_never_differ_prove_little_with_few_photos(size: int) -> None:
    z = scipy.stats.norm.ppf(0.975)
    bound = z**2 / (size + z**2)
    assert tango_interval(0, 0, size) == pytest.approx((-bound, bound))


def test_exchanged_models_have_the_mirrored_interval() -> None:
    low, high = tango_interval(4, 11, 60)
    assert tango_interval(11, 4, 60) == pytest.approx((-high, -low))
    assert tango_interval(5, 0, 5)[1] == 1
    assert tango_interval(0, 5, 5)[0] == -1


def test_copies_of_each_photo_on_its_leaf_change_nothing() -> None:
    rng = np.random.default_rng(1)
    new, old = rng.random(80) < 0.9, rng.random(80) < 0.8
    leaves = [str(number) for number in range(80)]
    once = paired_difference(new, old, leaves)
    thrice = paired_difference(np.tile(new, 3), np.tile(old, 3), leaves * 3)
    assert thrice == pytest.approx(once, abs=0.05)
    apart = paired_difference(np.tile(new, 3), np.tile(old, 3), [str(number) for number in range(240)])
    assert apart.high - apart.low < 0.7 * (once.high - once.low)


def test_against_a_model_that_is_always_right_the_interval_is_about_that_of_the_accuracy() -> None:
    rng = np.random.default_rng(2)
    leaves = [str(number // 3) for number in range(600)]
    new = np.repeat(rng.random(200) < 0.85, 3)
    found = paired_difference(new, np.ones(600, bool), leaves)
    accuracy = accuracy_interval(new, leaves)
    assert found.points == pytest.approx(100 * (new.mean() - 1))
    assert (found.low, found.high) == pytest.approx((100 * (accuracy.low - 1), 100 * (accuracy.high - 1)), abs=0.5)


@pytest.mark.parametrize(("leaves", "of_leaf"), [(30, 1), (60, 1), (60, 4)])
def test_ninety_five_of_a_hundred_intervals_hold_the_truth(leaves: int, of_leaf: int) -> None:
    """Photos of one leaf fare mostly alike: half of the leaves decide for all their photos."""
    rng = np.random.default_rng(leaves + of_leaf)
    leaf_ids = [str(number // of_leaf) for number in range(leaves * of_leaf)]
    shares = [0.10, 0.14, 0.76]  # only the new, only the old, both or none
    held = 0
    for _ in range(400):
        of_photos = rng.choice(3, leaves * of_leaf, p=shares)
        as_one = np.repeat(rng.choice(3, leaves, p=shares), of_leaf)
        kind = np.where(np.repeat(rng.random(leaves) < 0.5, of_leaf), as_one, of_photos)
        found = paired_difference(kind == 0, kind == 1, leaf_ids)
        held += found.low <= -4 <= found.high
    assert held / 400 >= 0.93


def test_photos_of_two_models_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="the same photos"):
        paired_difference(np.ones(3, bool), np.ones(4, bool), ["a"] * 3)
    with pytest.raises(ValueError, match="one leaf id for each"):
        paired_difference(np.ones(3, bool), np.ones(3, bool), ["a"] * 2)
    with pytest.raises(ValueError, match="at least 1 photo"):
        paired_difference(np.ones(0, bool), np.ones(0, bool), [])


@pytest.mark.parametrize(("b", "c"), [(9, 1), (3, 3), (0, 5), (0, 0), (40, 20)])
def test_mcnemar_is_the_exact_binomial(b: int, c: int) -> None:
    first = np.array([True] * b + [False] * c + [True] * 7 + [False] * 4)
    second = np.array([False] * b + [True] * c + [True] * 7 + [False] * 4)
    n, k = b + c, min(b, c)
    expected = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    found = mcnemar(first, second)
    assert found == {"only_first": b, "only_second": c, "p_value": pytest.approx(expected)}


def test_one_photo_that_differs_does_not_turn_two_leaves_into_two_hundred_photos() -> None:
    leaves = ["a"] * 100 + ["b"] * 100
    new, old = np.ones(200, bool), np.ones(200, bool)
    equal = paired_difference(new, old, leaves)
    old[0] = False
    found = paired_difference(new, old, leaves)
    assert equal.low == pytest.approx(-65.8, abs=0.1)
    assert found.low == pytest.approx(equal.low, abs=3)


@pytest.mark.parametrize(("leaves", "of_leaf"), [(10, 20), (40, 20)])
def test_a_loss_at_the_limit_is_excluded_in_at_most_one_of_forty_cases(leaves: int, of_leaf: int) -> None:
    rng = np.random.default_rng(leaves + of_leaf)
    leaf_ids = [str(number // of_leaf) for number in range(leaves * of_leaf)]
    shares = [0.04, 0.10, 0.86]
    excluded = 0
    for _ in range(300):
        as_one = np.repeat(rng.choice(3, leaves, p=shares), of_leaf)
        of_photos = rng.choice(3, leaves * of_leaf, p=shares)
        kind = np.where(np.repeat(rng.random(leaves) < 0.5, of_leaf), as_one, of_photos)
        excluded += paired_difference(kind == 0, kind == 1, leaf_ids).low > -6
    assert excluded / 300 <= 0.035  # 2.5 %, within the precision of 300 cases


@pytest.mark.parametrize(
    ("won", "lost", "photos", "enough"),
    [
        (0, 0, 40, 130),  # 125 photos on which the models never differ
        (1, 1, 40, 270),  # docs/decisions/0014-proof-before-release.md
        (0, 0, 125, None),  # these are enough
        (0, 2, 40, None),  # a loss of 5 points
    ],
)
def test_the_number_of_photos_that_exclude_a_loss(won: int, lost: int, photos: int, enough: int | None) -> None:
    new, old = np.arange(photos) >= lost, np.arange(photos) < photos - won
    assert photos_to_exclude(3.0, new, old, [str(number) for number in range(photos)]) == enough
