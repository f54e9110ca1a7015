"""Makes photos of drawn leaves, only for the demo and the tests: results on them say nothing about real leaves."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from agridistill.data.leaf_shapes import SYMPTOMS, Floats, Leaf, Points, blurred, grid, grow, noise, to_bytes
from agridistill.host import usable_cores
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import replacing_folder, write_picture

CLASSES: tuple[str, ...] = tuple(SYMPTOMS)
_JPEG_QUALITY = 90


def draw_leaf(
    class_name: str, rng_leaf: np.random.Generator, rng_shot: np.random.Generator, image_size: int
) -> Image.Image:
    """Draws an artificial photo of a leaf of a class in `CLASSES`, with a side of at least 32 pixels.

    `rng_leaf` gives outline, colour, veins and lesions: the same numbers draw the same leaf. `rng_shot` gives position,
    light, background and camera.

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
    """Writes a data folder of artificial leaf photos, with one folder for each class, and returns `out`.

    Files have names like those of PlantVillage, `UUID___SYN_CLASS Leaf LEAF.SHOT.jpg`, with leaf and shot counted from
    1. More leaves or shots add photos and do not change the others. If writing fails, no folder is created. `out` must
    not exist, or be empty; `image_size` is the side of a photo in pixels, at least 32.
    """
    leaves = [(class_name, leaf) for class_name in CLASSES for leaf in range(1, leaves_per_class + 1)]
    with replacing_folder(out) as folder, ThreadPoolExecutor(usable_cores(), thread_name_prefix="draw") as pool:

        def draw(class_name: str, leaf: int) -> None:
            for name, photo in _shots_of(class_name, leaf, shots_per_leaf, image_size, seed):
                write_picture(photo, folder / class_name / name, "JPEG", quality=_JPEG_QUALITY)

        for class_name in CLASSES:
            (folder / class_name).mkdir()
        try:
            for done, _ in enumerate(pool.map(draw, *zip(*leaves, strict=True)), start=1):
                progress(done * shots_per_leaf, len(leaves) * shots_per_leaf)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return out


def _shots_of(class_name: str, leaf: int, shots: int, image_size: int, seed: int) -> Iterator[tuple[str, Image.Image]]:
    key = (CLASSES.index(class_name), leaf)
    drawn = _diseased_leaf(class_name, _generator(seed, *key), image_size)
    initials = "".join(word[0] for word in class_name.split("_")).upper()
    for shot in range(1, shots + 1):
        identity = uuid.uuid5(uuid.NAMESPACE_OID, f"agridistill drawn leaf {seed} {class_name} {leaf} {shot}")
        yield f"{identity}___SYN_{initials} Leaf {leaf}.{shot}.jpg", photograph(drawn, _generator(seed, *key, shot))


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _diseased_leaf(class_name: str, rng: np.random.Generator, image_size: int) -> Leaf:
    severity = rng.uniform(0.2, 1.0)
    # Leaves of other classes are a little curled too, so that the outline is not enough to recognise the class.
    curl = 0.35 + 0.65 * severity if class_name == "yellow_curl" else rng.uniform(0, 0.35)
    return SYMPTOMS[class_name](grow(rng, 2 * image_size, curl=curl), severity, rng)


def photograph(leaf: Leaf, rng: np.random.Generator) -> Image.Image:
    """Draws an RGB photo of a leaf on a square canvas of `size` pixels; its side has `size / 2` pixels.

    Scaling the canvas down makes edges smooth. `rng` gives position, light, background and camera.
    """
    size = len(leaf.mask)
    pose, light = _Pose.random(rng), _Light.random(rng)
    fine_mask = pose.seen(leaf.mask, size)
    # Only outline and colours need the large canvas. They are scaled down before `_develop`, because light can be
    # averaged only before contrast and exposure change it.
    mask, colour = _halved(fine_mask), _halved(pose.seen(leaf.colour, size) * fine_mask[..., None])
    height = pose.seen(_halved(leaf.height), size // 2)
    diffuse, gloss = light.on_leaf(height, 4 * pose.scale / size)
    ground = _background(rng, size // 2) * light.on_ground(_halved(leaf.mask), mask, pose)[..., None]
    lit = colour * diffuse[..., None] + (gloss * mask)[..., None]
    return _develop(rng, lit + ground * (1 - mask)[..., None])


@dataclass(frozen=True)
class _Pose:
    """The position of a leaf in the photo: angle in radians, lengths in canvas units."""

    angle: float
    scale: float
    squeeze: float
    shift: tuple[float, float]

    @classmethod
    def random(cls, rng: np.random.Generator) -> _Pose:
        shift = rng.normal(0, 0.05, 2)
        return cls(rng.normal(0, 0.3), rng.uniform(1.0, 1.25), rng.uniform(0.86, 1.0), (shift[0], shift[1] - 0.03))

    def seen(self, plane: Floats, size: int, *, offset: tuple[float, float] = (0.0, 0.0)) -> Floats:
        """Moves values `(n, n)` or colours `(n, n, 3)` to their position in a photo; `offset` is in half photos."""
        # The six coefficients with which Pillow maps a pixel of the photo to a pixel of the canvas.
        cos, sin = np.cos(self.angle) / self.scale, np.sin(self.angle) / self.scale
        matrix = np.array([[cos / self.squeeze, sin / self.squeeze], [-sin, cos]])
        centre = np.full(2, size / 2)
        origin = centre - matrix @ (centre * (1 + np.asarray(self.shift) + np.asarray(offset)))
        coefficients = (*matrix[0].tolist(), float(origin[0]), *matrix[1].tolist(), float(origin[1]))
        coloured = plane.ndim == 3
        image = Image.fromarray(to_bytes(plane) if coloured else plane).transform(
            (size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
        )
        return np.asarray(image, np.float32) / np.float32(255 if coloured else 1)


@dataclass(frozen=True)
class _Light:
    """The light of a photo: one lamp or the sun, plus ambient light.

    `direction` is a unit vector to the lamp; its third component is up.
    """

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
        lift, shine = rng.uniform(0.04, 0.14), rng.uniform(0.05, 0.4) * (1.0 if sunny else 0.5)
        return cls(direction, ambient, softness, lift, shine)

    def on_leaf(self, height: Floats, pixel: float) -> tuple[Floats, Floats]:
        """Computes the brightness of a leaf, 1 where it is flat (Lambert's law), and its highlights (Blinn's model).

        The height of the surface and the width of a pixel are in canvas units.
        """
        down, right = np.gradient(height, pixel)
        steepness = np.sqrt(1 + right * right + down * down)

        def facing(direction: Points) -> Floats:
            x, y, up = direction.astype(np.float32)
            return np.asarray(np.maximum(up - x * right - y * down, 0) / steepness, np.float32)

        lamp = np.asarray(self.direction)
        half_way = lamp + np.array([0, 0, 1])
        diffuse = self.ambient + (1 - self.ambient) / lamp[2] * facing(lamp)
        gloss = np.float32(self.shine) * facing(half_way / np.linalg.norm(half_way)) ** 16
        return np.asarray(diffuse, np.float32), gloss

    def on_ground(self, canvas_mask: Floats, mask: Floats, pose: _Pose) -> Floats:
        """Computes the brightness of the ground: 1 in full light, less in the shadow of the leaf and next to it."""
        size = len(mask)
        reach = self.lift / self.direction[2]
        cast = pose.seen(canvas_mask, size, offset=(-self.direction[0] * reach, -self.direction[1] * reach))
        hidden = (1 - self.ambient) * 0.9 * blurred(cast, self.softness * size)
        return np.asarray(1 - hidden - 0.25 * blurred(mask, 0.025 * size), np.float32)


def _background(rng: np.random.Generator, size: int) -> Floats:
    """Draws a background `(size, size, 3)` from 0 to 1: mostly grey or purple card, else paper, soil or wood."""
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
    """Turns a scene into a photo: adds uneven light, exposure, white balance, contrast, blur and sensor noise."""
    x, y = grid(len(scene))
    tilt, vignette = rng.normal(0, 0.10, 2).astype(np.float32), np.float32(rng.uniform(0, 0.22))
    falloff = np.exp(tilt[0] * x + tilt[1] * y - vignette * (x * x + y * y))
    warmth, tint = rng.normal(0, 0.05), rng.normal(0, 0.025)
    balance = np.exp(rng.normal(0.05, 0.12) + np.array([warmth, tint, -warmth]))
    exposed = scene * (falloff[..., None] * balance.astype(np.float32))
    contrast = np.float32(rng.uniform(0.85, 1.15))
    toned = np.float32(0.4) * (exposed * np.float32(2.5)) ** contrast
    # Compress bright values smoothly, so that highlights do not have a hard edge.
    toned = np.where(toned > 0.75, 1 - 0.25 * np.exp(-(toned - 0.75) / 0.25), toned)
    photo = Image.fromarray(to_bytes(toned))
    if rng.random() < 0.3:
        photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.7) * photo.width / 128))
    pixels = np.asarray(photo, np.float32)
    speckle = rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(0.5, 4.0))
    return Image.fromarray(np.clip(pixels + speckle + 0.5, 0, 255).astype(np.uint8))


def _halved(plane: Floats) -> Floats:
    return np.asarray((plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]) / 4, np.float32)
