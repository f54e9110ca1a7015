"""What is left of a model's accuracy in the field: under corruptions, without the leaf, and where it may abstain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agridistill.data.samples import Sample
from agridistill.errors import DataError, PhotoError
from agridistill.evaluation.corruptions import CORRUPTIONS, Corruption, Photo
from agridistill.evaluation.leaf_mask import is_trustworthy, leaf_mask
from agridistill.evaluation.metrics import Interval, accuracy_interval
from agridistill.preprocess import read_photo
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.runtime.backends import Backend, checked_logits
from agridistill.runtime.reading import PhotoSource, read_batches

MOST_PHOTOS = 500
_BATCH = 64
# Shorter side at which photos are spoilt; larger ones are scaled down to it, smaller ones stay as they are.
_SIDE_PX = 448
# Of the photos. Where fewer masks can be trusted, those photos (on paper, say) do not stand for the rest.
LEAST_MASKED_SHARE = 0.5


@dataclass(frozen=True)
class UnderCorruption:
    """Accuracy under one corruption, from weak to strong.

    Attributes:
        name: of the corruption.
        unit: of its strengths.
        strengths: from weak to strong.
        accuracies: 0 to 1, one for each strength.
    """

    name: str
    unit: str
    strengths: tuple[float, ...]
    accuracies: tuple[float, ...]


@dataclass(frozen=True)
class RobustnessResult:
    """How a model's accuracy holds.

    Attributes:
        photos: that were used.
        accuracy: of the same photos as they are, 0 to 1.
        accuracy_ci95: its interval.
        corruptions: one entry each.
        mean_corrupted_accuracy: over all corruptions and strengths.
        masked_photos: those of them in which one leaf on a plain ground was found; the figures below are of these.
        leaf_masked_accuracy: where only the ground is left; None where those photos are too few of all
            (`LEAST_MASKED_SHARE`) to say anything. Of a model that looks at leaves it is no better than
            `chance`; what it is above that, the model reads off the ground or the outline that the mask leaves.
        leaf_masked_ci95: its interval.
        ground_masked_accuracy: where only the leaf is left; None as above.
        chance: share of the most frequent class: what one answer for all photos reaches.
    """

    photos: int
    accuracy: float
    accuracy_ci95: Interval
    corruptions: tuple[UnderCorruption, ...]
    mean_corrupted_accuracy: float
    masked_photos: int
    leaf_masked_accuracy: float | None
    leaf_masked_ci95: Interval | None
    ground_masked_accuracy: float | None
    chance: float

    def to_json(self) -> dict[str, Any]:
        """A JSON document."""
        return asdict(self)


def robustness(
    backend: Backend,
    samples: Sequence[Sample],
    root: Path,
    *,
    most_photos: int = MOST_PHOTOS,
    corruptions: Sequence[Corruption] = CORRUPTIONS,
    progress: ProgressCallback = silent,
) -> RobustnessResult:
    """Accuracy of one model on the same photos, spoilt in every way.

    Photos are spoilt at one size for all models, and what is random about a corruption depends on the photo alone:
    every model meets the same, at its own input size.

    Args:
        backend: the model.
        samples: labelled photos, of which evenly spaced ones are taken.
        root: the folder that their paths start from.
        most_photos: that are used.
        corruptions: that are tried.
        progress: told (photos classified, in all).

    Raises:
        DataError: no photos, or one that cannot be read.
    """
    if not samples:
        raise DataError("labelled photos to spoil", "none", "choose another split")
    begin(progress, "measuring robustness")
    chosen = [samples[index] for index in np.unique(np.linspace(0, len(samples) - 1, most_photos).round().astype(int))]
    photos = [_photo(root / sample.path) for sample in chosen]
    target = np.array([sample.label for sample in chosen])
    seeds = [int.from_bytes(sha256(sample.path.encode("utf-8", "surrogateescape")).digest()[:8]) for sample in chosen]
    masks = [leaf_mask(photo) for photo in photos]
    masked = np.array([is_trustworthy(*one) for one in zip(photos, masks, strict=True)])
    masked_photos = int(masked.sum())
    if masked_photos < LEAST_MASKED_SHARE * len(chosen):
        masked[:] = False
    total = len(chosen) * (1 + sum(len(corruption.strengths) for corruption in corruptions)) + 2 * int(masked.sum())
    done = 0

    def correct(sources: Iterable[PhotoSource], truth: NDArray[np.int64] = target) -> NDArray[np.bool_]:
        nonlocal done
        preds = [np.empty(0, np.int64)]
        for answers in _answers(backend, sources):
            preds.append(answers)
            done += len(answers)
            progress(done, total)
        return np.asarray(np.concatenate(preds) == truth)

    def spoilt(corruption: Corruption, strength: float) -> Iterator[Photo]:
        for photo, seed in zip(photos, seeds, strict=True):
            yield corruption.apply(photo, strength, np.random.default_rng(seed))

    # From the files, as the model would see them: what was scaled for spoiling is not quite the same.
    clean = correct(root / sample.path for sample in chosen)
    under = tuple(
        UnderCorruption(
            corruption.name,
            corruption.unit,
            tuple(corruption.strengths),
            tuple(float(correct(spoilt(corruption, strength)).mean()) for strength in corruption.strengths),
        )
        for corruption in corruptions
    )
    found = [(photo, mask) for photo, mask, usable in zip(photos, masks, masked, strict=True) if usable]
    ground = correct((without_leaf(*one) for one in found), target[masked])
    leaf = correct((without_ground(*one) for one in found), target[masked])
    leaf_ids = [sample.leaf_id for sample in chosen]
    of_masked = [leaf_id for leaf_id, usable in zip(leaf_ids, masked, strict=True) if usable]
    return RobustnessResult(
        photos=len(chosen),
        accuracy=float(clean.mean()),
        accuracy_ci95=accuracy_interval(clean, leaf_ids),
        corruptions=under,
        mean_corrupted_accuracy=float(np.mean([accuracy for one in under for accuracy in one.accuracies])),
        masked_photos=masked_photos,
        leaf_masked_accuracy=float(ground.mean()) if found else None,
        leaf_masked_ci95=accuracy_interval(ground, of_masked) if found else None,
        ground_masked_accuracy=float(leaf.mean()) if found else None,
        chance=float(np.bincount(target[masked] if found else target).max() / len(target[masked] if found else target)),
    )


def without_leaf(photo: Photo, mask: NDArray[np.bool_]) -> Photo:
    """The ground alone: the leaf's pixels take the ground's median colour."""
    filled = photo.copy()
    filled[mask] = np.median(photo[~mask], axis=0).astype(np.uint8)
    return filled


def without_ground(photo: Photo, mask: NDArray[np.bool_]) -> Photo:
    """The leaf alone, on grey of mean light."""
    filled = photo.copy()
    filled[~mask] = 128
    return filled


def _photo(path: Path) -> Photo:
    image = read_photo(path, shorter_side=_SIDE_PX)
    factor = _SIDE_PX / min(image.size)
    if factor < 1:
        image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    return np.array(image)


def _answers(backend: Backend, photos: Iterable[PhotoSource]) -> Iterator[NDArray[np.int64]]:
    for batch in read_batches(photos, backend.manifest.preprocessing, batch_size=_BATCH):
        pixels = []
        for _, read in batch:
            if isinstance(read, PhotoError):
                raise read
            pixels.append(read)
        yield checked_logits(backend, np.stack(pixels)).argmax(axis=1)
