"""Intervals and tests against slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from agridistill.study.summary import paired_difference


def draw_study(seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Two methods with three seeds each on 40 leaves of 1 to 9 photos, which are easy or hard as a whole."""
    rng = np.random.default_rng(seed)
    leaves = [f"leaf{number}" for number in range(40) for _ in range(rng.integers(1, 10))]
    ease = {leaf: rng.normal() for leaf in dict.fromkeys(leaves)}
    chance = np.array([1 / (1 + math.exp(-1 - ease[leaf])) for leaf in leaves])
    baseline = rng.random((3, len(leaves))) < chance
    method = rng.random((3, len(leaves))) < chance + 0.05
    return method, baseline, leaves


def reference_interval(method: np.ndarray, baseline: np.ndarray, leaves: list[str], *, paired: bool) -> np.ndarray:
    """Photo by photo, resample by resample; the error of the seeds by scipy's distribution."""
    rng = np.random.default_rng(99)
    photos_of = {leaf: [i for i, other in enumerate(leaves) if other == leaf] for leaf in leaves}
    names = sorted(photos_of)
    # One more leaf of typical size, on all of whose photos the methods differ.
    typical = sum(len(photos) ** 2 for photos in photos_of.values()) / len(leaves) / len(leaves)
    rows = [method.mean(axis=1) - baseline.mean(axis=1)] if paired else [method.mean(axis=1), baseline.mean(axis=1)]
    found = []
    for _ in range(3000):
        photos = [photo for name in rng.choice(names, len(names)) for photo in photos_of[name]]
        value = method[:, photos].mean() - baseline[:, photos].mean() + typical * rng.standard_normal()
        for seeds in rows:
            if len(seeds) > 1:
                value += scipy.stats.sem(seeds) * scipy.stats.t.rvs(len(seeds) - 1, random_state=rng)
        found.append(100 * value)
    return np.percentile(found, [2.5, 97.5])


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_is_that_of_a_slow_bootstrap(paired: bool) -> None:
    method, baseline, leaves = draw_study()
    found = paired_difference(method, baseline, leaves, paired_seeds=paired)
    assert found.points == pytest.approx(100 * (method.mean() - baseline.mean()))
    assert not found.of_leaves_alone
    expected = reference_interval(method, baseline, leaves, paired=paired)
    # Two bootstraps of thousands differ by their own noise.
    np.testing.assert_allclose(found.points_ci95, expected, rtol=0.12, atol=0.7)
    assert found.points_ci95[0] < found.points < found.points_ci95[1]


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_keeps_its_promise_also_with_few_seeds(seeds: int) -> None:
    """Both methods are equally good and runs differ by 2 points: 95 of 100 intervals must hold zero.

    So many photos that the runs decide: leaves alone hold it in about half of the studies.
    """
    rng = np.random.default_rng(seeds)
    leaves = [str(number) for number in range(300) for _ in range(10)]
    holds = of_leaves_alone = 0
    for study in range(150):
        ease = np.repeat(rng.normal(1.5, 1, 300), 10)
        chances = 1 / (1 + np.exp(-ease)) + rng.normal(0, 0.02, (2 * seeds, 1))
        runs = rng.random((2 * seeds, len(leaves))) < chances
        first, second = runs[:seeds], runs[seeds:]
        found = paired_difference(first, second, leaves, paired_seeds=True, resamples=300, seed=study)
        alone = paired_difference(first[:1], second[:1], leaves, paired_seeds=True, resamples=300, seed=study)
        holds += found.points_ci95[0] <= 0 <= found.points_ci95[1]
        of_leaves_alone += alone.points_ci95[0] <= 0 <= alone.points_ci95[1]
    assert holds >= 0.89 * 150  # 95 %, less three standard errors of the count
    assert of_leaves_alone < 0.75 * 150


def test_one_seed_is_told_to_be_too_few() -> None:
    method, baseline, leaves = draw_study()
    one = paired_difference(method[:1], baseline[:1], leaves, paired_seeds=True)
    assert one.of_leaves_alone
    assert paired_difference(method[:1], baseline, leaves, paired_seeds=False).of_leaves_alone


def test_a_method_is_no_better_than_itself_but_few_leaves_prove_little() -> None:
    method, _, _ = draw_study()
    for leaves in (10, 100):
        right = method[:, :leaves]
        found = paired_difference(right, right, [str(leaf) for leaf in range(leaves)], paired_seeds=True)
        assert found.points == 0
        np.testing.assert_allclose(found.points_ci95, (-196 / leaves, 196 / leaves), rtol=0.1)


def test_few_leaves_keep_the_promise_of_the_interval() -> None:
    """The true difference is 2 points: 95 of 100 intervals must hold it; without the pseudo-leaf 67 do."""
    rng, holds = np.random.default_rng(1), 0
    leaves = [str(leaf) for leaf in range(40)]
    for study in range(200):
        gains = rng.choice([-1, 0, 1], 40, p=[0.02, 0.94, 0.04])
        first, second = (gains >= 0)[None], (gains <= 0)[None]
        low, high = paired_difference(
            first, second, leaves, paired_seeds=True, resamples=500, seed=study
        ).points_ci95  # fmt: skip
        holds += low <= 2 <= high
    assert holds >= 0.9 * 200


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
    right = np.ones((3, 200), bool)
    shaky = right.copy()
    shaky[0, :40] = False
    leaves = [str(i) for i in range(200)]
    found = paired_difference(shaky, right, leaves, paired_seeds=True)
    steady = paired_difference(np.roll(shaky, 1, axis=1), np.roll(shaky, 2, axis=1), leaves, paired_seeds=True)
    assert found.points == pytest.approx(-100 * 40 / 600)
    assert found.points_ci95[0] < -30
    assert found.points_ci95[1] > 0
    assert steady.points_ci95[1] - steady.points_ci95[0] < 3


def test_two_seeds_that_contradict_each_other_leave_everything_open_and_no_more() -> None:
    right, wrong = np.ones((1, 50), bool), np.zeros((1, 50), bool)
    found = paired_difference(
        np.concatenate([right, wrong]), np.concatenate([wrong, right]), [str(i) for i in range(50)], paired_seeds=True
    )
    assert (found.points, found.points_ci95) == (0, (-100, 100))
