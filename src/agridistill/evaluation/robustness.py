"""What is left of a model's accuracy in the field: under corruptions, without the leaf, and where it may abstain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from agridistill.evaluation.leaf_mask import leaf_mask
from agridistill.evaluation.metrics import Interval, accuracy_interval
from agridistill.preprocess import enough_pixels, read_photo
from agridistill.progress import ProgressCallback, silent
from agridistill.runtime.backends import Backend, checked_logits
from agridistill.runtime.reading import read_batches

Spoil = Callable[[Photo, np.random.Generator], Photo]

MOST_PHOTOS = 500
_BATCH = 64


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
        leaf_masked_accuracy: where only the ground is left. Of a model that looks at leaves it is no better than
            `chance`; what it is above that, the model reads off the ground (or the outline that the mask leaves).
        ground_masked_accuracy: where only the leaf is left.
        chance: share of the most frequent class: what one answer for all photos reaches.
    """

    photos: int
    accuracy: float
    accuracy_ci95: Interval
    corruptions: tuple[UnderCorruption, ...]
    mean_corrupted_accuracy: float
    leaf_masked_accuracy: float
    ground_masked_accuracy: float
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

    Photos are read once, at no more than twice the model's input size; what is random about a corruption depends on the
    photo alone, so every model meets the same.

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
    chosen = [samples[index] for index in np.unique(np.linspace(0, len(samples) - 1, most_photos).round().astype(int))]
    photos = [_photo(root / sample.path, backend) for sample in chosen]
    target = np.array([sample.label for sample in chosen])
    seeds = [int.from_bytes(sha256(sample.path.encode("utf-8", "surrogateescape")).digest()[:8]) for sample in chosen]
    total = len(chosen) * (3 + sum(len(corruption.strengths) for corruption in corruptions))
    done = 0

    def correct(spoil: Spoil) -> NDArray[np.bool_]:
        nonlocal done
        spoilt = (spoil(photo, np.random.default_rng(seed)) for photo, seed in zip(photos, seeds, strict=True))
        preds = []
        for answers in _answers(backend, spoilt):
            preds.append(answers)
            done += len(answers)
            progress(done, total)
        return np.asarray(np.concatenate(preds) == target)

    clean = correct(lambda photo, rng: photo)
    under = tuple(
        UnderCorruption(
            corruption.name,
            corruption.unit,
            tuple(corruption.strengths),
            tuple(float(correct(_applying(corruption, strength)).mean()) for strength in corruption.strengths),
        )
        for corruption in corruptions
    )
    return RobustnessResult(
        photos=len(chosen),
        accuracy=float(clean.mean()),
        accuracy_ci95=accuracy_interval(clean, [sample.leaf_id for sample in chosen]),
        corruptions=under,
        mean_corrupted_accuracy=float(np.mean([accuracy for one in under for accuracy in one.accuracies])),
        leaf_masked_accuracy=float(correct(lambda photo, rng: without_leaf(photo)).mean()),
        ground_masked_accuracy=float(correct(lambda photo, rng: without_ground(photo)).mean()),
        chance=float(np.bincount(target).max() / len(target)),
    )


def _applying(corruption: Corruption, strength: float) -> Spoil:
    return lambda photo, rng: corruption.apply(photo, strength, rng)


def without_leaf(photo: Photo) -> Photo:
    """The ground alone: the leaf's pixels take the ground's median colour; no ground at all gives one colour, grey."""
    return _filled(photo, leaf_mask(photo))


def without_ground(photo: Photo) -> Photo:
    """The leaf alone, on grey of mean light."""
    mask = leaf_mask(photo)
    filled = photo.copy()
    filled[~mask] = 128
    return filled


def _filled(photo: Photo, mask: NDArray[np.bool_]) -> Photo:
    filled = photo.copy()
    filled[mask] = np.median(photo[~mask], axis=0).astype(np.uint8) if not mask.all() else 128
    return filled


def _photo(path: Path, backend: Backend) -> Photo:
    side = enough_pixels(backend.manifest.preprocessing)
    image = read_photo(path, shorter_side=side)
    factor = side / min(image.size)
    if factor < 1:
        image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    return np.array(image)


def _answers(backend: Backend, photos: Iterator[Photo]) -> Iterator[NDArray[np.int64]]:
    for batch in read_batches(photos, backend.manifest.preprocessing, batch_size=_BATCH):
        pixels = []
        for _, read in batch:
            if isinstance(read, PhotoError):
                raise read
            pixels.append(read)
        yield checked_logits(backend, np.stack(pixels)).argmax(axis=1)
