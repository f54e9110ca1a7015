"""Fits the values of a model that depend on photos and are not weights: temperature, threshold, familiar photos.

Training and export use the same functions, so a run and its exported models give the same verdicts.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agridistill.data.folder import Sample
from agridistill.errors import PhotoError
from agridistill.evaluation.evaluate import LabelledLogits
from agridistill.evaluation.metrics import AbstentionPoint, abstention_point, calibration_error, fit_temperature
from agridistill.manifest import Preprocessing
from agridistill.models import normalise_batch
from agridistill.preprocess import Pixels, softmax
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.runtime.predictor import read_batches
from agridistill.runtime.verdict import Familiarity, figures, fit_familiarity

WANTED_ANSWERS = 0.95
"""Default share of right answers that the abstention threshold must reach, 0 to 1."""
FEW_PHOTOS = 200
"""With fewer validation photos, `fit_answering` cross-validates: figures on the photos of the fit are too good."""
_FOLDS = 5
# This number of photos gives good estimates of 54 figures and their correlations.
_MOST_FAMILIAR_PHOTOS = 2000
# More photos change the ranges of a MobileNetV3 by less than one level.
REPRESENTATIVE_PHOTOS = 256
_BATCH = 32


@dataclass(frozen=True)
class Answering:
    """The fitted temperature and abstention threshold of a model, and the quality of its answers."""

    temperature: float  # the logits are divided by it
    # The threshold, fitted on all photos, and the coverage and accuracy to expect on new photos.
    abstention: AbstentionPoint
    calibration_error: float  # the calibration error to expect on new photos, 0 to 1
    wanted: float  # the share of right answers that the threshold should reach, 0 to 1
    # Whether coverage, accuracy and calibration error were measured on photos that the fit did not use.
    cross_validated: bool

    def to_json(self) -> dict[str, Any]:
        """Returns every figure, under the keys of the table `measured` in the manifest."""
        return {
            "calibration_error": self.calibration_error,
            "temperature": self.temperature,
            "threshold": self.abstention.threshold,
            "coverage": self.abstention.coverage,
            "accuracy_of_answers": self.abstention.accuracy,
            "answers_target": self.wanted,
            "answers_target_reached": self.abstention.reached,
            "answers_cross_validated": self.cross_validated,
        }

    def warning(self) -> str:
        """Returns a sentence if no usable threshold reaches the wanted share of right answers, otherwise ""."""
        if self.abstention.reached:
            return ""
        coverage, accuracy = self.abstention.coverage, self.abstention.accuracy
        return (
            f"this model does not reach {100 * self.wanted:.0f} % right answers: with the best usable threshold "
            f"({self.abstention.threshold:.2f}) it answers {100 * coverage:.0f} % of the photos, and "
            f"{100 * accuracy:.0f} % of those answers are right"
        )


def fit_answering(val: LabelledLogits, wanted: float = WANTED_ANSWERS) -> Answering:
    """Fits the temperature and the abstention threshold on at least 1 validation photo.

    With fewer than 200 photos, coverage, accuracy and calibration error come from cross-validation with five folds:
    each fold is answered with the temperature and the threshold that were fitted on the other four. All photos of a
    leaf are in the same fold. `wanted` is the share of right answers that the threshold should reach, 0 to 1.
    """
    temperature, point = _fit(val.logits, val.target, wanted)
    folds = _folds(val.leaf_ids)
    if len(val.target) >= FEW_PHOTOS or len(np.unique(folds)) < 2:
        error = calibration_error(softmax(val.logits, temperature), val.target)
        return Answering(temperature, point, error, wanted, cross_validated=False)
    probabilities = np.empty(val.logits.shape, np.float64)
    answered = np.empty(len(folds), np.bool_)
    for fold in np.unique(folds):
        held = folds == fold
        of_others, others = _fit(val.logits[~held], val.target[~held], wanted)
        probabilities[held] = softmax(val.logits[held], of_others)
        answered[held] = probabilities[held].max(1) >= others.threshold
    correct = probabilities.argmax(1) == val.target
    accuracy = float(correct[answered].mean()) if answered.any() else 0.0
    reached = bool(answered.any()) and accuracy >= wanted
    expected = point._replace(coverage=float(answered.mean()), accuracy=accuracy, reached=reached)
    return Answering(temperature, expected, calibration_error(probabilities, val.target), wanted, cross_validated=True)


def _fit(logits: NDArray[Any], target: NDArray[np.int64], wanted: float) -> tuple[float, AbstentionPoint]:
    temperature = fit_temperature(logits, target)
    probabilities = softmax(logits, temperature)
    return temperature, abstention_point(probabilities.max(1), probabilities.argmax(1) == target, wanted)


def _folds(leaf_ids: tuple[str, ...]) -> NDArray[np.int64]:
    """Returns the fold of each photo, `(N,)`; leaves are assigned in turn, in an order that ignores their class."""
    leaves = sorted(set(leaf_ids), key=lambda leaf: (zlib.crc32(leaf.encode("utf-8", "surrogateescape")), leaf))
    place = {leaf: number % _FOLDS for number, leaf in enumerate(leaves)}
    return np.array([place[leaf] for leaf in leaf_ids], np.int64)


def familiarity_of(
    root: Path,
    train: Sequence[Sample],
    val: Sequence[Sample],
    preprocessing: Preprocessing,
    progress: ProgressCallback = silent,
) -> Familiarity | None:
    """Fits the test for unfamiliar photos: what training photos look like, and a limit from validation photos.

    Returns None if fewer than 2 training photos or no validation photo can be read.
    """
    begin(progress, "measuring how photos look")
    chosen = [samples[:: -(-len(samples) // _MOST_FAMILIAR_PHOTOS) or 1] for samples in (train, val)]
    learnt, held_out = (
        [figures(pixels) for batch in _readable(root, samples, preprocessing, progress) for pixels in batch]
        for samples in chosen
    )
    return fit_familiarity(learnt, held_out) if len(learnt) > 1 and held_out else None


def representative_batches(root: Path, samples: Sequence[Sample], preprocessing: Preprocessing) -> Iterator[Tensor]:
    """Yields training photos to choose int8 ranges with: batches `(B, 3, S, S)` float32, normalised for the network.

    Of more than 511 samples, 256 to 511 evenly spaced ones are used. Unreadable photos are left out.
    """
    step = max(1, len(samples) // REPRESENTATIVE_PHOTOS)
    for pixels in _readable(root, samples[::step], preprocessing):
        if pixels:
            yield normalise_batch(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), preprocessing)


def _readable(
    root: Path, samples: Sequence[Sample], preprocessing: Preprocessing, progress: ProgressCallback = silent
) -> Iterator[list[Pixels]]:
    done = 0
    for batch in read_batches([root / sample.path for sample in samples], preprocessing, batch_size=_BATCH):
        yield [pixels for _, pixels in batch if not isinstance(pixels, PhotoError)]
        done += len(batch)
        progress(done, len(samples))
