"""Values of 10 to 16 bits, planes and further bands: right, or refused in one line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.tiffs import GREY, WHITE_IS_ZERO, write_tiff

from agridistill.data.inspection import inspect_photo
from agridistill.errors import PhotoError
from agridistill.preprocess import read_photo, upright_rgb


def leaf(bands: int = 3, *, bits: int = 8, seed: int = 0) -> np.ndarray:
    """`(40, 60, bands)` over the whole range of its bits."""
    coarse = np.random.default_rng(seed).random((4, 6, bands))
    coarse[0, 0], coarse[0, 1] = 0, 1
    levels = np.rint(coarse.repeat(10, axis=0).repeat(10, axis=1) * (2**bits - 1))
    return levels.astype(np.uint8 if bits == 8 else np.uint16)


def refused(path: Path) -> str:
    with pytest.raises(PhotoError) as caught:
        read_photo(path)
    assert inspect_photo(path).error is not None
    return str(caught.value)


def write_png(path: Path, pixels: np.ndarray) -> Path:
    """16 bits of a colour type that Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, bands = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("write", [write_png, write_tiff])
def test_values_of_fewer_bits_in_16_are_refused_not_read_as_black(
    tmp_path: Path, write: object, bands: int, bits: int
) -> None:
    pixels = leaf(bands, bits=bits)
    if write is write_png:
        path = write_png(tmp_path / "a.png", pixels)
    else:
        path = write_tiff(tmp_path / "a.tif", pixels, photometric=GREY if bands == 1 else 2)
    message = refused(path)
    assert "16-bit values that all lie below 16,384: of fewer bits, or nearly black" in message
    assert message.endswith("save it as RGB with 8 bits, or spread its values over 16 bits")


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("photometric", [GREY, WHITE_IS_ZERO])
def test_grey_whose_file_names_its_range_is_scaled_by_it(tmp_path: Path, bits: int, photometric: int) -> None:
    pixels = leaf(1, bits=bits)
    path = write_tiff(tmp_path / "a.tif", pixels, photometric=photometric, declared_max=2**bits - 1)
    expected = pixels[..., 0] / (2**bits - 1) * 255
    expected = expected if photometric == GREY else 255 - expected
    assert np.abs(np.asarray(read_photo(path))[..., 0] - expected).max() <= 0.51
    assert np.array_equal(np.asarray(upright_rgb(Image.open(path))), np.asarray(read_photo(path)))


def test_a_named_value_that_is_no_range_is_not_trusted(tmp_path: Path) -> None:
    # Some tools write the brightest value of this one photo there.
    pixels = leaf(1, bits=12)
    assert "nearly black" in refused(write_tiff(tmp_path / "a.tif", pixels, photometric=GREY, declared_max=4000))
    assert "nearly black" in refused(write_tiff(tmp_path / "b.tif", pixels, photometric=GREY, declared_max=1023))


def test_a_dark_photo_whose_file_names_all_16_bits_is_dark(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", leaf(1, bits=12), photometric=GREY, declared_max=65535)
    assert np.asarray(read_photo(path)).max() == 16


@pytest.mark.parametrize("bands", [1, 3])
def test_all_16_bits_are_read(tmp_path: Path, bands: int) -> None:
    pixels = leaf(bands, bits=16)
    expected = pixels / 65535 * 255
    tiff = write_tiff(tmp_path / "a.tif", pixels, photometric=GREY if bands == 1 else 2)
    for path in (write_png(tmp_path / "a.png", pixels), tiff):
        assert np.abs(np.asarray(read_photo(path)) - expected).max() <= 1
        assert np.abs(np.asarray(upright_rgb(Image.open(path))) - expected).max() <= 1


@pytest.mark.parametrize("extra", [None, 2])
def test_16_bits_in_separate_planes_are_refused_not_mixed_up(tmp_path: Path, extra: int | None) -> None:
    path = write_tiff(tmp_path / "a.tif", leaf(4 if extra else 3, bits=16), planar=True, extra=extra)
    assert refused(path) == (
        f"expected a readable photo; got '{path}' (a TIFF of 16 bits in separate planes without compression, which is "
        "read wrongly); save it as RGB with 8 bits"
    )
    with Image.open(path) as opened, pytest.raises(PhotoError, match="separate planes"):
        upright_rgb(opened)


def test_8_bits_in_separate_planes_are_read(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", leaf(), planar=True)
    assert np.array_equal(np.asarray(read_photo(path)), leaf())


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("extra", [None, 0, 2])
def test_near_infrared_is_no_transparency(tmp_path: Path, bits: int, extra: int | None) -> None:
    pixels = leaf(4, bits=bits)
    path = write_tiff(tmp_path / "a.tif", pixels, extra=extra)
    expected = pixels[..., :3] / (2**bits - 1) * 255
    assert np.abs(np.asarray(read_photo(path)) - expected).max() <= 1
    assert np.abs(np.asarray(upright_rgb(Image.open(path))) - expected).max() <= 1


def test_a_band_that_decoding_divides_the_colours_by_is_refused(tmp_path: Path) -> None:
    message = refused(write_tiff(tmp_path / "a.tif", leaf(4), extra=1))
    assert "fourth band is marked as alpha, and is none" in message
    assert message.endswith("save its colours alone")


@pytest.mark.parametrize("extra", [1, 2])
def test_a_leaf_that_was_cut_out_stands_on_white(tmp_path: Path, extra: int) -> None:
    pixels = leaf(4)
    pixels[..., 3] = 255
    pixels[:20, :, 3] = 0
    pixels[20, :, 3] = 128  # a soft rim
    if extra == 1:
        pixels[:20, :, :3] = 0
    photo = np.asarray(read_photo(write_tiff(tmp_path / "a.tif", pixels, extra=extra)))
    assert (photo[:20] == 255).all()
    assert np.array_equal(photo[21:], pixels[21:, :, :3])


def test_an_alpha_of_nothing_is_left_out(tmp_path: Path) -> None:
    pixels = leaf(4)
    pixels[..., 3] = 0
    photo = np.asarray(read_photo(write_tiff(tmp_path / "a.tif", pixels, extra=2)))
    assert np.array_equal(photo, pixels[..., :3])
