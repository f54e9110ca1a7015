"""A camera sees more leaves in a window than are remembered one by one: all of them count all the same."""

from __future__ import annotations

import numpy as np
import pytest

from agridistill.edge.alerts.lifecycle import AlertKeeper
from agridistill.edge.alerts.pooling import LeafPool, pooled_probabilities
from agridistill.edge.alerts.rules import Rule

CLASSES = ("blight", "mould", "healthy")
MONTH_S = 31 * 86_400.0


def filled(times: np.ndarray, rows: np.ndarray, *, most: int, window_s: float = MONTH_S) -> LeafPool:
    pool = LeafPool(CLASSES, window_s=window_s, most_leaves=most)
    for at_s, row in zip(times, rows, strict=True):
        pool.add("north", row, at_s)
    return pool


def rising(number: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(-0.05, 0.05, number)
    ill = np.linspace(0.1, 0.8, number) + noise
    return np.stack([ill, np.full(number, 0.05), 0.95 - ill], axis=1)


@pytest.mark.parametrize(
    ("every_s", "rule"),
    [
        (1.0, Rule("spreads", ("blight",), rise=0.2, share=0.5)),
        (10.0, Rule("spreads", ("blight",), rise=0.2, share=0.5, least_leaves=10, window_minutes=2880)),
        (1.0, Rule("many", ("blight",), share=0.3, least_leaves=3000)),
    ],
    ids=["the default window", "the example of deploy", "thousands of leaves wanted"],
)
def test_a_rule_holds_on_a_camera_at_documented_settings(every_s: float, rule: Rule) -> None:
    number = int(1.5 * rule.window_s / every_s)
    pool = LeafPool(CLASSES, window_s=rule.window_s, most_leaves=1000)
    keeper = AlertKeeper([rule], CLASSES, pool)
    for index, row in enumerate(rising(number)):
        at_s = index * every_s
        pool.add("north", row, at_s)
        if index % 200 == 0:
            keeper.look("north", clock_s=at_s, now_s=1.8e9 + at_s)
    assert [alert.rule for alert in keeper.open] == [rule.name]


def test_leaves_that_come_late_lie_where_they_would_have_come_in_time() -> None:
    times = np.sort(np.random.default_rng(0).uniform(0, 86_400, 300))
    rows = rising(300)
    order = np.random.default_rng(1).permutation(300)
    in_time = filled(times, rows, most=1000).leaves("north", 86_400.0)
    late = filled(times[order], rows[order], most=1000).leaves("north", 86_400.0)
    for one, other in zip(vars(in_time).values(), vars(late).values(), strict=True):
        np.testing.assert_array_equal(one, other)
    few = filled(times[order], rows[order], most=50).leaves("north", 86_400.0)
    assert few.counts.sum() == 300
    assert (np.diff(few.at_s) >= 0).all()
    np.testing.assert_allclose(few.sums.sum(axis=0), rows.sum(axis=0))


@pytest.mark.parametrize("seed", range(3))
def test_windows_of_an_hour_and_of_days_see_the_leaves_that_are_in_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # By day every 5 to 15 s, at night none.
    times = np.cumsum(rng.uniform(5, 15, 20_000))
    times += 43_200 * (times // 43_200)
    rows = rising(len(times), seed)
    pool, now_s = filled(times, rows, most=1000), float(times[-1]) + 1
    for window_s in (600.0, 3600.0, 6 * 3600.0, 86_400.0, 3 * 86_400.0):
        inside = times >= now_s - window_s
        seen = pool.leaves("north", now_s).since(now_s - window_s)
        assert seen.counts.sum() == pytest.approx(inside.sum(), rel=0.01)
        assert seen.sums.sum(axis=0) / seen.counts.sum() == pytest.approx(rows[inside].mean(axis=0), abs=0.003)


def test_nothing_but_the_edge_of_the_window_is_less_sharp() -> None:
    times, rows = np.arange(5000.0), rising(5000)
    leaves = filled(times, rows, most=200).leaves("north", 5000.0)
    assert leaves.counts.sum() == 5000
    np.testing.assert_allclose(leaves.sums.sum(axis=0), rows.sum(axis=0))
    assert np.sum(leaves.at_s * leaves.counts) == pytest.approx(times.sum())
    assert np.all(np.diff(leaves.at_s) > 0)


def test_few_leaves_stay_single_ones() -> None:
    times, rows = np.arange(1000.0), rising(1000)
    leaves = filled(times, rows, most=1000).leaves("north", 1000.0)
    assert np.array_equal(leaves.at_s, times)
    assert np.array_equal(leaves.sums, rows)
    assert np.array_equal(leaves.counts, np.ones(1000))


def test_leaves_that_went_leave_their_places_to_single_ones() -> None:
    times = np.concatenate([np.arange(5000.0), np.arange(20_000.0, 20_190.0)])
    leaves = filled(times, rising(5190), most=200, window_s=600.0).leaves("north", 20_190.0)
    assert np.array_equal(leaves.at_s, times[5000:])


def test_what_they_say_together_is_weighted_by_their_number() -> None:
    # 600 leaves lean to blight a little, and the newest 20 to mould: of the rows each would be a vote.
    rows = np.array([[0.36, 0.33, 0.31]] * 600 + [[0.05, 0.9, 0.05]] * 20)
    view = filled(np.arange(620.0), rows, most=50).view("north", 620.0)
    assert view is not None
    expected = pooled_probabilities(rows)
    assert (view.leaves, view.label) == (620, CLASSES[expected.argmax()])
    assert view.probability == pytest.approx(expected.max(), rel=1e-4)
    assert list(view.shares.values()) == pytest.approx(rows.mean(axis=0))


def test_a_folder_of_photos_of_one_moment_counts_whole() -> None:
    view = filled(np.full(5000, 7.0), rising(5000), most=100).view("north", 7.0)
    assert view is not None
    assert view.leaves == 5000
    assert view.shares["blight"] == pytest.approx(0.45, abs=0.01)


@pytest.mark.parametrize("most", [1, 2, 50])
def test_memory_is_bounded(most: int) -> None:
    leaves = filled(np.arange(3000.0), rising(3000), most=most).leaves("north", 3000.0)
    assert leaves.counts.sum() == 3000
    assert len(leaves.counts) <= most + max(1, most // 16)
