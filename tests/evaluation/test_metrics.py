import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from agridistill.evaluation.metrics import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    accuracy_interval,
    calibration_error,
    class_scores,
    effective_sample_size,
    fit_temperature,
    macro_f1,
    negative_log_likelihood,
)
from agridistill.preprocess import softmax

Z = NormalDist().inv_cdf(0.975)


def each_its_own(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def clustered_photos(
    rng: np.random.Generator, leaves: int, rate: float, likeness: float
) -> tuple[np.ndarray, list[str]]:
    """Photos whose leaves differ: a beta-binomial with the given intra-leaf correlation."""
    spread = (1 - likeness) / likeness
    rate_of_leaf = rng.beta(rate * spread, (1 - rate) * spread, leaves)
    leaf = np.arange(leaves).repeat(rng.integers(1, 8, leaves))
    return rng.random(len(leaf)) < rate_of_leaf[leaf], [str(number) for number in leaf]


@pytest.mark.parametrize(("right", "count"), [(1, 10), (9, 10), (50, 100), (437, 500)])
def test_with_a_leaf_a_photo_the_interval_solves_wilsons_equation(right: int, count: int) -> None:
    low, high = accuracy_interval(np.arange(count) < right, each_its_own(count))
    rate = right / count
    assert 0 < low < rate < high < 1
    for bound in (low, high):
        assert abs(rate - bound) == pytest.approx(Z * math.sqrt(bound * (1 - bound) / count))


def test_the_effective_sample_size_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    correct, leaf_ids = clustered_photos(rng, leaves=40, rate=0.8, likeness=0.5)
    count, leaves, mean = len(correct), 40, sum(correct) / len(correct)
    robust = 0.0
    for leaf in set(leaf_ids):
        total = sum(int(right) - mean for right, own in zip(correct, leaf_ids, strict=True) if own == leaf)
        robust += total**2
    robust *= leaves / (leaves - 1) / count**2
    binomial = mean * (1 - mean) / (count - 1)
    assert robust > 1.5 * binomial
    assert effective_sample_size(correct, leaf_ids) == pytest.approx(count * binomial / robust)


def test_copies_of_a_photo_tell_nothing_new() -> None:
    correct = np.random.default_rng(0).random(200) < 0.85
    alone = accuracy_interval(correct, each_its_own(200))
    copied = accuracy_interval(correct.repeat(6), list(np.repeat(each_its_own(200), 6)))
    assert copied == pytest.approx(alone, abs=2e-3)
    assert accuracy_interval(correct.repeat(6), each_its_own(1200)).low > alone.low + 0.01


def test_leaves_that_differ_less_than_by_chance_do_not_narrow_the_interval() -> None:
    correct = np.tile([True, True, True, False], 25)
    leaf_ids = list(np.arange(25).repeat(4).astype(str))
    assert effective_sample_size(correct, leaf_ids) == 100


def test_wrong_mirrors_right() -> None:
    correct, leaf_ids = clustered_photos(np.random.default_rng(1), leaves=30, rate=0.7, likeness=0.3)
    low, high = accuracy_interval(correct, leaf_ids)
    assert accuracy_interval(~correct, leaf_ids) == pytest.approx((1 - high, 1 - low))


def test_where_all_are_right_the_leaves_count() -> None:
    leaf_ids = list(np.arange(20).repeat(5).astype(str))
    low, high = accuracy_interval(np.ones(100, bool), leaf_ids)
    assert high == 1
    assert low == pytest.approx(20 / (20 + Z**2))
    assert accuracy_interval(np.ones(100, bool), each_its_own(100)).low == pytest.approx(100 / (100 + Z**2))
    assert accuracy_interval(np.zeros(100, bool), leaf_ids) == pytest.approx((0, 1 - low))


def test_one_leaf_counts_as_one_photo() -> None:
    low, high = accuracy_interval(np.array([True, True, False, True]), ["a"] * 4)
    assert effective_sample_size(np.array([True, True, False, True]), ["a"] * 4) == 1
    assert 0 < low < 0.2
    assert 0.9 < high < 1


@pytest.mark.parametrize("likeness", [0.01, 0.4])
def test_the_interval_holds_the_truth_in_95_of_100_samples(likeness: float) -> None:
    rng = np.random.default_rng(0)
    held = naive_held = 0
    for _ in range(400):
        correct, leaf_ids = clustered_photos(rng, leaves=100, rate=0.85, likeness=likeness)
        low, high = accuracy_interval(correct, leaf_ids)
        held += low <= 0.85 <= high
        low, high = accuracy_interval(correct, each_its_own(len(correct)))
        naive_held += low <= 0.85 <= high
    assert 0.92 <= held / 400 <= 0.98
    if likeness > 0.3:
        assert naive_held / 400 < 0.85


def test_an_interval_needs_photos_with_leaf_ids() -> None:
    with pytest.raises(ValueError, match="got 0 photos and 0 leaf ids"):
        accuracy_interval(np.zeros(0, bool), [])
    with pytest.raises(ValueError, match="got 2 photos and 1 leaf ids"):
        accuracy_interval(np.ones(2, bool), ["a"])


def test_class_scores_equal_their_definitions() -> None:
    rng = np.random.default_rng(0)
    target, preds = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    preds[:100] = target[:100]
    for label, scores in enumerate(class_scores(preds, target, ["a", "b", "c", "d"])):
        hits = sum(p == t == label for p, t in zip(preds, target, strict=True))
        assert scores.name == "abcd"[label]
        assert scores.photos == sum(target == label)
        assert scores.precision == pytest.approx(hits / sum(preds == label))
        assert scores.recall == pytest.approx(hits / sum(target == label))
        assert scores.f1 == pytest.approx(2 * hits / (sum(preds == label) + sum(target == label)))


def test_a_class_without_photos_has_no_scores_and_is_left_out_of_macro_f1() -> None:
    target, preds = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    scores = class_scores(preds, target, ["a", "b", "absent"])
    assert (scores[2].precision, scores[2].recall, scores[2].f1, scores[2].photos) == (None, None, None, 0)
    assert macro_f1(scores) == pytest.approx((2 / 3 + 1) / 2)


def test_a_class_that_is_never_predicted_scores_zero() -> None:
    scores = class_scores(np.array([0, 0, 0]), np.array([0, 0, 1]), ["a", "b"])
    assert (scores[1].precision, scores[1].recall, scores[1].f1, scores[1].photos) == (0, 0, 0, 1)
    assert macro_f1(scores) == pytest.approx(0.8 / 2)


def test_negative_log_likelihood_equals_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(50, 6)) * 4, rng.integers(0, 6, 50)
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits / 1.7), torch.from_numpy(target))
    assert negative_log_likelihood(logits, target, 1.7) == pytest.approx(expected.item())


def test_negative_log_likelihood_stays_finite_where_the_probability_underflows() -> None:
    assert negative_log_likelihood(np.array([[0, 2000]], np.float32), np.array([0])) == pytest.approx(2000)


def test_calibration_error_equals_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    probabilities = softmax(rng.normal(size=(500, 5)) * 2)
    target = rng.integers(0, 5, 500)
    expected = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(target), num_classes=5, n_bins=15, norm="l1"
    )
    assert expected > 0.1
    assert calibration_error(probabilities, target) == pytest.approx(expected.item())


def test_calibration_error_at_its_limits() -> None:
    sure = np.array([[1.0, 0.0]] * 4)
    assert calibration_error(sure, np.array([0, 0, 0, 0])) == 0
    assert calibration_error(sure, np.array([1, 1, 1, 1])) == 1
    assert calibration_error(np.array([[0.75, 0.25]] * 4), np.array([0, 0, 0, 1])) == pytest.approx(0)
    # Gaps of one bin cancel out, gaps of two bins do not.
    assert calibration_error(np.array([[0.81, 0.19], [0.85, 0.15]]), np.array([0, 1])) == pytest.approx(0.33)
    assert calibration_error(np.array([[0.6, 0.4], [0.9, 0.1]]), np.array([0, 1])) == pytest.approx((0.4 + 0.9) / 2)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    probabilities = np.array([[0.5, 0.5], [0.25, 0.75]])
    target = np.array([0, 0])
    assert calibration_error(probabilities, target, bins=4) == pytest.approx((0.5 + 0.75) / 2)
    assert calibration_error(probabilities, target, bins=2) == pytest.approx((0.5 + 0.75) / 2)
    assert calibration_error(np.array([[0.75, 0.25], [0.3, 0.7]]), target, bins=4) == pytest.approx((0.7 - 0.25) / 2)


@pytest.mark.parametrize("truth", [0.4, 1.0, 2.5])
def test_the_fitted_temperature_is_the_one_that_made_the_data(truth: float) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(20_000, 5)) * 2).astype(np.float32)
    cumulated = softmax(logits, truth).cumsum(axis=1)
    target = (rng.random((20_000, 1)) > cumulated).sum(axis=1)
    assert fit_temperature(logits, target) == pytest.approx(truth, rel=0.05)


def test_no_other_temperature_fits_better() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        logits = rng.normal(size=(60, 4)) * rng.uniform(0.5, 20)
        target = np.where(rng.random(60) < 0.7, logits.argmax(axis=1), rng.integers(0, 4, 60))
        best = negative_log_likelihood(logits, target, fit_temperature(logits, target))
        grid = np.geomspace(MIN_TEMPERATURE, MAX_TEMPERATURE, 300)
        assert best <= min(negative_log_likelihood(logits, target, float(t)) for t in grid) + 1e-9


def test_a_model_that_is_surely_wrong_gets_the_highest_temperature() -> None:
    logits = np.array([[900.0, 0.0], [0.0, 900.0]], np.float32)
    assert fit_temperature(logits, np.array([1, 0])) == pytest.approx(MAX_TEMPERATURE)


@pytest.mark.parametrize(("photos", "margin"), [(10, 0.5), (10, 6.0), (200, 3.0)])
def test_where_all_are_right_the_confidence_is_what_so_few_photos_can_show(photos: int, margin: float) -> None:
    # Of equal margins the fitted confidence is Platt's label itself, whatever the network's own scale.
    logits = np.zeros((photos, 2))
    target = np.arange(photos) % 2
    logits[np.arange(photos), target] = margin
    confidence = softmax(logits, fit_temperature(logits, target)).max(axis=1)
    assert confidence == pytest.approx((photos + 1) / (photos + 2), abs=1e-4)


def test_a_temperature_needs_photos() -> None:
    with pytest.raises(ValueError, match="at least 1 photo to fit a temperature, got none"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, np.int64))
