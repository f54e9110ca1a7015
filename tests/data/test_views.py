from __future__ import annotations

import io
import os
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from agridistill.data.views import Augmentation, render_view, view_seed
from agridistill.errors import ConfigError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import to_pixels
from agridistill.settings_file import build_settings

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
    "wrong",
    [
        {"min_scale": 0.0},
        {"max_aspect": 0.5},
        {"cast": 1.0},
        {"min_size": 0.0},
        {"blur": 0.5},
        {"noise": -1.0},
        {"jpeg": 0},
    ],
)
def test_augmentation_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"augmentation.{next(iter(wrong))}"):
        build_settings(Augmentation, wrong, section="augmentation")


def test_a_name_that_is_no_utf8_has_a_seed_and_other_names_keep_theirs() -> None:
    def plain(name: bytes) -> int:
        return int(np.random.SeedSequence((3, 5, zlib.crc32(name))).generate_state(1, np.uint32)[0])

    assert view_seed(3, 5, os.fsdecode(b"rust/bl\xe4tt.jpg")) == plain(b"rust/bl\xe4tt.jpg")
    assert view_seed(3, 5, "rust/blätt.jpg") == plain("rust/blätt.jpg".encode())


SPOILING = {"min_size": 0.3, "blur": 0.05, "noise": 60.0, "jpeg": 5}


def spoilt(name: str, seeds: int, image: Image.Image) -> list[np.ndarray]:
    """The views that one kind of spoiling changed."""
    augmentation = replace(PLAIN, **{name: SPOILING[name]})
    plain = to_pixels(image, Preprocessing(48))
    views = [render_view(image, seed, augmentation, Preprocessing(48)) for seed in range(seeds)]
    return [view for view in views if not np.array_equal(view, plain)]


@pytest.mark.parametrize("name", SPOILING)
def test_each_kind_of_spoiling_acts_on_a_third_of_the_views(name: str) -> None:
    # 600 draws of one third: 200 within four standard deviations of 11.5, less those that round to nothing.
    assert 130 < len(spoilt(name, 600, photo(48, 48))) < 246


def test_one_kind_of_spoiling_changes_no_other_and_nothing_else_of_a_view() -> None:
    image, preprocessing = photo(60, 50), Preprocessing(48)
    for seed in range(60):
        before = render_view(image, seed, Augmentation(), preprocessing)
        blurred = render_view(image, seed, replace(Augmentation(), blur=0.05), preprocessing)
        both = render_view(image, seed, replace(Augmentation(), blur=0.05, jpeg=5), preprocessing)
        stored = render_view(image, seed, replace(Augmentation(), jpeg=5), preprocessing)
        if np.array_equal(stored, before):
            assert np.array_equal(both, blurred)
        if np.array_equal(blurred, before):
            assert np.array_equal(both, stored)


def test_a_leaf_further_away_is_smaller_and_stands_on_the_colour_of_the_rim() -> None:
    leaf = Image.new("RGB", (48, 48), (90, 80, 100))
    leaf.paste((10, 200, 30), (8, 8, 40, 40))
    shares = []
    for view in spoilt("min_size", 300, leaf):
        assert {tuple(view[0, 0]), tuple(view[-1, -1])} == {(90, 80, 100)}
        shares.append(np.sqrt((view[..., 1] > 140).sum()) / 32)
    assert 0.25 < min(shares) < 0.4
    assert 0.9 < max(shares) <= 1.05


def test_noise_is_as_strong_as_it_says_at_most_and_has_no_bias() -> None:
    views = spoilt("noise", 600, Image.new("RGB", (48, 48), (128, 128, 128)))
    deviations = [float(view.std()) for view in views]
    assert 50 < max(deviations) < 60
    assert min(deviations) < 6
    assert abs(np.mean([view.mean() for view in views]) - 128) < 0.5


def test_blur_spreads_an_edge_by_its_deviation() -> None:
    edge = Image.new("RGB", (48, 48))
    edge.paste((255, 255, 255), (24, 0, 48, 48))
    # The derivative of a blurred edge is the kernel; its deviation in pixels is at most 0.05 of the side.
    places = np.arange(1, 48)
    deviations = []
    for view in spoilt("blur", 600, edge):
        kernel = np.diff(view[24, :, 0].astype(float))
        centre = (kernel * places).sum() / kernel.sum()
        deviations.append(float(np.sqrt((kernel * (places - centre) ** 2).sum() / kernel.sum())))
    assert 2.1 < max(deviations) < 2.7
    assert min(deviations) < 0.5


def test_a_second_jpeg_is_one_of_libjpeg() -> None:
    image = photo(48, 48)
    stored = set()
    for quality in range(5, 101):
        held = io.BytesIO()
        Image.fromarray(to_pixels(image, Preprocessing(48))).save(held, "JPEG", quality=quality)
        stored.add(np.asarray(Image.open(held).convert("RGB")).tobytes())
    views = spoilt("jpeg", 60, image)
    assert len(views) > 5
    assert all(view.tobytes() in stored for view in views)
