"""Which pixels of a photo are leaf, where a single leaf lies on a plain, grey ground, as PlantVillage's do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from agridistill.evaluation.corruptions import Photo

_SMOOTH, _MARGIN = 0.01, 0.02  # shares of the shorter side
_DARK = 60.0  # levels, of three channels together
_LEAST_PIECE = 0.1
# A mask is trusted between these. On 400 photos each: 94 % of PlantVillage's tomatoes, 24 % of black gram in the field
# (those on paper, cloth or soil); of the latter every mask that was looked at covers the leaf.
_LEAST_LEAF, _MOST_LEAF = 0.05, 0.75  # of the photo's area
_LARGEST_PIECE = 0.8  # of the mask's area: one leaf
_RIM, _GROUND_AT_RIM = 0.05, 0.8  # width, as a share of the shorter side; share of it that is ground
_GROUND_SPREAD = 0.4  # of the ground's colour, in units of its distance from the leaf's


def leaf_mask(photo: Photo) -> NDArray[np.bool_]:
    """The leaf's pixels, holes filled, with a margin for its soft edge.

    Leaves are greener or yellower than the grey and purple ground, lesions yellower. That share of a pixel's light is
    smoothed and divided in two by Otsu's threshold; the largest piece, and what is not far smaller, is leaf. On a
    ground of plants or wood the mask is meaningless: `is_trustworthy` tells.

    Args:
        photo: `(H, W, 3)` uint8.

    Returns:
        `(H, W)`.
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

    Args:
        photo: `(H, W, 3)` uint8.
        mask: `(H, W)`, of `leaf_mask`.
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


def otsu_threshold(values: NDArray[np.floating], bins: int = 256) -> float:
    """The threshold that parts values into two groups of least variance within (Otsu 1979, equation 12).

    Args:
        values: of any shape; of one value alone, that value.
        bins: of the histogram.

    Example:
        >>> 2 < otsu_threshold(np.array([1.0, 1.1, 1.2, 8.0, 8.1])) < 8
        True
    """
    if values.min() == values.max():
        return float(values.min())
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    best = np.flatnonzero(between == np.nanmax(between))
    # An empty gap between the groups gives many equal thresholds: the middle of it.
    return float(edges[1 + best[len(best) // 2]])
