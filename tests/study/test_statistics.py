"""Intervals and tests against slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agridistill.study.statistics import mcnemar, paired_difference


def draw_study(seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Two methods with three seeds each on 40 leaves of 1 to 9 photos, which are easy or hard as a whole."""
    rng = np.random.default_rng(seed)
    leaves = [f"leaf{number}" for number in range(40) for _ in range(rng.integers(1, 10))]
    ease = {leaf: rng.normal() for leaf in set(leaves)}
    chance = np.array([1 / (1 + math.exp(-1 - ease[leaf])) for leaf in leaves])
    baseline = rng.random((3, len(leaves))) < chance
    method = rng.random((3, len(leaves))) < chance + 0.05
    return method, baseline, leaves


def reference_interval(
    method: np.ndarray, baseline: np.ndarray, leaves: list[str], *, paired: bool, resamples: int
) -> np.ndarray:
    """Photo by photo, resample by resample."""
    rng = np.random.default_rng(99)
    photos_of = {leaf: [i for i, other in enumerate(leaves) if other == leaf] for leaf in leaves}
    names = sorted(photos_of)
    found = []
    for _ in range(resamples):
        photos = [photo for name in rng.choice(names, len(names)) for photo in photos_of[name]]
        ours = rng.integers(0, len(method), len(method))
        theirs = ours if paired else rng.integers(0, len(baseline), len(baseline))
        found.append(100 * (method[np.ix_(ours, photos)].mean() - baseline[np.ix_(theirs, photos)].mean()))
    return np.percentile(found, [2.5, 97.5])


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_is_that_of_a_slow_bootstrap(paired: bool) -> None:
    method, baseline, leaves = draw_study()
    found = paired_difference(method, baseline, leaves, paired_seeds=paired)
    assert found.points == pytest.approx(100 * (method.mean() - baseline.mean()))
    expected = reference_interval(method, baseline, leaves, paired=paired, resamples=3000)
    # Two bootstraps of thousands differ by their own noise.
    np.testing.assert_allclose(found.points_ci95, expected, atol=0.6)
    assert found.points_ci95[0] < found.points < found.points_ci95[1]


def test_a_method_is_no_better_than_itself() -> None:
    method, _, leaves = draw_study()
    found = paired_difference(method, method, leaves, paired_seeds=True)
    assert (found.points, found.points_ci95) == (0, (0, 0))


def test_photos_of_one_leaf_count_as_one_leaf() -> None:
    method, baseline, _ = draw_study()
    photos = method.shape[1]
    alone = paired_difference(method, baseline, [str(photo) for photo in range(photos)], paired_seeds=True)
    # Every photo ten times, each with its leaf: more photos, no more knowledge.
    ten = paired_difference(
        np.repeat(method, 10, axis=1), np.repeat(baseline, 10, axis=1), [str(i // 10) for i in range(10 * photos)],
        paired_seeds=True,
    )  # fmt: skip
    assert ten.points == pytest.approx(alone.points)
    np.testing.assert_allclose(ten.points_ci95, alone.points_ci95, atol=0.6)


def test_seeds_that_disagree_widen_the_interval() -> None:
    right = np.ones((2, 200), bool)
    half = np.concatenate([np.ones((1, 200), bool), np.zeros((1, 200), bool)])
    found = paired_difference(half, right, [str(i) for i in range(200)], paired_seeds=False)
    assert found.points == -50
    assert found.points_ci95 == (-100, 0)


def test_what_does_not_fit_together_is_refused() -> None:
    some = np.ones((2, 3), bool)
    with pytest.raises(ValueError, match="the same photos"):
        paired_difference(some, np.ones((2, 4), bool), ["a"] * 3, paired_seeds=True)
    with pytest.raises(ValueError, match="one leaf id"):
        paired_difference(some, some, ["a"] * 2, paired_seeds=True)
    with pytest.raises(ValueError, match="where they are paired"):
        paired_difference(some, np.ones((1, 3), bool), ["a"] * 3, paired_seeds=True)


@pytest.mark.parametrize(("b", "c"), [(9, 1), (3, 3), (0, 5), (0, 0), (40, 20)])
def test_mcnemar_is_the_exact_binomial(b: int, c: int) -> None:
    first = np.array([True] * b + [False] * c + [True] * 7 + [False] * 4)
    second = np.array([False] * b + [True] * c + [True] * 7 + [False] * 4)
    n, k = b + c, min(b, c)
    expected = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (b, c)
    assert found.p_value == pytest.approx(expected)
