"""Motion JPEG from a real HTTP server that writes it as ESP32-CAM, mjpg-streamer, OctoPrint and careless ones do."""

from __future__ import annotations

import io
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from tests.edge.conftest import wait_for

from agridistill.edge.http import HttpError
from agridistill.edge.sources import LatestFrame, SourceLostError, SourceSettings, snapshots
from agridistill.edge.sources.snapshots import JpegFrames, SnapshotSource

from .test_folder import photo_bytes
from .test_snapshots import Camera, Handler, camera, no_proxy, source_of  # noqa: F401 # fixtures


class Firmware(NamedTuple):
    """How a server writes its stream.

    Attributes:
        kind: of the whole answer.
        part: around one picture.
        chunked: whether the answer comes in chunks.
    """

    kind: str
    part: Callable[[bytes], bytes]
    chunked: bool = False


def with_length(delimiter: bytes, line: bytes = b"\r\n", wrong: int | None = None) -> Callable[[bytes], bytes]:
    def part(picture: bytes) -> bytes:
        length = b"Content-Length: %d" % (len(picture) if wrong is None else wrong)
        return line.join([delimiter, b"Content-Type: image/jpeg", length, b"", picture, b""])

    return part


def without_length(delimiter: bytes, line: bytes = b"\r\n") -> Callable[[bytes], bytes]:
    return lambda picture: line.join([delimiter, b"Content-Type: image/jpeg", b"", picture, b""])


FIRMWARES = {
    "ESP32-CAM": Firmware("multipart/x-mixed-replace;boundary=1234", with_length(b"\r\n--1234"), chunked=True),
    "mjpg-streamer": Firmware("multipart/x-mixed-replace;boundary=donotcross", with_length(b"--donotcross")),
    "OctoPrint": Firmware('multipart/x-mixed-replace; boundary="jpgboundary"', without_length(b"--jpgboundary")),
    "dashes in the boundary": Firmware("multipart/x-mixed-replace; boundary=--mine", with_length(b"--mine")),
    "another boundary": Firmware("multipart/x-mixed-replace; boundary=one", without_length(b"--two")),
    "no boundary": Firmware("Multipart/X-Mixed-Replace", without_length(b"")),
    "line feeds alone": Firmware("multipart/x-mixed-replace; boundary=x", without_length(b"--x", b"\n")),
    "wrong length": Firmware("multipart/x-mixed-replace; boundary=x", with_length(b"--x", wrong=7)),
}


def streaming(
    firmware: Firmware, pictures: list[bytes], stop: threading.Event | None = None
) -> Callable[[Handler], None]:
    """Sends the pictures, in pieces that end anywhere; then waits for `stop`, or ends."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", firmware.kind)
        if firmware.chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.close_connection = True
        data = b"".join(map(firmware.part, pictures))
        for start in range(0, len(data), 997):
            piece = data[start : start + 997]
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if firmware.chunked else piece)
        if stop is not None:
            stop.wait(20)

    return answer


def taken(source: SnapshotSource, count: int) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    while len(frames) < count:
        frame = source.read(0.05)
        frames += [frame.pixels] if frame is not None else []
    return frames


def pixels_of(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def with_thumbnail(seed: int) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x927C] = photo_bytes(seed + 50, size=(16, 16))  # a JPEG within the JPEG
    stream = io.BytesIO()
    Image.open(io.BytesIO(photo_bytes(seed))).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize("firmware", FIRMWARES.values(), ids=list(FIRMWARES))
def test_streams_are_read_however_they_are_written(camera: Camera, firmware: Firmware) -> None:  # noqa: F811
    picture, stop = with_thumbnail(1), threading.Event()
    camera.answer = streaming(firmware, [picture], stop)
    source = source_of(camera.url("/stream"), plot="roof")
    frame = None
    while frame is None:
        frame = source.read(0.05)
    np.testing.assert_array_equal(frame.pixels, pixels_of(picture))
    assert (frame.plot, frame.identity) == ("roof", "")
    stop.set()
    source.close()


def test_pieces_may_end_anywhere_and_each_picture_comes_once() -> None:
    pictures = [with_thumbnail(seed) for seed in range(3)]
    data = b"".join(map(FIRMWARES["OctoPrint"].part, pictures))
    for size in (1, 2, 3, 1000, len(data)):
        frames = JpegFrames(1_000_000)
        pieces = (data[start : start + size] for start in range(0, len(data), size))
        assert list(itertools.chain.from_iterable(map(frames.feed, pieces))) == pictures


def test_pictures_that_are_cut_off_are_left_out_and_the_next_is_taken() -> None:
    good = [with_thumbnail(seed) for seed in range(4)]
    part = FIRMWARES["mjpg-streamer"].part
    data = part(good[0]) + part(good[1][:-300]) + part(good[2]) + part(good[3][:40]) + b"".join(map(part, good))
    found = JpegFrames(1_000_000).feed(data)
    assert found[:2] == [good[0], good[2]]
    assert found[-3:] == good[-3:]
    assert set(found) <= set(good)
    with pytest.raises(HttpError, match="more than"):
        JpegFrames(1000).feed(b"\xff\xd8\xff\xe0\xff\xff" + bytes(2000))


def test_the_newest_picture_is_taken_at_its_pace(camera: Camera) -> None:  # noqa: F811
    pictures, stop, sent = [photo_bytes(seed) for seed in range(4)], threading.Event(), threading.Event()

    def answer(handler: Handler) -> None:
        part = FIRMWARES["mjpg-streamer"].part
        streaming(FIRMWARES["mjpg-streamer"], pictures[:3])(handler)
        sent.wait(10)
        while not stop.wait(0.01):
            handler.wfile.write(part(pictures[3]))

    camera.answer = answer
    source = source_of(camera.url(), every_s=0.2)
    first = taken(source, 1)[0]
    assert any(np.array_equal(first, pixels_of(picture)) for picture in pictures[:3])
    begin = time.monotonic()
    sent.set()
    np.testing.assert_array_equal(taken(source, 1)[0], pixels_of(pictures[3]))
    assert time.monotonic() - begin >= 0.1
    assert len(camera.asked) == 2  # the first answer said that it is a stream, the second one stays open
    stop.set()
    source.close()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ([], "the end of the stream"),
        ([photo_bytes(1)[:700]], "the end of the stream"),
        (None, "no whole picture in 0.3 s"),
    ],
)
def test_a_stream_without_a_picture_is_lost(camera: Camera, body: list[bytes] | None, told: str) -> None:  # noqa: F811
    def dripping(handler: Handler) -> None:
        streaming(FIRMWARES["OctoPrint"], [])(handler)
        while True:
            handler.wfile.write(b"--jpgboundary\r\n")
            time.sleep(0.02)

    camera.answer = dripping if body is None else streaming(FIRMWARES["OctoPrint"], body)
    source = source_of(camera.url(), timeout_s=0.3)
    assert source.read(0) is None
    with pytest.raises(SourceLostError, match=told):
        source.read(0)
    source.close()


def test_a_picture_without_an_end_is_not_kept(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(snapshots, "MAX_BYTES", 100_000)
    camera.answer = streaming(FIRMWARES["OctoPrint"], [photo_bytes(1)[:700] + bytes(300_000)])
    source = source_of(camera.url())
    assert source.read(0) is None
    with pytest.raises(SourceLostError):
        source.read(0)
    source.close()


def test_a_stream_that_ends_is_come_back_to_and_may_be_a_snapshot_then(
    camera: Camera,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    numbers = itertools.count()

    def short(handler: Handler) -> None:
        streaming(FIRMWARES["ESP32-CAM"], [photo_bytes(next(numbers)) for _ in range(3)])(handler)

    camera.answer = short
    source = SnapshotSource(camera.url(), SourceSettings(every_s=0.0))
    with LatestFrame(source, first_pause_s=0.01) as latest:
        wait_for(lambda: next(numbers) > 9)
        assert latest.take(10) is not None
        camera.answer = camera.picture
        before = camera.pictures
        wait_for(lambda: camera.pictures > before + 5)
        assert latest.take(10) is not None
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "away" in lines[0]
    assert "is back" in lines[1]
