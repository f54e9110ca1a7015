"""What a run says about each photo of its test split: kept beside the run, for whatever compares photo by photo."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agridistill.data.labels import FOLDERS, Layout
from agridistill.errors import RunError
from agridistill.evaluation.evaluate import predict_logits
from agridistill.evaluation.held_out import choose_photos
from agridistill.evaluation.metrics import Labels
from agridistill.progress import ProgressCallback, silent
from agridistill.runtime.backends import Backend
from agridistill.storage import write_json

FORMAT_VERSION = 1
_DECIMALS = 4


@dataclass(frozen=True)
class Predictions:
    """Logits of labelled photos.

    Attributes:
        weights_sha256: of the model that gave them.
        temperature: that calibrates them.
        classes: of the logits, in order.
        paths: of the N photos, from the data folder.
        leaf_ids: of the N photos.
        target: `(N,)` class indices.
        logits: `(N, K)` float32, of four decimals.
    """

    weights_sha256: str
    temperature: float
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    leaf_ids: tuple[str, ...]
    target: Labels
    logits: NDArray[np.float32]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """`(N,)`: whether each photo is classified rightly."""
        return np.asarray(self.logits.argmax(axis=1) == self.target)

    def to_json(self) -> dict[str, Any]:
        """A JSON document, one row a photo."""
        rows = zip(self.paths, self.leaf_ids, self.target.tolist(), self.logits.tolist(), strict=True)
        return {
            "format_version": FORMAT_VERSION,
            "weights_sha256": self.weights_sha256,
            "temperature": self.temperature,
            "classes": list(self.classes),
            "photos": [
                {"path": path, "leaf": leaf, "target": target, "logits": [round(value, _DECIMALS) for value in logits]}
                for path, leaf, target, logits in rows
            ],
        }


def predictions_on_test(
    backend: Backend,
    data: Path,
    run: Path,
    file: Path,
    *,
    layout: Layout = FOLDERS,
    progress: ProgressCallback = silent,
) -> Predictions:
    """The predictions on a run's test split: from `file` where it holds those of these weights, else made and kept.

    Args:
        backend: the run's model.
        data: the folder that it was trained on.
        layout: how the labels are found.
        run: its folder, whose own split is used.
        file: JSON.
        progress: called with (done, total).

    Raises:
        DataError: the data has changed.
        RunError: the model was trained on other data, or the file is damaged.
    """
    manifest = backend.manifest
    if file.exists():
        found = read_predictions(file)
        if found.weights_sha256 == manifest.weights_sha256 and found.temperature == manifest.temperature:
            return found
    photos = choose_photos(manifest, data, layout=layout, own_split=run / "splits.json", progress=progress)
    answers = predict_logits(backend, photos.samples, photos.root, progress=progress)
    if answers.skipped:
        raise RunError("readable test photos for a comparison", answers.skipped[0], "replace the photo")
    made = Predictions(
        manifest.weights_sha256,
        manifest.temperature,
        manifest.classes,
        tuple(sample.path for sample in photos.samples),
        answers.leaf_ids,
        answers.target,
        np.round(answers.logits, _DECIMALS),
    )
    write_json(file, made.to_json())
    return made


def read_predictions(file: Path) -> Predictions:
    """Reads what `predictions_on_test` kept.

    Raises:
        RunError: damaged, or of another format.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if document["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {document['format_version']}")
        photos = document["photos"]
        return Predictions(
            document["weights_sha256"],
            float(document["temperature"]),
            tuple(document["classes"]),
            tuple(photo["path"] for photo in photos),
            tuple(photo["leaf"] for photo in photos),
            np.array([photo["target"] for photo in photos], np.int64),
            np.array([photo["logits"] for photo in photos], np.float32),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            "the predictions of a run", f"a damaged '{file}' ({type(error).__name__}: {error})", "remove the file"
        ) from None
