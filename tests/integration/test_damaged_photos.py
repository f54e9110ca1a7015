"""Whatever lies in a photo folder, `predict` names each file once and lives on."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill.errors import PhotoError
from agridistill.preprocess import read_photo

SAVED: dict[str, dict[str, object]] = {
    ".jpg": {"format": "JPEG", "quality": 80},
    ".jpeg": {"format": "JPEG", "progressive": True},
    ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP"},
    ".bmp": {"format": "BMP"},
    ".tif": {"format": "TIFF"},
    ".tiff": {"format": "TIFF", "compression": "tiff_adobe_deflate"},
}
FILES = 2000


def photo(rng: np.random.Generator) -> Image.Image:
    coarse = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((32, 24), Image.Resampling.BICUBIC)


def whole(rng: np.random.Generator, suffix: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(1, 9))
    stream = io.BytesIO()
    photo(rng).save(stream, exif=exif, **SAVED[suffix])
    return stream.getvalue()


def bits_flipped(rng: np.random.Generator, suffix: str) -> bytes:
    content = np.frombuffer(whole(rng, suffix), np.uint8).copy()
    # Half of them in the header, where every bit counts.
    reach = 64 if rng.random() < 0.5 else len(content)
    for place in rng.integers(0, reach, rng.integers(1, 9)):
        content[place] ^= 1 << int(rng.integers(8))
    return content.tobytes()


def cut_off(rng: np.random.Generator, suffix: str) -> bytes:
    content = whole(rng, suffix)
    return content[: int(rng.integers(1, len(content) - 2))]


def of_another_kind(rng: np.random.Generator, suffix: str) -> bytes:
    stream = io.BytesIO()
    photo(rng).save(stream, format=str(rng.choice(["GIF", "ICO", "PPM", "PDF"])))
    return bytes(rng.choice([stream.getvalue(), b"PK\x03\x04 a zip", b"<svg/>", b"\x00\x00\x00\x18ftypheic", b"text"]))


def with_bytes_lost(rng: np.random.Generator, suffix: str) -> bytes:
    content = whole(rng, suffix)
    start = int(rng.integers(2, len(content) - 20))
    return content[:start] + content[start + int(rng.integers(1, 20)) :]


def empty(rng: np.random.Generator, suffix: str) -> bytes:
    return bytes(int(rng.choice([0, 0, 1, 500])))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *extra: bytes, content: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    end = png_chunk(b"IDAT", zlib.compress(content, 9)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + end


def tiff(tags: dict[int, tuple[int, int, int]], *, following: int = 0, tail: bytes = b"") -> bytes:
    """A TIFF of these tags (type, count, value) and, behind them, the offset of a further directory."""
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", following) + tail


def tiff_tags(width: int, height: int) -> dict[int, tuple[int, int, int]]:
    sizes = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}
    return sizes | {273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, 100)}


def wide_webp(width: int, height: int) -> bytes:
    """A lossless WebP whose header declares this size (at most 16,384 a side)."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "WEBP", lossless=True)
    content = bytearray(stream.getvalue())
    at = content.index(b"VP8L") + 9
    (bits,) = struct.unpack_from("<I", content, at)
    struct.pack_into("<I", content, at, bits & ~0xFFFFFFF | (width - 1) | (height - 1) << 14)
    return bytes(content)


def scan_bomb() -> bytes:
    """A small progressive JPEG that draws its 4 million pixels 1,500 times."""
    stream = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * 1500 + content[-2:]


def looped_exif() -> bytes:
    loop = tiff({0x8769: (4, 1, 8), 0x8825: (4, 1, 8), 0x0112: (3, 1, 6)}, following=8)
    return png(8, 8, png_chunk(b"eXIf", loop), content=bytes(25 * 8))


BOMBS: dict[str, Callable[[], bytes]] = {
    "declared.png": lambda: png(60_000, 60_000),
    "zeros.png": lambda: png(10_000, 10_000, content=bytes(1000)),
    "row.png": lambda: png(100_000_000, 1, content=bytes(1000)),
    "text.png": lambda: png(8, 8, png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(20_000_000), 9))),
    "profile.png": lambda: png(8, 8, png_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(20_000_000), 9))),
    "declared.webp": lambda: wide_webp(16_384, 16_384),
    "below_the_limit.webp": lambda: wide_webp(13_000, 13_000),
    "declared.tif": lambda: tiff(tiff_tags(60_000, 60_000)),
    "below_the_limit.tif": lambda: tiff(tiff_tags(13_000, 13_000)),
    "directories.tif": lambda: tiff({0x8769: (4, 1, 8)}, following=8),
    "tags.tif": lambda: tiff(dict.fromkeys(range(1000, 4000), (7, 60_000, 8)), tail=bytes(30_000)),
    "scans.jpg": scan_bomb,
}


def damaged(folder: Path, rng: np.random.Generator) -> Iterator[tuple[Path, bool]]:
    """Writes the files; tells of each whether it may still be a photo."""
    for name, make in BOMBS.items():
        (folder / name).write_bytes(make())
        yield folder / name, False
    kinds = [(bits_flipped, 800, True), (with_bytes_lost, 400, True), (cut_off, 500, True)]
    kinds += [(of_another_kind, 200, False), (empty, FILES - 1900 - len(BOMBS), False)]
    for damage, count, readable in kinds:
        for number in range(count):
            suffix = list(SAVED)[number % len(SAVED)]
            path = folder / f"{damage.__name__}_{number}{suffix}"
            path.write_bytes(damage(rng, suffix))
            yield path, readable


def test_two_thousand_damaged_files_are_each_named_once(colour_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    files = dict(damaged(folder, np.random.default_rng(7)))
    assert len(files) == FILES
    photo(np.random.default_rng(0)).save(folder / "zz_whole.png")
    done = subprocess.run(
        [sys.executable, "-m", "agridistill", "predict", colour_model, folder],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr[-2000:]
    told = {line.partition(": ")[0] for line in done.stdout.splitlines()}
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: expected ")]
    # Nothing but errors and their sum: no library speaks for itself, and no next command follows a failure.
    assert len(done.stderr.splitlines()) == len(errors) + 1
    named = {path: sum(f"'{path}'" in line for line in errors) + (str(path) in told) for path in files}
    assert [path.name for path, times in named.items() if times != 1] == []
    assert len(errors) + len(done.stdout.splitlines()) == FILES + 1
    assert str(folder / "zz_whole.png") in told
    assert [path.name for path, readable in files.items() if not readable and str(path) in told] == []
    assert 0.3 * FILES < len(errors) < 0.95 * FILES  # most kinds of damage are met, and bits in pixels are no damage
    assert f"{len(errors)} of {FILES + 1} photos could not be read" in done.stderr


def test_a_photo_whose_metadata_turns_in_circles_is_read() -> None:
    assert read_photo(looped_exif()).size == (8, 8)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_takes_memory(name: str) -> None:
    content = BOMBS[name]()
    assert len(content) < 400_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PhotoError):
        read_photo(content)
    mib = 1 << (20 if sys.platform == "darwin" else 10)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * mib


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(PhotoError, match=r"got '.*a\.jpg' \(a pipe, socket or device\); replace or remove the file"):
        read_photo(tmp_path / "a.jpg")
