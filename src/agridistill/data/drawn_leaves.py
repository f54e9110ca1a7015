"""Drawn leaves, for the demo and the tests only: scores on them predict nothing about real leaves.

A leaf lives on a square canvas with coordinates from -1 to 1, x to the right and y down, its tip at the top. The canvas
has twice the photo's size, against jagged edges. All planes are float32 arrays `(size, size)`.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from agridistill.progress import ProgressCallback, silent
from agridistill.storage import replacing_folder

Floats = NDArray[np.float32]
Points = NDArray[np.float64]

_YELLOW = np.array([0.62, 0.56, 0.12])
_DARK_BROWN = np.array([0.14, 0.10, 0.07])
_BROWN = np.array([0.30, 0.19, 0.11])
_TAN = np.array([0.52, 0.40, 0.25])


def draw_leaf(
    class_name: str, rng_leaf: np.random.Generator, rng_shot: np.random.Generator, image_size: int
) -> Image.Image:
    """Draws one photo of one leaf: RGB, `image_size` square.

    `rng_leaf` decides outline, colour, veins and lesions, `rng_shot` pose, light, background and camera.

    Example:
        >>> draw_leaf("mosaic", np.random.default_rng(0), np.random.default_rng(1), 64).size
        (64, 64)
    """
    return photograph(_diseased_leaf(class_name, rng_leaf, image_size), rng_shot)


def draw_leaves(
    out: Path,
    *,
    leaves_per_class: int = 40,
    shots_per_leaf: int = 3,
    image_size: int = 128,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> Path:
    """Writes a folder of class folders of drawn leaves; it appears whole or not at all.

    Files are named as PlantVillage's are, `UUID___SYN_CLASS Leaf LEAF.SHOT.jpg`, with leaf and shot counted from 1.
    A photo depends on `seed`, its class, its leaf and its shot, not on how many others are drawn.

    Args:
        out: must not exist, or be an empty folder; it is also the result.
        leaves_per_class, shots_per_leaf: at least 1.
        image_size: height and width of a photo, at least 32 px.
        progress: called with (photos done, photos in all).
    """
    total = len(CLASSES) * leaves_per_class * shots_per_leaf
    done = 0
    with replacing_folder(out) as folder:
        for number, class_name in enumerate(CLASSES):
            initials = "".join(word[0] for word in class_name.split("_")).upper()
            (folder / class_name).mkdir()
            for leaf in range(1, leaves_per_class + 1):
                drawn = _diseased_leaf(class_name, np.random.default_rng((seed, number, leaf)), image_size)
                for shot in range(1, shots_per_leaf + 1):
                    identity = uuid.uuid5(uuid.NAMESPACE_OID, f"{seed} {class_name} {leaf} {shot}")
                    name = f"{identity}___SYN_{initials} Leaf {leaf}.{shot}.jpg"
                    photo = photograph(drawn, np.random.default_rng((seed, number, leaf, shot)))
                    photo.save(folder / class_name / name, quality=90)
                    done += 1
                    progress(done, total)
    return out


def _diseased_leaf(class_name: str, rng: np.random.Generator, image_size: int) -> Leaf:
    severity = rng.uniform(0.2, 1.0)
    # Other leaves are a little curled too: the outline alone must not reveal the class.
    curl = 0.35 + 0.65 * severity if class_name == "yellow_curl" else rng.uniform(0, 0.35)
    return SYMPTOMS[class_name](grow(rng, 2 * image_size, curl=curl), severity, rng)


@dataclass(frozen=True)
class Leaf:
    """A leaf lying flat, seen from above."""

    colour: Floats  # `(size, size, 3)`, reflectance 0 to 1, also defined outside the leaf
    mask: Floats  # 1 on blade and stalk, 0 elsewhere
    inner: Floats  # 0 at the blade's margin, 1 deep inside
    veins: Floats  # 1 on a vein, 0 elsewhere
    height: Floats  # relief, in canvas units
    outline: Points  # `(n, 2)` of the blade's margin, from the base along one side to the tip and back


def grow(rng: np.random.Generator, size: int, *, curl: float) -> Leaf:
    """A healthy leaf of random shape and green on a canvas of `size` pixels; `curl` is 0 for a flat one, 1 at most."""
    axis, sides, tips = _skeleton(rng, curl)
    outline = np.concatenate([sides[0], sides[1][::-1]])
    blade = _drawn([outline], size)
    veins = _drawn([axis, *_side_veins(rng, axis, sides, tips)], size, width=0.016)
    stalk = axis[0] + np.linspace([0, -0.02], [rng.normal(0, 0.1), rng.uniform(0.15, 0.33)], 9)
    mask = np.maximum(blade, _drawn([stalk], size, width=0.06))
    # The blur is 0.5 on a straight margin and 1 inside.
    inner = np.clip(2 * _blurred(blade, 0.11 * size) - 1, 0, 1)
    margin = (1 - inner) ** 2
    # Folded along the middle, rolled and ruffled at the margin, bulging between sunken veins, grained.
    fold = rng.uniform(0.0, 0.35) * np.abs(np.linspace(-1, 1, size))
    height = np.asarray(fold + (rng.normal(0, 0.05) + curl * rng.uniform(0.10, 0.22)) * margin, np.float32)
    height += (0.016 + 0.035 * curl) * _noise(rng, size, 7) * (0.25 + margin)
    height -= rng.uniform(0.006, 0.018) * _blurred(veins, 0.02 * size)
    height += rng.uniform(0.001, 0.003) * _noise(rng, size, 42)
    # Dark to pale, bluish to yellowish green; paler on veins and stalk.
    yellowness = np.exp(rng.normal(0, 0.11))
    green = np.array([0.245 * yellowness, 0.365, 0.165 / yellowness]) * np.exp(rng.normal(0, 0.16))
    tint = 1 + _noise(rng, size, 3) * 0.06 + _noise(rng, size, 9) * 0.05 + _noise(rng, size, 36) * 0.04
    pale = np.maximum(veins, mask - blade) * np.float32(rng.uniform(0.35, 0.8))
    colour = _blend(tint[..., None] * green, green * [1.5, 1.35, 1.4] + 0.03, pale)
    return Leaf(colour, mask, inner, veins, height, outline)


def _skeleton(rng: np.random.Generator, curl: float) -> tuple[Points, list[Points], list[int]]:
    """The midrib, the margins of both sides (all from base to tip) and the indices of the tooth tips."""
    along = np.linspace(0, 1, 140)
    bend, hook = rng.normal(0, 0.10 + 0.08 * curl), rng.normal(0, 0.05 + 0.12 * curl)
    axis = np.stack([bend * np.sin(np.pi * along) + hook * along**4, 0.62 - 1.45 * along], axis=1)
    profile = along ** rng.uniform(0.35, 0.75) * (1 - along) ** rng.uniform(0.6, 1.05)
    profile *= rng.uniform(0.40, 0.60) * (1 - 0.3 * curl) / profile.max()
    # A tooth rises over 0.7 of its length and falls over the rest.
    part = (rng.integers(4, 8) * along**0.9 + rng.uniform(0, 0.5)) % 1
    tooth = np.sin(np.pi / 2 * np.where(part < 0.7, part / 0.7, (1 - part) / 0.3))
    tooth *= rng.uniform(0.03, 0.36) * np.minimum(1, 6 * (1 - along)) * np.minimum(1, 8 * along)
    widths = [sign * profile * rng.uniform(0.88, 1.08) * (0.8 + tooth) for sign in (-1, 1)]
    sides = [axis + np.stack([width, -0.35 * tooth * np.abs(width)], axis=1) for width in widths]
    # Sine waves over the canvas bend all alike.
    frequency, phase = rng.normal(0, 4.0, (3, 2)), rng.uniform(0, 2 * np.pi, 3)
    shift = rng.normal(0, 0.022 + 0.05 * curl, (3, 2))
    axis, *sides = (points + np.sin(points @ frequency.T + phase) @ shift for points in (axis, *sides))
    # A tip that is bent off the canvas would be cut straight.
    fit = min(1.0, 0.95 / float(np.abs(sides).max()))
    tips = np.flatnonzero(np.diff((part > 0.7).astype(int)) == 1).tolist()
    return fit * axis, [fit * side for side in sides], tips


def _side_veins(rng: np.random.Generator, axis: Points, sides: list[Points], tips: list[int]) -> Iterator[Points]:
    """Curves from the midrib into the teeth."""
    along = np.linspace(0, 1, 10)[:, None]
    for side, tip in itertools.product(sides, tips):
        start = axis[int(tip * rng.uniform(0.62, 0.75))]
        end = start + 0.93 * (side[tip] - start)
        middle = (start + end) / 2 + [0.0, rng.uniform(0.0, 0.05)]
        yield (1 - along) ** 2 * start + 2 * along * (1 - along) * middle + along**2 * end


def _round_spots(leaf: Leaf, severity: float, rng: np.random.Generator) -> Leaf:
    """Many small dark round spots with a yellow halo."""
    size = len(leaf.mask)
    centres = _places(leaf, rng, round(12 + 70 * severity))
    blobs = [_blob(rng, centre, np.exp(rng.normal(np.log(0.031), 0.25))) for centre in centres]
    spots = _drawn(blobs, size)
    colour = _blend(leaf.colour, _YELLOW, rng.uniform(0.3, 1.2) * _blurred(spots, 0.03 * size))
    brown = _DARK_BROWN + rng.uniform(0, 0.5) * (_BROWN - _DARK_BROWN)
    return replace(leaf, colour=_blend(colour, brown, 0.95 * spots))


def _ringed_lesions(leaf: Leaf, severity: float, rng: np.random.Generator) -> Leaf:
    """A few large brown lesions with concentric rings and a yellow halo."""
    size = len(leaf.mask)
    colour, halo = leaf.colour, rng.uniform(0.2, 0.8)
    uneven = 1 + 0.13 * _noise(rng, size, 10) + 0.07 * _noise(rng, size, 26)
    for centre in _places(leaf, rng, round(1 + 4 * severity + rng.uniform(0, 1)), apart=0.26):
        radius = rng.uniform(0.09, 0.15 + 0.09 * severity)
        distance = _distance(size, centre) / radius * uneven
        rings = 0.5 + 0.5 * np.cos(2 * np.pi * distance * max(2, round(radius / 0.05)))
        lesion = _blend(np.broadcast_to(_DARK_BROWN, colour.shape), _TAN, rng.uniform(0.45, 0.75) * rings)
        colour = _blend(colour, _YELLOW, halo * _ramp(distance, 1.9, 0.9))
        colour = _blend(colour, lesion, 0.95 * _ramp(distance, 1.08, 0.95))
    return replace(leaf, colour=colour)


def _edge_blotches(leaf: Leaf, severity: float, rng: np.random.Generator) -> Leaf:
    """Brown dead blotches that grow in from the margin, with a pale water-soaked front."""
    size = len(leaf.mask)
    field = np.full((size, size), -1, np.float32)
    for _ in range(int(rng.integers(1, 4))):
        # The base of the blade is the last to be reached.
        centre = leaf.outline[int(rng.uniform(0.1, 0.9) * len(leaf.outline))]
        radius = rng.uniform(0.22, 0.32 + 0.36 * severity)
        field = np.maximum(field, 1 - _distance(size, centre) / radius)
    field = field + 0.16 * _noise(rng, size, 8) + 0.07 * _noise(rng, size, 26)
    texture = rng.uniform(0.75, 1.3) * (1 + 0.16 * _noise(rng, size, 14) + 0.10 * _noise(rng, size, 50))
    tissue = (_BROWN + rng.uniform(0, 1) * ([0.36, 0.29, 0.21] - _BROWN)) * texture[..., None]
    colour = _blend(leaf.colour, leaf.colour * [1.6, 1.35, 1.2] + 0.03, 0.8 * _ramp(field, -0.25, 0.0))
    return replace(leaf, colour=_blend(colour, tissue, 0.94 * _ramp(field, 0.0, 0.10)))


def _mosaic(leaf: Leaf, severity: float, rng: np.random.Generator) -> Leaf:
    """A patchwork of light and dark green, dark along the veins."""
    size, cells = len(leaf.mask), rng.uniform(9, 15)
    field = _noise(rng, size, cells) + 0.5 * _noise(rng, size, 2.2 * cells) + 0.15
    light = _ramp(field - 1.6 * _blurred(leaf.veins, 0.014 * size), -0.9, 0.9)
    strength = 0.45 + 0.5 * severity
    colour = _blend(leaf.colour, leaf.colour * [0.66, 0.74, 0.78], strength * (1 - light))
    return replace(leaf, colour=_blend(colour, leaf.colour * [1.75, 1.5, 1.15] + 0.03, strength * light))


def _yellow_curl(leaf: Leaf, severity: float, rng: np.random.Generator) -> Leaf:
    """Yellow between the veins and at the margin, green along the veins. (The leaf was grown curled.)"""
    size = len(leaf.mask)
    field = rng.uniform(0.4, 0.8) * _ramp(leaf.inner, 0.75, 0.0) + 0.75 + 0.15 * _noise(rng, size, 6)
    share = (0.20 + 0.55 * severity) * _ramp(field - 2.2 * _blurred(leaf.veins, 0.017 * size), 0.15, 1.0)
    return replace(leaf, colour=_blend(leaf.colour, leaf.colour * [1.05, 0.7, 0.2] + [0.31, 0.28, 0.06], share))


# Each takes a healthy leaf and the severity of its disease, from 0 to 1.
SYMPTOMS: Mapping[str, Callable[[Leaf, float, np.random.Generator], Leaf]] = {
    "healthy": lambda leaf, severity, rng: leaf,
    "round_spots": _round_spots,
    "ringed_lesions": _ringed_lesions,
    "edge_blotches": _edge_blotches,
    "mosaic": _mosaic,
    "yellow_curl": _yellow_curl,
}
CLASSES: tuple[str, ...] = tuple(SYMPTOMS)


def _places(leaf: Leaf, rng: np.random.Generator, count: int, *, apart: float = 0.0) -> list[Points]:
    """At most `count` points on the blade, `apart` from each other."""
    size = len(leaf.mask)
    chosen: list[Points] = []
    for point in rng.uniform(-0.9, 0.9, (12 * count + 60, 2)):
        column, row = ((point + 1) / 2 * size).astype(int)
        on_blade = leaf.inner[row, column] > 0.12
        if len(chosen) < count and on_blade and all(np.hypot(*(point - other)) >= apart for other in chosen):
            chosen.append(point)
    return chosen


def _blob(rng: np.random.Generator, centre: Points, radius: float) -> Points:
    """A roundish polygon."""
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    radii = radius * (1 + 0.18 * rng.normal(size=10))
    return np.asarray(centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1))


def photograph(leaf: Leaf, rng: np.random.Generator) -> Image.Image:
    """One shot of a leaf: RGB, half the size of its canvas; `rng` decides everything but the leaf."""
    size = len(leaf.mask) // 2
    place = _random_place(rng, 2 * size)
    mask, colour, height = (_seen(plane, place) for plane in (leaf.mask, leaf.colour, leaf.height))
    around, up, ambient = rng.uniform(0, 2 * np.pi), rng.uniform(0.55, 1.25), rng.uniform(0.35, 0.85)
    right, down, above = np.cos(around) * np.cos(up), np.sin(around) * np.cos(up), np.sin(up)
    slope_down, slope_right = np.gradient(height, 2 / size)
    steepness = np.sqrt(1 + slope_right**2 + slope_down**2)
    facing = np.maximum(above - right * slope_right - down * slope_down, 0) / steepness
    # Lambert's law, and the highlights of the leaf's wax.
    lit = colour * (ambient + (1 - ambient) * facing / above)[..., None]
    lit += rng.uniform(0, 0.25) * (facing**16)[..., None]
    cast = np.roll(mask, (round(-0.05 * size / above * down), round(-0.05 * size / above * right)), (0, 1))
    hidden = (1 - ambient) * 0.9 * _blurred(cast, rng.uniform(0.01, 0.05) * size) + 0.25 * _blurred(mask, 0.025 * size)
    card = np.array([0.47, 0.44, 0.47]) * np.exp(rng.normal(0, 0.15)) + rng.normal(0, 0.04, 3)
    # One card in five is rough.
    pattern = rng.choice([0.03, 0.1], p=[0.8, 0.2]) * _noise(rng, size, rng.uniform(20, 70))
    pattern += 0.02 * _noise(rng, size, 6) + rng.uniform(0.02, 0.09) * rng.standard_normal((size, size), np.float32)
    ground = np.maximum(card, 0.1) * (np.exp(pattern) * (1 - hidden))[..., None]
    return _developed(rng, _blend(ground, lit, mask))


def _random_place(rng: np.random.Generator, size: int) -> tuple[float, ...]:
    """Turned, scaled and moved at random: Pillow's six coefficients, from a pixel of the photo to one of the canvas."""
    angle, scale, squeeze = rng.normal(0, 0.3), rng.uniform(1.0, 1.25), rng.uniform(0.86, 1.0)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    matrix = np.array([[cos / squeeze, sin / squeeze], [-sin, cos]])
    origin = size / 2 - matrix @ (size / 2 * (1 + rng.normal(0, 0.05, 2) + [0, -0.03]))
    return (*matrix[0].tolist(), float(origin[0]), *matrix[1].tolist(), float(origin[1]))


def _seen(plane: Floats, place: tuple[float, ...]) -> Floats:
    """A plane, or three of colours from 0 to 1, as it appears in a photo of half its size."""
    size = (len(plane), len(plane))
    image = Image.fromarray(_to_bytes(plane) if plane.ndim == 3 else plane)
    image = image.transform(size, Image.Transform.AFFINE, place, Image.Resampling.BILINEAR).reduce(2)
    return _unit(image) if plane.ndim == 3 else np.asarray(image, np.float32)


def _developed(rng: np.random.Generator, scene: Floats) -> Image.Image:
    """Uneven light over the photo, exposure, white balance, contrast, focus, sensor noise."""
    falloff = np.exp(-rng.uniform(0.05, 0.2) * _distance(len(scene), rng.uniform(-1, 1, 2)) ** 2)
    warmth, tint = rng.normal(0, 0.05), rng.normal(0, 0.025)
    balance = np.exp(rng.normal(0.05, 0.12) + np.array([warmth, tint, -warmth]))
    exposed = scene * falloff[..., None] * balance
    photo = Image.fromarray(_to_bytes(0.4 * (2.5 * exposed) ** rng.uniform(0.85, 1.15)))
    photo = photo.filter(ImageFilter.GaussianBlur(max(0, rng.uniform(-1, 0.7)) * photo.width / 128))
    speckle = rng.standard_normal(scene.shape, np.float32) * rng.uniform(0.5, 4.0)
    return Image.fromarray(np.clip(np.asarray(photo) + speckle + 0.5, 0, 255).astype(np.uint8))


def _noise(rng: np.random.Generator, size: int, cells: float) -> Floats:
    """Smooth random plane, mean about 0, deviation about 1, `cells` bumps across."""
    coarse = Image.fromarray(rng.standard_normal((round(cells), round(cells)), np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32)


def _ramp(values: Floats, low: float, high: float) -> Floats:
    """Smooth step from 0 at `low` to 1 at `high` (which may be the smaller one)."""
    share = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


def _blend(colour: Floats | Points, other: Floats | Points, share: Floats) -> Floats:
    """`colour` where `share` is 0, `other` (a plane of colours or one colour) where it is 1."""
    return np.asarray(colour + (np.asarray(other, np.float32) - colour) * share[..., None], np.float32)


def _blurred(plane: Floats, radius: float) -> Floats:
    """Gaussian blur of a plane from 0 to 1; beyond its border the plane counts as 0."""
    margin = round(2 * radius)
    soft = Image.fromarray(np.pad(_to_bytes(plane), margin)).filter(ImageFilter.GaussianBlur(radius))
    return _unit(soft)[margin : margin + len(plane), margin : margin + len(plane)]


def _drawn(shapes: Iterable[Points], size: int, *, width: float | None = None) -> Floats:
    """Plane with 1 inside the polygons, or on the lines where they have a width; edges are anti-aliased."""
    image = Image.new("L", (2 * size, 2 * size))
    for points in shapes:
        pixels = ((points + 1) * size).ravel().tolist()
        if width is None:
            ImageDraw.Draw(image).polygon(pixels, fill=255)
        else:
            ImageDraw.Draw(image).line(pixels, fill=255, width=max(1, round(width * size)), joint="curve")
    return _unit(image.reduce(2))


def _distance(size: int, centre: Points) -> Floats:
    """Distance of all pixels from a point, in canvas units."""
    line = np.linspace(1 / size - 1, 1 - 1 / size, size)
    return np.asarray(np.hypot(line[None, :] - centre[0], line[:, None] - centre[1]), np.float32)


def _to_bytes(plane: Floats) -> NDArray[np.uint8]:
    return np.asarray(np.clip(plane, 0, 1) * 255 + 0.5).astype(np.uint8)


def _unit(image: Image.Image) -> Floats:
    return np.asarray(image, np.float32) / np.float32(255)
