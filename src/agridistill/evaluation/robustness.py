"""Measures a model's accuracy on corrupted photos, and on photos whose leaf or whose background is masked.

The mask of the leaf is found only if a single leaf lies on a plain, grey background ("ground"), as in PlantVillage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from agridistill.data.folder import Sample
from agridistill.errors import DataError, PhotoError
from agridistill.evaluation.corruptions import CORRUPTIONS, Corruption, Photo
from agridistill.evaluation.metrics import Interval, accuracy_interval
from agridistill.preprocess import read_photo
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.runtime.engines import Backend
from agridistill.runtime.predictor import PhotoSource, compute_photos

_SMOOTH, _MARGIN = 0.01, 0.02  # shares of the shorter side
_DARK = 60.0  # levels, the sum of three channels
_LEAST_PIECE = 0.1
# A mask is trusted within the limits below. Of 400 photos each, that is 94 % of PlantVillage's tomatoes and 24 % of
# black gram in the field (those on paper, cloth or soil); every mask of the latter that we inspected covers the leaf.
_LEAST_LEAF, _MOST_LEAF = 0.05, 0.75  # least and largest share of the photo's area
_LARGEST_PIECE = 0.8  # least share of the mask's area that its largest piece must have
_RIM, _GROUND_AT_RIM = 0.05, 0.8  # width, as a share of the shorter side; share of it that must be ground
_GROUND_SPREAD = 0.4  # largest spread of the ground's colour, divided by its distance from the leaf's colour


def leaf_mask(photo: Photo) -> NDArray[np.bool_]:
    """Finds the leaf in a photo `(H, W, 3)` uint8 and returns a mask `(H, W)`, True on the leaf.

    Leaves are greener or yellower than a grey or purple background, and lesions are yellower. The share of green or
    yellow in each pixel is smoothed; pixels above Otsu's threshold form connected pieces. The leaf is the largest piece
    and every piece of at least a tenth of its size; holes are filled and the edge is widened. On a background of plants
    or wood the mask is meaningless: check it with `is_trustworthy`.
    """
    side = min(photo.shape[:2])
    share = _leaf_colour(photo)
    pieces, count = ndimage.label(share > otsu_threshold(share))
    if not count:
        return np.zeros(photo.shape[:2], bool)
    sizes = np.bincount(pieces.ravel())[1:]
    kept = 1 + np.flatnonzero(sizes >= _LEAST_PIECE * sizes.max())
    filled = ndimage.binary_fill_holes(np.isin(pieces, kept))
    return np.asarray(ndimage.binary_dilation(filled, iterations=max(1, round(_MARGIN * side))))


def is_trustworthy(photo: Photo, mask: NDArray[np.bool_]) -> bool:
    """Returns whether `mask`, made by `leaf_mask`, shows one whole leaf on a plain background.

    The mask must be mostly one piece of plausible area, the rim of the photo must be nearly all background, and the
    background must have one colour that differs clearly from the leaf's.
    """
    if not _LEAST_LEAF <= mask.mean() <= _MOST_LEAF:
        return False
    pieces, _ = ndimage.label(mask)
    if np.bincount(pieces.ravel())[1:].max() < _LARGEST_PIECE * mask.sum():
        return False
    width = max(1, round(_RIM * min(mask.shape)))
    rim = np.ones_like(mask)
    rim[width:-width, width:-width] = False
    if (~mask[rim]).mean() < _GROUND_AT_RIM:
        return False
    colour = _leaf_colour(photo)
    low, middle, high = np.percentile(colour[~mask], (10, 50, 90))
    return bool(high - low <= _GROUND_SPREAD * (np.median(colour[mask]) - middle))


def _leaf_colour(photo: Photo) -> NDArray[np.float32]:
    """Returns the smoothed share of green or yellow in each pixel's light, `(H, W)`."""
    red, green, blue = np.moveaxis(photo.astype(np.float32), -1, 0)
    coloured = np.maximum((red + green) / 2 - blue, (2 * green - red - blue) / 2)
    # Divide by the light, or dark leaves would count as ground. The offset excludes deep shadow: its colours are noise.
    share = coloured / (red + green + blue + _DARK)
    return np.asarray(ndimage.gaussian_filter(share, _SMOOTH * min(photo.shape[:2])))


def otsu_threshold(values: NDArray[np.floating]) -> float:
    """Finds the threshold that divides values into two groups with the least variance within them (Otsu 1979, eq. 12).

    If all values are equal, it returns this value.

    Example:
        >>> 2 < otsu_threshold(np.array([1.0, 1.1, 1.2, 8.0, 8.1])) < 8
        True
    """
    if values.min() == values.max():
        return float(values.min())
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    best = np.flatnonzero(between == np.nanmax(between))
    # If a gap separates the groups, all thresholds in the gap are equally good: take the middle one.
    return float(edges[1 + best[len(best) // 2]])


MOST_PHOTOS = 500
_BATCH = 64
# Shorter side at which photos are corrupted; larger ones are scaled down to it, smaller ones stay as they are.
_SIDE_PX = 448
# Least share of photos with a trusted mask. If there are fewer, they differ from the others (such as leaves on paper).
LEAST_MASKED_SHARE = 0.5


@dataclass(frozen=True)
class UnderCorruption:
    """Accuracy of a model under one corruption, at each of its strengths."""

    name: str  # name of the corruption
    unit: str  # what the strengths measure, in words
    strengths: tuple[float, ...]  # from weak to strong
    accuracies: tuple[float, ...]  # the accuracy at each strength, 0 to 1


@dataclass(frozen=True)
class RobustnessResult:
    """A model's accuracy on corrupted and on masked photos."""

    photos: int  # number of photos used
    accuracy: float  # accuracy on these photos without corruption, 0 to 1
    accuracy_ci95: Interval  # 95 % interval of `accuracy`
    corruptions: tuple[UnderCorruption, ...]  # accuracies under each corruption
    mean_corrupted_accuracy: float  # mean over all corruptions and strengths, 0 to 1
    # Number of photos in which one leaf on a plain background was found. If they are at least half of the photos, the
    # attributes below are measured on them; else the next three are None.
    masked_photos: int
    # Accuracy if the leaf is masked and only the background is visible, 0 to 1. Above `chance`, the model uses the
    # background or the outline of the mask.
    leaf_masked_accuracy: float | None
    leaf_masked_ci95: Interval | None  # 95 % interval of `leaf_masked_accuracy`
    ground_masked_accuracy: float | None  # accuracy if the background is masked and only the leaf is visible, 0 to 1
    chance: float  # share of the most frequent class, 0 to 1: the accuracy of one answer for all photos


def robustness(
    backend: Backend,
    samples: Sequence[Sample],
    root: Path,
    *,
    most_photos: int = MOST_PHOTOS,
    corruptions: Sequence[Corruption] = CORRUPTIONS,
    progress: ProgressCallback = silent,
) -> RobustnessResult:
    """Measures the accuracy of a model on photos under every corruption, and with the leaf or the background masked.

    At most `most_photos` evenly spaced photos are used. Every model sees the same corrupted photos, scaled to its input
    size: photos are corrupted at one size for all models, and the random numbers of a corruption depend on the photo's
    path only. Raises a DataError if there are no photos, or one of them cannot be read.
    """
    if not samples:
        raise DataError("at least 1 photo to measure robustness", "none", "choose another split")
    begin(progress, "measuring robustness")
    chosen = [samples[index] for index in np.unique(np.linspace(0, len(samples) - 1, most_photos).round().astype(int))]
    target, leaf_ids = np.array([sample.label for sample in chosen]), [sample.leaf_id for sample in chosen]
    photos = [_photo(root / sample.path) for sample in chosen]
    masks = [leaf_mask(photo) for photo in photos]
    found = np.array([is_trustworthy(*one) for one in zip(photos, masks, strict=True)])
    masked = np.flatnonzero(found) if found.sum() >= LEAST_MASKED_SHARE * len(chosen) else np.empty(0, int)
    strengths = sum(len(corruption.strengths) for corruption in corruptions)
    correct = _Classifier(backend, len(chosen) * (1 + strengths) + 2 * len(masked), progress)

    def under(corruption: Corruption) -> UnderCorruption:
        accuracies = []
        for strength in corruption.strengths:
            spoilt = (
                corruption.apply(photo, strength, _rng(sample)) for photo, sample in zip(photos, chosen, strict=True)
            )
            accuracies.append(float(correct(spoilt, target).mean()))
        return UnderCorruption(corruption.name, corruption.unit, tuple(corruption.strengths), tuple(accuracies))

    # Read the files as for any prediction: photos scaled for corruptions differ a little.
    clean = correct((root / sample.path for sample in chosen), target)
    tried = tuple(under(corruption) for corruption in corruptions)
    ground = correct((without_leaf(photos[one], masks[one]) for one in masked), target[masked])
    leaf = correct((without_ground(photos[one], masks[one]) for one in masked), target[masked])
    labels = target[masked] if len(masked) else target
    return RobustnessResult(
        photos=len(chosen),
        accuracy=float(clean.mean()),
        accuracy_ci95=accuracy_interval(clean, leaf_ids),
        corruptions=tried,
        mean_corrupted_accuracy=float(np.mean([accuracy for one in tried for accuracy in one.accuracies])),
        masked_photos=int(found.sum()),
        leaf_masked_accuracy=float(ground.mean()) if len(masked) else None,
        leaf_masked_ci95=accuracy_interval(ground, [leaf_ids[one] for one in masked]) if len(masked) else None,
        ground_masked_accuracy=float(leaf.mean()) if len(masked) else None,
        chance=float(np.bincount(labels).max() / len(labels)),
    )


class _Classifier:
    """Checks which photos a model classifies correctly, and reports progress over all calls."""

    def __init__(self, backend: Backend, total: int, progress: ProgressCallback) -> None:
        self.backend, self.total, self.progress, self.done = backend, total, progress, 0

    def __call__(self, photos: Iterable[PhotoSource], target: NDArray[np.int64]) -> NDArray[np.bool_]:
        preds: list[np.int64] = []
        for _, found in compute_photos(self.backend, photos, batch_size=_BATCH):
            if isinstance(found, PhotoError):
                raise found
            preds.append(found.logits.argmax(axis=-1))
            self.done += 1
            self.progress(self.done, self.total)
        return np.asarray(np.array(preds, np.int64) == target)


def _rng(sample: Sample) -> np.random.Generator:
    digest = sha256(sample.path.encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng(int.from_bytes(digest[:8]))


def without_leaf(photo: Photo, mask: NDArray[np.bool_]) -> Photo:
    """Returns a copy of a photo with the leaf in the ground's median colour; `mask` `(H, W)` is True on the leaf."""
    filled = photo.copy()
    filled[mask] = np.median(photo[~mask], axis=0).astype(np.uint8)
    return filled


def without_ground(photo: Photo, mask: NDArray[np.bool_]) -> Photo:
    """Returns a copy of a photo with a medium grey background; `mask` `(H, W)` is True on the leaf."""
    filled = photo.copy()
    filled[~mask] = 128
    return filled


def _photo(path: Path) -> Photo:
    image = read_photo(path, shorter_side=_SIDE_PX)
    factor = _SIDE_PX / min(image.size)
    if factor < 1:
        image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    return np.array(image)
