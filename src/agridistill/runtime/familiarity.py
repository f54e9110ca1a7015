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
# Of our tomato photos two in a hundred are odd themselves, and lie further out than most other pictures do: a limit
# that lets them pass lets those pass, too (docs/results.md).
_FAMILIAR_SHARE = 0.96


@dataclass(frozen=True)
class Familiarity:
    """What training photos look like, as figures.

    Attributes:
        mean: `(54,)` of the training photos' figures.
        whitening: `(54, 54)`, lower triangular: turns a deviation into one of unit covariance.
        limit: squared distance that one in 25 validation photos exceeds.
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
    return Familiarity(mean, whitening, float(max(np.quantile(distances, _FAMILIAR_SHARE), 1e-9)))


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
    side = len(photo) // _CELLS
    planes = photo[: _CELLS * side, : _CELLS * side].transpose(2, 0, 1)
    light = planes.mean(axis=0)
    steps = np.zeros_like(light)
    steps[:, 1:] += np.abs(light[:, 1:] - light[:, :-1])
    steps[1:] += np.abs(light[1:] - light[:-1])
    # Of each plane the mean of each cell, by two products.
    pick = np.kron(np.eye(_CELLS, dtype=np.float32), np.full(side, 1 / side, np.float32))
    means = pick @ np.concatenate([planes, (light**2)[None], (planes - light) ** 2, steps[None]]) @ pick.T
    rgb, square, colour_squares, step_mean = means[:3], means[3], means[4:7], means[7]
    total = rgb.sum(axis=0)
    share = 3 * rgb[:2] / (total + 0.2)
    light_spread = np.sqrt(np.maximum(square - (total / 3) ** 2, 0))
    colour_spread = np.sqrt(np.maximum(colour_squares - (rgb - total / 3) ** 2, 0)).mean(axis=0)
    parts = (
        share.transpose(1, 2, 0),
        total,
        np.log(light_spread + 0.01),
        np.log(step_mean + 0.003),
        np.log(colour_spread + 0.005),
    )
    return np.concatenate([part.ravel() for part in parts]).astype(np.float64)
