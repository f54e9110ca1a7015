"""Abstention, against a search over every threshold."""

from __future__ import annotations

import numpy as np
import pytest

from agridistill.evaluation.metrics import abstention_point


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.95, 1.0])
def test_no_lower_threshold_would_do(seed: int, wanted: float) -> None:
    random = np.random.default_rng(seed)
    confidence = random.random(200).round(2)  # many ties
    correct = random.random(200) < confidence
    found = abstention_point(confidence, correct, wanted)
    good = [0.0] if correct.mean() >= wanted else []
    enough = [t for t in np.unique(confidence) if (confidence >= t).mean() >= 0.1]
    good += [t for t in enough if correct[confidence >= t].mean() >= wanted]
    assert found.reached == bool(good)
    if not good:
        usable = [t for t in enough if (confidence >= t).mean() >= 0.5]
        assert found.coverage >= 0.5
        assert found.accuracy == pytest.approx(max(correct[confidence >= t].mean() for t in usable))
        return
    answered = confidence >= min(good)
    assert found.coverage == pytest.approx(answered.mean())
    assert found.accuracy == pytest.approx(correct[answered].mean())
    assert ((confidence >= found.threshold) == answered).all()


def test_all_right_answers_everything() -> None:
    assert abstention_point(np.array([0.3, 0.9]), np.array([True, True]), 0.99) == (0.0, 1.0, 1.0, True)


def test_all_wrong_is_called_so_and_still_answers() -> None:
    assert abstention_point(np.array([0.3, 0.9]), np.array([False, False]), 0.5) == (0.0, 1.0, 0.0, False)


def test_a_threshold_for_one_photo_in_thirty_does_not_count() -> None:
    confidence = np.linspace(0.9, 0.3, 30)
    correct = np.array([True] + [False, True] * 14 + [False])
    found = abstention_point(confidence, correct, 0.95)
    assert not found.reached
    assert found.coverage >= 0.5
    assert found.threshold < 1


def test_certainty_is_no_way_around_a_threshold_that_answers_nothing() -> None:
    confidence, correct = np.array([0.4, 1.0, 1.0]), np.array([False, True, True])
    assert abstention_point(confidence, correct, 0.9) == (0.0, 1.0, pytest.approx(2 / 3), False)
    assert abstention_point(confidence[1:], correct[1:], 0.9) == (0.0, 1.0, 1.0, True)


def test_no_photos_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        abstention_point(np.empty(0), np.empty(0, bool), 0.9)
