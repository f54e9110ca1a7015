"""A camera sees many leaves in a window: all of them count, and memory does not grow with their number."""

from __future__ import annotations

import numpy as np
import pytest

from agridistill.edge.alerts.plots import AlertKeeper
from agridistill.edge.alerts.rules import BUCKETS, LeafPool, Leaves, Rule

CLASSES = ("blight", "mould", "healthy")


def filled(times: np.ndarray, rows: np.ndarray, *windows_s: float) -> LeafPool:
    pool = LeafPool(CLASSES, windows_s)
    for at_s, row in zip(times, rows, strict=True):
        pool.add("north", row, at_s)
    return pool


def rising(number: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(-0.05, 0.05, number)
    ill = np.linspace(0.1, 0.8, number) + noise
    return np.stack([ill, np.full(number, 0.05), 0.95 - ill], axis=1)


def shares(leaves: Leaves) -> list[float]:
    return [leaves.share([index]) for index in range(len(CLASSES))]


def test_each_plot_has_its_own_leaves_and_old_ones_do_not_count() -> None:
    pool = LeafPool(CLASSES, [100])
    pool.add("north", np.array([0.8, 0.1, 0.1]), 0)
    pool.add("south", np.array([0.1, 0.1, 0.8]), 10)
    pool.add("north", np.array([0.6, 0.3, 0.1]), 60)
    assert pool.leaves("north", 100, 70).number == 2
    assert shares(pool.leaves("north", 100, 70)) == pytest.approx([0.7, 0.2, 0.1])
    assert pool.leaves("north", 100, 101).number == 1
    assert pool.leaves("north", 100, 200).number == 0
    assert pool.leaves("west", 100, 0).number == 0
    assert pool.leaves("west", 100, 0).share([0]) == 0


@pytest.mark.parametrize(
    ("every_s", "rule"),
    [
        (1.0, Rule("spreads", ("blight",), share=0.5)),
        (10.0, Rule("spreads", ("blight",), share=0.5, least_leaves=10, window_minutes=2880)),
        (1.0, Rule("many", ("blight",), share=0.3, least_leaves=3000)),
    ],
    ids=["the default window", "the example of deploy", "thousands of leaves"],
)
def test_a_rule_holds_on_a_camera_at_documented_settings(every_s: float, rule: Rule) -> None:
    number = int(1.5 * rule.window_s / every_s)
    pool = LeafPool(CLASSES, [rule.window_s])
    keeper = AlertKeeper([rule], CLASSES, pool)
    for index, row in enumerate(rising(number)):
        at_s = index * every_s
        pool.add("north", row, at_s)
        if index % 200 == 0:
            keeper.look("north", at_s)
    assert [alert.rule for alert in keeper.open] == [rule.name]


def test_the_order_in_which_leaves_come_does_not_matter() -> None:
    times = np.sort(np.random.default_rng(0).uniform(0, 86_400, 300))
    rows = rising(300)
    order = np.random.default_rng(1).permutation(300)
    in_time = filled(times, rows, 86_400.0).leaves("north", 86_400.0, 86_400.0)
    late = filled(times[order], rows[order], 86_400.0).leaves("north", 86_400.0, 86_400.0)
    for one, other in zip(vars(in_time).values(), vars(late).values(), strict=True):
        np.testing.assert_allclose(one, other)


@pytest.mark.parametrize("seed", range(3))
def test_windows_of_an_hour_and_of_days_hold_the_leaves_seen_in_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # By day every 5 to 15 s, at night none.
    times = np.cumsum(rng.uniform(5, 15, 20_000))
    times += 43_200 * (times // 43_200)
    rows = rising(len(times), seed)
    windows_s = 600.0, 3600.0, 6 * 3600.0, 86_400.0, 3 * 86_400.0
    pool, now_s = filled(times, rows, *windows_s), float(times[-1]) + 1
    for window_s in windows_s:
        inside = times >= now_s - window_s
        seen = pool.leaves("north", window_s, now_s)
        assert seen.number == pytest.approx(inside.sum(), rel=0.01)
        assert shares(seen) == pytest.approx(rows[inside].mean(axis=0), abs=0.003)


def test_leaves_of_one_bucket_keep_their_number_their_sum_and_their_mean_time() -> None:
    times, rows = np.arange(5000.0), rising(5000)
    leaves = filled(times, rows, 10_000.0).leaves("north", 10_000.0, 5000.0)
    assert leaves.number == 5000
    assert len(leaves.counts) < BUCKETS
    np.testing.assert_allclose(leaves.sums.sum(axis=0), rows.sum(axis=0))
    assert np.sum(leaves.at_s * leaves.counts) == pytest.approx(times.sum())
    assert np.all(np.diff(leaves.at_s) > 0)


def test_few_leaves_count_to_the_second() -> None:
    pool = filled(np.array([0.0, 100.0, 3699.9]), rising(3), 3600.0)
    assert pool.leaves("north", 3600.0, 3700.0).number == 2
    assert pool.leaves("north", 3600.0, 3700.1).number == 1


def test_photos_of_one_moment_count_whole() -> None:
    leaves = filled(np.full(5000, 7.0), rising(5000), 60.0).leaves("north", 60.0, 7.0)
    assert leaves.number == 5000
    assert leaves.share([0]) == pytest.approx(0.45, abs=0.01)


def test_memory_is_bounded() -> None:
    pool = filled(np.arange(30_000.0), rising(30_000), 600.0)
    assert len(pool._buckets["north", 600.0]) <= 2 * BUCKETS
    for number in range(5):
        pool.add(f"plot {number}", np.ones(3) / 3, 40_000.0 + 1000 * number)
    assert pool.plots == ["plot 4"]
