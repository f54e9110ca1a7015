"""Compares a new model with an old one on the same photos, and decides by rule whether the new one may replace it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path
from typing import Any, Unpack

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
from agridistill.evaluation.paired import PairedDifference, mcnemar, paired_difference, photos_to_exclude
from agridistill.evaluation.proof_verdict import (
    MAX_CLASS_DROP_POINTS,
    MAX_DROP_POINTS,
    ClassChange,
    ProofVerdict,
    judge_proof,
)
from agridistill.manifest import ModelManifest, composed
from agridistill.preprocess import softmax
from agridistill.progress import ProgressCallback, silent
from agridistill.runtime.engines import Backend
from agridistill.version import __version__

PROOF_FORMAT = 1
COVERAGES = (0.9, 0.8, 0.5)
"""Shares of the photos, the surest ones of each model, on which both models are also compared."""


@dataclass(frozen=True)
class ModelScores:
    """How one of two compared models does on their common photos.

    Attributes:
        model: path of the model.
        sha256: sha256 of its file, or of the weights of its run.
        evaluation: its scores.
        learnt_photos: how many of the photos it is known to have learnt from; None if that is not known.
        coverage: share of the photos that it answers with its own threshold, 0 to 1.
        accuracy_of_answers: share of these answers that are right, 0 to 1; None without answers.
        accuracy_of_surest: for each share in `COVERAGES`: share of right answers among the photos that it is surest of.
    """

    model: str
    sha256: str
    evaluation: EvaluationResult
    learnt_photos: int | None
    coverage: float
    accuracy_of_answers: float | None
    accuracy_of_surest: tuple[float, ...]

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

    Args:
        new: the new model, ready to run.
        old: the old model.
        data: the data folder.
        names: paths of the new and of the old model, for the result.
        run: run folder of the new model; None for an exported model.
        old_origin: the training photos of the old model; None if unknown.
        max_drop: allowed loss of accuracy, in percentage points.
        max_class_drop: allowed loss of recall in each class, in percentage points.
        progress: called with (photos done, photos in total), first for the new model, then for the old one.
        choice: arguments of `choose_photos`, with which the photos are chosen as for the new model alone.

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
