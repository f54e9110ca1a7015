"""What the drawn diseases do to a leaf. Each function takes a healthy leaf and how ill it is, from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from agridistill.data.leaf_shapes import Floats, Leaf, Points, blend, blurred, filled, grid, noise, ramp

Symptom = Callable[[Leaf, float, np.random.Generator], Leaf]

_YELLOW = (0.62, 0.56, 0.12)
_DARK_BROWN = (0.14, 0.10, 0.07)
_BROWN = (0.30, 0.19, 0.11)
_TAN = (0.52, 0.40, 0.25)
_GREY_BROWN = (0.36, 0.29, 0.21)


def healthy(leaf: Leaf, severity: float, rng: np.random.Generator) -> Leaf:
    """No disease, but the scuffs that healthy leaves have too: at most a few pale scratches."""
    centres = _places(leaf, rng, round(4 * severity))
    scuffs = filled([_blob(rng, centre, rng.uniform(0.01, 0.03), uneven=0.5) for centre in centres], len(leaf.mask))
    return replace(leaf, colour=blend(leaf.colour, leaf.colour * np.float32(1.35), 0.6 * scuffs))


def round_spots(leaf: Leaf, severity: float, rng: np.random.Generator) -> Leaf:
    """Many small dark round spots, in loose groups, some with a pale centre and a yellow halo."""
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
    """A few large brown lesions with concentric rings and a yellow halo."""
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
    """Brown-grey dead blotches that grow in from the margin, with a pale water-soaked front."""
    size = len(leaf.mask)
    x, y = grid(size)
    field = np.full((size, size), -1, np.float32)
    for _ in range(int(rng.integers(1, 4))):
        # The base of the blade is the last to be reached.
        centre = leaf.outline[int(rng.uniform(0.1, 0.9) * len(leaf.outline))]
        radius = rng.uniform(0.22, 0.32 + 0.36 * severity)
        field = np.maximum(field, 1 - np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / radius)
    field = field + 0.16 * noise(rng, size, 8) + 0.07 * noise(rng, size, 26)
    dead = ramp(field, 0.0, 0.10)
    tone = _mixed(_BROWN, _GREY_BROWN, rng.uniform(0, 1)) * rng.uniform(0.75, 1.3)
    texture = 1 + 0.16 * noise(rng, size, 14) + 0.10 * noise(rng, size, 50)
    tissue = tone.astype(np.float32) * texture[..., None] * (1 + 0.35 * leaf.veins)[..., None]
    colour = blend(
        leaf.colour,
        leaf.colour * np.array([1.6, 1.35, 1.2], np.float32) + np.float32(0.03),
        0.8 * ramp(field, -0.25, 0.0),
    )
    colour = blend(colour, tissue, 0.94 * dead)
    colour = blend(colour, _DARK_BROWN, 0.5 * dead * ramp(field, 0.22, 0.05))
    wrinkled = leaf.height + dead * (0.018 * noise(rng, size, 12) + 0.008 * noise(rng, size, 30))
    return replace(leaf, colour=colour, height=np.asarray(wrinkled, np.float32))


def mosaic(leaf: Leaf, severity: float, rng: np.random.Generator) -> Leaf:
    """A patchwork of light and dark green, dark along the veins, slightly blistered."""
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
    """Yellow between the veins and at the margin, green along the veins. (The leaf was grown curled.)"""
    size = len(leaf.mask)
    near_vein = blurred(leaf.veins, 0.017 * size)
    at_margin = ramp(leaf.inner, 0.75, 0.0)
    field = rng.uniform(0.4, 0.8) * at_margin + 0.75 - 2.2 * near_vein + 0.15 * noise(rng, size, 6)
    share = (0.30 + 0.6 * severity) * ramp(field, 0.15, 1.0)
    green = leaf.colour * np.array([0.95, 0.95, 0.8], np.float32)
    yellow = 0.5 * green * np.array([2.2, 1.5, 0.7], np.float32) + 0.5 * np.asarray(_YELLOW, np.float32)
    return replace(leaf, colour=blend(green, yellow, share))


SYMPTOMS: Mapping[str, Symptom] = {
    "healthy": healthy,
    "round_spots": round_spots,
    "ringed_lesions": ringed_lesions,
    "edge_blotches": edge_blotches,
    "mosaic": mosaic,
    "yellow_curl": yellow_curl,
}


def _places(leaf: Leaf, rng: np.random.Generator, count: int, *, groups: int = 0, apart: float = 0.0) -> list[Points]:
    """At most `count` points on the blade, spread out or around `groups` centres, `apart` from each other."""
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
    """A roundish polygon."""
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    radii = radius * (1 + uneven * rng.normal(size=10))
    return np.asarray(centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1))


def _mixed(first: tuple[float, ...], second: tuple[float, ...], share: float) -> Floats:
    return np.asarray((1 - share) * np.asarray(first) + share * np.asarray(second), np.float32)
