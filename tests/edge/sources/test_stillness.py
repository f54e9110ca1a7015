"""A stuck picture is found whatever its bytes, also below a clock that runs on; live ones and the night are not."""

from __future__ import annotations

import io
import itertools
import logging
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tests.edge.conftest import wait_for

from agridistill.data.synthetic import draw_leaf
from agridistill.edge.sources import LatestFrame, SourceSettings
from agridistill.edge.sources.latest import Stillness
from agridistill.edge.sources.snapshots import SnapshotSource

from .test_snapshots import Camera, camera, no_proxy  # noqa: F401 # fixtures

SIZE = (320, 240)


def scene(seed: int = 0) -> Image.Image:
    leaf = draw_leaf("healthy", np.random.default_rng(seed), np.random.default_rng(seed + 100), 240)
    return Image.fromarray(np.array(leaf)).resize(SIZE)


def through_jpeg(image: Image.Image, quality: int = 85, comment: str = "") -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, comment=comment.encode())
    return stream.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def with_clock(image: Image.Image, number: int) -> Image.Image:
    copy = image.copy()
    ImageDraw.Draw(copy).text((4, 4), f"2026-05-12 14:03:{number:02d}", fill=(255, 255, 255))
    return copy


def with_noise(image: Image.Image, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 1, np.array(image).shape)
    return Image.fromarray(np.clip(np.rint(np.array(image) + noise), 0, 255).astype(np.uint8))


def brighter(image: Image.Image, number: int) -> Image.Image:
    return Image.fromarray(np.clip(np.array(image).astype(int) + 4 * number, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("is_stuck", "shot"),
    [
        (True, lambda number: through_jpeg(scene(), comment=f"picture {number}")),
        (True, lambda number: through_jpeg(with_clock(scene(), number))),
        (False, lambda number: through_jpeg(with_noise(scene(), number))),
        (False, lambda number: through_jpeg(brighter(scene(), number))),
        (False, lambda number: through_jpeg(scene(number))),
        (False, lambda number: through_jpeg(Image.new("RGB", SIZE), comment=f"night {number}")),
    ],
    ids=["other bytes", "a clock runs on", "noise", "the light grows", "other leaves", "night"],
)
def test_a_stuck_picture_is_told_from_a_live_one(is_stuck: bool, shot: Callable[[int], bytes]) -> None:
    stillness = Stillness()
    assert [stillness.repeats(decoded(shot(number))) for number in range(5)] == [False, *[is_stuck] * 4]


def test_a_slow_change_adds_up_to_a_new_picture() -> None:
    stillness = Stillness()
    pictures = [np.array(scene()).clip(0, 200) + np.uint8(number) for number in range(7)]
    assert [stillness.repeats(picture) for picture in pictures] == [False, True, True, False, True, True, False]


@pytest.mark.parametrize("same_bytes", [False, True])
def test_a_stuck_camera_is_reported_once_and_its_picture_counts_once(
    camera: Camera,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    same_bytes: bool,
) -> None:
    numbers = itertools.count()
    now = [0.0]

    def stuck(seed: int) -> None:
        camera.answer = lambda handler: handler.give(
            through_jpeg(scene(seed), comment="" if same_bytes else str(next(numbers)))
        )

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    stuck(0)
    source = SnapshotSource(camera.url(), SourceSettings(every_s=0.01))
    with LatestFrame(source, still_after_s=600, clock=lambda: now[0]) as latest:
        assert latest.take(10) is not None
        before = len(camera.asked)
        wait_for(lambda: len(camera.asked) > before + 3)
        assert latest.take(0) is None
        assert (latest.trouble, told()) == (None, [])
        now[0] = 605.0
        wait_for(lambda: latest.trouble is not None)
        assert latest.trouble == "its picture has not changed for 10 min"
        assert latest.lost_for_s is None
        now[0] = 1300.0
        before = len(camera.asked)
        wait_for(lambda: len(camera.asked) > before + 3)
        assert latest.take(0) is None
        stuck(1)
        assert latest.take(10) is not None
        assert latest.trouble is None
    first, second = told()
    assert "has not changed for 10 min" in first
    assert "changes again" in second
    assert latest.skipped == 0
