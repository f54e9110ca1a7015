"""Photos that come days late count by their own time; what their cameras got wrong does not."""

from __future__ import annotations

import logging
import os
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.test_heic import HEIC

from agridistill.edge.sources import SourceSettings, open_source
from agridistill.edge.sources.folder import FolderSource, photo_time
from agridistill.errors import EdgeError

NOON = datetime(2026, 5, 12, 12, 0, tzinfo=UTC).timestamp()
NOW = NOON + 6 * 86_400
TAKEN, TAKEN_ZONE, DIGITISED, WRITTEN = 0x9003, 0x9011, 0x9004, 0x0132


def saved(path: Path, tags: dict[int, str], kind: str = "JPEG") -> Path:
    exif = Image.Exif()
    exif[0x010F] = "the camera's maker"  # without a tag outside the folders Pillow writes none into a PNG
    for tag, text in tags.items():
        (exif if tag == WRITTEN else exif.get_ifd(0x8769))[tag] = text
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, kind, **({"exif": exif} if tags else {}))
    return path


@pytest.fixture
def in_kampala(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three hours before UTC, without summer time."""
    monkeypatch.setenv("TZ", "EAT-3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_kampala")
@pytest.mark.parametrize(
    "tags",
    [
        {TAKEN: "2026:05:12 15:00:00"},
        {TAKEN: "2026:05:12 15:00:00", TAKEN_ZONE: "   :  "},
        {TAKEN: "2026:05:12 12:00:00", TAKEN_ZONE: "Z"},
        {TAKEN: "2026:05:12 17:30:00", TAKEN_ZONE: "+05:30"},
        {TAKEN: "2026:05:12 05:00:00", TAKEN_ZONE: "-07:00", WRITTEN: "2026:05:13 00:00:00"},
        {TAKEN: "0000:00:00 00:00:00", DIGITISED: "2026-05-12 15:00:00"},
        {TAKEN: "    :  :     :  :  ", WRITTEN: "2026:05:12 15:00:00"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photo_says_when_it_was_taken(tmp_path: Path, tags: dict[int, str], kind: str) -> None:
    assert photo_time(saved(tmp_path / "a", tags, kind), NOW) == (NOON, "")


def heic_taken(text: str) -> bytes:
    """The HEIC photo of another test with a time in its EXIF."""
    exif = Image.Exif()
    exif[WRITTEN] = text
    block = b"\0\0\0\x06" + exif.tobytes()
    extent = struct.pack(">HHIHI", 2, 0, len(HEIC) - 36, 1, 0)  # of the EXIF in the photo's list of items
    place, mdat = HEIC.index(extent) + len(extent), HEIC.index(b"mdat") - 4
    made = bytearray(HEIC[:-36] + block)
    made[place : place + 4] = struct.pack(">I", len(block))
    made[mdat : mdat + 4] = struct.pack(">I", len(made) - mdat)
    return bytes(made)


@pytest.mark.needs("heic")
@pytest.mark.usefixtures("in_kampala")
def test_a_phones_heic_photo_says_when_it_was_taken(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(heic_taken("2026:05:12 15:00:00"))
    assert photo_time(tmp_path / "a.heic", NOW) == (NOON, "")


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        ({}, "no EXIF time"),
        ({TAKEN: "yesterday"}, "no EXIF time"),
        ({TAKEN: "2026:02:31 12:00:00"}, "no EXIF time"),
        ({TAKEN: "1970:01:01 00:00:10"}, "an EXIF time before 2010"),
        ({TAKEN: "1980:01:01 00:00:10"}, "an EXIF time before 2010"),
        ({TAKEN: "2000:01:01 00:00:10"}, "an EXIF time before 2010"),
        ({TAKEN: "2031:05:12 12:00:00"}, "an EXIF time in the future"),
        ({TAKEN: "9999:12:31 23:59:59"}, "an EXIF time in the future"),
    ],
    ids=str,
)
def test_a_time_that_cannot_be_is_none(tmp_path: Path, tags: dict[int, str], problem: str) -> None:
    assert photo_time(saved(tmp_path / "a.jpg", tags), NOW) == (None, problem)


def test_a_camera_that_is_a_little_ahead_took_its_photo_now(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", {TAKEN: "2026:05:12 12:02:00", TAKEN_ZONE: "+00:00"})
    assert photo_time(path, NOON) == (NOON, "")
    assert photo_time(path, NOON - 600) == (None, "an EXIF time in the future")
    assert photo_time(tmp_path / "gone.jpg", NOON) == (None, "no EXIF time")
    (tmp_path / "text.jpg").write_text("no photo")
    assert photo_time(tmp_path / "text.jpg", NOON) == (None, "no EXIF time")


def test_a_folder_gives_each_photo_its_own_time_and_reports_once_what_has_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    at_s = int(time.time()) - 3 * 86_400
    stamp = datetime.fromtimestamp(at_s, UTC).strftime("%Y:%m:%d %H:%M:%S")
    tags = [{TAKEN: stamp, TAKEN_ZONE: "+00:00"}, {}, {}, {TAKEN: "1980:01:01 00:00:10"}]
    for number, one in enumerate(tags):
        os.utime(saved(tmp_path / f"{number}.jpg", one), (at_s + number, at_s + number))
    found = {}
    for wanted in ("photo", "arrival"):
        source = FolderSource(tmp_path, SourceSettings(time=wanted), lambda identity: False)  # type: ignore[arg-type]
        source.open()
        frames = [source.read(1) for _ in tags]
        found[wanted] = [frame.taken_s for frame in frames if frame is not None]
        assert all(frame is not None and time.time() - frame.at_s < 60 for frame in frames)
        source.close()
    assert found == {"photo": [at_s, None, None, None], "arrival": [None] * 4}
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == [
        "1.jpg: no EXIF time; such photos count by when they come",
        "3.jpg: an EXIF time before 2010; such photos count by when they come",
    ]


@pytest.mark.parametrize("text", ["0", "rtsp://camera/stream", "http://camera/a.jpg"])
def test_only_photos_of_a_folder_have_a_time_of_their_own(text: str) -> None:
    with pytest.raises(EdgeError, match="a folder of photos where time"):
        open_source(text, settings=SourceSettings(time="photo"), seen=lambda identity: False)
