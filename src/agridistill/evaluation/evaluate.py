"""Evaluates a model on labelled photos and holds every number of the evaluation, as an object and as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import sklearn.metrics
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from agridistill.data.folder import Sample
from agridistill.data.labels import FOLDERS, Layout
from agridistill.errors import DataError, PhotoError, RunError
from agridistill.evaluation.held_out import ChosenPhotos, PhotoChoice, choose_photos
from agridistill.evaluation.metrics import (
    ClassScores,
    Interval,
    Labels,
    accuracy_interval,
    calibration_error,
    class_scores,
    macro_f1,
    negative_log_likelihood,
)
from agridistill.manifest import ModelManifest
from agridistill.photo_files import passed_over
from agridistill.preprocess import softmax
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.runtime.engines import Backend
from agridistill.runtime.predictor import compute_photos
from agridistill.storage import write_json

PREDICTIONS_FORMAT = 1
_BATCH, _DECIMALS = 64, 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """All metrics of one model on one split of a data set.

    Attributes:
        model: timm's name of the architecture.
        split: "train", "val", "test" or "all".
        classes: class names in the order of the confusion matrix.
        photos: number of photos evaluated.
        leaves: number of leaves that these photos show.
        skipped_photos: one line for each photo that could not be read; no other number includes these photos.
        accuracy: share of photos classified correctly, 0 to 1.
        accuracy_ci95: 95 % interval of the accuracy; it takes into account that several photos show one leaf.
        macro_f1: mean F1 of the classes that have photos, 0 to 1.
        nll_nats: mean negative log-likelihood at `temperature`, in nats.
        calibration_error: expected calibration error at `temperature`, with 15 bins, 0 to 1.
        per_class: scores of each class; they are None for a class without photos.
        confusion_matrix: counts of photos; rows are the truth, columns the prediction.
        image_size: side of the model's input in pixels.
        temperature: the logits were divided by it before the softmax.
        parameters: number of the model's parameters; None unless the caller adds it.
        macs: multiply-accumulates for one photo; None unless the caller adds it.
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

    @property
    def chance(self) -> float:
        """Accuracy without any learning, 0 to 1: the better of guessing and always answering the largest class."""
        return max(1 / len(self.classes), max(scores.photos for scores in self.per_class) / self.photos)

    @property
    def named_photos(self) -> dict[str, int]:
        """Class name -> number of photos that the model assigned to this class."""
        return dict(zip(self.classes, map(sum, zip(*self.confusion_matrix, strict=True)), strict=True))

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON document with every attribute, "skipped" and "flops"; undefined or unknown numbers are None.

        In "per_class", the name of a class is under the key "class".
        """
        document = asdict(self)
        document["per_class"] = [{"class": row.pop("name"), **row} for row in document["per_class"]]
        return {**document, "skipped": self.skipped, "flops": self.flops}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> EvaluationResult:
        """Makes a result from a document that `to_json` returned.

        Raises:
            RunError: a key is missing, or its value has the wrong type.
        """
        try:
            return TypeAdapter(cls).validate_python(document)
        except ValidationError as error:
            first = error.errors()[0]
            got = f"'{'.'.join(map(str, first['loc']))}': {first['msg']}"
            raise RunError("a complete evaluation in JSON", got, "evaluate the model again with this release") from None


class LabelledLogits(NamedTuple):
    """A model's logits for N labelled photos and K classes."""

    logits: NDArray[np.float32]  # `(N, K)` float32
    target: Labels  # `(N,)` indices of the true classes
    leaf_ids: tuple[str, ...]  # the leaf id of each of the N photos
    skipped: tuple[str, ...]  # one line for each photo that could not be read; these photos are not among the N


def evaluate(
    backend: Backend,
    samples: Sequence[Sample],
    root: Path,
    *,
    split: str,
    skipped: Sequence[str] = (),
    progress: ProgressCallback = silent,
) -> EvaluationResult:
    """Scores a model on labelled photos, whose labels are indices into its classes; they are read batch by batch.

    `skipped` has one line for each photo that the caller left out; the result lists these lines first.

    Raises:
        DataError: there are no samples, or none of them can be read.
        ModelError: the model's output is unusable.
    """
    if not samples:
        raise DataError(f"photos in the split '{split}'", f"none in '{root}'", "choose another split")
    found = predict_logits(backend, samples, root, progress=progress)
    found = found._replace(skipped=(*skipped, *found.skipped))
    return score(found, backend.manifest, split=split)


def evaluate_folder(
    backend: Backend,
    data: Path,
    *,
    run: Path | None = None,
    progress: ProgressCallback = silent,
    **choice: Unpack[PhotoChoice],
) -> EvaluationResult:
    """Scores a model on one split of a data folder, and logs the photos and files that it leaves out.

    `run` is the model's run folder, whose `splits.json` is used if the model was trained on this data; None for an
    exported model. `choice` are arguments of `choose_photos`; the data may lack some of the model's classes.

    Raises:
        DataError: the folder or the split cannot be used.
        ModelError: the data has classes that the model lacks, or the model's output is unusable.
    """
    photos = photos_to_score(backend, data, run=run, progress=progress, **choice)
    return evaluate(
        backend,
        photos.samples,
        photos.root,
        split=photos.split,
        skipped=photos.skipped,
        progress=progress,
    )


def photos_to_score(
    backend: Backend,
    data: Path,
    *,
    run: Path | None = None,
    progress: ProgressCallback = silent,
    **choice: Unpack[PhotoChoice],
) -> ChosenPhotos:
    """Chooses the photos for `evaluate_folder`, which describes the arguments, and logs what it leaves out."""
    choice["class_names"] = choice.get("class_names") or {}
    if run is not None:
        choice["own_split"] = run / "splits.json"
    photos = choose_photos(backend.manifest, data, progress=progress, **choice)
    for line in photos.left_out:
        logger.warning("%s", line)
    if photos.non_photo_files:
        logger.warning("left out: %s", passed_over(photos.non_photo_files))
    return photos


def predict_logits(
    backend: Backend,
    samples: Sequence[Sample],
    root: Path,
    *,
    progress: ProgressCallback = silent,
) -> LabelledLogits:
    """Runs a model over labelled photos; unreadable ones are listed in `skipped`.

    Raises a ModelError if the model's output is unusable.
    """
    begin(progress, "classifying photos")
    logits: list[NDArray[np.float32]] = [np.empty((0, len(backend.manifest.classes)), np.float32)]
    read: list[Sample] = []
    skipped: list[str] = []
    paths = (root / sample.path for sample in samples)
    computed = compute_photos(backend, paths, batch_size=_BATCH)
    for done, (sample, (_, found)) in enumerate(zip(samples, computed, strict=True), start=1):
        if isinstance(found, PhotoError):
            skipped.append(str(found))
        else:
            logits.append(found.logits[None])
            read.append(sample)
        progress(done, len(samples))
    target = np.array([sample.label for sample in read], np.int64)
    return LabelledLogits(np.concatenate(logits), target, tuple(sample.leaf_id for sample in read), tuple(skipped))


def score(found: LabelledLogits, manifest: ModelManifest, *, split: str) -> EvaluationResult:
    """Computes all metrics from a model's logits, which are divided by the manifest's temperature.

    Raises a DataError if none of the photos could be read.
    """
    if not len(found.target):
        got = f"{len(found.skipped)} unreadable ones, the first: {found.skipped[0]}"
        raise DataError(f"readable photos in the split '{split}'", got, "replace these files")
    probabilities = softmax(found.logits, manifest.temperature)
    preds = np.asarray(probabilities.argmax(axis=1), np.int64)
    correct = preds == found.target
    per_class = class_scores(preds, found.target, manifest.classes)
    confusions = sklearn.metrics.confusion_matrix(found.target, preds, labels=range(len(manifest.classes)))
    return EvaluationResult(
        model=manifest.model,
        split=split,
        classes=manifest.classes,
        photos=len(found.target),
        leaves=len(set(found.leaf_ids)),
        skipped_photos=found.skipped,
        accuracy=float(correct.mean()),
        accuracy_ci95=accuracy_interval(correct, found.leaf_ids),
        macro_f1=macro_f1(per_class),
        nll_nats=negative_log_likelihood(found.logits, found.target, manifest.temperature),
        calibration_error=calibration_error(probabilities, found.target),
        per_class=per_class,
        confusion_matrix=tuple(map(tuple, confusions.tolist())),
        image_size=manifest.preprocessing.image_size,
        temperature=manifest.temperature,
    )


class Predictions(NamedTuple):
    """Which of the N photos in the test split of a run its model classified correctly."""

    paths: tuple[str, ...]  # relative to the data folder
    leaf_ids: tuple[str, ...]
    correct: NDArray[np.bool_]  # (N,)


def predictions_on_test(
    backend: Backend,
    data: Path,
    run: Path,
    file: Path,
    *,
    layout: Layout = FOLDERS,
    progress: ProgressCallback = silent,
) -> Predictions:
    """Returns the predictions of a run's model on the test split of the run.

    If `file` holds predictions of the same weights, it is read. Otherwise the model classifies the photos in `data`,
    and the predictions are written to `file`. Raises a DataError if the data has changed, and a RunError if a photo
    cannot be read or `file` is damaged.
    """
    manifest = backend.manifest
    wanted = {
        "format_version": PREDICTIONS_FORMAT,
        "weights_sha256": manifest.weights_sha256,
        "temperature": manifest.temperature,
        "classes": list(manifest.classes),
    }
    try:
        document = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if all(document.get(key) == value for key, value in wanted.items()):
            return _predictions(document["photos"])
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        got = f"a damaged '{file}' ({type(error).__name__}: {error})"
        raise RunError("the predictions of a run", got, "delete it and try again") from None
    photos = choose_photos(manifest, data, layout=layout, own_split=run / "splits.json", progress=progress)
    found = predict_logits(backend, photos.samples, photos.root, progress=progress)
    if found.skipped:
        raise RunError("test photos that can all be read", found.skipped[0], "replace the photo")
    logits = np.round(found.logits.astype(np.float64), _DECIMALS).tolist()
    rows = [
        {"path": sample.path, "leaf": sample.leaf_id, "target": sample.label, "logits": row}
        for sample, row in zip(photos.samples, logits, strict=True)
    ]
    write_json(file, {**wanted, "photos": rows})
    return _predictions(rows)


def _predictions(rows: Sequence[Mapping[str, Any]]) -> Predictions:
    paths, leaf_ids = (tuple(row[key] for row in rows) for key in ("path", "leaf"))
    correct = [int(np.argmax(row["logits"])) == row["target"] for row in rows]
    return Predictions(paths, leaf_ids, np.array(correct, bool))
