"""A photo never takes more memory than a small device has, and none ends the agent for ever."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

from agridistill.edge.sources import SourceSettings
from agridistill.edge.sources.source import MAX_PIXELS, PhotoReader
from agridistill.errors import OutboxError, PhotoError

_UNIT = Path(__file__).parents[3] / "deploy" / "agridistill-watch.service"
_WITHOUT_PHOTOS_BYTES = 130_000_000  # the agent with a model of 4 million weights and nothing to do


def encoded(kind: str, width: int = 400, height: int = 300, mode: str = "RGB", **options: Any) -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, len(mode)), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse.squeeze()).resize((width, height)).save(stream, kind, **options)
    return stream.getvalue()


def test_photos_that_take_too_much_memory_are_left_out_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agridistill.edge.sources.source.MAX_PIXELS", 100_000)
    reader = PhotoReader(SourceSettings(shorter_side=100))
    # Decoded at an eighth of its size, line by line.
    assert reader.read(encoded("JPEG")).shape == (150, 200, 3)
    for bad in (encoded("PNG"), encoded("JPEG", progressive=True), encoded("TIFF"), encoded("WEBP")):
        with pytest.raises(
            PhotoError, match=r"memory of at most 100,000 pixels; got .* with 400 x 300.*; scale it down"
        ):
            reader.read(bad)
    assert reader.read(encoded("PNG", 300, 200)).shape == (200, 300, 3)
    with pytest.raises(PhotoError, match=r"300 x 200 pixels, which as a WebP takes the memory of 120,000 pixels"):
        reader.read(encoded("WEBP", 300, 200))
    # All of it is wanted, so all of it counts.
    with pytest.raises(PhotoError, match="400 x 300"):
        PhotoReader(SourceSettings()).read(encoded("JPEG"))


def test_the_largest_photos_fit_into_the_memory_that_the_unit_allows() -> None:
    found = re.search(r"^MemoryMax=(\d+)M$", _UNIT.read_text(), re.MULTILINE)
    assert found
    assert int(found[1]) * 2**20 > 10 * MAX_PIXELS + _WITHOUT_PHOTOS_BYTES


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("shorter_side", [None, 100])
def test_a_jpeg_that_lost_some_of_its_data_on_the_way_is_no_photo(
    tmp_path: Path, shorter_side: int | None, from_file: bool
) -> None:
    reader = PhotoReader(SourceSettings(shorter_side=shorter_side))

    def read(data: bytes) -> None:
        path = tmp_path / "photo.jpg"
        path.write_bytes(data)
        reader.read(path if from_file else data)

    whole = encoded("JPEG", 640, 480)
    begin, length = whole.index(b"\xff\xda") + 14, len(whole)
    read(whole)
    for share in (0.2, 0.5, 0.8):
        cut = begin + int(share * (length - begin))
        # No end, an end too early, a gap in the middle: Pillow reports the first alone.
        for damaged in (whole[:cut], whole[:cut] + b"\xff\xd9", whole[:cut] + whole[cut + 700 :]):
            with pytest.raises(PhotoError):
                read(damaged)
    read(encoded("PNG", 640, 480))
    grey = io.BytesIO()
    Image.new("RGB", (64, 48), (128, 128, 128)).save(grey, "JPEG")
    read(grey.getvalue())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems count memory in other units")
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGB", {"compress_level": 1}),
        ("PNG", "RGBA", {"compress_level": 1}),
        ("WEBP", "RGB", {"method": 0}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("JPEG", "RGB", {"subsampling": 0}),
    ],
)
def test_decoding_takes_ten_bytes_for_each_pixel_that_is_counted(
    tmp_path: Path, kind: str, mode: str, options: dict[str, Any]
) -> None:
    (tmp_path / "photo").write_bytes(encoded(kind, 3600, 2500, mode, **options))
    code = (
        "import pathlib, re, sys\n"
        "from agridistill.edge.sources.source import PhotoReader\n"
        "from agridistill.edge.sources import SourceSettings\n"
        "from agridistill.preprocess import photo_cost\n"
        # Not getrusage, whose figure begins with that of the process that started this one.
        "status = pathlib.Path('/proc/self/status')\n"
        "most = lambda: 1024 * int(re.search(r'VmHWM:\\s*(\\d+)', status.read_text())[1])\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "held, before = photo_cost(path, shorter_side=448).held_pixels, most()\n"
        "pixels = PhotoReader(SourceSettings(shorter_side=448)).read(path)\n"
        "print(held, most() - before, pixels.nbytes)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "photo"], capture_output=True, text=True, check=True
    )
    held, grown, kept = map(int, answer.stdout.split())
    assert grown <= 10 * held + 10_000_000
    # Two frames wait while a third is read.
    assert kept < 12_000_000


class Kept:
    """Attempts in memory."""

    def __init__(self) -> None:
        self.begun: dict[str, int] = {}

    def begin(self, identity: str) -> int:
        self.begun[identity] = self.begun.get(identity, 0) + 1
        return self.begun[identity] - 1

    def end(self, identity: str) -> None:
        del self.begun[identity]


class Refusing:
    """Attempts on a disk that refuses."""

    asked = 0

    def begin(self, identity: str) -> int:
        self.asked += 1
        raise OutboxError("room", "none", "wait")

    def end(self, identity: str) -> None:
        raise OutboxError("room", "none", "wait")


def test_only_large_photos_are_written_down_and_only_while_they_are_read() -> None:
    attempts = Refusing()
    reader = PhotoReader(SourceSettings(shorter_side=100), attempts)
    reader.read(encoded("JPEG"), "small")
    assert attempts.asked == 0
    # A disk that refuses is no reason to leave one out.
    assert reader.read(encoded("JPEG", 2400, 1800), "large").size
    assert attempts.asked == 1
    kept = Kept()
    reader = PhotoReader(SourceSettings(shorter_side=100), kept)
    reader.read(encoded("JPEG", 2400, 1800), "large")
    with pytest.raises(PhotoError, match="a readable photo"):
        reader.read(encoded("JPEG", 2400, 1800)[:-9000], "damaged")
    assert kept.begun == {}


def test_an_orderly_end_in_the_middle_of_a_photo_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    reader = PhotoReader(SourceSettings(shorter_side=100), kept)

    def ended(self: PhotoReader, *given: object) -> NoReturn:
        assert kept.begun == {"large": 1}
        self.abandon()
        assert kept.begun == {}
        kept.begin("large")  # what `read` ends when it goes on
        raise KeyboardInterrupt

    monkeypatch.setattr(PhotoReader, "_decode", ended)
    with pytest.raises(KeyboardInterrupt):
        reader.read(encoded("JPEG", 2400, 1800), "large")


_KILLED_BY_LARGE_PHOTOS = """
import os, pathlib, signal, sys
from agridistill.edge.sources import source as reading
from agridistill.edge.sources import SourceSettings, open_source
from agridistill.errors import PhotoError

class OnDisk:
    def begin(self, identity):
        file = pathlib.Path(sys.argv[2]) / identity
        before = int(file.read_text()) if file.exists() else 0
        file.write_text(str(before + 1))
        return before
    def end(self, identity):
        (pathlib.Path(sys.argv[2]) / identity).unlink()

decode = reading.read_photo
def killed(path, **options):
    if path.name == "large.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(path, **options)
reading.read_photo = killed
source = open_source(
    sys.argv[1], settings=SourceSettings(shorter_side=100), seen=lambda identity: False, attempts=OnDisk()
)
source.open()
for _ in range(4):
    try:
        print(source.read(10).name, flush=True)
    except PhotoError as error:
        print(error, flush=True)
"""


def test_a_photo_that_ended_the_agent_twice_is_left_out_and_the_next_one_comes(tmp_path: Path) -> None:
    photos, state = tmp_path / "photos", tmp_path / "state"
    photos.mkdir()
    state.mkdir()
    (photos / "large.png").write_bytes(encoded("PNG", 2400, 1800, compress_level=1))
    lives = []
    for life in range(3):
        (photos / f"{life}.jpg").write_bytes(encoded("JPEG", 2400, 1800))
        command = [sys.executable, "-c", _KILLED_BY_LARGE_PHOTOS, photos, state]
        lives.append(subprocess.run(command, capture_output=True, text=True))
    assert [life.returncode for life in lives] == [-signal.SIGKILL, -signal.SIGKILL, 0], lives[2].stderr
    told = lives[2].stdout.splitlines()
    assert told[:3] == ["0.jpg", "1.jpg", "2.jpg"]
    assert "large.png' (the agent crashed twice while reading it)" in told[3]
