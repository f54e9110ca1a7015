"""Collects what a report shows besides scores: calibration, abstention, robustness, mistakes and attention maps."""

from __future__ import annotations

import base64
import io
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agridistill.data.folder import Sample
from agridistill.errors import DataError, ModelError, RunError
from agridistill.evaluation.evaluate import LabelledLogits, predict_logits
from agridistill.evaluation.held_out import ChosenPhotos, PhotoChoice, SplitChoice, choose_photos
from agridistill.evaluation.metrics import CALIBRATION_BINS, abstention_point
from agridistill.evaluation.robustness import robustness
from agridistill.manifest import MANIFEST_NAME, Preprocessing, read_manifest
from agridistill.preprocess import softmax
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.runtime.engines import Backend
from agridistill.runtime.predictor import read_pixels
from agridistill.storage import write_json

FORMAT_VERSION = 1
WANTED_ACCURACY = 0.99
THUMBNAIL_PX = 160
_MISTAKES = 12
_CURVE_POINTS = 200
_GALLERY_STRIDE, _GALLERY_PHOTOS = 16, 12

logger = logging.getLogger(__name__)


def gather_evidence(
    backend: Backend, data: Path, *, progress: ProgressCallback = silent, **choice: Unpack[PhotoChoice]
) -> dict[str, Any]:
    """Measures what a report shows about a model besides its scores, on the photos of one split of `data`.

    `choice` are arguments of `choose_photos`. Returns a JSON document: "reliability", "selective" (accuracy against
    coverage), "robustness", "mistakes", and the keys that describe the model and its photos: "format_version", "model",
    "precision", "weights_sha256", "classes", "split", "photos". Raises a DataError if the data or its splits cannot be
    used.
    """
    manifest, split = backend.manifest, choice.setdefault("split", "test")

    def answered(name: SplitChoice) -> tuple[ChosenPhotos, LabelledLogits]:
        named: PhotoChoice = {**choice, "split": name}
        photos = choose_photos(manifest, data, progress=progress, **named)
        return photos, predict_logits(backend, photos.samples, photos.root, progress=progress)

    chosen, answers = answered(split)
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
        "reliability": _reliability(*_confident(answers, manifest.temperature)),
        "selective": _selective(val, answers, manifest.temperature),
        "robustness": asdict(robustness(backend, chosen.samples, chosen.root, progress=progress)),
        "mistakes": _mistakes(answers, chosen.samples, chosen.root, manifest.classes, manifest.temperature),
    }


def _confident(found: LabelledLogits, temperature: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Returns the top probability of each photo `(N,)`, and whether its top class is right `(N,)`."""
    probabilities = softmax(found.logits, temperature)
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == found.target


def _reliability(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Returns confidence and accuracy for each bin of the calibration error; bins without photos are left out."""
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


def _selective(val: LabelledLogits | None, test: LabelledLogits, temperature: float) -> dict[str, Any]:
    """Returns the accuracy of the answers against the share of photos answered, the most confident photos first.

    The threshold for 99 % accuracy is fitted on the validation split and measured on the test split, because it always
    reaches its target on the photos of the fit. Without validation photos the threshold is None.
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


def _mistakes(
    found: LabelledLogits, samples: Sequence[Sample], root: Path, classes: Sequence[str], temperature: float
) -> list[dict[str, Any]]:
    """Returns the wrongly classified photos with the highest confidence, at most 12 and one of each leaf.

    Each row has "path", "truth", "predicted", "probability" and "photo" (a thumbnail as data URI).
    """
    probabilities = softmax(found.logits, temperature)
    preds = probabilities.argmax(axis=1)
    if len(samples) != len(preds):
        raise RunError("photos that can all be read, for a report", found.skipped[0], "replace the photo")
    of_leaf: dict[str, int] = {}
    for index in np.argsort(-probabilities.max(axis=1), kind="stable").tolist():
        if preds[index] != found.target[index]:
            of_leaf.setdefault(samples[index].leaf_id, index)
    return [
        {
            "path": samples[index].path,
            "truth": classes[samples[index].label],
            "predicted": classes[preds[index]],
            "probability": float(probabilities[index, preds[index]]),
            "photo": thumbnail(root / samples[index].path),
        }
        for index in list(of_leaf.values())[:_MISTAKES]
    ]


def thumbnail(path: Path) -> str:
    """Returns the central square of a photo as a data URI with a JPEG of 160 x 160 pixels; a PhotoError for damage."""
    square = read_pixels(path, Preprocessing(THUMBNAIL_PX))
    held = io.BytesIO()
    Image.fromarray(square).save(held, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()


def read_evidence(file: Path) -> dict[str, Any] | None:
    """Reads a JSON file of `gather_evidence`; returns None if it is missing or has another format version.

    Raises a RunError if the file is damaged.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return dict(document) if document["format_version"] == FORMAT_VERSION else None
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError("a file of measurements in JSON", f"a damaged '{file}' ({error})", "delete it") from None


def write_gallery(
    runs: Mapping[str, Path],
    data: Path,
    file: Path,
    *,
    progress: ProgressCallback = silent,
    **choice: Unpack[PhotoChoice],
) -> None:
    """Computes attention maps of several runs for the same photos, and writes them to the JSON file `file`.

    If a network has no stage of stride 16, a warning is logged and `file` is deleted. `runs` are run folders by name,
    at least one, all trained on `data`; the photos come from the split of the first. `choice` are arguments of
    `choose_photos`.
    """
    manifests = {name: read_manifest(run / MANIFEST_NAME) for name, run in runs.items()}
    first = next(iter(runs))
    choice["own_split"] = runs[first] / "splits.json"
    photos = choose_photos(manifests[first], data, progress=progress, **choice)
    begin(progress, "drawing attention maps")
    try:
        entries = gallery(runs, photos.samples, photos.root, manifests[first].classes)
    except ModelError as error:
        logger.warning("the report will show no attention maps: %s", error)
        file.unlink(missing_ok=True)
        return
    weights = {name: manifest.weights_sha256 for name, manifest in manifests.items()}
    write_json(file, {"format_version": FORMAT_VERSION, "weights_sha256": weights, "photos": entries})


def gallery(
    runs: Mapping[str, Path], samples: Sequence[Sample], root: Path, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Computes attention maps of several runs (folders by name) over up to 12 photos, at the stage of stride 16.

    Returns one dict for each photo: "path", "truth", "photo" (a thumbnail as data URI) and "models", a list with
    "name", "predicted", "probability" and "map" (rows of values, the largest 1) of each model. Raises a ModelError if a
    model has no stage of stride 16, and a PhotoError if a photo cannot be read.
    """
    # torch takes seconds to load, and the evidence of an exported file does not need it.
    from agridistill.models import TorchBackend, load_network

    chosen = _of_every_class(samples, _GALLERY_PHOTOS)
    entries: list[dict[str, Any]] = [
        {
            "path": sample.path,
            "truth": classes[sample.label],
            "photo": thumbnail(root / sample.path),
            "models": [],
        }
        for sample in chosen
    ]
    for name, run in runs.items():
        network, manifest = load_network(run)
        backend = TorchBackend(network, manifest, attention_stride=_GALLERY_STRIDE)
        photos = np.stack([read_pixels(root / sample.path, manifest.preprocessing) for sample in chosen])
        probabilities = softmax(backend.logits(photos), manifest.temperature)
        for entry, row, map_ in zip(entries, probabilities, backend.attention(photos), strict=True):
            answer = int(row.argmax())
            entry["models"].append(
                {
                    "name": name,
                    "predicted": classes[answer],
                    "probability": float(row[answer]),
                    "map": [[round(value, 3) for value in line] for line in map_.tolist()],
                }
            )
    return entries


def _of_every_class(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Returns up to `count` samples, one of each class in turn; no two of them show the same leaf of a class."""
    by_class: dict[int, dict[str, Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, {}).setdefault(sample.leaf_id, sample)
    queues = [list(by_class[label].values()) for label in sorted(by_class)]
    rounds = itertools.zip_longest(*queues)
    return [sample for one in rounds for sample in one if sample is not None][:count]
