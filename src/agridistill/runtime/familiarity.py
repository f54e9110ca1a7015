"""Whether a photo is like those that a model learnt from: what is not, gets no trust, however sure the model is.

A classifier's own scores say little about it: on our tomato model energy (Liu et al. 2020) and the greatest probability
tell leaves from other pictures with an AUROC of 0.7 to 0.8. How light, colour and texture are spread over the photo
tells it with 0.97 (docs/results.md): the Mahalanobis distance (Lee et al. 2018, equation 2, of one class) of 54 such
figures from those of the training photos. It costs a few tenths of a millisecond and needs nothing of the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agridistill.errors import ModelError
from agridistill.preprocess import Pixels

_CELLS = 3
_PIXELS_A_SIDE = 75
FIGURES = 6 * _CELLS * _CELLS
# A correlation of 1 between two figures would make any deviation infinitely strange.
_SHRINKAGE = 0.03
_DIGITS = 7


@dataclass(frozen=True)
class Familiarity:
    """What training photos look like, as figures.

    Attributes:
        mean: `(54,)` of the training photos' figures.
        whitening: `(54, 54)`, lower triangular: turns a deviation into one of unit covariance.
        limit: squared distance that one in a hundred validation photos exceeds.
    """

    mean: NDArray[np.float64]
    whitening: NDArray[np.float64]
    limit: float

    def strangeness(self, pixels: Pixels) -> float:
        """How far a photo is from the training photos: up to 1 familiar, above 1 not.

        Args:
            pixels: `(S, S, 3)` uint8, as the model gets them.
        """
        deviation = self.whitening @ (figures(pixels) - self.mean)
        return float(deviation @ deviation) / self.limit

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest: the lower triangle row by row."""
        rows = np.tril_indices(FIGURES)
        return {
            "mean": [float(f"{value:.{_DIGITS}g}") for value in self.mean],
            "whitening": [float(f"{value:.{_DIGITS}g}") for value in self.whitening[rows]],
            "limit": self.limit,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Familiarity:
        """Reads what `to_json` wrote.

        Raises:
            ModelError: wrong fields, or figures of another number.
        """
        try:
            mean = np.asarray(document["mean"], np.float64)
            lower = np.asarray(document["whitening"], np.float64)
            limit = float(document["limit"])
            whitening = np.zeros((FIGURES, FIGURES))
            whitening[np.tril_indices(FIGURES)] = lower
            if mean.shape != (FIGURES,) or not (np.isfinite(mean).all() and np.isfinite(lower).all() and limit > 0):
                raise ValueError(f"{FIGURES} finite means and a limit above 0")
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError("the figures of familiar photos in the manifest", str(error), "export again") from None
        return cls(mean, whitening, limit)


def fit_familiarity(training: Sequence[NDArray[np.float64]], held_out: Sequence[NDArray[np.float64]]) -> Familiarity:
    """What photos look like, from the `figures` of some.

    Args:
        training: of photos that the model learnt from, at least 2.
        held_out: of others of the same kind, at least 1: what is learnt lies nearer than what is met.

    Raises:
        ValueError: too few.
    """
    if len(training) < 2 or not held_out:
        raise ValueError(f"expected 2 training photos and 1 other, got {len(training)} and {len(held_out)}")
    rows = np.stack(training)
    mean, deviation = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-6)
    scaled = (rows - mean) / deviation
    correlation = (1 - _SHRINKAGE) * (scaled.T @ scaled) / len(rows) + _SHRINKAGE * np.eye(FIGURES)
    whitening = np.linalg.inv(np.linalg.cholesky(correlation)) / deviation
    distances = (((np.stack(held_out) - mean) @ whitening.T) ** 2).sum(axis=1)
    return Familiarity(mean, whitening, float(max(np.quantile(distances, 0.99), 1e-9)))


def figures(pixels: Pixels) -> NDArray[np.float64]:
    """How light, colour and texture are spread over a photo.

    For each of 3 x 3 cells: light, two shares of colour, and the logarithms of the spread of light, of the spread of
    colour and of the mean step between neighbouring pixels.

    Args:
        pixels: `(S, S, 3)` uint8.

    Returns:
        `(54,)`.

    Raises:
        ModelError: a photo of less than 3 px.
    """
    if len(pixels) < _CELLS:
        raise ModelError(f"photos of {_CELLS} px and more", f"{len(pixels)} px", "correct the manifest's image_size")
    step = max(1, len(pixels) // _PIXELS_A_SIDE)
    photo = pixels[::step, ::step].astype(np.float32) * np.float32(1 / 255)
    side = max(1, len(photo) // _CELLS)
    photo = photo[: _CELLS * side, : _CELLS * side]
    light = photo.mean(axis=-1)
    colour = photo - light[..., None]
    steps = np.zeros_like(light)
    steps[:, 1:] += np.abs(light[:, 1:] - light[:, :-1])
    steps[1:] += np.abs(light[1:] - light[:-1])
    mean = _of_cells(photo, side)
    total = mean.sum(axis=-1)
    share = 3 * mean[..., :2] / (total + 0.2)[..., None]
    light_spread = _spread(_of_cells(light * light, side), _of_cells(light, side))
    colour_spread = _spread(_of_cells(colour * colour, side), _of_cells(colour, side)).mean(axis=-1)
    parts = (
        share,
        total,
        np.log(light_spread + 0.01),
        np.log(_of_cells(steps, side) + 0.003),
        np.log(colour_spread + 0.005),
    )
    return np.concatenate([part.ravel() for part in parts]).astype(np.float64)


def _of_cells(values: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    shape = (len(values) // side, side, values.shape[1] // side, side, *values.shape[2:])
    return np.asarray(values.reshape(shape).mean(axis=(1, 3)))


def _spread(mean_square: NDArray[np.float32], mean: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.sqrt(np.maximum(mean_square - mean * mean, 0))
