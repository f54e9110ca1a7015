"""What a kept photo holds: every pixel of the original, and nothing of where it was taken."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

from agridistill.edge.events import Frame
from agridistill.edge.keep.photo import look_of, photo_content, without_location

PLACE = (47.0, 22.0, 13.57)


def leaf(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (5, 7, 3), np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def exif(*, place: bool = True) -> Image.Exif:
    found = Image.Exif()
    found[Base.Make], found[Base.Model], found[Base.Orientation] = "Maker", "Model 7", 6
    found[Base.ImageDescription] = "behind the secret barn"
    found.get_ifd(IFD.Exif).update({0x9003: "2026:06:01 08:00:00", 0x9011: "+02:00", 0x927C: b"secret notes"})
    if place:
        found.get_ifd(IFD.GPSInfo).update({GPS.GPSLatitudeRef: "N", GPS.GPSLatitude: PLACE})
    return found


def jpeg(image: Image.Image, **options: Any) -> bytes:
    held = io.BytesIO()
    image.save(held, "JPEG", **options)
    return held.getvalue()


def after_start(content: bytes, segment: bytes) -> bytes:
    return content[:2] + segment + content[2:]


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


PROFILE = b"secretless profile" * 8


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"restart_marker_blocks": 1},
        {"quality": 100, "subsampling": 0},
        {"icc_profile": PROFILE},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_location_is_gone_and_every_pixel_stays(options: dict[str, Any], mode: str) -> None:
    original = jpeg(leaf().convert(mode), exif=exif(), comment=b"secret comment", **options)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x exif:GPSLatitude='47,22.2N' secret/>"
    for marker, body in ((0xE1, xmp), (0xED, b"Photoshop 3.0\0 secret town")):
        original = after_start(original, bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2) + body)
    cleaned = without_location(original + b"a video with its secret place")
    assert cleaned is not None
    assert b"secret " not in cleaned
    assert b"GPSLatitude" not in cleaned
    np.testing.assert_array_equal(pixels(cleaned), pixels(original))
    with Image.open(io.BytesIO(cleaned)) as image:
        found = image.getexif()
        assert not found.get_ifd(IFD.GPSInfo)
        assert (found[Base.Make], found[Base.Orientation]) == ("Maker", 6)
        assert found.get_ifd(IFD.Exif)[0x9003] == "2026:06:01 08:00:00"
        assert image.info.get("icc_profile") == options.get("icc_profile")
    assert without_location(cleaned) == cleaned


def test_the_second_picture_of_a_phones_photo_goes_with_its_location() -> None:
    held = io.BytesIO()
    leaf().save(held, "MPO", save_all=True, append_images=[leaf(1)], exif=exif())
    original = held.getvalue()
    cleaned = without_location(original)
    assert cleaned is not None
    assert len(cleaned) < len(original) * 0.7
    assert cleaned.count(b"\xff\xd8\xff") == 1
    np.testing.assert_array_equal(pixels(cleaned), pixels(original))


def test_a_jpeg_that_cannot_be_understood_is_encoded_again() -> None:
    whole = jpeg(leaf(), exif=exif())
    for damaged in (whole[:-2], b"\xff\xd8", after_start(whole, b"\xff\xe1\xff\xff"), after_start(whole, b"\0")):
        assert without_location(damaged) is None
        content = photo_content(frame(damaged), location=False)
        assert pixels(content).shape == (40, 60, 3)
        assert not Image.open(io.BytesIO(content)).getexif()


def test_metadata_that_grow_beyond_a_segment_are_left_out() -> None:
    count = 40_000
    text, folder = 38, 38 + count  # where the common text of two tags and the second folder begin in the TIFF data
    tags = ((0x010F, 2, count, text), (0x8769, 4, 1, folder))
    tiff = b"II*\0" + struct.pack("<IH", 8, 2) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    tiff += b"A" * (count - 1) + b"\0" + struct.pack("<HHHIII", 1, 0x9003, 2, count, text, 0)
    body = b"Exif\0\0" + tiff
    original = after_start(jpeg(leaf()), b"\xff\xe1" + (len(body) + 2).to_bytes(2) + body)
    cleaned = without_location(original)
    assert cleaned is not None
    assert len(cleaned) < len(original) - count
    np.testing.assert_array_equal(pixels(cleaned), pixels(original))


def frame(original: bytes | Path | None) -> Frame:
    return Frame(np.asarray(leaf()), "a.jpg", "", 0.0, original=original)


def test_the_file_itself_is_kept_if_it_may_hold_its_location(tmp_path: Path) -> None:
    content = jpeg(leaf(), exif=exif())
    (tmp_path / "a.jpg").write_bytes(content)
    assert photo_content(frame(tmp_path / "a.jpg"), location=True) == content
    assert photo_content(frame(content), location=True) == content


@pytest.mark.parametrize("original", [None, b"\x89PNG of a camera", Path("moved-away.jpg")])
def test_without_a_jpeg_the_pixels_are_kept(original: Path | bytes | None) -> None:
    content = photo_content(frame(original), location=False)
    assert np.abs(pixels(content).astype(int) - np.asarray(leaf())).mean() < 4


def test_looks_differ_little_between_alike_photos_and_much_between_others() -> None:
    def bits(one: np.ndarray, other: np.ndarray) -> int:
        return ((look_of(one) ^ look_of(other)) & (2**64 - 1)).bit_count()

    first = np.asarray(leaf(size=(600, 400)))
    again = pixels(jpeg(leaf(size=(600, 400)).resize((300, 200)), quality=40))
    assert bits(first, again) <= 4
    assert min(bits(first, np.asarray(leaf(seed, (600, 400)))) for seed in range(1, 9)) > 16
    assert -(2**63) <= look_of(replace(frame(None), pixels=first).pixels) < 2**63
