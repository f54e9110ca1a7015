"""Whether a camera's picture is the one before it: a stuck camera answers as ever, often with other bytes each time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MOST_POINTS_A_SIDE = 256
# A sensor's noise alone changes more than this; a clock in the picture changes less.
_SAME_LEVELS, _CHANGED_SHARE = 2, 0.01
# At night a sensor gives plain black, and no signal is often one colour: that says nothing of whether it is stuck.
_PLAIN_LEVELS, _PLAIN_SHARE = 8, 0.02


class Stillness:
    """Remembers a grid of points of the last new picture."""

    def __init__(self) -> None:
        self._last: NDArray[np.int16] | None = None

    def repeats(self, pixels: NDArray[np.uint8]) -> bool:
        """Whether hardly anything differs from the last picture that did not repeat the one before it.

        Args:
            pixels: `(H, W, 3)` uint8.
        """
        step = max(1, max(pixels.shape[:2]) // _MOST_POINTS_A_SIDE)
        points = pixels[::step, ::step].astype(np.int16)
        last = self._last
        if last is not None and last.shape == points.shape and not _is_plain(points):
            changed = (np.abs(points - last) > _SAME_LEVELS).any(axis=-1)
            if changed.mean() < _CHANGED_SHARE:
                return True
        self._last = points
        return False


def _is_plain(points: NDArray[np.int16]) -> bool:
    middle = np.median(points, axis=(0, 1))
    return bool((np.abs(points - middle) > _PLAIN_LEVELS).any(axis=-1).mean() < _PLAIN_SHARE)
