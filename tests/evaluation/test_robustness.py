"""Robustness counts what it says it counts, on photos that a model of one rule classifies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill.data.folder import Sample
from agridistill.errors import DataError, PhotoError
from agridistill.evaluation.corruptions import CORRUPTIONS, Corruption
from agridistill.evaluation.robustness import RobustnessResult, leaf_mask, robustness, without_ground, without_leaf
from agridistill.manifest import ModelManifest, Preprocessing

CLASSES = ("green", "yellow")


class Judge:
    """Calls a photo yellow where its leaf, or else all of it, has more red than green."""

    def __init__(self, region: slice, size: int = 32) -> None:
        self.region, self.seen = region, 0
        self.looks: list[bytes] = []
        self.manifest = ModelManifest(
            model="rule",
            classes=CLASSES,
            preprocessing=Preprocessing(size),
            weights_file="none",
            weights_sha256="0" * 64,
        )

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        self.seen += len(pixels)
        self.looks += [photo.tobytes() for photo in pixels]
        part = pixels[:, self.region, self.region].astype(np.float32).mean(axis=(1, 2))
        yellow = part[:, 0] > part[:, 1]
        return np.stack([~yellow, yellow], axis=1).astype(np.float32)


@pytest.fixture
def photos(tmp_path: Path) -> list[Sample]:
    """20 leaves on grey ground; one third yellow."""
    samples = []
    for number in range(20):
        label = int(number % 3 == 0)
        photo = np.full((64, 64, 3), 140, np.uint8)
        photo[16:48, 16:48] = [160, 140, 40] if label else [40, 140, 60]
        path = f"{CLASSES[label]}/{number}.png"
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.fromarray(photo).save(tmp_path / path)
        samples.append(Sample(path, label, f"leaf{number // 2}"))
    return samples


def test_a_model_of_leaves_falls_to_chance_without_them(photos: list[Sample], tmp_path: Path) -> None:
    nothing = Corruption("nothing", "", (1.0,), lambda photo, strength, rng: photo)
    result = robustness(Judge(slice(10, 22)), photos, tmp_path, corruptions=[nothing])
    assert result.mean_corrupted_accuracy == 1.0
    assert (result.photos, result.accuracy, result.chance) == (20, 1.0, 13 / 20)
    assert result.ground_masked_accuracy == 1.0
    # Grey is not red: everything is called green, the most frequent class.
    assert result.leaf_masked_accuracy == result.chance
    assert result.accuracy_ci95[0] < 1


def test_each_strength_is_the_accuracy_of_all_photos_so_spoilt(photos: list[Sample], tmp_path: Path) -> None:
    turn = Corruption("turn to yellow", "share of photos", (0.0, 1.0), _redden)
    result = robustness(Judge(slice(0, 32)), photos, tmp_path, corruptions=[turn])
    (under,) = result.corruptions
    assert under.accuracies == (1.0, 7 / 20)
    assert result.mean_corrupted_accuracy == pytest.approx((1 + 7 / 20) / 2)
    assert result.corruptions[0].strengths == (0.0, 1.0)


def _redden(photo: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return np.maximum(photo, np.array([int(255 * strength), 0, 0], np.uint8))


def test_progress_and_the_limit_on_photos(photos: list[Sample], tmp_path: Path) -> None:
    judge, seen = Judge(slice(0, 32)), []
    result = robustness(
        judge, photos, tmp_path, most_photos=6, corruptions=CORRUPTIONS[:2], progress=lambda *at: seen.append(at)
    )
    assert result.photos == 6
    assert judge.seen == 6 * (1 + 8 + 2)
    assert seen[-1] == (judge.seen, judge.seen)


def test_a_photo_is_spoilt_alike_whatever_the_model_and_the_order(photos: list[Sample], tmp_path: Path) -> None:
    hard = [one for one in CORRUPTIONS if one.name in ("noise", "occlusion", "motion blur")]
    forwards, backwards, half = Judge(slice(0, 32)), Judge(slice(0, 32)), Judge(slice(0, 32))
    robustness(forwards, photos, tmp_path, corruptions=hard)
    robustness(backwards, photos[::-1], tmp_path, corruptions=hard)
    robustness(half, photos[:10], tmp_path, corruptions=hard)
    assert forwards.looks != backwards.looks
    assert sorted(forwards.looks) == sorted(backwards.looks)
    assert set(half.looks) <= set(forwards.looks)
    # A model of another input size meets the same: seen at 64 px and halved, what the smaller one sees at 32.
    larger = Judge(slice(0, 64), size=64)
    robustness(larger, photos, tmp_path, corruptions=hard)
    for small, large in zip(forwards.looks, larger.looks, strict=True):
        left = np.frombuffer(small, np.uint8).reshape(32, 32, 3).astype(float)
        right = np.frombuffer(large, np.uint8).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
        assert np.abs(left - right).mean() < 12  # resampled once more; other noise would be three times that


def test_photos_without_a_leaf_on_plain_ground_are_left_out_of_the_masks(photos: list[Sample], tmp_path: Path) -> None:
    def blank(count: int) -> RobustnessResult:
        for sample in photos[:count]:
            Image.new("RGB", (64, 64), (140, 140, 140)).save(tmp_path / sample.path)
        return robustness(Judge(slice(10, 22)), photos, tmp_path, corruptions=CORRUPTIONS[:1])

    result = blank(5)
    assert (result.photos, result.masked_photos) == (20, 15)
    result = blank(10)
    assert (result.masked_photos, result.leaf_masked_accuracy is None) == (10, False)
    # A minority does not stand for the rest.
    result = blank(11)
    assert (result.masked_photos, result.leaf_masked_accuracy, result.ground_masked_accuracy) == (9, None, None)
    assert (result.leaf_masked_ci95, result.chance) == (None, 13 / 20)
    assert blank(20).masked_photos == 0


def test_masks_leave_the_other_part_as_it_was() -> None:
    photo = np.full((64, 64, 3), 140, np.uint8)
    photo[16:48, 16:48] = [40, 140, 60]
    mask = leaf_mask(photo)
    ground, leaf = without_leaf(photo, mask), without_ground(photo, mask)
    assert (ground == 140).all()
    assert (leaf[16:48, 16:48] == [40, 140, 60]).all()
    assert (leaf[:10] == 128).all()


def test_what_cannot_be_spoilt_is_told(photos: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 1 photo to measure robustness; got none"):
        robustness(Judge(slice(0, 32)), [], tmp_path)
    (tmp_path / photos[3].path).write_bytes(b"no photo")
    with pytest.raises(PhotoError, match="not a JPEG"):
        robustness(Judge(slice(0, 32)), photos, tmp_path)
