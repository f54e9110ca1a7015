"""What a report shows of one model beside its scores: calibration, abstention, robustness, worst mistakes."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agridistill.data.folder import Sample
from agridistill.data.labels import FOLDERS, Layout
from agridistill.errors import DataError, RunError
from agridistill.evaluation.evaluate import LabelledLogits, predict_logits
from agridistill.evaluation.held_out import ChosenPhotos, SplitChoice, choose_photos
from agridistill.evaluation.metrics import CALIBRATION_BINS, abstention_point
from agridistill.evaluation.robustness import MOST_PHOTOS, robustness
from agridistill.preprocess import read_photo, softmax
from agridistill.progress import ProgressCallback, silent
from agridistill.runtime.backends import Backend

FORMAT_VERSION = 1
WANTED_ACCURACY = 0.99
THUMBNAIL_PX = 160
_MISTAKES = 12
_CURVE_POINTS = 200


def gather_evidence(
    backend: Backend,
    data: Path,
    *,
    layout: Layout = FOLDERS,
    split: SplitChoice = "test",
    own_split: Path | None = None,
    split_file: Path | None = None,
    class_names: Mapping[str, str] | None = None,
    most_photos: int = MOST_PHOTOS,
    progress: ProgressCallback = silent,
) -> dict[str, Any]:
    """Everything that a report shows of a model on one split, beside its scores.

    Args:
        backend: the model.
        data: the photos.
        layout: how their labels are found.
        split: that is shown.
        own_split: the model's own, used on the data that it was trained on.
        split_file: the user's.
        class_names: as for `choose_photos`.
        most_photos: for robustness.
        progress: called with (done, total) of each part.

    Returns:
        A JSON document: "reliability", "selective", "robustness", "mistakes".

    Raises:
        DataError: the data or its splits cannot be used.
    """
    manifest = backend.manifest

    def answered(name: SplitChoice) -> tuple[ChosenPhotos, LabelledLogits]:
        photos = choose_photos(
            manifest,
            data,
            layout=layout,
            split=name,
            split_file=split_file,
            own_split=own_split,
            class_names=class_names,
            progress=progress,
        )
        return photos, predict_logits(backend, photos.samples, photos.root, progress=progress)

    shown, answers = answered(split)
    if not len(answers.target):
        raise DataError(f"photos in the split '{split}'", f"none in '{data}'", "choose another split")
    try:
        val = answered("val")[1] if split != "val" else None
    except DataError:
        val = None  # photos without a validation split: no threshold can be found
    return {
        "format_version": FORMAT_VERSION,
        "model": manifest.model,
        "precision": manifest.precision,
        "weights_sha256": manifest.weights_sha256,
        "classes": list(manifest.classes),
        "split": split,
        "photos": len(answers.target),
        "reliability": reliability(answers, manifest.temperature),
        "selective": selective(val, answers, manifest.temperature),
        "robustness": robustness(
            backend, shown.samples, shown.root, most_photos=most_photos, progress=progress
        ).to_json(),
        "mistakes": mistakes(answers, shown.samples, shown.root, manifest.classes, manifest.temperature),
    }


def reliability(found: LabelledLogits, temperature: float) -> list[dict[str, Any]]:
    """Confidence against accuracy in bins of equal width, those of the calibration error; empty bins are left out."""
    probabilities = softmax(found.logits, temperature)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == found.target
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bin_of_photo = np.searchsorted(edges[1:-1], confidence, side="left")
    return [
        {
            "from": float(edges[index]),
            "to": float(edges[index + 1]),
            "photos": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(correct[inside].mean()),
        }
        for index in range(CALIBRATION_BINS)
        if (inside := bin_of_photo == index).any()
    ]


def selective(val: LabelledLogits | None, test: LabelledLogits, temperature: float) -> dict[str, Any]:
    """Accuracy of the answers against the share of photos that are answered, most confident first.

    The threshold for 99 % is found on the validation split and held against the test split: found on the test split it
    would keep its word by construction. Without validation photos there is no threshold.
    """
    confidence, correct = _confident(test, temperature)
    order = np.argsort(-confidence, kind="stable")
    right = np.cumsum(correct[order])
    chosen = np.unique(np.linspace(1, len(order), _CURVE_POINTS).round().astype(int)) - 1
    found: dict[str, Any] = {
        "wanted_accuracy": WANTED_ACCURACY,
        "threshold": None,
        "coverage": None,
        "accuracy": None,
        "curve": [
            {"coverage": float((i + 1) / len(order)), "accuracy": float(right[i] / (i + 1))} for i in chosen.tolist()
        ],
    }
    if val is None or not len(val.target):
        return found
    point = abstention_point(*_confident(val, temperature), WANTED_ACCURACY)
    answered = (confidence >= point.threshold) & (point.threshold < 1)
    return found | {
        "threshold": point.threshold,
        "val_coverage": point.coverage,
        "val_accuracy": point.accuracy,
        "coverage": float(answered.mean()),
        "accuracy": float(correct[answered].mean()) if answered.any() else None,
    }


def mistakes(
    found: LabelledLogits, samples: Sequence[Sample], root: Path, classes: Sequence[str], temperature: float
) -> list[dict[str, Any]]:
    """The photos that the model is surest of and wrong about, one of each leaf."""
    probabilities = softmax(found.logits, temperature)
    preds = probabilities.argmax(axis=1)
    if len(samples) != len(preds):
        raise RunError("readable photos for a report", found.skipped[0], "replace the photo")
    shown: list[dict[str, Any]] = []
    leaves: set[str] = set()
    for index in np.argsort(-probabilities.max(axis=1), kind="stable").tolist():
        sample = samples[index]
        if preds[index] == found.target[index] or sample.leaf_id in leaves:
            continue
        leaves.add(sample.leaf_id)
        shown.append(
            {
                "path": sample.path,
                "truth": classes[sample.label],
                "predicted": classes[preds[index]],
                "probability": float(probabilities[index, preds[index]]),
                "photo": thumbnail(root / sample.path),
            }
        )
        if len(shown) == _MISTAKES:
            break
    return shown


def thumbnail(path: Path) -> str:
    """A photo as a small square JPEG, in a data URI: its middle, as the models see it.

    Raises:
        PhotoError: it cannot be read.
    """
    return as_data_uri(square(path))


def square(path: Path, side: int = THUMBNAIL_PX) -> Image.Image:
    """The middle of a photo, `side` x `side` pixels.

    Raises:
        PhotoError: it cannot be read.
    """
    photo = read_photo(path, shorter_side=2 * side)
    short = min(photo.size)
    left, top = (photo.width - short) / 2, (photo.height - short) / 2
    return photo.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))


def as_data_uri(image: Image.Image) -> str:
    """A picture as text that a page can hold."""
    held = io.BytesIO()
    image.save(held, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()


def read_evidence(file: Path) -> dict[str, Any] | None:
    """What `gather_evidence` gave; None where there is none, or of another format.

    Raises:
        RunError: the file is damaged.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return dict(document) if document["format_version"] == FORMAT_VERSION else None
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError("evidence in JSON", f"a damaged '{file}' ({error})", "remove the file") from None


def _confident(found: LabelledLogits, temperature: float) -> tuple[Any, Any]:
    probabilities = softmax(found.logits, temperature)
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == found.target
