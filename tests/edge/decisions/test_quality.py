from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from agridistill.data.synthetic import draw_leaf
from agridistill.edge.decisions.quality import QualitySettings, quality_problem
from agridistill.errors import ConfigError


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


def test_limits_can_be_taken_away() -> None:
    anything = QualitySettings(darkest=0, brightest=1, blurriest=0, least_leaf=0)
    for photo in (
        np.zeros((32, 32, 3), np.uint8),
        np.full((32, 32, 3), 255, np.uint8),
        np.full((1, 1, 3), 9, np.uint8),
    ):
        assert quality_problem(photo, anything) == ""


def test_limits_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"quality.brightest from 0 to 1; got 2"):
        QualitySettings(brightest=2)
    with pytest.raises(ConfigError, match=r"quality.darkest"):
        QualitySettings(darkest=float("nan"))
