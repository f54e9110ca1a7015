"""The rule by which a new model may replace an old one, at its limits."""

from __future__ import annotations

import pytest

from agridistill.evaluation.metrics import PairedDifference
from agridistill.evaluation.proof import ClassChange, ProofVerdict, judge_proof


def change(name: str = "rust", lost: int = 0, photos: int = 50, *, low: float = -99, high: float = 99) -> ClassChange:
    """A class of which the old model finds all photos, and the new one all but `lost`."""
    new = (photos - lost) / photos
    return ClassChange(name, photos, new, 1.0, PairedDifference(100 * (new - 1), low, high), known_to_old=True)


def verdict(low: float = -1.0, high: float = 3.0, *classes: ClassChange, **more: object) -> ProofVerdict:
    found = PairedDifference((low + high) / 2, low, high)
    return judge_proof(found, classes or (change(),), photos=100, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "level"),
    [
        (-3.0, 5.0, "holds"),  # exactly the loss that is allowed
        (-3.0000001, 5.0, "not shown"),
        (-9.0, -3.0, "not shown"),  # the interval still touches the loss that is allowed
        (-9.0, -3.0000001, "fails"),
        (-20.0, 30.0, "not shown"),
        (1.0, 2.0, "holds"),
    ],
)
def test_the_lower_end_of_the_interval_decides(low: float, high: float, level: str) -> None:
    assert verdict(low, high).level == level


def test_another_limit_is_another_rule() -> None:
    assert verdict(-4, 1).level == "not shown"
    assert verdict(-4, 1, max_drop=4).level == "holds"
    assert verdict(-1, 3, max_drop=0).level == "not shown"


@pytest.mark.parametrize(
    ("lost", "high", "level"), [(5, 0.0, "holds"), (6, -9.0, "not shown"), (6, -10.1, "fails"), (0, 0.0, "holds")]
)
def test_no_class_loses_more_than_allowed(lost: int, high: float, level: str) -> None:
    assert verdict(-1, 3, change("blight"), change(lost=lost, high=high)).level == level


def test_a_loss_in_a_class_is_told_in_photos() -> None:
    found = verdict(-1, 3, change("rust", lost=4, photos=20))
    assert found.headline == (
        "Not shown: 'rust' loses more than 10 points: the new model finds 16 of 20 photos, the old one 20"
    )
    assert verdict(-1, 3, change(lost=4, photos=20), max_class_drop=20).level == "holds"


def test_a_class_that_the_new_model_lacks_fails_and_comes_first() -> None:
    found = verdict(-9, 3, lost_classes=("mildew",))
    assert found.level == "fails"
    assert found.headline == "Does not hold: the new model no longer knows 'mildew'"
    assert found.remarks[0].startswith("With 100 photos, a loss of more than 3 points cannot be excluded: -3.0 points")


def test_photos_that_the_new_model_has_learnt_prove_nothing() -> None:
    assert verdict(learnt=(1, 0)).headline == "Not shown: the new model has learnt from 1 photo of these"
    favoured = verdict(learnt=(0, 7))
    assert favoured.level == "holds"
    assert "The old model has learnt from 7 photos of these, which favours it." in favoured.remarks
    unknown = verdict(learnt=(None, None))
    assert unknown.level == "holds"
    assert unknown.remarks == ("Whether the new model has learnt from these photos is not known.",)


def test_the_number_of_photos_that_would_do_is_named() -> None:
    found = verdict(-6, 6, enough_photos=1400)
    assert "About 1,400 photos like these would exclude a loss of more than 3 points." in found.remarks
    hopeless = "No number of photos like these would exclude a loss of more than 3 points: improve the model."
    assert hopeless in verdict(-6, 6).remarks
    assert hopeless not in found.remarks


def test_what_the_photos_cannot_show_is_told() -> None:
    few, none = change("few", photos=9), ClassChange("none", 0, None, None, None, known_to_old=True)
    added = ClassChange("added", 4, 0.75, None, None, known_to_old=False)
    found = verdict(-1, 3, change(), few, none, added)
    assert found.level == "holds"
    assert found.remarks == (
        "There are no photos of 'none' here: nothing is known about them.",
        "Of 'few' there are so few photos that one is more than 10 points.",
        "The old model does not know them, so they do not count: it finds 3 of 4 photos of 'added'.",
    )
