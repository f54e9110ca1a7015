"""OpenCV's sources: a real small video, and cameras that are not there."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.edge.conftest import free_port, wait_for

from agridistill.edge.network import Backoff
from agridistill.edge.sources import LatestFrame, SourceEndedError, SourceLostError, SourceSettings, open_source
from agridistill.edge.sources.cameras import CameraSource, VideoSource
from agridistill.errors import EdgeError

cv2 = pytest.importorskip("cv2")
FRAMES, FPS = 35, 10


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3.5 s; red grows with the frame's number, blue falls."""
    path = tmp_path_factory.mktemp("video") / "field.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), FPS, (64, 48))
    for number in range(FRAMES):
        writer.write(np.full((48, 64, 3), (250 - 7 * number, 0, 7 * number), np.uint8))  # OpenCV has blue first
    writer.release()
    return path


def opened(path: Path, decided: frozenset[str] = frozenset(), **settings: float) -> VideoSource:
    source = VideoSource(path, SourceSettings(**settings), lambda identity: identity in decided)  # type: ignore[arg-type]
    source.open()
    return source


def rest(source: VideoSource) -> dict[str, str]:
    """Identities by the frames' numbers."""
    found = {}
    while True:
        try:
            frame = source.read(10)
        except SourceEndedError:
            return found
        assert frame is not None
        found[frame.name] = frame.identity


def test_a_video_gives_a_frame_each_second_of_its_own_time_and_ends(video: Path) -> None:
    source = opened(video, every_s=1.0)
    begin = time.monotonic()
    found = rest(source)
    assert list(found) == ["0", "10", "20", "30"]
    assert time.monotonic() - begin < 2.5
    assert len(set(found.values())) == 4
    assert " ".join(rest(opened(video, every_s=0.25))) == "0 3 5 8 10 13 15 18 20 23 25 28 30 33"
    assert len(rest(opened(video, every_s=0.0))) == FRAMES
    source.close()


def test_frames_are_rgb(video: Path) -> None:
    source = opened(video, every_s=3.0)
    assert source.read(10) is not None
    frame = source.read(10)
    assert frame is not None
    assert frame.name == "30"
    assert frame.pixels.shape == (48, 64, 3)
    assert frame.pixels.dtype == np.uint8
    np.testing.assert_allclose(frame.pixels.mean((0, 1)), (210, 0, 40), atol=8)
    source.close()


def test_a_video_goes_on_behind_what_was_decided_on(video: Path) -> None:
    first = opened(video, every_s=1.0)
    frames = [first.read(10), first.read(10)]
    decided = frozenset(frame.identity for frame in frames if frame)
    assert len(decided) == 2
    first.close()
    assert list(rest(opened(video, decided, every_s=1.0))) == ["20", "30"]
    # The same life, after a loss.
    first.open()
    assert list(rest(first)) == ["20", "30"]


def test_a_read_returns_in_time_while_frames_are_passed_over(video: Path) -> None:
    source = opened(video, every_s=100.0)
    assert source.read(0) is not None
    assert source.read(0) is None
    source.close()


def test_a_video_that_is_gone_is_lost_and_what_is_no_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceLostError):
        opened(tmp_path / "gone.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(EdgeError, match="a video that OpenCV can read"):
        opened(tmp_path / "text.mp4")


def test_the_reader_brings_every_frame_of_a_video_and_its_end(video: Path) -> None:
    source = open_source(str(video), settings=SourceSettings(every_s=0.5), seen=lambda identity: False)
    with LatestFrame(source) as latest:
        for number in range(0, FRAMES, 5):
            frame = latest.take(10)
            assert frame is not None
            assert frame.name == str(number)
        with pytest.raises(SourceEndedError):
            latest.take(10)


@pytest.mark.parametrize("text", ["97", "/dev/video97"])
def test_a_camera_that_is_not_there_is_lost(text: str) -> None:
    source = open_source(text, settings=SourceSettings(), seen=lambda identity: False)
    assert source.live
    assert "97" in source.name
    with pytest.raises(SourceLostError):
        source.open()
    source.close()


def test_a_stream_that_is_not_there_is_lost_without_its_password_being_told() -> None:
    url = f"rtsp://me:hidden@127.0.0.1:{free_port()}/stream?token=hidden"
    # In a process of its own: OpenCV and FFmpeg write to the terminal by themselves.
    code = (
        "import sys\n"
        "from agridistill.edge.sources import *\n"
        "source = open_source(sys.argv[1], settings=SourceSettings(), seen=lambda identity: False)\n"
        "try: source.open()\n"
        "except SourceLostError as error: print(source.name, error, source.live)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True)
    assert "expected frames from rtsp://127.0.0.1:" in answer.stdout
    assert "hidden" not in answer.stdout + answer.stderr


@pytest.mark.parametrize("text", ["/dev/video97", "97"])
def test_opencv_does_not_write_into_the_log_by_itself(text: str) -> None:
    code = (
        "import sys\n"
        "from agridistill.edge.sources import *\n"
        "try: open_source(sys.argv[1], settings=SourceSettings(), seen=lambda identity: False).open()\n"
        "except SourceLostError: print('lost')\n"
    )
    answer = subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, check=True)
    assert (answer.stdout, answer.stderr) == ("lost\n", "")


def test_a_camera_gives_frames_at_its_pace_and_drains_those_between(video: Path) -> None:
    source = CameraSource(str(video), SourceSettings(every_s=3600.0, plot="roof"))
    source.open()
    frame = source.read(10)
    assert frame is not None
    assert (frame.name, frame.plot, frame.identity) == ("1", "roof", "")
    np.testing.assert_allclose(frame.pixels.mean((0, 1)), (0, 0, 250), atol=8)
    with pytest.raises(SourceLostError):  # the other 34 were passed over
        source.read(10)
    source.close()


def test_a_camera_that_stops_giving_frames_is_come_back_to(video: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = CameraSource(str(video), SourceSettings(every_s=0.0))
    with LatestFrame(source, backoff=Backoff(0.01, 60)) as latest:
        wait_for(lambda: len([line for line in caplog.messages if "is back" in line]) >= 2)
        assert latest.take(10) is not None
        assert latest.skipped > 0
