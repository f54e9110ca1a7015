"""Quality gate: photos that no model should be asked about, in numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agridistill.errors import ConfigError
from agridistill.preprocess import Pixels

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_WHITE = 250
# Of a leaf's pixel: so much more green or yellow than blue, as a share of its light; grounds of grey have none.
_COLOURED, _DARK = 0.08, 60.0
# A decoder that misses data repeats the last row it has, or fills with one colour, over nearly the whole width. Cut-out
# leaves lie on exact black or white as well, and a picture of rows alone is no damaged photo.
_SAME, _BLACK, _WHOLE_WIDTH, _WHOLE_HEIGHT = 1, 8, 0.8, 0.9


@dataclass(frozen=True)
class QualitySettings:
    """Limits, chosen so that of our tomato photos hardly any is refused (docs/field.md).

    Attributes:
        darkest: the brightest twentieth of the photo has to reach this level, 0 to 255.
        brightest: share of the photo that may be burnt out to white, 0 to 1.
        blurriest: least ratio of the fine steps in the photo to its contrast.
        least_leaf: share of the photo that has to have a leaf's colours, 0 to 1; 0 for plants of other colours.
        smeared: share of the height whose rows may repeat the row above, 0 to 1: what decoders make of lost data.
    """

    darkest: float = 50.0
    brightest: float = 0.35
    blurriest: float = 0.06
    least_leaf: float = 0.01
    smeared: float = 0.15

    def __post_init__(self) -> None:
        for name, value, most in (
            ("darkest", self.darkest, 255.0),
            ("brightest", self.brightest, 1.0),
            ("blurriest", self.blurriest, 10.0),
            ("least_leaf", self.least_leaf, 1.0),
            ("smeared", self.smeared, 1.0),
        ):
            if not 0 <= value <= most:
                raise ConfigError(f"quality.{name} from 0 to {most:g}", f"{value:g}", "correct it")


def quality_problem(pixels: Pixels, settings: QualitySettings) -> str:
    """What is wrong with a photo, in words; "" where nothing is.

    Args:
        pixels: `(S, S, 3)` uint8, as the model gets them: blur that it cannot see does no harm.
        settings: limits.

    Example:
        >>> quality_problem(np.zeros((64, 64, 3), np.uint8), QualitySettings())
        'too dark'
    """
    light = pixels @ _LUMA
    if float(np.quantile(light[::2, ::2], 0.95)) < settings.darkest:
        return "too dark"
    if float((pixels[::2, ::2].min(axis=-1) > _WHITE).mean()) > settings.brightest:
        return "too bright"
    if _leaf_share(pixels) < settings.least_leaf:
        return "no leaf to be seen"
    if _sharpness(light) < settings.blurriest:
        return "blurred"
    if settings.smeared < _repeated_share(pixels) < _WHOLE_HEIGHT:
        return "smeared or cut off"
    return ""


def _repeated_share(pixels: Pixels) -> float:
    """The longest run of rows that repeat the row above them, as a share of the height."""
    rows = pixels[1:]
    steps = np.abs(rows.astype(np.int16) - pixels[:-1]).max(axis=-1)
    told = (rows.max(axis=-1) > _BLACK) & (rows.min(axis=-1) < _WHITE)
    ends = np.flatnonzero(((steps <= _SAME) & told).mean(axis=1) < _WHOLE_WIDTH)
    return float(np.diff(ends, prepend=-1, append=len(rows)).max() - 1) / len(pixels)


def _sharpness(light: NDArray[np.float32]) -> float:
    """Root mean square of the Laplacian, relative to the standard deviation (after Pech-Pacheco et al. 2000)."""
    if min(light.shape) < 3:
        return 0.0
    inner = light[1:-1, 1:-1]
    laplacian = light[1:-1, 2:] + light[1:-1, :-2] + light[2:, 1:-1] + light[:-2, 1:-1] - 4 * inner
    return float(np.sqrt((laplacian**2).mean()) / (light.std() + 4))


def _leaf_share(pixels: Pixels) -> float:
    red, green, blue = np.moveaxis(pixels[::2, ::2].astype(np.float32), -1, 0)
    coloured = np.maximum((red + green) / 2 - blue, (2 * green - red - blue) / 2)
    return float((coloured > _COLOURED * (red + green + blue + _DARK)).mean())
