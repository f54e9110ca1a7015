"""At most one frame waits, a source that was away is come back to, and no reader dies unheard."""

from __future__ import annotations

import io
import itertools
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tests.edge.conftest import wait_for

from agridistill.data.drawn_leaves import draw_leaf
from agridistill.edge.events import Frame
from agridistill.edge.network import Backoff, split_url
from agridistill.edge.sources import (
    LatestFrame,
    SourceEndedError,
    SourceLostError,
    SourceRefusedError,
    SourceSettings,
    Stillness,
    listing,
    open_source,
    source_identity,
)
from agridistill.edge.sources.folder import FolderSource
from agridistill.edge.sources.snapshots import SnapshotSource
from agridistill.edge.sources.source import Source
from agridistill.errors import EdgeError, PhotoError

from .test_snapshots import Camera, camera, no_proxy  # noqa: F401 # fixtures

LOST = SourceLostError("frames", "nothing", "wait")
ENDED = SourceEndedError("all frames have been read")
BAD = PhotoError("a photo", "a cut one", "replace it")


def frame(number: int) -> Frame:
    return Frame(np.zeros((2, 2, 3), np.uint8), str(number), "", 0.0)


class Script(Source):
    """Gives what it is told to; an error is raised, also by `open` where it stands in `at_opening`."""

    def __init__(self, *steps: Frame | Exception, live: bool = False) -> None:
        self.name, self.live = "the script", live
        self.steps: Iterator[Frame | Exception] = iter(steps)
        self.at_opening: list[Exception | None] = []
        self.opened_at: list[float] = []
        self.is_open = False
        self.read_count = 0

    def open(self) -> None:
        self.opened_at.append(time.monotonic())
        error = self.at_opening.pop(0) if self.at_opening else None
        if error is not None:
            raise error
        self.is_open = True

    def read(self, wait_s: float) -> Frame | None:
        assert self.is_open
        step = next(self.steps, None)
        if step is None:
            time.sleep(0.005)
            return None
        if isinstance(step, Exception):
            raise step
        self.read_count += 1
        return step

    def done(self, frame_identity: str) -> None: ...

    def close(self) -> None:
        self.is_open = False


def taken(latest: LatestFrame) -> str:
    found = latest.take(10)
    assert found is not None
    return found.name


def test_a_source_that_is_busy_is_not_at_its_end() -> None:
    class Busy(Script):
        """Has something only after a long search."""

        searches = 30

        def read(self, wait_s: float) -> Frame | None:
            time.sleep(0.005)
            self.searches -= 1
            return frame(7) if self.searches == 0 else None

        def is_busy(self) -> bool:
            return self.searches > 0

    with LatestFrame(Busy(), end_after_s=0.05) as latest:
        assert taken(latest) == "7"
        with pytest.raises(SourceEndedError):
            latest.take(10)


def test_a_folder_is_busy_until_all_known_photos_were_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_FOUND", 4)
    for number in range(20):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number:02}.png")
        os.utime(tmp_path / f"{number:02}.png", (1e9 + number, 1e9 + number))

    asked = set[str]()

    def seen(identity: str) -> bool:
        if identity.startswith("bad "):
            return False
        time.sleep(0.02)
        asked.add(identity)
        return len(asked) < 20  # the oldest come first

    source = FolderSource(tmp_path, SourceSettings(), seen)
    with LatestFrame(source, end_after_s=0.1) as latest:
        assert taken(latest) == "19.png"
        with pytest.raises(SourceEndedError):
            latest.take(10)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_live_source_gives_the_newest_frame_and_counts_the_others() -> None:
    source = Script(*map(frame, range(100)), live=True)
    with LatestFrame(source) as latest:
        wait_for(lambda: source.read_count == 100 and latest.skipped == 99)
        assert taken(latest) == "99"
        assert latest.take(0.01) is None
        assert latest.skipped == 99


def test_a_source_that_waits_loses_nothing_and_is_not_read_ahead() -> None:
    source = Script(*map(frame, range(20)))
    with LatestFrame(source) as latest:
        wait_for(lambda: source.read_count == 2)  # one waits, one is in the reader's hand
        time.sleep(0.05)
        assert source.read_count == 2
        assert [taken(latest) for _ in range(20)] == [str(number) for number in range(20)]
        assert latest.skipped == 0


def test_a_bad_photo_comes_in_its_place_and_is_counted() -> None:
    with LatestFrame(Script(frame(0), BAD, frame(1))) as latest:
        assert taken(latest) == "0"
        with pytest.raises(PhotoError, match="a cut one"):
            latest.take(10)
        assert taken(latest) == "1"
        assert latest.unreadable == 1


def test_a_bad_live_frame_does_not_take_the_place_of_a_good_one() -> None:
    with LatestFrame(Script(frame(0), BAD, live=True)) as latest:
        wait_for(lambda: latest.unreadable == 1)
        assert taken(latest) == "0"
        assert latest.skipped == 0


def test_a_refusal_is_no_absence_and_is_not_tried_again_soon(caplog: pytest.LogCaptureFixture) -> None:
    refused = SourceRefusedError("a right password", "status 401", "correct it")
    source = Script(frame(0), live=True)
    source.at_opening = [LOST, refused, refused]
    with LatestFrame(source, backoff=Backoff(0.001, 0.2)) as latest:
        wait_for(lambda: latest.trouble is not None)
        assert latest.trouble == "status 401"
        assert latest.lost_for_s is not None
        assert taken(latest) == "0"
        assert latest.trouble is None
    first, second, third = told(caplog)
    assert "is away" in first
    assert "answers, but cannot be used" in second
    assert "status 401" in second
    assert "away" not in second
    assert "is back" in third
    pauses = np.diff(source.opened_at)
    assert (pauses[-2:] >= 0.1).all()


def test_the_end_is_told_behind_the_last_frame_and_again() -> None:
    source = Script(frame(0), frame(1), ENDED)
    with LatestFrame(source) as latest:
        assert [taken(latest), taken(latest)] == ["0", "1"]
        for _ in range(2):
            with pytest.raises(SourceEndedError):
                latest.take(10)
        assert not source.is_open


def test_a_loss_is_told_once_tried_again_with_growing_pauses_and_its_end_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Script(frame(0), LOST, frame(1), LOST, frame(2))
    source.at_opening = [None, *[LOST] * 5]
    with LatestFrame(source, backoff=Backoff(0.04, 0.16)) as latest:
        assert taken(latest) == "0"
        wait_for(lambda: latest.lost_for_s is not None)
        assert taken(latest) == "1"
        assert taken(latest) == "2"
        wait_for(lambda: latest.lost_for_s is None)
    lines = told(caplog)
    assert ["is away" in line for line in lines] == [True, False] * 2
    assert ["is back" in line for line in lines] == [False, True] * 2
    pauses = np.diff(source.opened_at)
    for pause, least in zip(pauses, (0.02, 0.04, 0.08, 0.08, 0.08, 0.08), strict=False):
        assert least <= pause
    # Behind a time when it was there the pauses begin anew.
    assert len(pauses) == 7
    assert pauses[6] >= 0.02


def test_a_source_that_opens_but_gives_nothing_is_not_back(caplog: pytest.LogCaptureFixture) -> None:
    with LatestFrame(Script(*[LOST] * 6, frame(1)), backoff=Backoff(0.01, 0.01)) as latest:
        assert taken(latest) == "1"
    assert len(told(caplog)) == 2


def test_a_source_that_is_not_there_yet_is_waited_for() -> None:
    source = Script(frame(0))
    source.at_opening = [LOST]
    with LatestFrame(source, backoff=Backoff(0.01, 60)) as latest:
        assert taken(latest) == "0"


@pytest.mark.parametrize("place", ["open", "read"])
def test_an_unexpected_failure_reaches_the_agent(place: str) -> None:
    source = Script(*([ZeroDivisionError()] if place == "read" else []))
    source.at_opening = [ZeroDivisionError()] if place == "open" else []
    with LatestFrame(source) as latest, pytest.raises(ZeroDivisionError):
        latest.take(10)


class Blocked(Script):
    def __init__(self) -> None:
        super().__init__(live=True)
        self.entered, self.free = threading.Event(), threading.Event()

    def read(self, wait_s: float) -> Frame | None:
        self.entered.set()
        self.free.wait(30)
        return None


@pytest.mark.parametrize("state", ["waiting for a place", "waiting for the source", "in a driver that blocks"])
def test_stop_returns_within_a_second(state: str) -> None:
    source = Script(frame(0), frame(1))
    if state == "waiting for the source":
        source.at_opening = [LOST]
    elif state == "in a driver that blocks":
        source = Blocked()
    with LatestFrame(source, backoff=Backoff(60, 60)) as latest:
        if isinstance(source, Blocked):
            assert source.entered.wait(10)
        else:
            wait_for(lambda: source.read_count == 2 or latest.lost_for_s is not None)
        begin = time.monotonic()
    assert time.monotonic() - begin < 2
    if isinstance(source, Blocked):
        source.free.set()
    wait_for(lambda: not source.is_open)
    latest.take(0)  # what waited may still be taken
    assert latest.take(60) is None


def opened(text: str) -> Source:
    return open_source(text, settings=SourceSettings(), seen=lambda identity: False)


def test_a_folder_and_an_http_address_need_no_opencv(tmp_path: Path) -> None:
    folder = opened(str(tmp_path))
    assert isinstance(folder, FolderSource)
    assert (folder.name, folder.live) == (str(tmp_path), False)
    snapshot = opened("https://me:secret@camera.local:8443/snap.jpg?token=secret#secret")
    assert isinstance(snapshot, SnapshotSource)
    assert (snapshot.name, snapshot.live) == ("https://camera.local:8443/snap.jpg", True)


def test_a_folder_whose_name_is_a_number_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2024").mkdir()
    assert isinstance(opened("2024"), FolderSource)


@pytest.mark.parametrize("text", ["", "nowhere", "nowhere.mp4", "notes.txt", "/dev/null", "gopher://host/a", "1234567"])
def test_anything_else_is_refused_with_what_is_possible(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(EdgeError, match=r"expected a source: a folder, http\(s\)://…, rtsp://…, /dev/videoN"):
        opened(text)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret@",
        "rtsp://me:secret#1@host/a",
        "rtsp://[me:secret/",
        "ftp://me:secret@host/a",
        "x://me:secret@h",
    ],
)
def test_a_refused_address_does_not_show_its_password(url: str) -> None:
    with pytest.raises(EdgeError) as caught:
        opened(url)
    assert "secret" not in str(caught.value)


def test_the_credentials_of_the_address_go_before_those_of_the_settings() -> None:
    settings = SourceSettings(username="you", password="p/w")  # noqa: S106
    assert settings.login(split_url("rtsp://me:a%40b@host/s")) == ("me", "a@b")
    assert settings.login(split_url("rtsp://me@host/s")) == ("me", "p/w")
    assert settings.login(split_url("rtsp://host/s")) == ("you", "p/w")
    assert SourceSettings().login(split_url("rtsp://host/s")) == (None, "")


def test_settings_show_no_password() -> None:
    assert "secret" not in repr(SourceSettings(password="secret"))  # noqa: S106


def test_without_opencv_a_camera_is_refused_with_what_to_install() -> None:
    code = (
        "import sys; sys.modules['cv2'] = None\n"
        "from agridistill.edge.sources import SourceSettings, open_source\n"
        "from agridistill.errors import MissingExtraError\n"
        "for text in ('0', '/dev/video3', 'rtsp://host/stream'):\n"
        "    try: open_source(text, settings=SourceSettings(), seen=lambda identity: False)\n"
        "    except MissingExtraError as error: print(error.remedy)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == ["pip install 'agridistill[camera]'"] * 3


def test_a_source_is_known_again_by_each_of_its_paths_and_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    assert source_identity("b") == source_identity(str(tmp_path / "b")) == source_identity("c/../b")
    assert source_identity("b") != source_identity("c")
    assert source_identity("rtsp://me:secret@camera/1") == source_identity("rtsp://camera/1")
    assert source_identity("rtsp://camera/1") != source_identity("rtsp://camera/2")


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
