from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from agridistill.data.drawn_leaves import draw_leaf
from agridistill.errors import ConfigError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import to_pixels
from agridistill.runtime.verdict import QualitySettings, _brightest, quality_problem
from agridistill.settings_file import build_settings


def leaf(seed: int = 0) -> np.ndarray:
    return np.array(draw_leaf("healthy", np.random.default_rng(seed), np.random.default_rng(seed + 100), 224))


@pytest.mark.parametrize("seed", range(12))
def test_leaves_pass(seed: int) -> None:
    assert quality_problem(leaf(seed), QualitySettings()) == ""


def test_real_leaves_pass(real_photos: Path) -> None:
    paths = sorted(real_photos.glob("*/*.[jJ][pP][gG]"))[::60]
    assert len(paths) > 100
    refused = sum(bool(quality_problem(np.array(Image.open(path)), QualitySettings())) for path in paths)
    assert refused / len(paths) < 0.01


@pytest.mark.parametrize(
    ("problem", "spoilt"),
    [
        ("too dark", lambda photo: photo // 6),
        ("too bright", lambda photo: np.clip(photo.astype(int) * 5, 0, 255).astype(np.uint8)),
        ("blurred", lambda photo: np.array(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(5)))),
        (
            "no leaf to be seen",
            lambda photo: np.repeat(photo.mean(axis=-1, keepdims=True), 3, axis=-1).astype(np.uint8),
        ),
    ],
)
def test_what_is_wrong_is_named(problem: str, spoilt: Callable[[np.ndarray], np.ndarray]) -> None:
    for seed in range(5):
        assert quality_problem(spoilt(leaf(seed)), QualitySettings()) == problem


def as_left_by_a_decoder(photo: np.ndarray, kind: str) -> np.ndarray:
    """What libjpeg and FFmpeg show where the data of the rows from the middle on is missing."""
    middle, damaged = len(photo) // 2, photo.copy()
    if kind == "streaks":
        damaged[middle : middle + 60] = photo[middle]
    elif kind == "fill":
        damaged[middle:] = (0, 135, 0)
    else:
        stream = io.BytesIO()
        Image.fromarray(photo).resize((640, 480)).save(stream, "JPEG")
        data = stream.getvalue()
        cut = Image.open(io.BytesIO(data[: len(data) // 2] + b"\xff\xd9"))
        damaged = np.array(cut.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
    return damaged


@pytest.mark.parametrize("kind", ["streaks", "fill", "cut"])
def test_a_frame_that_lost_rows_is_unusable(kind: str) -> None:
    for seed in range(5):
        damaged = as_left_by_a_decoder(leaf(seed), kind)
        assert quality_problem(damaged, QualitySettings()) == "smeared or cut off"
        assert quality_problem(damaged, QualitySettings(smeared=1)) != "smeared or cut off"


def test_leaves_cut_out_on_black_or_white_are_not_smeared() -> None:
    for ground in (0, 255):
        photo = leaf(3)
        photo[:70] = photo[180:] = ground
        assert quality_problem(photo, QualitySettings(brightest=1)) == ""


@pytest.mark.slow
def test_hardly_any_real_photo_counts_as_smeared(real_photos: Path) -> None:
    paths = sorted(real_photos.glob("*/*.[jJ][pP][gG]"))[::10]
    only = QualitySettings(darkest=0, brightest=1, blurriest=0, least_leaf=0)
    smeared = sum(bool(quality_problem(to_pixels(Image.open(path), Preprocessing(224)), only)) for path in paths)
    assert smeared / len(paths) < 0.001


def test_limits_can_be_taken_away() -> None:
    anything = QualitySettings(darkest=0, brightest=1, blurriest=0, least_leaf=0, smeared=1)
    for photo in (
        np.zeros((32, 32, 3), np.uint8),
        np.full((32, 32, 3), 255, np.uint8),
        np.full((1, 1, 3), 9, np.uint8),
    ):
        assert quality_problem(photo, anything) == ""


def test_limits_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"quality.brightest from 0 to 1; got 2"):
        build_settings(QualitySettings, {"brightest": 2}, section="quality")
    with pytest.raises(ConfigError, match=r"quality.darkest"):
        build_settings(QualitySettings, {"darkest": float("nan")}, section="quality")


def test_the_brightness_is_the_quantile_of_numpy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        light = rng.uniform(0, 255, rng.integers(1, 90, 2)).astype(np.float32)[::2, ::2]
        assert _brightest(light) == np.quantile(light, 0.95)
