"""Temperature and threshold, and what they are expected to cost."""

from __future__ import annotations

import numpy as np
import pytest

from agridistill.evaluation.calibration import fit_answering
from agridistill.evaluation.evaluate import LabelledLogits


def labelled(photos: int, signal: float, seed: int = 0) -> LabelledLogits:
    random = np.random.default_rng(seed)
    target = random.integers(0, 4, photos)
    logits = random.normal(size=(photos, 4)).astype(np.float32)
    logits[np.arange(photos), target] += signal
    return LabelledLogits(logits, target, tuple(f"leaf {n // 2}" for n in range(photos)), ())


def test_many_photos_are_measured_as_they_are_and_few_by_cross_validation() -> None:
    assert not fit_answering(labelled(200, 2.0)).cross_validated
    few = fit_answering(labelled(60, 2.0))
    assert few.cross_validated
    assert few.abstention.threshold < 1


def test_cross_validation_expects_less_than_the_fit_itself_finds() -> None:
    wanted, held = 0.9, []
    for seed in range(30):
        held.append(fit_answering(labelled(40, 1.5, seed), wanted))
    assert np.mean([found.abstention.accuracy for found in held]) < wanted + 0.02
    for found in held:
        assert found.abstention.reached == (found.abstention.accuracy >= wanted)
        assert found.abstention.reached or "does not reach 90 % right answers" in found.warning()
    assert {found.abstention.reached for found in held} == {True, False}


def test_a_model_that_guesses_is_answered_with_a_warning_that_says_so() -> None:
    found = fit_answering(labelled(80, 0.0))
    assert not found.abstention.reached
    assert found.abstention.threshold < 1
    assert found.abstention.coverage > 0.3
    assert "this model does not reach 95 % right answers" in found.warning()
    assert found.to_json()["answers_target_reached"] is False


def test_a_good_model_needs_no_warning() -> None:
    assert fit_answering(labelled(80, 9.0)).warning() == ""


def test_one_leaf_cannot_be_cross_validated() -> None:
    assert not fit_answering(labelled(2, 2.0)).cross_validated


def test_no_photos_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1 photo to fit a temperature"):
        fit_answering(labelled(0, 1.0))
