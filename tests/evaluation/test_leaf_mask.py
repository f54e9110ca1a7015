"""Masks are trusted where one leaf lies on a plain ground, and nowhere else; on drawn pictures."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from agridistill.evaluation.robustness import is_trustworthy, leaf_mask

Photo = NDArray[np.uint8]
GREEN, YELLOW, GREY = (60, 140, 50), (190, 170, 50), (140, 138, 145)


def leaf_on(ground: Photo, box: tuple[int, int, int, int] = (50, 30, 145, 170)) -> Photo:
    picture = Image.fromarray(ground)
    ImageDraw.Draw(picture).ellipse(box, fill=GREEN)
    noise = np.random.default_rng(0).normal(0, 6, (200, 200, 3))
    return np.clip(np.array(picture) + noise, 0, 255).astype(np.uint8)


def plain(colour: tuple[int, int, int] = GREY) -> Photo:
    return np.full((200, 200, 3), colour, np.uint8)


def foliage(seed: int = 0) -> Photo:
    """Leaves of many greens and yellows over dark gaps."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (200, 200), (25, 35, 20))
    draw = ImageDraw.Draw(picture)
    for _ in range(60):
        x, y, side = rng.integers(-20, 200), rng.integers(-20, 200), rng.integers(20, 60)
        shade = rng.uniform(0.5, 1.3)
        red, green, blue = (min(255, int(shade * value)) for value in (GREEN if rng.random() < 0.6 else YELLOW))
        draw.ellipse((x, y, x + side, y + side // 2), fill=(red, green, blue))
    return np.array(picture)


def trusted(photo: Photo) -> bool:
    return is_trustworthy(photo, leaf_mask(photo))


@pytest.mark.parametrize("colour", [GREY, (235, 235, 235), (120, 105, 110), (60, 60, 70), (150, 135, 120)])
def test_a_leaf_on_a_plain_ground_is_found_whole(colour: tuple[int, int, int]) -> None:
    photo = leaf_on(plain(colour))
    mask = leaf_mask(photo)
    assert is_trustworthy(photo, mask)
    truth = (leaf_on(plain()) != leaf_on(plain(), (0, 0, 0, 0))).any(axis=2)
    assert mask[truth].mean() > 0.99
    assert mask.mean() < 1.25 * truth.mean()


def test_shadow_and_light_that_fades_leave_the_ground_plain() -> None:
    ground = plain().astype(float) * np.linspace(0.5, 1.3, 200)[None, :, None]
    ground[120:] *= 0.5
    assert trusted(leaf_on(np.clip(ground, 0, 255).astype(np.uint8)))


@pytest.mark.parametrize("seed", range(8))
def test_on_a_ground_of_plants_no_mask_is_trusted(seed: int) -> None:
    assert not trusted(leaf_on(foliage(seed)))


def test_leaves_beyond_the_rim_two_leaves_and_none_are_not_trusted() -> None:
    assert not trusted(leaf_on(plain(), (-60, 20, 260, 180)))
    assert not trusted(leaf_on(plain(), (-40, -40, 240, 240)))  # nothing but leaf
    pair = leaf_on(plain(), (20, 20, 90, 180))
    assert trusted(pair)
    pair[:, 110:] = pair[:, 90:0:-1]
    assert not trusted(pair)
    assert not trusted(plain())
    assert not trusted(leaf_on(plain(), (0, 0, 0, 0)))
    assert not trusted(leaf_on(plain(), (95, 95, 110, 110)))  # a speck


def test_half_a_ground_of_grass_is_not_plain() -> None:
    ground = plain()
    ground[:, 120:] = foliage()[:, 120:]
    assert not trusted(leaf_on(ground, (20, 30, 110, 170)))
