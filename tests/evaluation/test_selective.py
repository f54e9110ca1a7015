"""Abstention, against a search over every threshold."""

from __future__ import annotations

import numpy as np
import pytest

from agridistill.evaluation.selective import abstention_point


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.95, 1.0])
def test_no_lower_threshold_would_do(seed: int, wanted: float) -> None:
    random = np.random.default_rng(seed)
    confidence = random.random(200).round(2)  # many ties
    correct = random.random(200) < confidence
    found = abstention_point(confidence, correct, wanted)
    good = [0.0] if correct.mean() >= wanted else []
    good += [t for t in np.unique(confidence) if correct[confidence >= t].mean() >= wanted]
    if not good:
        assert found == (1.0, 0.0, 1.0)
        return
    answered = confidence >= min(good)
    assert found.coverage == pytest.approx(answered.mean())
    assert found.accuracy == pytest.approx(correct[answered].mean())
    assert ((confidence >= found.threshold) == answered).all()


def test_all_right_answers_everything() -> None:
    assert abstention_point(np.array([0.3, 0.9]), np.array([True, True]), 0.99) == (0.0, 1.0, 1.0)


def test_all_wrong_answers_nothing() -> None:
    assert abstention_point(np.array([0.3, 0.9]), np.array([False, False]), 0.5).coverage == 0.0


def test_certainty_is_no_way_around_a_threshold_that_answers_nothing() -> None:
    confidence, correct = np.array([0.4, 1.0, 1.0]), np.array([False, True, True])
    assert abstention_point(confidence, correct, 0.9) == (1.0, 0.0, 1.0)
    assert abstention_point(confidence[1:], correct[1:], 0.9) == (0.0, 1.0, 1.0)


def test_no_photos_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        abstention_point(np.empty(0), np.empty(0, bool), 0.9)
