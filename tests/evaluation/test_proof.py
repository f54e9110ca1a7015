"""Two models on the same photos: every figure against a count by hand, and classes that only one of them knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.colour_backend import ColourBackend, colour_backend, colour_photo

from agridistill.data.folder import Sample
from agridistill.errors import DataError, ModelError
from agridistill.evaluation.evaluate import predict_logits
from agridistill.evaluation.proof import COVERAGES, ProofResult, prove
from agridistill.preprocess import softmax


class Changed(ColourBackend):
    """A colour backend whose logits go through a function."""

    def __init__(self, change: Callable[[NDArray[np.float32]], NDArray[np.float32]], **manifest: object) -> None:
        super().__init__(colour_backend(**manifest).manifest)
        self.change = change

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.change(super().logits(pixels))


def reluctant(by: float, **manifest: object) -> Changed:
    """A model that calls a leaf red only if it is redder by `by`."""
    return Changed(lambda logits: logits - np.array([0, by], np.float32), **manifest)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Thirty green and thirty red photos of a leaf each; six of the red ones look green."""
    for number in range(30):
        colour_photo(tmp_path / "data" / "green" / f"{number}.jpg", "green", seed=number)
        colour_photo(tmp_path / "data" / "red" / f"{number}.jpg", "red" if number > 5 else "green", seed=100 + number)
    return tmp_path / "data"


def compared(new: ColourBackend, old: ColourBackend, data: Path, **more: object) -> ProofResult:
    return prove(new, old, data, names=("new", "old"), split="all", **more)  # type: ignore[arg-type]


def test_every_figure_is_that_of_a_count(data: Path) -> None:
    new, old = colour_backend(threshold=0.95), reluctant(99, temperature=9.0)
    found = compared(new, old, data)
    assert (found.photos, found.leaves) == (60, 60)
    assert (found.new.evaluation.accuracy, found.old.evaluation.accuracy) == (0.9, 0.5)
    assert found.difference.points == pytest.approx(40)
    assert (found.only_new_right, found.only_old_right) == (24, 0)
    assert found.mcnemar_p_value == pytest.approx(2 / 2**24)
    assert [(each.name, each.photos, each.new_recall, each.old_recall) for each in found.per_class] == [
        ("green", 30, 1.0, 1.0),
        ("red", 30, 0.8, 0.0),
    ]
    assert found.old.evaluation.calibration_error == pytest.approx(0.5, abs=1e-3)
    assert found.old.coverage == 1
    assert found.new.learnt_photos is None


def test_answers_are_compared_at_the_models_threshold_and_at_equal_coverage(data: Path) -> None:
    def uneven(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return logits * (0.1 + logits.sum(axis=1, keepdims=True) % 1)

    photos = sorted(data.rglob("*.jpg"))
    samples = [Sample(str(path.relative_to(data)), int(path.parent.name == "red"), str(path)) for path in photos]
    logits = predict_logits(Changed(uneven), samples, data)
    confidence, right = softmax(logits.logits).max(1), logits.logits.argmax(1) == logits.target
    threshold = float(np.sort(confidence)[24])
    found = compared(Changed(uneven, threshold=threshold), reluctant(99), data).new
    assert found.coverage == (confidence >= threshold).mean() == 0.6
    assert found.accuracy_of_answers == right[confidence >= threshold].mean()
    # Some photos are equally sure: on average over their orders.
    orders = [np.lexsort((np.random.default_rng(seed).random(60), -confidence)) for seed in range(300)]
    for share, accuracy in zip(COVERAGES, found.accuracy_of_surest, strict=True):
        expected = np.mean([right[order[: round(share * 60)]].mean() for order in orders])
        assert accuracy == pytest.approx(expected, abs=2e-3)


def test_photos_of_equal_confidence_count_alike(data: Path) -> None:
    certain = compared(Changed(lambda logits: np.sign(logits - logits.max(axis=1, keepdims=True))), reluctant(99), data)
    assert certain.new.accuracy_of_surest == pytest.approx((0.9,) * len(COVERAGES))


def test_a_model_against_itself_shows_little_with_sixty_photos(data: Path) -> None:
    found = compared(colour_backend(), colour_backend(), data)
    assert found.difference.points == 0
    assert (found.only_new_right, found.only_old_right, found.mcnemar_p_value) == (0, 0, 1)
    assert found.verdict.level == "not shown"
    assert compared(colour_backend(), colour_backend(), data, max_drop=7).holds


def test_classes_in_another_order_are_the_same_classes(data: Path) -> None:
    old = Changed(lambda logits: logits[:, ::-1], classes=("red", "green"))
    found = compared(colour_backend(), old, data)
    assert (found.only_new_right, found.only_old_right) == (0, 0)
    assert found.old.evaluation.accuracy == 0.9
    assert found.classes_only_old == ()


def test_a_new_class_does_not_count_but_is_reported(data: Path) -> None:
    for number in range(10):
        colour_photo(data / "blue" / f"{number}.jpg", "green", seed=200 + number)
    wide = Changed(
        lambda logits: np.pad(logits, ((0, 0), (0, 1)), constant_values=99), classes=("green", "red", "blue")
    )
    found = compared(wide, colour_backend(), data)
    assert (found.photos, found.new.evaluation.photos, found.old.evaluation.photos) == (60, 60, 60)
    assert found.new.evaluation.accuracy == 0  # an old class that it takes for the new one is a mistake
    blue = found.per_class[2]
    assert (blue.name, blue.photos, blue.new_recall, blue.old_recall, blue.difference) == ("blue", 10, 1, None, None)
    assert found.verdict.level == "fails"
    assert "it finds 10 of 10 photos of 'blue'" in found.verdict.remarks[-1]


def test_a_class_that_the_new_model_lacks_is_a_loss(data: Path) -> None:
    old = Changed(lambda logits: np.pad(logits, ((0, 0), (0, 1))), classes=("green", "red", "blue"))
    found = compared(colour_backend(), old, data, max_drop=50)
    assert found.classes_only_old == ("blue",)
    assert found.verdict.headline == "Does not hold: the new model no longer knows 'blue'"


def test_models_without_a_common_class_are_refused(data: Path) -> None:
    old = colour_backend(classes=("oak", "elm"))
    with pytest.raises(ModelError, match="a class that both models know; got classes of the old model: oak, elm"):
        compared(colour_backend(), old, data)


def test_a_photo_that_vanishes_between_the_models_is_no_proof(data: Path) -> None:
    def vanish(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        (data / "red" / "9.jpg").unlink(missing_ok=True)
        return logits

    with pytest.raises(DataError, match=r"photos that both models can read; got .*9\.jpg"):
        compared(Changed(vanish), colour_backend(), data)
