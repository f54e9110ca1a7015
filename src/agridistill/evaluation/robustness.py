"""How a model's accuracy holds under corruptions, and where the leaf or the ground of its photos is masked.

Which pixels are leaf is known where a single leaf lies on a plain, grey ground, as PlantVillage's do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

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
from agridistill.runtime.backends import Backend, checked_logits
from agridistill.runtime.reading import PhotoSource, read_batches

_SMOOTH, _MARGIN = 0.01, 0.02  # shares of the shorter side
_DARK = 60.0  # levels, the sum of three channels
_LEAST_PIECE = 0.1
# A mask is trusted between these. On 400 photos each: 94 % of PlantVillage's tomatoes, 24 % of black gram in the field
# (those on paper, cloth or soil); of the latter every mask that was looked at covers the leaf.
_LEAST_LEAF, _MOST_LEAF = 0.05, 0.75  # of the photo's area
_LARGEST_PIECE = 0.8  # of the mask's area: one leaf
_RIM, _GROUND_AT_RIM = 0.05, 0.8  # width, as a share of the shorter side; share of it that is ground
_GROUND_SPREAD = 0.4  # of the ground's colour, in units of its distance from the leaf's


def leaf_mask(photo: Photo) -> NDArray[np.bool_]:
    """The leaf's pixels `(H, W)` of a photo `(H, W, 3)` uint8, holes filled, with a margin for its soft edge.

    Leaves are greener or yellower than the grey and purple ground, lesions yellower. That share of a pixel's light is
    smoothed and divided in two by Otsu's threshold; the largest piece, and what is not far smaller, is leaf. On a
    ground of plants or wood the mask is meaningless, see `is_trustworthy`.
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
    """Whether `leaf_mask` has found one whole leaf on a plain ground.

    It has where the mask is mostly one piece of plausible area, the photo's rim is nearly all ground, and the ground
    has one colour, far from the leaf's.
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
    """How much of each pixel's light is green or yellow, smoothed; `(H, W)`."""
    red, green, blue = np.moveaxis(photo.astype(np.float32), -1, 0)
    coloured = np.maximum((red + green) / 2 - blue, (2 * green - red - blue) / 2)
    # Per light, or dark leaves would be ground; the offset keeps deep shadow, whose colours are noise, out.
    share = coloured / (red + green + blue + _DARK)
    return np.asarray(ndimage.gaussian_filter(share, _SMOOTH * min(photo.shape[:2])))


def otsu_threshold(values: NDArray[np.floating]) -> float:
    """The threshold that parts values into two groups of least variance within (Otsu 1979, equation 12).

    Where all values are the same, that value.

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
    # An empty gap between the groups gives many equal thresholds: the middle of it.
    return float(edges[1 + best[len(best) // 2]])


MOST_PHOTOS = 500
_BATCH = 64
# Shorter side at which photos are corrupted; larger ones are scaled down to it, smaller ones stay as they are.
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
    """Accuracy of one model on the same photos under every corruption.

    Photos are corrupted at one size for all models, and what is random about a corruption depends on the photo alone:
    every model sees the same, at its own input size.

    Args:
        backend: the model.
        samples: labelled photos, of which `most_photos` evenly spaced ones are taken.
        root: the folder that their paths start from.
        corruptions: that are tried.
        progress: called with (photos classified, in all).

    Raises:
        DataError: no photos, or one that cannot be read.
    """
    if not samples:
        raise DataError("labelled photos to corrupt", "none", "choose another split")
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

    # From the files, as the model would see them: what is scaled for corruptions is not quite the same.
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
    """Says which photos a model classifies rightly, and reports progress over all calls."""

    def __init__(self, backend: Backend, total: int, progress: ProgressCallback) -> None:
        self.backend, self.total, self.progress, self.done = backend, total, progress, 0

    def __call__(self, photos: Iterable[PhotoSource], target: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of the N photos is classified as in `target` `(N,)`."""
        preds = [np.empty(0, np.int64)]
        for batch in read_batches(photos, self.backend.manifest.preprocessing, batch_size=_BATCH):
            pixels = []
            for _, read in batch:
                if isinstance(read, PhotoError):
                    raise read
                pixels.append(read)
            preds.append(checked_logits(self.backend, np.stack(pixels)).argmax(axis=1))
            self.done += len(batch)
            self.progress(self.done, self.total)
        return np.asarray(np.concatenate(preds) == target)


def _rng(sample: Sample) -> np.random.Generator:
    """The same random numbers for a photo, whatever the model and the other photos."""
    digest = sha256(sample.path.encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng(int.from_bytes(digest[:8]))


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
