"""What is fitted to a model's photos besides its weights.

Temperature and abstention threshold, with what they cost on photos that the model never met; what familiar photos look
like; and the photos that int8 ranges are fitted to. A run and its artefacts are fitted by the same rules, so that they
give the same verdicts.
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
from agridistill.runtime.reading import read_batches
from agridistill.runtime.verdict import Familiarity, figures, fit_familiarity

WANTED_ANSWERS = 0.95
"""Share of right answers that the threshold is chosen for, unless another is asked for."""
FEW_PHOTOS = 200
"""With fewer validation photos, what is fitted on them looks better on them than it is."""
_FOLDS = 5
# 54 figures and their correlations are known well from as many photos.
_MOST_FAMILIAR_PHOTOS = 2000
# More photos change the ranges of a MobileNetV3 by less than one level.
REPRESENTATIVE_PHOTOS = 256
_BATCH = 32


@dataclass(frozen=True)
class Answering:
    """When a model answers.

    Attributes:
        temperature: divides the logits.
        abstention: the threshold, fitted on all photos; coverage and accuracy as they are to be expected.
        calibration_error: to be expected, 0 to 1.
        wanted: share of right answers that the threshold was chosen for.
        cross_validated: whether coverage, accuracy and calibration error come from photos that took no part in the fit.
    """

    temperature: float
    abstention: AbstentionPoint
    calibration_error: float
    wanted: float
    cross_validated: bool

    def to_json(self) -> dict[str, Any]:
        """Every figure, by the names of a manifest's `measured`."""
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
        """What a person has to know where the wanted share is out of reach; "" where it is not."""
        if self.abstention.reached:
            return ""
        coverage, accuracy = self.abstention.coverage, self.abstention.accuracy
        return (
            f"{100 * self.wanted:.0f} % right answers are out of reach for this model: with the best usable threshold "
            f"({self.abstention.threshold:.2f}) it answers {100 * coverage:.0f} % of the photos, and "
            f"{100 * accuracy:.0f} % of those answers are right"
        )


def fit_answering(val: LabelledLogits, wanted: float = WANTED_ANSWERS) -> Answering:
    """Fits temperature and threshold on at least 1 validation photo, for a share `wanted`, 0 to 1, of right answers.

    Both come from all the photos. With fewer than 200, what they cost is measured by cross-validation: of five folds,
    leaves kept whole, each is answered with the temperature and threshold of the other four.

    Raises:
        ValueError: no photos.
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
    expected = point._replace(
        coverage=float(answered.mean()), accuracy=float(correct[answered].mean()) if answered.any() else 0.0
    )
    return Answering(temperature, expected, calibration_error(probabilities, val.target), wanted, cross_validated=True)


def _fit(logits: NDArray[Any], target: NDArray[np.int64], wanted: float) -> tuple[float, AbstentionPoint]:
    temperature = fit_temperature(logits, target)
    probabilities = softmax(logits, temperature)
    return temperature, abstention_point(probabilities.max(1), probabilities.argmax(1) == target, wanted)


def _folds(leaf_ids: tuple[str, ...]) -> NDArray[np.int64]:
    """The fold of each photo: leaves in an order that has nothing to do with their class, dealt out in turn."""
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
    """Figures of the training photos, with a limit from the validation photos; None where there are too few."""
    begin(progress, "measuring how photos look")
    chosen = [samples[:: -(-len(samples) // _MOST_FAMILIAR_PHOTOS) or 1] for samples in (train, val)]
    learnt, held_out = (
        [figures(pixels) for batch in _readable(root, samples, preprocessing, progress) for pixels in batch]
        for samples in chosen
    )
    return fit_familiarity(learnt, held_out) if len(learnt) > 1 and held_out else None


def representative_batches(root: Path, samples: Sequence[Sample], preprocessing: Preprocessing) -> Iterator[Tensor]:
    """Photos evenly over training samples, as a network sees them: `(B, 3, S, S)` float32, normalised.

    The samples' paths start from `root`; unreadable photos are left out.
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
