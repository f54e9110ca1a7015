from __future__ import annotations

import os
import zlib

import numpy as np
import pytest
from PIL import Image

from agridistill.data.views import Augmentation, render_view, view_seed
from agridistill.errors import ConfigError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import to_pixels

PLAIN = Augmentation(min_scale=1, max_aspect=1, flip=False, turn=False, brightness=0, contrast=0, saturation=0, cast=0)


def photo(width: int = 60, height: int = 40) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def test_the_same_seed_gives_the_same_pixels() -> None:
    views = [render_view(photo(), 7, Augmentation(), Preprocessing(32)) for _ in range(2)]
    assert np.array_equal(*views)
    assert views[0].shape == (32, 32, 3)
    assert views[0].dtype == np.uint8


def test_other_seeds_give_other_views() -> None:
    views = {render_view(photo(), seed, Augmentation(), Preprocessing(32)).tobytes() for seed in range(20)}
    assert len(views) == 20


def test_without_augmentation_a_view_of_a_square_photo_is_the_evaluated_one() -> None:
    square = photo(48, 48)
    for resize in ("crop", "stretch"):
        preprocessing = Preprocessing(32, resize)
        assert np.array_equal(render_view(square, 3, PLAIN, preprocessing), to_pixels(square, preprocessing))


def test_flip_and_turn_reach_all_eight_orientations_and_change_no_pixel_value() -> None:
    augmentation = Augmentation(min_scale=1, max_aspect=1, brightness=0, contrast=0, saturation=0, cast=0)
    square = photo(32, 32)
    plain = np.asarray(square)
    expected = {
        np.ascontiguousarray(np.rot90(side, turns)).tobytes() for side in (plain, plain[:, ::-1]) for turns in range(4)
    }
    seen = {render_view(square, seed, augmentation, Preprocessing(32)).tobytes() for seed in range(100)}
    assert seen == expected


@pytest.mark.parametrize("resize", ["crop", "stretch"])
@pytest.mark.parametrize("size", [(3000, 17), (17, 3000), (1, 1), (64, 64)])
def test_any_shape_of_photo_gives_a_view(resize: str, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 200, 30))
    for seed in range(30):
        assert render_view(image, seed, Augmentation(), Preprocessing(16, resize)).shape == (16, 16, 3)  # type: ignore[arg-type]


def test_a_view_shows_at_least_min_scale_of_the_photo() -> None:
    # A horizontal ramp: the range of values in a view is the share of the width that it shows.
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 256).astype(np.uint8), (256, 1))).convert("RGB")
    augmentation = Augmentation(
        min_scale=0.49, max_aspect=1, flip=False, turn=False, brightness=0, contrast=0, saturation=0, cast=0
    )
    shares = []
    for seed in range(200):
        view = render_view(ramp, seed, augmentation, Preprocessing(64))[..., 0].astype(int)
        shares.append((view.max() - view.min()) / 255)
    assert min(shares) > 0.65  # sqrt(0.49) of the width, less the resampling at both ends
    assert max(shares) > 0.95


def test_brightness_stays_within_its_bounds() -> None:
    grey = Image.new("RGB", (16, 16), (100, 100, 100))
    augmentation = Augmentation(min_scale=1, max_aspect=1, brightness=0.2, contrast=0, saturation=0, cast=0)
    means = [render_view(grey, seed, augmentation, Preprocessing(16)).mean() for seed in range(200)]
    assert 79 <= min(means) < 84
    assert 116 < max(means) <= 120


def test_view_seeds_differ_by_run_epoch_and_photo() -> None:
    seeds = {view_seed(seed, epoch, path) for seed in range(5) for epoch in range(5) for path in ("a/1.jpg", "a/2.jpg")}
    assert len(seeds) == 50
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert view_seed(1, 2, "a/1.jpg") == view_seed(1, 2, "a/1.jpg")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_scale": 0.0}, "min_scale above 0"),
        ({"max_aspect": 0.5}, "max_aspect from 1"),
        ({"cast": 1.0}, "cast from 0"),
    ],
)
def test_augmentation_out_of_range_is_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augmentation(**wrong)  # type: ignore[arg-type]


def test_a_name_that_is_no_utf8_has_a_seed_and_other_names_keep_theirs() -> None:
    def plain(name: bytes) -> int:
        return int(np.random.SeedSequence((3, 5, zlib.crc32(name))).generate_state(1, np.uint32)[0])

    assert view_seed(3, 5, os.fsdecode(b"rust/bl\xe4tt.jpg")) == plain(b"rust/bl\xe4tt.jpg")
    assert view_seed(3, 5, "rust/blätt.jpg") == plain("rust/blätt.jpg".encode())
