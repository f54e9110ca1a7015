"""EvaluationResult: every number of an evaluation, to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agridistill.errors import RunError
from agridistill.evaluation.metrics import ClassScores, Interval


@dataclass(frozen=True)
class EvaluationResult:
    """What a model does on one split.

    Attributes:
        model: timm's name of the architecture.
        split: "train", "val", "test" or "all".
        classes: class names in the order of the confusion matrix.
        photos: evaluated.
        leaves: that these photos show.
        skipped_photos: one line for each photo that could not be read; they count nowhere else.
        accuracy: share of photos classified rightly, 0 to 1.
        accuracy_ci95: its 95 % interval, which allows for several photos of one leaf.
        macro_f1: mean F1 of the classes that have photos.
        nll_nats: mean negative log-likelihood at `temperature`.
        calibration_error: expected calibration error at `temperature`, 15 bins, 0 to 1.
        per_class: scores of each class; None where it has no photos.
        confusion_matrix: counts, rows are the truth, columns the prediction.
        image_size: side of the model's input in pixels.
        temperature: by which the logits were divided.
        parameters: of the model; None where unknown.
        macs: multiply-accumulates for one photo; None where unknown.
    """

    model: str
    split: str
    classes: tuple[str, ...]
    photos: int
    leaves: int
    skipped_photos: tuple[str, ...]
    accuracy: float
    accuracy_ci95: Interval
    macro_f1: float
    nll_nats: float
    calibration_error: float
    per_class: tuple[ClassScores, ...]
    confusion_matrix: tuple[tuple[int, ...], ...]
    image_size: int
    temperature: float
    parameters: int | None = None
    macs: int | None = None

    @property
    def skipped(self) -> int:
        """Number of photos that could not be read."""
        return len(self.skipped_photos)

    @property
    def flops(self) -> int | None:
        """Floating-point operations for one photo: 1 MAC is 2 FLOPs."""
        return None if self.macs is None else 2 * self.macs

    def to_json(self) -> dict[str, Any]:
        """A JSON document; undefined and unknown numbers are null."""
        return {
            "model": self.model,
            "split": self.split,
            "photos": self.photos,
            "leaves": self.leaves,
            "skipped": self.skipped,
            "skipped_photos": list(self.skipped_photos),
            "accuracy": self.accuracy,
            "accuracy_ci95": list(self.accuracy_ci95),
            "macro_f1": self.macro_f1,
            "nll_nats": self.nll_nats,
            "calibration_error": self.calibration_error,
            "temperature": self.temperature,
            "image_size": self.image_size,
            "parameters": self.parameters,
            "macs": self.macs,
            "flops": self.flops,
            "classes": list(self.classes),
            "per_class": [
                {
                    "class": scores.name,
                    "precision": scores.precision,
                    "recall": scores.recall,
                    "f1": scores.f1,
                    "photos": scores.photos,
                }
                for scores in self.per_class
            ],
            "confusion_matrix": [list(row) for row in self.confusion_matrix],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> EvaluationResult:
        """Reads what `to_json` gave.

        Raises:
            RunError: a key is missing or holds something else.
        """
        try:
            low, high = document["accuracy_ci95"]
            return cls(
                model=document["model"],
                split=document["split"],
                classes=tuple(document["classes"]),
                photos=document["photos"],
                leaves=document["leaves"],
                skipped_photos=tuple(document["skipped_photos"]),
                accuracy=document["accuracy"],
                accuracy_ci95=Interval(low, high),
                macro_f1=document["macro_f1"],
                nll_nats=document["nll_nats"],
                calibration_error=document["calibration_error"],
                per_class=tuple(
                    ClassScores(row["class"], row["precision"], row["recall"], row["f1"], row["photos"])
                    for row in document["per_class"]
                ),
                confusion_matrix=tuple(tuple(row) for row in document["confusion_matrix"]),
                image_size=document["image_size"],
                temperature=document["temperature"],
                parameters=document["parameters"],
                macs=document["macs"],
            )
        except KeyError as error:
            raise RunError("a complete evaluation", f"one without {error}", "evaluate the model again") from None
        except (TypeError, ValueError) as error:
            raise RunError("an evaluation in JSON", f"another document ({error})", "evaluate the model again") from None
