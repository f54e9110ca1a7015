"""Each corruption does what its strength says, to that photo alone."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from agridistill.data.drawn_leaves import draw_leaves
from agridistill.evaluation import corruptions
from agridistill.evaluation.corruptions import CORRUPTIONS, Corruption
from agridistill.evaluation.robustness import leaf_mask, otsu_threshold


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    folder = draw_leaves(tmp_path_factory.mktemp("one") / "leaves", leaves_per_class=3, shots_per_leaf=1, image_size=96)
    return np.array(Image.open(sorted(folder.rglob("*.jpg"))[0]))[:80]


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name)
def test_stronger_is_further_from_the_photo_and_the_photo_stays(photo: np.ndarray, corruption: Corruption) -> None:
    before = photo.copy()
    spoilt = [corruption.apply(photo, strength, rng()) for strength in corruption.strengths]
    assert np.array_equal(photo, before)
    for image, strength in zip(spoilt, corruption.strengths, strict=True):
        assert image.shape == photo.shape
        assert image.dtype == np.uint8
        assert np.array_equal(image, corruption.apply(photo, strength, rng()))
    if corruption.name != "rotation":  # half a turn is no further than a quarter
        distances = [np.abs(image.astype(float) - photo).mean() for image in spoilt]
        assert distances == sorted(distances)
        assert distances[0] > 0


def test_blur_is_pillow_s_gaussian_in_the_middle(photo: np.ndarray) -> None:
    ours = corruptions.blur(photo, 0.02, rng()).astype(float)
    # Pillow's is three box blurs: near, not equal.
    theirs = np.array(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(0.02 * 80))).astype(float)
    assert np.abs(ours - theirs)[10:-10, 10:-10].mean() < 1.5


def test_motion_moves_no_light_away() -> None:
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 250
    moved = corruptions.motion(point, 0.25, rng()).astype(float)
    assert moved.sum() == pytest.approx(3 * 250, rel=0.05)
    rows, columns = np.nonzero(moved.max(axis=2))
    length = np.hypot(np.ptp(rows) + 1, np.ptp(columns) + 1)
    assert length == pytest.approx(11, abs=1.5)  # a line of a quarter of the side
    np.testing.assert_allclose([rows.mean(), columns.mean()], 20, atol=0.1)


def test_noise_has_its_deviation() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    assert (corruptions.noise(grey, 16, rng()).astype(float) - 128).std() == pytest.approx(16, rel=0.02)


def test_light_and_cast_are_factors_that_end_at_white() -> None:
    levels = np.array([[[100, 100, 100], [200, 10, 0]]], np.uint8)
    assert corruptions.light(levels, 0.5, rng()).tolist() == [[[50, 50, 50], [100, 5, 0]]]
    assert corruptions.light(levels, 2.0, rng()).tolist() == [[[200, 200, 200], [255, 20, 0]]]
    assert corruptions.colour_cast(levels, 0.4, rng()).tolist() == [[[140, 100, 60], [255, 10, 0]]]


def test_occlusion_covers_its_share() -> None:
    stripes = np.tile(np.array([0, 250], np.uint8).repeat(3).reshape(1, 2, 3), (100, 50, 1))
    covered = (corruptions.occlusion(stripes, 0.2, rng()) == 125).all(axis=2)
    assert covered.mean() == pytest.approx(0.2, abs=0.01)


def test_another_distance_is_another_size_about_the_middle() -> None:
    square = np.full((101, 101, 3), 90, np.uint8)
    square[40:61, 40:61] = [0, 200, 0]
    for factor in (0.5, 2.0):
        green = corruptions.scale(square, factor, rng())[:, :, 1] > 145
        assert green.sum() == pytest.approx(21**2 * factor**2, rel=0.15)
        rows, columns = np.nonzero(green)
        np.testing.assert_allclose([rows.mean(), columns.mean()], 50, atol=0.6)
    assert corruptions.scale(square, 0.5, rng())[0, 0].tolist() == [90, 90, 90]  # the rim's colour


def test_a_quarter_turn_is_numpy_s() -> None:
    rows = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3) // 50 % 251
    square = rows.astype(np.uint8)
    assert np.array_equal(corruptions.rotation(square, 90, rng()), np.rot90(square))


def test_otsu_parts_two_groups_as_a_slow_search_does() -> None:
    values = np.concatenate([rng().normal(10, 2, 300), rng().normal(30, 3, 100)])

    def within(threshold: float) -> float:
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * low.var() + len(high) * high.var() if len(low) and len(high) else np.inf

    best = min(np.linspace(values.min(), values.max(), 2000), key=within)
    assert within(otsu_threshold(values)) == pytest.approx(within(best), rel=0.01)


def test_the_mask_is_the_leaf_with_its_lesions() -> None:
    photo = np.full((120, 120, 3), [140, 132, 142], np.uint8)  # the purple grey of a laboratory
    photo = (photo + rng().normal(0, 4, photo.shape)).clip(0, 255).astype(np.uint8)
    photo[100:, :40] = [30, 28, 31]  # a shadow
    photo[30:90, 40:100] = [60, 110, 50]
    photo[50:60, 60:70] = [90, 70, 40]  # a brown lesion inside
    mask = leaf_mask(photo)
    assert mask[32:88, 42:98].all()
    outside = np.ones_like(mask)
    outside[26:94, 36:104] = False
    assert not mask[outside].any()


def test_a_photo_of_one_colour_has_no_leaf() -> None:
    assert not leaf_mask(np.full((30, 30, 3), 128, np.uint8)).any()
