"""Drawn leaves, for the demo and the tests only: what a model scores on them says nothing about real leaves."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from agridistill.data.leaf_lesions import SYMPTOMS
from agridistill.data.leaf_photos import canvas_size, photograph
from agridistill.data.leaf_shapes import Leaf, grow
from agridistill.errors import DataError, nearest
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import temporary_beside

CLASSES: tuple[str, ...] = tuple(SYMPTOMS)
_SMALLEST_IMAGE = 32
_JPEG_QUALITY = 90


def draw_leaf(
    class_name: str, rng_leaf: np.random.Generator, rng_shot: np.random.Generator, image_size: int
) -> Image.Image:
    """Draws one photo of one leaf.

    Args:
        class_name: one of `CLASSES`.
        rng_leaf: decides outline, colour, veins and lesions.
        rng_shot: decides pose, light, background and camera.
        image_size: height and width of the photo, in pixels, at least 32.

    Returns:
        RGB, `image_size` square.

    Raises:
        DataError: no such class, or too small an image.

    Example:
        >>> draw_leaf("mosaic", np.random.default_rng(0), np.random.default_rng(1), 64).size
        (64, 64)
    """
    return photograph(_ill_leaf(class_name, rng_leaf, image_size), rng_shot)


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
        out: must not exist, or be an empty folder.
        leaves_per_class: at least 1.
        shots_per_leaf: photos of each leaf, at least 1.
        image_size: height and width of a photo, in pixels, at least 32.
        seed: not negative.
        progress: called with (photos done, photos in all).

    Returns:
        `out`.

    Raises:
        DataError: `out` holds something already, or a number is out of its range.
    """
    _require("leaf per class", leaves_per_class, 1)
    _require("shot per leaf", shots_per_leaf, 1)
    _require("as the seed", seed, 0)
    _require("px for drawn leaves", image_size, _SMALLEST_IMAGE)
    total = len(CLASSES) * leaves_per_class * shots_per_leaf
    done = 0
    with _new_folder(out) as folder:
        for class_name in CLASSES:
            (folder / class_name).mkdir()
            for leaf in range(1, leaves_per_class + 1):
                for name, photo in _shots_of(class_name, leaf, shots_per_leaf, image_size, seed):
                    photo.save(folder / class_name / name, quality=_JPEG_QUALITY)
                    done += 1
                    progress(done, total)
    return out


def _shots_of(class_name: str, leaf: int, shots: int, image_size: int, seed: int) -> Iterator[tuple[str, Image.Image]]:
    key = (CLASSES.index(class_name), leaf)
    drawn = _ill_leaf(class_name, _generator(seed, *key), image_size)
    initials = "".join(word[0] for word in class_name.split("_")).upper()
    for shot in range(1, shots + 1):
        identity = uuid.uuid5(uuid.NAMESPACE_OID, f"agridistill drawn leaf {seed} {class_name} {leaf} {shot}")
        yield f"{identity}___SYN_{initials} Leaf {leaf}.{shot}.jpg", photograph(drawn, _generator(seed, *key, shot))


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _ill_leaf(class_name: str, rng: np.random.Generator, image_size: int) -> Leaf:
    if class_name not in SYMPTOMS:
        raise DataError("a class of drawn leaves", repr(class_name), nearest(class_name, CLASSES))
    _require("px for drawn leaves", image_size, _SMALLEST_IMAGE)
    severity = rng.uniform(0.2, 1.0)
    # Other leaves are a little curled too: the outline alone must not tell the class.
    curl = 0.35 + 0.65 * severity if class_name == "yellow_curl" else rng.uniform(0, 0.35)
    return SYMPTOMS[class_name](grow(rng, canvas_size(image_size), curl=curl), severity, rng)


def _require(what: str, number: int, smallest: int) -> None:
    if number < smallest:
        raise DataError(f"at least {smallest} {what}", str(number), "name a larger number")


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder to fill; renames it to `path` on success, removes it on any failure."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise DataError("a new or empty folder for drawn leaves", f"'{path}', which is in use", "name another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        temporary.mkdir()
        yield temporary
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
