"""Damages photos in ways that occur in the field: blur, noise, JPEG, light, colour, occlusion, scale, rotation."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Photo = NDArray[np.uint8]
"""An upright RGB photo `(H, W, 3)`."""


@dataclass(frozen=True)
class Corruption:
    """One kind of damage to a photo, in several strengths."""

    name: str  # the name that tables show
    unit: str  # what the strengths measure, in words, such as "share of the area"
    strengths: tuple[float, ...]  # the values to try, from weak to strong damage
    # Function `(photo, strength, rng)` that returns the damaged photo `(H, W, 3)` uint8, in the same size.
    apply: Callable[[Photo, float, np.random.Generator], Photo]


def blur(photo: Photo, share: float, rng: np.random.Generator) -> Photo:
    """Blurs a photo as if out of focus; the Gaussian's standard deviation is `share` times the shorter side."""
    sigma = share * min(photo.shape[:2])
    return _levels(ndimage.gaussian_filter(photo.astype(np.float32), (sigma, sigma, 0), mode="nearest"))


def motion(photo: Photo, share: float, rng: np.random.Generator) -> Photo:
    """Blurs a photo in a random direction, as if the leaf moved, over a length of `share` times the shorter side."""
    reach = max(1, round(share * min(photo.shape[:2]) / 2))
    length = 2 * reach + 1  # odd: the photo as a whole stays where it is
    angle = rng.uniform(0, np.pi)
    steps = np.arange(-reach, reach + 1)
    down, right = np.rint(steps * np.sin(angle)).astype(int), np.rint(steps * np.cos(angle)).astype(int)
    height, width = photo.shape[:2]
    padded = np.pad(photo, ((length, length), (length, length), (0, 0)), mode="edge").astype(np.float32)
    moved = np.zeros(photo.shape, np.float32)
    for y, x in zip(down, right, strict=True):
        moved += padded[length + y : length + y + height, length + x : length + x + width]
    return _levels(moved / length)


def noise(photo: Photo, deviation: float, rng: np.random.Generator) -> Photo:
    """Adds Gaussian noise to every channel, as a sensor does in poor light; its deviation is in levels of 0 to 255."""
    return _levels(photo + rng.normal(0, deviation, photo.shape))


def jpeg(photo: Photo, quality: float, rng: np.random.Generator) -> Photo:
    """Compresses a photo as JPEG and decodes it, as for a slow network; `quality` is libjpeg's, 1 to 100."""
    held = io.BytesIO()
    Image.fromarray(photo).save(held, "JPEG", quality=round(quality))
    return np.array(Image.open(held).convert("RGB"))


def light(photo: Photo, factor: float, rng: np.random.Generator) -> Photo:
    """Multiplies every channel by `factor` and clips at 255; a factor below 1 darkens, one above 1 brightens."""
    return _levels(photo.astype(np.float32) * factor)


def colour_cast(photo: Photo, amount: float, rng: np.random.Generator) -> Photo:
    """Multiplies red by 1 + `amount` and blue by 1 - `amount`; above 0 is like evening sun, below 0 like shade."""
    return _levels(photo * np.array([1 + amount, 1, 1 - amount], np.float32))


def occlusion(photo: Photo, share: float, rng: np.random.Generator) -> Photo:
    """Covers `share` of the photo's area with a square of its mean colour at a random place."""
    height, width = photo.shape[:2]
    side = min(round(np.sqrt(share * height * width)), height, width)
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    covered = photo.copy()
    covered[top : top + side, left : left + side] = _levels(photo.mean(axis=(0, 1)))
    return covered


def scale(photo: Photo, factor: float, rng: np.random.Generator) -> Photo:
    """Imitates another distance of the camera: a `factor` below 1 shrinks the photo, one above 1 enlarges and crops it.

    A shrunk photo is surrounded by the median colour of its border.
    """
    rim = np.median(np.concatenate([photo[0], photo[-1], photo[:, 0], photo[:, -1]]), axis=0).astype(np.float32)
    # Smooth before shrinking, to avoid aliasing.
    smooth = max(0.0, (1 / factor - 1) / 2)
    above = ndimage.gaussian_filter(photo.astype(np.float32) - rim, (smooth, smooth, 0), mode="nearest")
    centre = (np.array(photo.shape) - 1) / 2
    step = np.array([1 / factor, 1 / factor, 1])
    return _levels(ndimage.affine_transform(above, step, centre - centre * step, order=1) + rim)


def rotation(photo: Photo, degrees: float, rng: np.random.Generator) -> Photo:
    """Rotates a photo about its centre by `degrees` and fills the corners with its mirror image."""
    turned = ndimage.rotate(photo.astype(np.float32), degrees, reshape=False, order=1, mode="mirror")
    return _levels(turned)


CORRUPTIONS: Sequence[Corruption] = (
    Corruption("blur", "deviation, share of the side", (0.005, 0.01, 0.02, 0.04), blur),
    Corruption("motion blur", "length, share of the side", (0.02, 0.04, 0.08, 0.16), motion),
    Corruption("noise", "deviation, levels of 255", (8, 16, 32, 64), noise),
    Corruption("JPEG", "quality", (50, 25, 10, 5), jpeg),
    Corruption("too dark", "light, factor", (0.7, 0.5, 0.35, 0.2), light),
    Corruption("too bright", "light, factor", (1.2, 1.5, 2.0, 3.0), light),
    Corruption("evening sun", "red up and blue down, share", (0.1, 0.2, 0.3, 0.4), colour_cast),
    Corruption("shade", "red up and blue down, share", (-0.1, -0.2, -0.3, -0.4), colour_cast),
    Corruption("occlusion", "share of the area", (0.05, 0.1, 0.2, 0.4), occlusion),
    Corruption("further away", "size, factor", (0.8, 0.65, 0.5, 0.35), scale),
    Corruption("nearer", "size, factor", (1.25, 1.5, 2.0, 3.0), scale),
    Corruption("rotation", "degrees", (10, 30, 90, 180), rotation),
)


def _levels(values: NDArray[Any]) -> Photo:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
