"""How a drawn leaf is photographed: where it lies, on what, in which light, by which camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from agridistill.data.leaf_shapes import Floats, Leaf, Points, blurred, grid, noise, to_bytes


def canvas_size(image_size: int) -> int:
    """The canvas, in pixels, that a leaf needs for photos of `image_size`."""
    return 2 * image_size


def photograph(leaf: Leaf, rng: np.random.Generator) -> Image.Image:
    """One shot of a leaf; `rng` decides everything but the leaf.

    Returns:
        RGB, square, half the size of the leaf's canvas: it is drawn larger and scaled down against jagged edges.
    """
    size = len(leaf.mask)
    pose, light = _Pose.random(rng), _Light.random(rng)
    fine_mask = pose.seen(leaf.mask, size)
    # Only outline and colours need the fine canvas. Light adds up before film and eye bend it: so they are scaled
    # down before the photo is developed.
    mask, colour = _halved(fine_mask), _halved(pose.seen(leaf.colour, size) * fine_mask[..., None])
    height = pose.seen(_halved(leaf.height), size // 2)
    diffuse, gloss = light.on_leaf(height, 4 * pose.scale / size)
    ground = _background(rng, size // 2) * light.on_ground(_halved(leaf.mask), mask, pose)[..., None]
    lit = colour * diffuse[..., None] + (gloss * mask)[..., None]
    return _develop(rng, lit + ground * (1 - mask)[..., None])


@dataclass(frozen=True)
class _Pose:
    """Where the leaf lies in the photo: canvas units, radians."""

    angle: float
    scale: float
    squeeze: float
    shift: tuple[float, float]

    @classmethod
    def random(cls, rng: np.random.Generator) -> _Pose:
        shift = rng.normal(0, 0.05, 2)
        return cls(rng.normal(0, 0.3), rng.uniform(1.0, 1.25), rng.uniform(0.86, 1.0), (shift[0], shift[1] - 0.03))

    def coefficients(self, size: int, *, offset: tuple[float, float] = (0.0, 0.0)) -> tuple[float, ...]:
        """Pillow's six numbers, which lead from a pixel of the photo to its pixel of the canvas."""
        cos, sin = np.cos(self.angle) / self.scale, np.sin(self.angle) / self.scale
        matrix = np.array([[cos / self.squeeze, sin / self.squeeze], [-sin, cos]])
        centre = np.full(2, size / 2)
        origin = centre - matrix @ (centre * (1 + np.asarray(self.shift) + np.asarray(offset)))
        return (*matrix[0].tolist(), float(origin[0]), *matrix[1].tolist(), float(origin[1]))

    def seen(self, plane: Floats, size: int, *, offset: tuple[float, float] = (0.0, 0.0)) -> Floats:
        """A plane, or a plane of colours from 0 to 1, as it appears in a photo of `size`."""
        coloured = plane.ndim == 3
        image = Image.fromarray(to_bytes(plane) if coloured else plane).transform(
            (size, size), Image.Transform.AFFINE, self.coefficients(size, offset=offset), Image.Resampling.BILINEAR
        )
        return np.asarray(image, np.float32) / np.float32(255 if coloured else 1)


@dataclass(frozen=True)
class _Light:
    """One lamp or the sun over ambient light; `direction` points to it, its third part is up."""

    direction: tuple[float, float, float]
    ambient: float
    softness: float
    lift: float
    shine: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> _Light:
        around, up = rng.uniform(0, 2 * np.pi), rng.uniform(0.55, 1.25)
        direction = (np.cos(around) * np.cos(up), np.sin(around) * np.cos(up), np.sin(up))
        sunny = rng.random() < 0.4
        ambient = rng.uniform(0.35, 0.5) if sunny else rng.uniform(0.6, 0.85)
        softness = rng.uniform(0.006, 0.02) if sunny else rng.uniform(0.03, 0.09)
        return cls(
            direction, ambient, softness, rng.uniform(0.04, 0.14), rng.uniform(0.05, 0.4) * (1.0 if sunny else 0.5)
        )

    def on_leaf(self, height: Floats, pixel: float) -> tuple[Floats, Floats]:
        """Brightness of the leaf's surface, 1 where flat (Lambert's law), and the highlights of its wax (Blinn's)."""
        down, right = np.gradient(height, pixel)
        steepness = np.sqrt(1 + right * right + down * down)

        def facing(direction: Points) -> Floats:
            x, y, up = direction.astype(np.float32)
            return np.asarray(np.maximum(up - x * right - y * down, 0) / steepness, np.float32)

        lamp = np.asarray(self.direction)
        half_way = lamp + np.array([0, 0, 1])
        diffuse = self.ambient + (1 - self.ambient) / lamp[2] * facing(lamp)
        return np.asarray(diffuse, np.float32), np.float32(self.shine) * facing(
            half_way / np.linalg.norm(half_way)
        ) ** 16

    def on_ground(self, canvas_mask: Floats, mask: Floats, pose: _Pose) -> Floats:
        """Brightness of the ground, 1 in full light, darker where the leaf hides the lamp or lies close."""
        size = len(mask)
        reach = self.lift / self.direction[2]
        cast = pose.seen(canvas_mask, size, offset=(-self.direction[0] * reach, -self.direction[1] * reach))
        hidden = (1 - self.ambient) * 0.9 * blurred(cast, self.softness * size)
        return np.asarray(1 - hidden - 0.25 * blurred(mask, 0.025 * size), np.float32)


def _background(rng: np.random.Generator, size: int) -> Floats:
    """Grey or purple card in most shots; else paper, soil or wood. `(size, size, 3)`, 0 to 1."""
    kind = rng.choice(["card", "paper", "soil", "wood"], p=[0.79, 0.07, 0.07, 0.07])
    grain = rng.standard_normal((size, size), np.float32)
    if kind == "card":
        base = (
            np.array([0.47, 0.44, 0.47]) + rng.normal(0, 0.02, 3) + np.array([0.03, 0, 0.05]) * rng.uniform(-0.3, 1.2)
        )
        pattern = 0.02 * noise(rng, size, 6) + 0.03 * noise(rng, size, 80) + rng.uniform(0.02, 0.09) * grain
    elif kind == "paper":
        base = np.array([0.74, 0.71, 0.65]) * rng.uniform(0.8, 1.1)
        pattern = 0.02 * noise(rng, size, 4) + 0.02 * noise(rng, size, 40, stretch=0.3) + 0.015 * grain
    elif kind == "soil":
        base = np.array([0.32, 0.25, 0.19]) * rng.uniform(0.7, 1.4)
        pattern = 0.12 * noise(rng, size, 9) + 0.18 * noise(rng, size, 26) + 0.18 * noise(rng, size, 70) + 0.08 * grain
    else:
        base = np.array([0.46, 0.37, 0.28]) * rng.uniform(0.7, 1.3)
        pattern = 0.10 * noise(rng, size, 10, stretch=9) + 0.10 * noise(rng, size, 60, stretch=25) + 0.02 * grain
        if rng.random() < 0.5:
            pattern = pattern.T
    return np.asarray(base.astype(np.float32) * np.exp(pattern)[..., None], np.float32)


def _develop(rng: np.random.Generator, scene: Floats) -> Image.Image:
    """Uneven light over the photo, exposure, white balance, contrast, focus, sensor noise."""
    x, y = grid(len(scene))
    tilt, vignette = rng.normal(0, 0.10, 2).astype(np.float32), np.float32(rng.uniform(0, 0.22))
    falloff = np.exp(tilt[0] * x + tilt[1] * y - vignette * (x * x + y * y))
    warmth, tint = rng.normal(0, 0.05), rng.normal(0, 0.025)
    balance = np.exp(rng.normal(0.05, 0.12) + np.array([warmth, tint, -warmth]))
    exposed = scene * (falloff[..., None] * balance.astype(np.float32))
    contrast = np.float32(rng.uniform(0.85, 1.15))
    toned = np.float32(0.4) * (exposed * np.float32(2.5)) ** contrast
    # A soft shoulder: highlights fade into white instead of breaking off.
    toned = np.where(toned > 0.75, 1 - 0.25 * np.exp(-(toned - 0.75) / 0.25), toned)
    photo = Image.fromarray(to_bytes(toned))
    if rng.random() < 0.3:
        photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.7) * photo.width / 128))
    pixels = np.asarray(photo, np.float32)
    speckle = rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(0.5, 4.0))
    return Image.fromarray(np.clip(pixels + speckle + 0.5, 0, 255).astype(np.uint8))


def _halved(plane: Floats) -> Floats:
    return np.asarray((plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]) / 4, np.float32)
