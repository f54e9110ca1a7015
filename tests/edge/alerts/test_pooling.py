"""Several leaves say more than one, and an old leaf says nothing."""

from __future__ import annotations

import numpy as np
import pytest

from agridistill.edge.alerts.pooling import LeafPool, pooled_probabilities

CLASSES = ("blight", "mould", "healthy")


def test_pooling_is_bayes_rule_for_independent_leaves() -> None:
    rng = np.random.default_rng(0)
    rows = rng.dirichlet([5, 5, 5], size=4)
    product = [1.0, 1.0, 1.0]
    for row in rows:
        product = [value * probability for value, probability in zip(product, row, strict=True)]
    np.testing.assert_allclose(pooled_probabilities(rows), [value / sum(product) for value in product])


def test_leaves_that_lean_one_way_together_are_surer_than_each() -> None:
    rng = np.random.default_rng(1)
    right = {1: 0, 6: 0}
    for _ in range(500):
        truth = rng.integers(3)
        logits = rng.normal(0, 1.5, (6, 3))
        logits[:, truth] += 1.2
        rows = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        for leaves in right:
            right[leaves] += pooled_probabilities(rows[:leaves]).argmax() == truth
    assert right[6] > right[1] + 100


def test_one_strange_photo_cannot_forbid_what_all_others_say() -> None:
    rows = np.array([[0.9, 0.05, 0.05]] * 5 + [[0.0, 1.0, 0.0]])
    pooled = pooled_probabilities(rows)
    assert pooled.argmax() == 0
    assert np.isfinite(pooled).all()


def test_hundreds_of_leaves_neither_under_nor_overflow() -> None:
    pooled = pooled_probabilities(np.tile([[0.4, 0.35, 0.25]], (5000, 1)))
    assert pooled.sum() == pytest.approx(1)
    assert pooled[0] == pytest.approx(1)


def test_without_photos_there_is_nothing_to_pool() -> None:
    with pytest.raises(ValueError, match="at least 1 photo"):
        pooled_probabilities(np.empty((0, 3)))


class TestWindow:
    def test_a_plot_says_its_own_and_only_what_is_recent(self) -> None:
        pool = LeafPool(CLASSES, window_s=100)
        pool.add("north", np.array([0.8, 0.1, 0.1]), 0)
        pool.add("south", np.array([0.1, 0.1, 0.8]), 10)
        pool.add("north", np.array([0.6, 0.3, 0.1]), 60)
        view = pool.view("north", 70)
        assert view is not None
        assert (view.plot, view.leaves, view.label) == ("north", 2, "blight")
        assert view.shares == pytest.approx({"blight": 0.7, "mould": 0.2, "healthy": 0.1})
        assert view.probability > 0.8
        later = pool.view("north", 101)
        assert later is not None
        assert later.leaves == 1
        assert pool.view("north", 200) is None
        assert pool.view("west", 0) is None
