"""The bare leaf that is drawn for demo and tests: outline, veins, relief and green, before any disease.

A leaf lives on a square canvas with coordinates from -1 to 1, x to the right and y down, its tip at the top. All planes
are float32 arrays `(size, size)`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Floats = NDArray[np.float32]
Points = NDArray[np.float64]

_POINTS_PER_SIDE = 140
_LEAF_LENGTH = 1.45
_BASE_Y = 0.62


@dataclass(frozen=True)
class Leaf:
    """A leaf lying flat, seen from above.

    Attributes:
        colour: `(size, size, 3)`, reflectance 0 to 1, also defined outside the leaf.
        mask: 1 on blade and stalk, 0 elsewhere.
        inner: 0 at the blade's margin, 1 deep inside.
        veins: 1 on a vein, 0 elsewhere.
        height: relief, in canvas units.
        outline: `(n, 2)` points of the blade's margin, from the base along one side to the tip and back.
    """

    colour: Floats
    mask: Floats
    inner: Floats
    veins: Floats
    height: Floats
    outline: Points


def grow(rng: np.random.Generator, size: int, *, curl: float) -> Leaf:
    """A healthy leaf of random shape and green.

    Args:
        rng: decides everything about the leaf.
        size: of the canvas, in pixels.
        curl: 0 for a flat leaf, 1 for a narrow, rolled and twisted one.
    """
    axis, sides, tooth_tips = _skeleton(rng, curl)
    outline = np.concatenate([sides[0], sides[1][::-1]])
    stalk = _stalk(rng, axis)
    blade = filled([outline], size)
    strands = _strands(rng, axis, sides, tooth_tips)
    veins = _lines([(axis, 0.034, 0.008), *strands], size)
    mask = np.maximum(blade, _lines([(stalk, 0.075, 0.05)], size))
    # The blur is 0.5 on a straight margin and 1 inside.
    inner = np.clip(2 * blurred(blade, 0.11 * size) - 1, 0, 1)
    height = _relief(rng, size, veins, inner, axis, curl)
    stalk_zone = np.clip(mask - blade, 0, 1)
    return Leaf(_green(rng, size, veins, stalk_zone), mask, inner, veins, height, outline)


def noise(rng: np.random.Generator, size: int, cells: float, *, stretch: float = 1.0) -> Floats:
    """Smooth random plane, mean about 0, deviation about 1, `cells` bumps across, `stretch` times as high as wide."""
    columns, rows = max(2, round(cells)), max(2, round(cells / stretch))
    coarse = Image.fromarray(rng.standard_normal((rows, columns), np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32)


def ramp(values: Floats, low: float, high: float) -> Floats:
    """Smooth step from 0 at `low` to 1 at `high` (which may be the smaller one)."""
    share = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


def blend(colour: Floats, other: Floats | Iterable[float], share: Floats) -> Floats:
    """`colour` where `share` is 0, `other` (a plane of colours or one colour) where it is 1."""
    target = np.asarray(other, np.float32)
    return np.asarray(colour + (target - colour) * share[..., None], np.float32)


def blurred(plane: Floats, radius: float) -> Floats:
    """Gaussian blur of a plane from 0 to 1; beyond its border the plane counts as 0."""
    margin = round(2 * radius)
    padded = Image.fromarray(np.pad(to_bytes(plane), margin))
    soft = np.asarray(padded.filter(ImageFilter.GaussianBlur(radius)))
    return _unit(soft[margin : margin + plane.shape[0], margin : margin + plane.shape[1]])


def to_bytes(plane: Floats) -> NDArray[np.uint8]:
    """0..1 to 0..255, clipped."""
    return np.asarray(np.clip(plane, 0, 1) * 255 + 0.5).astype(np.uint8)


def _unit(pixels: NDArray[np.uint8]) -> Floats:
    return np.asarray(pixels / np.float32(255), np.float32)


def grid(size: int) -> tuple[Floats, Floats]:
    """The canvas coordinates x `(1, size)` and y `(size, 1)` of all pixels."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
    return line[None, :], line[:, None]


def filled(polygons: Iterable[Points], size: int) -> Floats:
    """Plane with 1 inside the polygons; their edges are anti-aliased."""
    image = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(image)
    for polygon in polygons:
        draw.polygon(((polygon + 1) * size).ravel().tolist(), fill=255)
    return _unit(np.asarray(image.reduce(2)))


def _lines(strands: Iterable[tuple[Points, float, float]], size: int) -> Floats:
    """Plane with 1 on the lines, each given by its points and its widths at start and end."""
    image = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(image)
    for points, start, end in strands:
        pixels = ((points + 1) * size).tolist()
        for index, (here, there) in enumerate(itertools.pairwise(pixels)):
            width = start + (end - start) * index / len(pixels)
            draw.line([*here, *there], fill=255, width=max(1, round(width * size)))
    return _unit(np.asarray(image.reduce(2)))


def _skeleton(rng: np.random.Generator, curl: float) -> tuple[Points, list[Points], list[list[int]]]:
    """The midrib, the margins of both sides (all from base to tip) and the indices of each side's tooth tips."""
    along = np.linspace(0, 1, _POINTS_PER_SIDE)
    bend, hook = rng.normal(0, 0.10 + 0.08 * curl), rng.normal(0, 0.05 + 0.12 * curl)
    axis = np.stack([bend * np.sin(np.pi * along) + hook * along**4, _BASE_Y - _LEAF_LENGTH * along], axis=1)
    rise, fall = rng.uniform(0.35, 0.75), rng.uniform(0.6, 1.05)
    profile = along**rise * (1 - along) ** fall
    profile *= rng.uniform(0.40, 0.60) * (1 - 0.3 * curl) / profile.max()
    depth, teeth, cordate = rng.uniform(0.03, 0.36), int(rng.integers(4, 8)), rng.uniform(0, 0.45)
    twist = _Twist(rng, 0.022 + 0.05 * curl)
    sides, tips = [], []
    for sign in (-1.0, 1.0):
        wave, peaks = _serration(rng, along, teeth)
        width = profile * rng.uniform(0.88, 1.08) * (1 + depth * (wave - 0.6))
        side = axis + np.stack([sign * width, cordate * width * (1 - along) ** 3 - 0.35 * depth * wave * width], axis=1)
        sides.append(twist(side))
        tips.append(peaks)
    # A tip that is twisted off the canvas would be cut straight.
    fit = min(1.0, 0.95 / float(np.abs(sides).max()))
    return fit * twist(axis), [fit * side for side in sides], tips


def _serration(rng: np.random.Generator, along: Points, teeth: int) -> tuple[Points, list[int]]:
    """Teeth that point to the tip, each with smaller ones: a wave from 0 to about 1, and the indices of its peaks."""
    # A tooth rises over 0.7 of its length and falls over the rest.
    phase = teeth * along**0.9 + rng.uniform(0, 0.5)
    strength = rng.uniform(0.6, 1.2, teeth + 2)[phase.astype(int)]
    wave = strength * _tooth(phase) + rng.uniform(0.05, 0.22) * _tooth(phase * 3)
    peaks = np.flatnonzero(np.diff((phase % 1 > 0.7).astype(int)) == 1).tolist()
    return wave * np.minimum(1, 6 * (1 - along)) * np.minimum(1, 8 * along), peaks


def _tooth(phase: Points) -> Points:
    part = phase % 1
    return np.sin(np.pi / 2 * np.where(part < 0.7, part / 0.7, (1 - part) / 0.3))


class _Twist:
    """Bends outline and veins alike: a sum of sine waves over the canvas."""

    def __init__(self, rng: np.random.Generator, strength: float) -> None:
        self._frequency = rng.normal(0, 4.0, (3, 2))
        self._phase = rng.uniform(0, 2 * np.pi, 3)
        self._shift = rng.normal(0, strength, (3, 2))

    def __call__(self, points: Points) -> Points:
        return points + np.asarray(np.sin(points @ self._frequency.T + self._phase) @ self._shift)


def _stalk(rng: np.random.Generator, axis: Points) -> Points:
    base = axis[0]
    reach, sway = rng.uniform(0.15, 0.33), rng.normal(0, 0.12)
    along = np.linspace(-0.1, 1, 12)[:, None]
    return np.asarray(base + along * np.array([0.0, reach]) + along**2 * np.array([sway, 0.0]))


def _strands(
    rng: np.random.Generator, axis: Points, sides: list[Points], tooth_tips: list[list[int]]
) -> list[tuple[Points, float, float]]:
    """Side veins from the midrib into the teeth, and thinner ones that branch off them."""
    strands: list[tuple[Points, float, float]] = []
    along = np.linspace(0, 1, 10)[:, None]
    for side, peaks in zip(sides, tooth_tips, strict=True):
        for peak in peaks:
            start = axis[int(peak * rng.uniform(0.62, 0.75))]
            end = start + 0.93 * (side[peak] - start)
            middle = (start + end) / 2 + np.array([0.0, rng.uniform(0.0, 0.05)])
            vein = (1 - along) ** 2 * start + 2 * along * (1 - along) * middle + along**2 * end
            strands.append((vein, 0.020, 0.006))
            for position in (3, 5, 7):
                step = 0.55 * (end - start) * (1 - position / 11)
                turn = rng.uniform(0.5, 0.9) * (1 if rng.random() < 0.5 else -1)
                turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ step
                strands.append((vein[position] + along[::3] * turned, 0.008, 0.004))
    return strands


def _relief(rng: np.random.Generator, size: int, veins: Floats, inner: Floats, axis: Points, curl: float) -> Floats:
    """Blade bulging between sunken veins, folded along the midrib, ruffled and rolled at the margin."""
    x, y = grid(size)
    midrib = np.interp(y, axis[::-1, 1], axis[::-1, 0]).astype(np.float32)
    fold = rng.uniform(0.0, 0.35) * np.sqrt((x - midrib) ** 2 + 0.003)
    margin = (1 - inner) ** 2
    roll = (rng.normal(0, 0.05) + curl * rng.uniform(0.10, 0.22)) * margin
    ruffle = (0.016 + 0.035 * curl) * noise(rng, size, 7) * (0.25 + margin)
    bulge = -rng.uniform(0.006, 0.018) * (blurred(veins, 0.012 * size) + 0.8 * blurred(veins, 0.03 * size))
    grain = rng.uniform(0.3, 0.9) * (0.0028 * noise(rng, size, 42) + 0.0014 * noise(rng, size, 90))
    return np.asarray(fold + roll + ruffle + bulge + grain, np.float32)


def _green(rng: np.random.Generator, size: int, veins: Floats, stalk: Floats) -> Floats:
    """Reflectance of a healthy leaf: dark to pale, bluish to yellowish green."""
    lightness, yellowness = np.exp(rng.normal(0, 0.16)), rng.normal(0, 0.22)
    base = np.array([0.245 * np.exp(0.5 * yellowness), 0.365, 0.165 * np.exp(-0.5 * yellowness)]) * lightness
    tint = noise(rng, size, 3) * 0.06 + noise(rng, size, 9) * 0.05 + noise(rng, size, 36) * 0.04
    colour = base.astype(np.float32) * (1 + tint)[..., None]
    colour[..., 0] *= 1 + 0.05 * noise(rng, size, 4)
    pale = (base * np.array([1.5, 1.35, 1.4]) + 0.03).astype(np.float32)
    colour = blend(colour, pale, veins * np.float32(rng.uniform(0.35, 0.8)))
    return blend(colour, pale, stalk * np.float32(0.7))
