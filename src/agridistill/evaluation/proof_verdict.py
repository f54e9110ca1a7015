"""Decides by rule whether a new model may replace an old one, from their comparison on the same photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from agridistill.evaluation.learning import count, quoted
from agridistill.evaluation.paired import PairedDifference

MAX_DROP_POINTS = 3.0
"""Default of the allowed loss of accuracy in percentage points (docs/decisions/0014-proof-before-release.md)."""
MAX_CLASS_DROP_POINTS = 10.0
"""Default of the allowed loss of recall in each class, in percentage points."""

ProofLevel = Literal["holds", "not shown", "fails"]
_WORDS = {"holds": "Holds", "not shown": "Not shown", "fails": "Does not hold"}
# A loss of exactly the allowed points must not fail by an error in the last digit.
_DIGITS = 9


class ClassChange(NamedTuple):
    """The recall of a class by a new and by an old model."""

    name: str
    photos: int  # number of photos of this class
    new_recall: float | None  # 0 to 1; None without photos
    old_recall: float | None  # None without photos, or if the old model does not know the class
    difference: PairedDifference | None  # new minus old; None if one of the two is None
    known_to_old: bool  # whether the old model has this class

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON document; the name of the class is under the key "class"."""
        points, *interval = self.difference or (None,)
        return {
            "class": self.name,
            "photos": self.photos,
            "new_recall": self.new_recall,
            "old_recall": self.old_recall,
            "difference_points": points,
            "difference_points_ci95": interval or None,
            "known_to_old": self.known_to_old,
        }


@dataclass(frozen=True)
class ProofVerdict:
    """Whether a new model may replace an old one, with reasons for the person who decides."""

    # "holds"; "fails"; or "not shown" if the photos are too few to decide, or the new model has learnt from them.
    level: ProofLevel
    headline: str  # one sentence without a full stop
    remarks: tuple[str, ...] = ()  # other findings, in whole sentences


def judge_proof(
    difference: PairedDifference,
    per_class: Sequence[ClassChange],
    *,
    photos: int,
    lost_classes: Sequence[str] = (),
    learnt: tuple[int | None, int | None] = (0, 0),
    max_drop: float = MAX_DROP_POINTS,
    max_class_drop: float = MAX_CLASS_DROP_POINTS,
    enough_photos: int | None = None,
) -> ProofVerdict:
    """Decides whether a new model is good enough to replace an old one.

    It is if the lower end of the interval of the difference in accuracy is not below `-max_drop` (a test of
    non-inferiority at 2.5 %), if no class has lost more than `max_class_drop` points of recall, if the new model has
    all classes of the old one, and if it is not known to have learnt from the photos. A loss that is larger than
    allowed "fails" if its whole interval is; otherwise it is "not shown" that the loss is small enough.

    Args:
        difference: accuracy of the new model minus that of the old one.
        per_class: the same for the recall of each class.
        photos: number of photos that were compared.
        lost_classes: classes that only the old model has.
        learnt: how many of the photos the new and the old model have learnt from; None if unknown.
        max_drop: allowed loss of accuracy, in percentage points.
        max_class_drop: allowed loss of recall in each class, in percentage points.
        enough_photos: how many photos would exclude a loss of more than `max_drop`; None if these do, or if no number
            does.
    """
    reasons: list[tuple[ProofLevel, str]] = []
    if lost_classes:
        reasons.append(("fails", f"the new model no longer knows {quoted(lost_classes)}"))
    if learnt[0]:
        reasons.append(("not shown", f"the new model has learnt from {count(learnt[0], 'photo')} of these"))
    measured = f"{difference.points:+.1f} points (95 % interval {difference.low:+.1f} to {difference.high:+.1f})"
    open_loss = f"a loss of more than {max_drop:g} points"
    if round(difference.high, _DIGITS) < -max_drop:
        reasons.append(("fails", f"accuracy falls by more than {max_drop:g} points: {measured}"))
    elif round(difference.low, _DIGITS) < -max_drop:
        reasons.append(("not shown", f"with {count(photos, 'photo')}, {open_loss} cannot be excluded: {measured}"))
    reasons += [
        (
            "fails" if round(change.difference.high, _DIGITS) < -max_class_drop else "not shown",
            f"'{change.name}' loses more than {max_class_drop:g} points: the new model finds "
            f"{_found(change.new_recall, change)} of {count(change.photos, 'photo')}, the old one "
            f"{_found(change.old_recall, change)}",
        )
        for change in per_class
        if change.difference is not None and round(change.difference.points, _DIGITS) < -max_class_drop
    ]
    is_open = round(difference.high, _DIGITS) >= -max_drop > round(difference.low, _DIGITS)
    hopeless = is_open and enough_photos is None
    reasons.sort(key=lambda reason: reason[0] != "fails")
    remarks = [
        *(f"{reason[0].upper()}{reason[1:]}." for _, reason in reasons[1:]),
        *([f"About {enough_photos:,} photos like these would exclude {open_loss}."] if enough_photos else []),
        *([f"No number of photos like these would exclude {open_loss}: improve the model."] if hopeless else []),
        *_remarks(per_class, learnt, max_class_drop),
    ]
    if reasons:
        level, reason = reasons[0]
    else:
        level = "holds"
        reason = f"accuracy changes by {measured}; no class loses more than {max_class_drop:g} points"
    return ProofVerdict(level, f"{_WORDS[level]}: {reason}", tuple(remarks))


def _found(recall: float | None, change: ClassChange) -> int:
    return round((recall or 0.0) * change.photos)


def _remarks(
    per_class: Sequence[ClassChange], learnt: tuple[int | None, int | None], max_class_drop: float
) -> list[str]:
    remarks = []
    if learnt[0] is None:
        remarks.append("Whether the new model has learnt from these photos is not known.")
    if learnt[1]:
        remarks.append(f"The old model has learnt from {count(learnt[1], 'photo')} of these, which favours it.")
    absent = [change.name for change in per_class if not change.photos and change.known_to_old]
    if absent:
        remarks.append(f"There are no photos of {quoted(absent)} here: nothing is known about them.")
    few = [change.name for change in per_class if change.difference and change.photos * max_class_drop < 100]
    if few:
        remarks.append(f"Of {quoted(few)} there are so few photos that one is more than {max_class_drop:g} points.")
    added = [
        f"{_found(change.new_recall, change)} of {count(change.photos, 'photo')} of '{change.name}'"
        for change in per_class
        if change.photos and not change.known_to_old
    ]
    if added:
        remarks.append(f"The old model does not know them, so they do not count: it finds {', '.join(added)}.")
    return remarks
