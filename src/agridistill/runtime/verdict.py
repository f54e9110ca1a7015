"""Judges how reliable a predicted label is: checks of the photo's quality and content, and the resulting verdict."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from agridistill.errors import ModelError

if TYPE_CHECKING:
    # preprocess loads Pillow, which `agridistill status` does not need.
    from agridistill.preprocess import Pixels

Verdict = Literal["answer", "unsure", "unfamiliar", "unusable"]
""""answer": the probability reaches the threshold. "unsure": it does not. "unfamiliar": the photo is unlike the
training photos. "unusable": the photo failed the quality gate."""

_UNFAMILIAR = "unlike the photos that the model learnt from"

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_WHITE = 250
# A pixel has a leaf's colour if green or yellow exceeds blue by this share of its brightness; grey ground does not.
_COLOURED, _DARK = 0.08, 60.0
# If data is missing, a decoder repeats its last row or fills the rest with one colour, over nearly the whole width.
# Exact black and white do not count, because cut-out leaves have such a background; nor does a picture in which
# nearly all rows are equal.
_SAME, _BLACK, _WHOLE_WIDTH, _WHOLE_HEIGHT = 1, 8, 0.8, 0.9


@dataclass(frozen=True)
class _From0To:
    """A range for pydantic, which checks a device's settings; its own would take 25 ms of each first prediction."""

    le: float
    ge: float = 0.0

    def __get_pydantic_core_schema__(self, kind: Any, handler: Callable[[Any], Any]) -> Any:
        return {**handler(kind), "ge": self.ge, "le": self.le}


_Share = Annotated[float, _From0To(1)]

_CELLS = 3
_PIXELS_A_SIDE = 75
FIGURES = 6 * _CELLS * _CELLS
# Without shrinkage, a correlation of 1 between two figures would make the distance of any deviation infinite.
_SHRINKAGE = 0.03
# Two in a hundred of our tomato photos are unusual and score higher than most pictures of other things: a limit that
# accepts them would accept those pictures as well (docs/results.md).
_FAMILIAR_SHARE = 0.96


@dataclass(frozen=True)
class QualitySettings:
    """Limits beyond which a photo is too poor to classify; the defaults refuse almost no photo of our tomato data."""

    darkest: Annotated[float, _From0To(255)] = 50.0  # level that the brightest 5 % of the pixels must reach
    brightest: _Share = 0.35  # largest share of overexposed (white) pixels
    blurriest: Annotated[float, _From0To(10)] = 0.06  # least ratio of fine detail to the photo's contrast
    least_leaf: _Share = 0.01  # least share of pixels with a leaf's colours; 0 for plants of other colours
    smeared: _Share = 0.15  # largest share of consecutive rows that repeat the row above (the decoder lost data)


def quality_problem(pixels: Pixels, settings: QualitySettings) -> str:
    """Returns the first limit that the model's input `(S, S, 3)` uint8 breaks, in words, or "" if it breaks none.

    The words are "too dark", "too bright", "no leaf to be seen", "blurred" and "smeared or cut off".

    Example:
        >>> quality_problem(np.zeros((64, 64, 3), np.uint8), QualitySettings())
        'too dark'
    """
    light = pixels @ _LUMA
    if _brightest(light[::2, ::2]) < settings.darkest:
        return "too dark"
    # With a plane for each colour, numpy computes several times as fast as with the three colours of each pixel.
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    sparse = np.ascontiguousarray(planes[:, ::2, ::2])
    if float((sparse.min(axis=0) > _WHITE).mean()) > settings.brightest:
        return "too bright"
    if _leaf_share(sparse) < settings.least_leaf:
        return "no leaf to be seen"
    if _sharpness(light) < settings.blurriest:
        return "blurred"
    if settings.smeared < _repeated_share(planes) < _WHOLE_HEIGHT:
        return "smeared or cut off"
    return ""


@dataclass(frozen=True)
class Familiarity:
    """Detects photos unlike the training photos, by a normal distribution of their `figures` (light, colour, texture).

    Source: Lee et al. 2018, equation 2, with a single class. The distance from this distribution separates leaves from
    other pictures with an AUROC of 0.97. Energy (Liu et al. 2020) and the largest probability reach 0.7 to 0.8
    (docs/results.md).
    """

    mean: NDArray[np.float64]  # (54,)
    whitening: NDArray[np.float64]  # (54, 54), lower triangular; deviations multiplied by it have unit covariance
    limit: float  # squared distance that one in 25 validation photos exceeds

    def ood_score(self, pixels: Pixels) -> float:
        """Returns how unlike the training photos a photo `(S, S, 3)` uint8 is: 0 or more; above 1 it is unfamiliar."""
        deviation = self.whitening @ (figures(pixels) - self.mean)
        return float(deviation @ deviation) / self.limit

    def to_json(self) -> dict[str, Any]:
        """Returns the manifest's `familiarity`: "mean", "whitening" (the lower triangle row by row) and "limit"."""
        rows = np.tril_indices(FIGURES)
        mean, whitening = ([float(f"{one:.7g}") for one in each] for each in (self.mean, self.whitening[rows]))
        return {"mean": mean, "whitening": whitening, "limit": self.limit}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Familiarity:
        """Makes a `Familiarity` from a document that `to_json` returned; a ModelError says what is wrong with it."""
        try:
            mean = np.asarray(document["mean"], np.float64)
            lower = np.asarray(document["whitening"], np.float64)
            limit = float(document["limit"])
            whitening = np.zeros((FIGURES, FIGURES))
            whitening[np.tril_indices(FIGURES)] = lower
            if mean.shape != (FIGURES,) or not (np.isfinite(mean).all() and np.isfinite(lower).all() and limit > 0):
                raise ValueError("values out of range or of another number")
        except (KeyError, TypeError, ValueError) as error:
            expected = "finite 'mean' and 'whitening' and a 'limit' above 0 in the manifest's familiarity"
            got = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ModelError(expected, got, "export the model again") from None
        return cls(mean, whitening, limit)


def fit_familiarity(training: Sequence[NDArray[np.float64]], held_out: Sequence[NDArray[np.float64]]) -> Familiarity:
    """Fits a `Familiarity` to the `figures` of at least 2 training photos, its limit to those of other photos."""
    rows = np.stack(training)
    mean, deviation = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-6)
    scaled = (rows - mean) / deviation
    correlation = (1 - _SHRINKAGE) * (scaled.T @ scaled) / len(rows) + _SHRINKAGE * np.eye(FIGURES)
    whitening = np.linalg.inv(np.linalg.cholesky(correlation)) / deviation
    distances = (((np.stack(held_out) - mean) @ whitening.T) ** 2).sum(axis=1)
    return Familiarity(mean, whitening, float(max(np.quantile(distances, _FAMILIAR_SHARE), 1e-9)))


def figures(pixels: Pixels) -> NDArray[np.float64]:
    """Describes light, colour and texture of a photo `(S, S, 3)` uint8 by 54 numbers; returns `(54,)` float64.

    There are six numbers for each of 3 x 3 cells: the brightness, the shares of red and green, and the logarithms of
    the spread of brightness, of the spread of colour and of the mean difference between neighbouring pixels.

    Raises:
        ModelError: the photo has a side of less than 3 px.
    """
    if len(pixels) < _CELLS:
        raise ModelError(f"an image_size of at least {_CELLS} px", f"{len(pixels)} px", "correct the manifest")
    step = max(1, len(pixels) // _PIXELS_A_SIDE)
    side = -(-len(pixels) // step) // _CELLS
    points = pixels[::step, ::step][: _CELLS * side, : _CELLS * side]
    planes = np.ascontiguousarray(points.transpose(2, 0, 1)) * np.float32(1 / 255)
    light = planes.mean(axis=0)
    steps = np.zeros_like(light)
    steps[:, 1:] += np.abs(light[:, 1:] - light[:, :-1])
    steps[1:] += np.abs(light[1:] - light[:-1])
    # Two matrix products compute the mean of each cell in each plane.
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


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for one photo, with everything that shows how reliable it is."""

    label: str  # the most probable class
    probability: float  # probability of the label, 0 to 1, calibrated by the manifest's temperature
    top: tuple[tuple[str, float], ...]  # the most probable classes with their probabilities, best first
    abstained: bool  # whether the probability is below the threshold, so that the label is only a guess
    ood_score: float | None = None  # above 1 the photo is unlike the training photos; None if these are unknown
    probabilities: tuple[float, ...] = ()  # probabilities of all classes, in the manifest's order
    problem: str = ""  # what the quality gate found, such as "too dark"; "" if it found nothing
    threshold: float = 0.0  # the manifest's threshold

    @property
    def unfamiliar(self) -> bool:
        """Whether the photo is unlike the training photos, so that the label means nothing."""
        return self.ood_score is not None and self.ood_score > 1

    @property
    def verdict(self) -> Verdict:
        """How reliable the label is.

        "unusable" if the photo is too poor, else "unfamiliar" if it is unlike the training photos, else "unsure" if the
        probability is below the threshold, else "answer".
        """
        if self.problem:
            return "unusable"
        if self.unfamiliar:
            return "unfamiliar"
        return "unsure" if self.abstained else "answer"

    @property
    def reason(self) -> str:
        """Why the verdict is not "answer", in words such as "too dark"; "" if it is."""
        unsure = f"probability {self.probability:.2f}, threshold {self.threshold:.2f}"
        reasons = {"unusable": self.problem, "unfamiliar": _UNFAMILIAR, "unsure": unsure, "answer": ""}
        return reasons[self.verdict]

    @property
    def words(self) -> str:
        """The prediction as a text, such as "Late blight 93 %", "unsure (Late blight 41 %)" or "unusable: too dark"."""
        return verdict_words(self.verdict, self.reason, self.top)


def verdict_words(verdict: Verdict, reason: str, top: Sequence[tuple[str, float]]) -> str:
    """Writes a verdict as a text; only the texts of "unusable" and "unfamiliar" contain the reason.

    Example:
        >>> verdict_words("answer", "", [("Late_blight", 0.931)])
        'Late blight 93 %'
        >>> verdict_words("unsure", "probability 0.41, threshold 0.60", [("Late_blight", 0.41), ("healthy", 0.3)])
        'unsure (Late blight 41 %, healthy 30 %)'
        >>> verdict_words("unusable", "too dark", [])
        'unusable: too dark'
    """
    classes = ", ".join(f"{plain_label(label)} {percent_words(probability)}" for label, probability in top)
    words: dict[Verdict, str] = {
        "answer": classes,
        "unsure": f"unsure ({classes})",
        "unusable": f"unusable: {reason}",
        "unfamiliar": f"unfamiliar: {reason} ({classes})",
    }
    return words[verdict]


def plain_label(label: str) -> str:
    """Makes a class name readable: "___" and "/" become ": ", underscores become spaces.

    Example:
        >>> plain_label("Tomato___Late_blight"), plain_label("Tomato/Late_blight"), plain_label("leaf_mold")
        ('Tomato: Late blight', 'Tomato: Late blight', 'leaf mold')
    """
    parts = [" ".join(part.replace("_", " ").split()) for part in re.split("___|/", label)]
    return ": ".join(part for part in parts if part) or label


def percent_words(probability: float) -> str:
    """Formats a probability, 0 to 1, in whole per cent; never as 0 % or 100 %, because no model is certain.

    Example:
        >>> percent_words(0.931), percent_words(0.9999), percent_words(0.005)
        ('93 %', 'over 99 %', 'under 1 %')
    """
    if probability >= 0.995:
        return "over 99 %"
    percent = f"{100 * probability:.0f}"
    return "under 1 %" if percent == "0" else f"{percent} %"


def _brightest(light: NDArray[np.float32]) -> float:
    """Returns the same 0.95 quantile as `np.quantile`, which would delay the first answer by importing `numpy.ma`."""
    place = 0.95 * (light.size - 1)
    below, part = int(place), place - int(place)
    above = min(below + 1, light.size - 1)
    values = np.partition(light, (below, above), axis=None)
    low, high = values[below], values[above]
    return float(low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part))


def _repeated_share(planes: Pixels) -> float:
    """Returns the longest run of rows in `(3, S, S)` that repeat the row above, as a share of the height, 0 to 1."""
    rows, height = planes[:, 1:], len(planes[0])
    # Differences from -1 to 1 become 0 to 2, and all others wrap around to 3 to 255.
    steps: Pixels = rows - planes[:, :-1] + np.uint8(_SAME)
    repeats = (steps <= 2 * _SAME).all(axis=0) & (rows > _BLACK).any(axis=0) & (rows < _WHITE).any(axis=0)
    ends = np.flatnonzero(repeats.mean(axis=1) < _WHOLE_WIDTH)
    return float(np.diff(ends, prepend=-1, append=height - 1).max() - 1) / height


def _sharpness(light: NDArray[np.float32]) -> float:
    """Returns the root mean square of the Laplacian divided by the standard deviation (Pech-Pacheco et al. 2000)."""
    if min(light.shape) < 3:
        return 0.0
    inner = light[1:-1, 1:-1]
    laplacian = light[1:-1, 2:] + light[1:-1, :-2] + light[2:, 1:-1] + light[:-2, 1:-1] - 4 * inner
    return float(np.sqrt((laplacian**2).mean()) / (light.std() + 4))


def _leaf_share(planes: Pixels) -> float:
    red, green, blue = planes.astype(np.float32)
    coloured = np.maximum((red + green) / 2 - blue, (2 * green - red - blue) / 2)
    return float((coloured > _COLOURED * (red + green + blue + _DARK)).mean())
