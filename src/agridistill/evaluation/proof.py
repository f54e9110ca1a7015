"""Compares a new model with an old one on the same photos, and decides by rule whether the new one may replace it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray

from agridistill.errors import DataError, ModelError
from agridistill.evaluation.evaluate import (
    EvaluationResult,
    LabelledLogits,
    photos_to_score,
    predict_logits,
    score,
)
from agridistill.evaluation.held_out import ModelOrigin, PhotoChoice
from agridistill.evaluation.learning import count, quoted
from agridistill.evaluation.metrics import PairedDifference, mcnemar, paired_difference, photos_to_exclude
from agridistill.manifest import ModelManifest, composed
from agridistill.preprocess import softmax
from agridistill.progress import ProgressCallback, silent
from agridistill.runtime.engines import Backend
from agridistill.version import __version__

PROOF_FORMAT = 1
COVERAGES = (0.9, 0.8, 0.5)
"""Shares of the photos, the surest ones of each model, on which both models are also compared."""

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


@dataclass(frozen=True)
class ModelScores:
    """How one of two compared models does on their common photos."""

    model: str  # path of the model
    sha256: str  # of its file, or of the weights of its run
    evaluation: EvaluationResult
    learnt_photos: int | None  # how many of the photos it is known to have learnt from; None if that is not known
    coverage: float  # share of the photos that it answers with its own threshold, 0 to 1
    accuracy_of_answers: float | None  # share of these answers that are right, 0 to 1; None without answers
    accuracy_of_surest: tuple[float, ...]  # share of right answers for each share in `COVERAGES` of its surest photos

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON document with every attribute."""
        surest = zip(COVERAGES, self.accuracy_of_surest, strict=True)
        return {
            **{key: getattr(self, key) for key in ("model", "sha256", "learnt_photos")},
            **{key: getattr(self, key) for key in ("coverage", "accuracy_of_answers")},
            "surest": [{"coverage": coverage, "accuracy": accuracy} for coverage, accuracy in surest],
            "evaluation": self.evaluation.to_json(),
        }


@dataclass(frozen=True)
class ProofResult:
    """A new model compared with an old one on the same photos, and the verdict whether it may replace the old one.

    Attributes:
        new: scores of the new model.
        old: scores of the old model.
        data: path of the data folder.
        data_fingerprint: sha256 over the classes, paths, labels and contents of the photos.
        photos: number of photos that both models classified.
        leaves: number of leaves that these photos show.
        difference: accuracy of the new model minus that of the old one.
        only_new_right: number of photos that only the new model classifies correctly.
        only_old_right: number of photos that only the old model classifies correctly.
        mcnemar_p_value: two-sided p-value of McNemar's exact test; it treats photos of one leaf as independent.
        per_class: what changes in each class of the new model.
        classes_only_old: classes of the old model that the new one lacks.
        max_drop_points: the rule: the loss of accuracy that is allowed, in percentage points.
        max_class_drop_points: the rule: the loss of recall that is allowed in each class, in percentage points.
        verdict: whether the rule holds, with reasons.
        date_utc: when the comparison was made, in ISO 8601.
    """

    new: ModelScores
    old: ModelScores
    data: str
    data_fingerprint: str
    photos: int
    leaves: int
    difference: PairedDifference
    only_new_right: int
    only_old_right: int
    mcnemar_p_value: float
    per_class: tuple[ClassChange, ...]
    classes_only_old: tuple[str, ...]
    max_drop_points: float
    max_class_drop_points: float
    verdict: ProofVerdict
    date_utc: str

    @property
    def holds(self) -> bool:
        """Whether the new model may replace the old one."""
        return self.verdict.level == "holds"

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON document that `publish --against` takes (docs/schemas/proof.schema.json)."""
        points, *interval = self.difference
        return {
            "format_version": PROOF_FORMAT,
            "date_utc": self.date_utc,
            "agridistill": __version__,
            "verdict": {"holds": self.holds, **asdict(self.verdict)},
            "max_drop_points": self.max_drop_points,
            "max_class_drop_points": self.max_class_drop_points,
            "data": {
                "path": self.data,
                "fingerprint": self.data_fingerprint,
                "split": self.new.evaluation.split,
                "photos": self.photos,
                "leaves": self.leaves,
            },
            "difference_points": points,
            "difference_points_ci95": interval,
            "only_new_right": self.only_new_right,
            "only_old_right": self.only_old_right,
            "mcnemar_p_value": self.mcnemar_p_value,
            "per_class": [change.to_json() for change in self.per_class],
            "classes_only_old": list(self.classes_only_old),
            "new": self.new.to_json(),
            "old": self.old.to_json(),
        }


def prove(
    new: Backend,
    old: Backend,
    data: Path,
    *,
    names: tuple[str, str],
    run: Path | None = None,
    old_origin: ModelOrigin | None = None,
    max_drop: float = MAX_DROP_POINTS,
    max_class_drop: float = MAX_CLASS_DROP_POINTS,
    progress: ProgressCallback = silent,
    **choice: Unpack[PhotoChoice],
) -> ProofResult:
    """Compares two models on the photos of the classes that both know.

    `names` are the paths of the new and of the old model, for the result. `run` is the run folder of the new model,
    None for an exported model. `old_origin` are the training photos of the old model, None if unknown. `max_drop` and
    `max_class_drop` are as in `judge_proof`, `choice` are arguments of `choose_photos`.

    Raises:
        DataError: the photos cannot be used, or not all of them can be read.
        ModelError: the data has classes that the new model lacks, or none that the old one knows.
    """
    choice["against"] = old_origin or ModelOrigin(old.manifest)
    chosen = photos_to_score(new, data, run=run, progress=progress, **choice)
    if not chosen.samples:
        raise DataError(f"photos in the split '{chosen.split}'", f"none in '{data}'", "choose another split")
    classes, old_classes = new.manifest.classes, old.manifest.classes
    old_label = {composed(name): label for label, name in enumerate(old_classes)}
    label_of = [old_label.get(composed(name)) for name in classes]
    is_common = np.array([label_of[sample.label] is not None for sample in chosen.samples])
    if not is_common.any():
        raise ModelError(
            "photos of a class that both models know",
            f"classes of the old model: {', '.join(old_classes[:10])}",
            "compare models of one crop, and pass photos of a class of both",
        )
    by_new = _all_read(predict_logits(new, chosen.samples, chosen.root, progress=progress))
    common = [replace(each, label=label_of[each.label] or 0) for each in compress(chosen.samples, is_common)]
    by_old = _all_read(predict_logits(old, common, chosen.root, progress=progress))
    both = _only(by_new, is_common)
    new_right, old_right = _is_right(by_new), np.zeros(len(is_common), bool)
    old_right[is_common] = _is_right(by_old)
    pairs = (new_right[is_common], old_right[is_common])
    test = mcnemar(*pairs)
    difference = paired_difference(*pairs, both.leaf_ids)
    per_class = tuple(
        _class_change(name, by_new.target == label, label_of[label] is not None, new_right, old_right, by_new.leaf_ids)
        for label, name in enumerate(classes)
    )
    known = {composed(name) for name in classes}
    lost = tuple(name for name in old_classes if composed(name) not in known)
    scores = [
        _scores(name, found, backend.manifest, chosen.split, learnt)
        for name, found, backend, learnt in (
            (names[0], both._replace(skipped=chosen.skipped), new, chosen.learnt),
            (names[1], by_old._replace(skipped=chosen.skipped), old, chosen.against_learnt),
        )
    ]
    return ProofResult(
        new=scores[0],
        old=scores[1],
        data=str(data),
        data_fingerprint=chosen.fingerprint,
        photos=len(common),
        leaves=len(set(both.leaf_ids)),
        difference=difference,
        only_new_right=int(test["only_first"]),
        only_old_right=int(test["only_second"]),
        mcnemar_p_value=test["p_value"],
        per_class=per_class,
        classes_only_old=lost,
        max_drop_points=max_drop,
        max_class_drop_points=max_class_drop,
        verdict=judge_proof(
            difference,
            per_class,
            photos=len(common),
            lost_classes=lost,
            learnt=(chosen.learnt, chosen.against_learnt),
            max_drop=max_drop,
            max_class_drop=max_class_drop,
            enough_photos=photos_to_exclude(max_drop, *pairs, both.leaf_ids),
        ),
        date_utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _all_read(found: LabelledLogits) -> LabelledLogits:
    if found.skipped:
        raise DataError("photos that both models can read", found.skipped[0], "replace the photo")
    return found


def _is_right(found: LabelledLogits) -> NDArray[np.bool_]:
    return np.asarray(found.logits.argmax(axis=1) == found.target)


def _only(found: LabelledLogits, keep: NDArray[np.bool_]) -> LabelledLogits:
    leaf_ids = tuple(compress(found.leaf_ids, keep))
    return LabelledLogits(found.logits[keep], found.target[keep], leaf_ids, found.skipped)


def _class_change(
    name: str,
    of_class: NDArray[np.bool_],
    known_to_old: bool,
    new_right: NDArray[np.bool_],
    old_right: NDArray[np.bool_],
    leaf_ids: Sequence[str],
) -> ClassChange:
    new, old, photos = new_right[of_class], old_right[of_class], int(of_class.sum())
    if not photos:
        return ClassChange(name, 0, None, None, None, known_to_old)
    if not known_to_old:
        return ClassChange(name, photos, float(new.mean()), None, None, known_to_old)
    difference = paired_difference(new, old, list(compress(leaf_ids, of_class)))
    return ClassChange(name, photos, float(new.mean()), float(old.mean()), difference, known_to_old)


def _scores(name: str, found: LabelledLogits, manifest: ModelManifest, split: str, learnt: int | None) -> ModelScores:
    right = _is_right(found)
    confidence = softmax(found.logits, manifest.temperature).max(axis=1)
    answered = confidence >= manifest.threshold
    return ModelScores(
        model=name,
        sha256=manifest.weights_sha256,
        evaluation=score(found, manifest, split=split),
        learnt_photos=learnt,
        coverage=float(answered.mean()),
        accuracy_of_answers=float(right[answered].mean()) if answered.any() else None,
        accuracy_of_surest=tuple(_accuracy_of_surest(confidence, right, coverage) for coverage in COVERAGES),
    )


def _accuracy_of_surest(confidence: NDArray[np.float64], right: NDArray[np.bool_], coverage: float) -> float:
    """Returns the share of right answers, 0 to 1, among the photos with the highest confidence.

    Of photos with equal confidence, of which only some are among these, each counts with the same part.
    """
    answers = max(1, round(coverage * len(right)))
    limit = np.sort(confidence)[-answers]
    above, equal = confidence > limit, confidence == limit
    return float((right[above].sum() + (answers - above.sum()) * right[equal].mean()) / answers)


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
