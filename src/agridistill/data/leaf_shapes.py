"""Draws leaves for the demo and the tests: their shape, veins, relief, colour and diseases.

A leaf is drawn on a square canvas with coordinates from -1 to 1, x to the right and y down, its tip at the top. A
*plane* is a float32 array `(size, size)` with a value for each pixel. `drawn_leaves` makes photos of these leaves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Floats = NDArray[np.float32]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Leaf:
    """A leaf on a square canvas, seen from above; each array has a value (or a colour) for each pixel."""

    colour: Floats  # `(size, size, 3)`, reflectance 0 to 1, also defined outside the leaf
    mask: Floats  # `(size, size)`, 1 on blade and stalk, 0 elsewhere
    inner: Floats  # 0 at the margin of the blade, 1 far from it
    veins: Floats  # 1 on a vein, 0 elsewhere
    height: Floats  # height of the surface, in canvas units
    outline: Points  # `(n, 2)` points of the blade's margin, from the base along one side to the tip and back


def grow(rng: np.random.Generator, size: int, *, curl: float) -> Leaf:
    """Draws a healthy leaf with a random shape and a random shade of green, on a canvas of `size` pixels.

    `curl` is from 0 for a flat leaf to 1 for a narrow, rolled and twisted one.
    """
    axis, sides, tooth_tips = _skeleton(rng, curl)
    outline = np.concatenate([sides[0], sides[1][::-1]])
    reach, sway, along = rng.uniform(0.15, 0.33), rng.normal(0, 0.12), np.linspace(-0.1, 1, 12)[:, None]
    stalk = axis[0] + along * [0.0, reach] + along**2 * [sway, 0.0]
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
    """Makes a random pattern `(size, size)` of smooth bumps, with a mean of about 0 and a deviation of about 1.

    `cells` is the number of bumps from left to right, `stretch` the height of a bump divided by its width.
    """
    columns, rows = max(2, round(cells)), max(2, round(cells / stretch))
    coarse = Image.fromarray(rng.standard_normal((rows, columns), np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32)


def ramp(values: Floats, low: float, high: float) -> Floats:
    """Maps values to 0 up to `low`, to 1 from `high` on, and smoothly between; `low` may be above `high`."""
    share = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


def blend(colour: Floats, other: Floats | Iterable[float], share: Floats) -> Floats:
    """Mixes colours `(size, size, 3)` or `(3,)`: gives `colour` where `share` is 0, and `other` where it is 1."""
    target = np.asarray(other, np.float32)
    return np.asarray(colour + (target - colour) * share[..., None], np.float32)


def blurred(plane: Floats, radius: float) -> Floats:
    """Blurs `(size, size)` values from 0 to 1 with a Gaussian of `radius` pixels; beyond the border they count as 0."""
    margin = round(2 * radius)
    soft = Image.fromarray(np.pad(to_bytes(plane), margin)).filter(ImageFilter.GaussianBlur(radius))
    return _unit(soft)[margin : margin + plane.shape[0], margin : margin + plane.shape[1]]


def to_bytes(plane: Floats) -> NDArray[np.uint8]:
    """Converts values from 0 to 1 to bytes from 0 to 255, after clipping them to 0 and 1."""
    return np.asarray(np.clip(plane, 0, 1) * 255 + 0.5).astype(np.uint8)


def _unit(image: Image.Image) -> Floats:
    return np.asarray(np.asarray(image) / np.float32(255), np.float32)


def grid(size: int) -> tuple[Floats, Floats]:
    """Returns the coordinates of the pixels on the canvas: x `(1, size)` and y `(size, 1)`, from -1 to 1."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
    return line[None, :], line[:, None]


def filled(polygons: Iterable[Points], size: int) -> Floats:
    """Draws polygons with smooth edges: 1 inside, 0 outside; the corners `(n, 2)` are canvas coordinates -1 to 1."""
    image = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(image)
    for polygon in polygons:
        draw.polygon(((polygon + 1) * size).ravel().tolist(), fill=255)
    return _unit(image.reduce(2))


def _lines(strands: Iterable[tuple[Points, float, float]], size: int) -> Floats:
    """Draws a plane that is 1 on the lines; each line is given by its points and its widths at start and end."""
    image = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(image)
    for points, start, end in strands:
        pixels = ((points + 1) * size).tolist()
        for index, (here, there) in enumerate(itertools.pairwise(pixels)):
            width = start + (end - start) * index / len(pixels)
            draw.line([*here, *there], fill=255, width=max(1, round(width * size)))
    return _unit(image.reduce(2))


def _skeleton(rng: np.random.Generator, curl: float) -> tuple[Points, list[Points], list[list[int]]]:
    """Returns the points of the midrib and of both margins, from base to tip, and the indices of the tips of teeth."""
    along = np.linspace(0, 1, 140)
    bend, hook = rng.normal(0, 0.10 + 0.08 * curl), rng.normal(0, 0.05 + 0.12 * curl)
    axis = np.stack([bend * np.sin(np.pi * along) + hook * along**4, 0.62 - 1.45 * along], axis=1)
    rise, fall = rng.uniform(0.35, 0.75), rng.uniform(0.6, 1.05)
    profile = along**rise * (1 - along) ** fall
    profile *= rng.uniform(0.40, 0.60) * (1 - 0.3 * curl) / profile.max()
    depth, teeth, cordate = rng.uniform(0.03, 0.36), int(rng.integers(4, 8)), rng.uniform(0, 0.45)
    twist = _twist(rng, 0.022 + 0.05 * curl)
    sides, tips = [], []
    for sign in (-1.0, 1.0):
        wave, peaks = _serration(rng, along, teeth)
        width = profile * rng.uniform(0.88, 1.08) * (1 + depth * (wave - 0.6))
        side = axis + np.stack([sign * width, cordate * width * (1 - along) ** 3 - 0.35 * depth * wave * width], axis=1)
        sides.append(twist(side))
        tips.append(peaks)
    # Shrink a leaf that would reach beyond the canvas, where its tip would be cut off.
    fit = min(1.0, 0.95 / float(np.abs(sides).max()))
    return fit * twist(axis), [fit * side for side in sides], tips


def _serration(rng: np.random.Generator, along: Points, teeth: int) -> tuple[Points, list[int]]:
    """Returns the teeth of a margin, a wave from 0 to about 1 that points to the tip, and the indices of its peaks."""
    # A tooth rises over 0.7 of its length and falls over the rest.
    phase = teeth * along**0.9 + rng.uniform(0, 0.5)
    strength = rng.uniform(0.6, 1.2, teeth + 2)[phase.astype(int)]
    wave = strength * _tooth(phase) + rng.uniform(0.05, 0.22) * _tooth(phase * 3)
    peaks = np.flatnonzero(np.diff((phase % 1 > 0.7).astype(int)) == 1).tolist()
    return wave * np.minimum(1, 6 * (1 - along)) * np.minimum(1, 8 * along), peaks


def _tooth(phase: Points) -> Points:
    part = phase % 1
    return np.sin(np.pi / 2 * np.where(part < 0.7, part / 0.7, (1 - part) / 0.3))


def _twist(rng: np.random.Generator, strength: float) -> Callable[[Points], Points]:
    """Returns a function that bends points by a sum of sine waves, the same for outline and veins."""
    frequency, phase = rng.normal(0, 4.0, (3, 2)), rng.uniform(0, 2 * np.pi, 3)
    shift = rng.normal(0, strength, (3, 2))
    return lambda points: points + np.asarray(np.sin(points @ frequency.T + phase) @ shift)


def _strands(
    rng: np.random.Generator, axis: Points, sides: list[Points], tooth_tips: list[list[int]]
) -> list[tuple[Points, float, float]]:
    """Returns side veins from the midrib into the teeth and thinner veins that branch off them, as lines to draw."""
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
    """Computes the height of a leaf's surface: raised between the veins, folded at the midrib, wavy at the margin."""
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
    """Computes the colour of a healthy leaf: a dark to pale and bluish to yellowish green, paler on veins and stalk."""
    lightness, yellowness = np.exp(rng.normal(0, 0.16)), rng.normal(0, 0.22)
    base = np.array([0.245 * np.exp(0.5 * yellowness), 0.365, 0.165 * np.exp(-0.5 * yellowness)]) * lightness
    tint = noise(rng, size, 3) * 0.06 + noise(rng, size, 9) * 0.05 + noise(rng, size, 36) * 0.04
    colour = base.astype(np.float32) * (1 + tint)[..., None]
    colour[..., 0] *= 1 + 0.05 * noise(rng, size, 4)
    pale = (base * np.array([1.5, 1.35, 1.4]) + 0.03).astype(np.float32)
    colour = blend(colour, pale, veins * np.float32(rng.uniform(0.35, 0.8)))
    return blend(colour, pale, stalk * np.float32(0.7))


_YELLOW = (0.62, 0.56, 0.12)
_DARK_BROWN = (0.14, 0.10, 0.07)
_BROWN = (0.30, 0.19, 0.11)
_TAN = (0.52, 0.40, 0.25)
_GREY_BROWN = (0.36, 0.29, 0.21)


def healthy(leaf: Leaf, severity: float, rng: np.random.Generator) -> Leaf:
    """Returns the leaf with up to 4 pale scratches, which healthy leaves also have, for a severity from 0 to 1."""
    centres = _places(leaf, rng, round(4 * severity))
    scuffs = filled([_blob(rng, centre, rng.uniform(0.01, 0.03), uneven=0.5) for centre in centres], len(leaf.mask))
    return replace(leaf, colour=blend(leaf.colour, leaf.colour * np.float32(1.35), 0.6 * scuffs))


def round_spots(leaf: Leaf, severity: float, rng: np.random.Generator) -> Leaf:
    """Returns the leaf with small dark spots with a yellow halo, about 12 to 82 for a severity from 0 to 1."""
    size = len(leaf.mask)
    centres = _places(leaf, rng, round(12 + 70 * severity), groups=int(rng.integers(2, 6)))
    radii = np.exp(rng.normal(np.log(0.031), 0.25, len(centres)))
    spots = filled((_blob(rng, c, r) for c, r in zip(centres, radii, strict=True)), size)
    halo = blurred(filled((_blob(rng, c, 2.0 * r) for c, r in zip(centres, radii, strict=True)), size), 0.015 * size)
    colour = blend(leaf.colour, _YELLOW, rng.uniform(0.1, 0.6) * halo)
    colour = blend(colour, _mixed(_DARK_BROWN, _BROWN, rng.uniform(0, 0.5)), 0.95 * spots)
    if rng.random() < 0.5:
        pale = filled((_blob(rng, c, 0.45 * r) for c, r in zip(centres, radii, strict=True)), size)
        colour = blend(colour, _TAN, 0.7 * pale)
    return replace(leaf, colour=colour, height=leaf.height - 0.006 * blurred(spots, 0.006 * size))


def ringed_lesions(leaf: Leaf, severity: float, rng: np.random.Generator) -> Leaf:
    """Returns the leaf with 1 to 6 large brown ringed lesions, more and larger for a severity from 0 to 1."""
    size = len(leaf.mask)
    x, y = grid(size)
    centres = _places(leaf, rng, round(1 + 4 * severity + rng.uniform(0, 1)), apart=0.26)
    colour, height = leaf.colour, leaf.height
    uneven = 1 + 0.13 * noise(rng, size, 10) + 0.07 * noise(rng, size, 26)
    blurriness = 1 + 0.3 * noise(rng, size, 12)
    halo_strength = rng.uniform(0.2, 0.8)
    for centre in centres:
        radius = rng.uniform(0.09, 0.15 + 0.09 * severity)
        squash = rng.uniform(0.8, 1.25)
        distance = np.sqrt(((x - centre[0]) * squash) ** 2 + ((y - centre[1]) / squash) ** 2) / radius * uneven
        rings = 0.5 + 0.5 * np.cos(2 * np.pi * distance * max(2, round(radius / 0.05)))
        dry = np.clip(rng.uniform(0.45, 0.75) * blurriness * rings, 0, 1)
        lesion = blend(np.broadcast_to(np.asarray(_DARK_BROWN, np.float32), colour.shape), _TAN, dry)
        colour = blend(colour, _YELLOW, halo_strength * ramp(distance, 1.9, 0.9))
        colour = blend(colour, lesion, 0.95 * ramp(distance, 1.08, 0.95))
        height = height + 0.004 * rings * ramp(distance, 1.1, 0.9)
    return replace(leaf, colour=colour, height=np.asarray(height, np.float32))


def edge_blotches(leaf: Leaf, severity: float, rng: np.random.Generator) -> Leaf:
    """Returns the leaf with 1 to 3 grey-brown dead areas at its margin, larger for a severity from 0 to 1."""
    size = len(leaf.mask)
    x, y = grid(size)
    field = np.full((size, size), -1, np.float32)
    for _ in range(int(rng.integers(1, 4))):
        # The areas do not start at the base of the blade.
        centre = leaf.outline[int(rng.uniform(0.1, 0.9) * len(leaf.outline))]
        radius = rng.uniform(0.22, 0.32 + 0.36 * severity)
        field = np.maximum(field, 1 - np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / radius)
    field = field + 0.16 * noise(rng, size, 8) + 0.07 * noise(rng, size, 26)
    dead = ramp(field, 0.0, 0.10)
    tone = _mixed(_BROWN, _GREY_BROWN, rng.uniform(0, 1)) * rng.uniform(0.75, 1.3)
    texture = 1 + 0.16 * noise(rng, size, 14) + 0.10 * noise(rng, size, 50)
    tissue = tone.astype(np.float32) * texture[..., None] * (1 + 0.35 * leaf.veins)[..., None]
    soaked = leaf.colour * np.array([1.6, 1.35, 1.2], np.float32) + np.float32(0.03)
    colour = blend(leaf.colour, soaked, 0.8 * ramp(field, -0.25, 0.0))
    colour = blend(colour, tissue, 0.94 * dead)
    colour = blend(colour, _DARK_BROWN, 0.5 * dead * ramp(field, 0.22, 0.05))
    wrinkled = leaf.height + dead * (0.018 * noise(rng, size, 12) + 0.008 * noise(rng, size, 30))
    return replace(leaf, colour=colour, height=np.asarray(wrinkled, np.float32))


def mosaic(leaf: Leaf, severity: float, rng: np.random.Generator) -> Leaf:
    """Returns the leaf with a pattern of light and dark green areas, stronger for a severity from 0 to 1."""
    size = len(leaf.mask)
    cells = rng.uniform(9, 15)
    field = noise(rng, size, cells) + 0.5 * noise(rng, size, 2.2 * cells) + 0.15
    field = field - 1.6 * blurred(leaf.veins, 0.014 * size)
    light = ramp(np.asarray(field, np.float32), -0.9, 0.9)
    strength = 0.45 + 0.5 * severity
    pale = leaf.colour * np.array([1.75, 1.5, 1.15], np.float32) + np.float32(0.03)
    dark = leaf.colour * np.array([0.66, 0.74, 0.78], np.float32)
    colour = blend(blend(leaf.colour, dark, strength * (1 - light)), pale, strength * light)
    return replace(leaf, colour=colour, height=leaf.height - 0.02 * severity * light)


def yellow_curl(leaf: Leaf, severity: float, rng: np.random.Generator) -> Leaf:
    """Returns the leaf, yellow between the veins and at the margin, more so for a severity from 0 to 1."""
    size = len(leaf.mask)
    near_vein = blurred(leaf.veins, 0.017 * size)
    at_margin = ramp(leaf.inner, 0.75, 0.0)
    field = rng.uniform(0.4, 0.8) * at_margin + 0.75 - 2.2 * near_vein + 0.15 * noise(rng, size, 6)
    share = (0.30 + 0.6 * severity) * ramp(field, 0.15, 1.0)
    green = leaf.colour * np.array([0.95, 0.95, 0.8], np.float32)
    yellow = 0.5 * green * np.array([2.2, 1.5, 0.7], np.float32) + 0.5 * np.asarray(_YELLOW, np.float32)
    return replace(leaf, colour=blend(green, yellow, share))


SYMPTOMS: Mapping[str, Callable[[Leaf, float, np.random.Generator], Leaf]] = {
    "healthy": healthy,
    "round_spots": round_spots,
    "ringed_lesions": ringed_lesions,
    "edge_blotches": edge_blotches,
    "mosaic": mosaic,
    "yellow_curl": yellow_curl,
}


def _places(leaf: Leaf, rng: np.random.Generator, count: int, *, groups: int = 0, apart: float = 0.0) -> list[Points]:
    """Chooses at most `count` random points on the blade, which are at least `apart` canvas units from each other.

    Most of them are near one of `groups` centres; with 0 groups they are spread over the whole blade.
    """
    size = len(leaf.mask)
    candidates = rng.uniform(-0.9, 0.9, (12 * count + 60, 2))
    if groups:
        hearts = candidates[_inside(leaf, candidates, size)][:groups]
        loose = rng.random(len(candidates)) < 0.35
        near = hearts[rng.integers(0, len(hearts), len(candidates))] + rng.normal(0, 0.17, candidates.shape)
        candidates = np.where(loose[:, None], candidates, near)
    chosen: list[Points] = []
    for point in candidates[_inside(leaf, candidates, size)]:
        if len(chosen) == count:
            break
        if all(np.hypot(*(point - other)) >= apart for other in chosen):
            chosen.append(point)
    return chosen


def _inside(leaf: Leaf, points: Points, size: int) -> Points:
    pixels = np.clip(((points + 1) / 2 * size).astype(int), 0, size - 1)
    return np.asarray(leaf.inner[pixels[:, 1], pixels[:, 0]] > 0.12)


def _blob(rng: np.random.Generator, centre: Points, radius: float, *, uneven: float = 0.18) -> Points:
    """Returns the points of an almost round polygon; `uneven` is the relative deviation of its radius."""
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    radii = radius * (1 + uneven * rng.normal(size=10))
    return np.asarray(centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1))


def _mixed(first: tuple[float, ...], second: tuple[float, ...], share: float) -> Floats:
    return np.asarray((1 - share) * np.asarray(first) + share * np.asarray(second), np.float32)
