import errno
import math
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill import preprocess
from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import (
    MAX_PIXELS,
    MAX_SIDE,
    UnreachablePhotoError,
    enough_pixels,
    photo_size,
    read_photo,
    softmax,
    to_pixels,
)

ORIENTATION = 0x0112


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


# What a camera stores when it is held so: the EXIF 2.3 table, written with numpy.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    upright = noise(6, 10)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    photo = read_photo(saved(tmp_path / "a.png", stored, exif=exif))
    assert np.array_equal(np.asarray(photo), upright)
    assert photo.size == (10, 6)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_of_every_format_that_tells_it_are_turned_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    # Three tiles in a row and three below, each as large as JPEG's blocks of colour.
    tiles = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 0], [250, 0, 250], [0, 250, 250]]], np.uint8)
    upright = tiles.repeat(16, axis=0).repeat(16, axis=1)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    photo = np.asarray(read_photo(saved(tmp_path / f"a.{suffix}", stored, exif=exif, quality=95)))
    assert photo.shape == (32, 48, 3)
    assert np.allclose(photo[8::16, 8::16], tiles, atol=8)


def test_grey_of_16_bits_is_turned_upright_too(tmp_path: Path) -> None:
    upright = np.arange(60, dtype=np.uint16).reshape(6, 10) * 1000
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = Image.fromarray(np.ascontiguousarray(STORED[6](upright)))
    photo = np.asarray(read_photo(saved(tmp_path / "a.png", stored, exif=exif)))
    assert np.array_equal(photo[..., 0], np.round(upright / 65535 * 255))


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_a_cmyk_photo_keeps_its_colours(tmp_path: Path, suffix: str) -> None:
    orange = Image.new("RGB", (16, 16), (230, 120, 20))
    path = saved(tmp_path / f"a.{suffix}", orange.convert("CMYK"), quality=95)
    # Photoshop's way, which every CMYK JPEG follows: the marker, and ink counted from 255 down.
    assert (b"Adobe" in path.read_bytes()) == (suffix == "jpg")
    photo = read_photo(path)
    assert photo.mode == "RGB"
    assert np.allclose(np.asarray(photo), (230, 120, 20), atol=3)


def test_a_progressive_jpeg_reads_like_a_plain_one(tmp_path: Path) -> None:
    image = Image.fromarray(noise(40, 56)).resize((112, 80))
    plain, progressive = (saved(tmp_path / f"{way}.jpg", image, progressive=way, quality=90) for way in (False, True))
    assert b"\xff\xc2" in progressive.read_bytes()  # the marker of a progressive frame
    assert np.array_equal(np.asarray(read_photo(progressive)), np.asarray(read_photo(plain)))


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_of_several_photos_in_a_file_the_first_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    lossless = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **lossless)
    with Image.open(path) as stored:
        assert stored.n_frames == 3  # type: ignore[attr-defined]
    assert np.asarray(read_photo(path))[8, 8].tolist() == [255, 0, 0]


def png_of_16_bits(path: Path, colour_type: int, pixels: np.ndarray, *extra: bytes) -> Path:
    """Writes what Pillow does not: `(H, W, channels)` uint16 of a PNG colour type."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    content = b"".join(chunk(each[:4], each[4:]) for each in extra) + chunk(b"IDAT", zlib.compress(rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + content + chunk(b"IEND", b""))
    return path


def test_16_bit_colour_is_scaled_by_its_range(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    photo = np.asarray(read_photo(png_of_16_bits(tmp_path / "a.png", 2, deep)))
    assert np.allclose(photo, deep / 65535 * 255, atol=1)


def test_transparent_pixels_of_16_bits_become_white(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (9, 7, 4), dtype=np.uint16)
    photo = np.asarray(read_photo(png_of_16_bits(tmp_path / "a.png", 6, deep)))
    alpha = deep[..., 3:] / 65535
    assert np.allclose(photo, deep[..., :3] / 65535 * 255 * alpha + 255 * (1 - alpha), atol=2)
    grey = np.array([[[0], [1000], [65535]]], np.uint16)
    photo = np.asarray(read_photo(png_of_16_bits(tmp_path / "b.png", 0, grey, b"tRNS" + struct.pack(">H", 1000))))
    assert photo[0].tolist() == [[0] * 3, [255] * 3, [255] * 3]


def grey_tiff(path: Path, content: bytes, width: int, bits: int, *, white_is_zero: bool, order: str = "<") -> Path:
    """Writes one row of grey as a camera's raw converter or a scanner does."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 8, 277: 1, 278: 1}
    tags[279] = len(content)
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = 8 + len(content) + len(content) % 2
    body = content.ljust(directory - 8, b"\0") + struct.pack(f"{order}H", len(tags)) + entries
    path.write_bytes(magic + struct.pack(f"{order}I", directory) + body + bytes(4))
    return path


@pytest.mark.parametrize(("order", "white_is_zero"), [("<", False), (">", False), ("<", True)])
def test_a_16_bit_tiff_is_read_in_either_byte_order_and_direction(
    tmp_path: Path, order: str, white_is_zero: bool
) -> None:
    deep = np.array([0, 1000, 30_000, 65535], np.uint16)
    path = grey_tiff(
        tmp_path / "a.tif", deep.astype(f"{order}u2").tobytes(), 4, 16, white_is_zero=white_is_zero, order=order
    )
    brightness = deep / 65535 * 255
    expected = np.round(255 - brightness if white_is_zero else brightness)
    assert np.asarray(read_photo(path))[0, :, 0].tolist() == expected.tolist()


def test_12_bit_grey_is_scaled_by_its_own_range(tmp_path: Path) -> None:
    # Two values in three bytes: 4095 and 2048.
    path = grey_tiff(tmp_path / "a.tif", b"\xff\xf8\x00", 2, 12, white_is_zero=False)
    assert np.asarray(read_photo(path))[0, :, 0].tolist() == [255, 128]


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = noise(5, 5)[..., 0]
    photo = np.asarray(read_photo(saved(tmp_path / "a.png", Image.fromarray(grey))))
    assert np.array_equal(photo, np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("brightest", [65535, 20_000])
def test_16_bit_grey_is_scaled_by_its_range_whatever_the_photo_shows(tmp_path: Path, name: str, brightest: int) -> None:
    grey = np.linspace(0, brightest, 64).round().astype(np.uint16).reshape(8, 8)
    photo = np.asarray(read_photo(saved(tmp_path / name, Image.fromarray(grey))))
    assert np.array_equal(photo[..., 0], np.round(grey / 65535 * 255))


def test_32_bit_grey_is_refused_as_its_range_is_unknown(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.full((4, 4), 0.5, np.float32)))
    with pytest.raises(
        PhotoError, match=r"expected a readable photo; got '.*a\.tif' \(32-bit grey values, whose range is unknown\)"
    ):
        read_photo(path)


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (200, 0, 0, 255)
    rgba[0, 1] = (200, 0, 0, 0)
    rgba[1, 0] = (200, 0, 0, 51)
    photo = np.asarray(read_photo(saved(tmp_path / "a.png", Image.fromarray(rgba))))
    assert photo[0, 0].tolist() == [200, 0, 0]
    assert photo[0, 1].tolist() == [255, 255, 255]
    assert np.allclose(photo[1, 0], np.array([200, 0, 0]) * 0.2 + 255 * 0.8, atol=1)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])])
def test_a_palettes_transparent_colour_becomes_white(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    photo = np.asarray(read_photo(saved(tmp_path / "a.png", image, transparency=transparency)))
    assert photo.tolist() == [[[10, 20, 30], [255, 255, 255]], [[70, 80, 90], [10, 20, 30]]]


def test_bytes_read_like_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(noise(20, 30)))
    assert np.array_equal(np.asarray(read_photo(path.read_bytes())), np.asarray(read_photo(path)))


def test_the_first_photo_of_a_phones_double_jpeg_is_read(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    photo = read_photo(saved(tmp_path / "a.jpg", first, format="MPO", save_all=True, append_images=[second]))
    assert np.allclose(np.asarray(photo), (255, 0, 0), atol=2)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_photo_that_was_cut_off_is_refused(tmp_path: Path, suffix: str) -> None:
    whole = saved(tmp_path / f"whole.{suffix}", Image.fromarray(noise(64, 64))).read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        PhotoError, match=rf"expected a readable photo; got '.*a\.{suffix}' \(.+\); replace or remove the file"
    ):
        read_photo(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("content", [b"this is a text", b"\xff\xd8\xff", b"GIF89a"])
def test_what_is_no_photo_is_reported_once_without_pillows_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(PhotoError, match=r"got '.*' \(not a JPEG, PNG, WebP, BMP.* TIFF.* image\); replace") as caught:
        read_photo(tmp_path / "a.jpg")
    assert caught.value.got.count("a.jpg") == 1
    with pytest.raises(PhotoError, match=rf"got {len(content)} bytes \(not a JPEG"):
        read_photo(content)


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(PhotoError, match=r"got '.*a\.jpg' \(an empty file\); replace or remove the file"):
        read_photo(tmp_path / "a.jpg")
    with pytest.raises(PhotoError, match=r"got 0 bytes \(an empty file\)"):
        read_photo(b"")


def test_a_missing_file_and_a_folder_have_different_errors(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=r"got '.*a\.jpg', which does not exist; check the path"):
        read_photo(tmp_path / "a.jpg")
    with pytest.raises(PhotoError, match=r"\(Is a directory\)"):
        read_photo(tmp_path)


def test_a_photo_over_the_limit_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(noise(20, 30)))
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 600)
    assert read_photo(path).size == (30, 20)
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 599)
    with pytest.raises(
        PhotoError, match=r"expected a photo of at most 599 pixels; got '.*a\.png' with 30 x 20 pixels; scale it down"
    ):
        read_photo(path)


def test_a_decompression_bomb_is_refused_like_any_photo_over_the_limit(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(bomb + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND")))
    with pytest.raises(PhotoError, match=rf"expected a photo of at most {MAX_PIXELS:,} pixels; got '.*bomb\.png'"):
        read_photo(tmp_path / "bomb.png")


def test_a_side_longer_than_any_cameras_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("L", (MAX_SIDE + 1, 1)))
    with pytest.raises(PhotoError, match=r"photo of at most 65,535 pixels a side; got '.*' with 65536 x 1 pixels;"):
        read_photo(path)


def test_a_large_photo_of_nothing_is_refused_as_a_bomb_and_a_real_one_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.webp", Image.new("RGB", (5100, 5000)), lossless=True, method=0)
    with pytest.raises(
        PhotoError,
        match=r"expected a photo; got '.*' with 5100 x 5000 pixels in [\d,]+ bytes, a decompression bomb; replace",
    ):
        read_photo(path)
    leaf = Image.fromarray(noise(50, 51)).resize((5100, 5000), Image.Resampling.BILINEAR)
    assert read_photo(saved(tmp_path / "leaf.jpg", leaf, quality=60)).size == (5100, 5000)


def test_reading_in_threads_leaves_the_warning_filters_alone(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{n}.jpg", Image.fromarray(noise(100 + 40 * n, 200, n))) for n in range(8)]
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_photo, paths * 25))
    assert list(warnings.filters) == before


def test_odd_metadata_is_no_reason_to_warn(tmp_path: Path) -> None:
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\xff\x00\x00\x00\xff\xff\x00\x00"
    path = saved(tmp_path / "a.jpg", Image.fromarray(noise(8, 8)), exif=exif)
    code = "import sys, pathlib, agridistill.preprocess as p; print(p.read_photo(pathlib.Path(sys.argv[1])).size)"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code, path], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("(8, 8)\n", "")


@pytest.mark.parametrize(("width", "height"), [(20, 40), (40, 20), (30, 30)])
def test_crop_is_the_centre_of_the_photo_scaled_by_its_shorter_side(width: int, height: int) -> None:
    photo = Image.fromarray(noise(height, width))
    scale = 10 / min(width, height)
    scaled = photo.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (scaled.width - 10) // 2, (scaled.height - 10) // 2
    expected = np.asarray(scaled.crop((left, top, left + 10, top + 10)))
    # Rounded once here, and twice in the other order there.
    assert np.allclose(to_pixels(photo, Preprocessing(10, "crop")).astype(int), expected, atol=1)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_no_larger_than_needed_and_looks_the_same(tmp_path: Path, orientation: int) -> None:
    coarse = Image.fromarray(noise(30, 40)).resize((1600, 1200), Image.Resampling.BICUBIC)
    grain = np.asarray(coarse, np.int16) + noise(1200, 1600)[..., :1] // 16
    photo = Image.fromarray(grain.clip(0, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(tmp_path / "a.jpg", photo, quality=90, exif=exif)
    rule = Preprocessing(128)
    whole, reduced = read_photo(path), read_photo(path, shorter_side=enough_pixels(rule))
    assert reduced.size == (whole.width // 4, whole.height // 4)
    difference = np.abs(to_pixels(whole, rule).astype(int) - to_pixels(reduced, rule))
    assert difference.mean() < 0.5
    assert difference.max() <= 6


@pytest.mark.parametrize(("suffix", "width"), [(".png", 1600), (".jpg", 511)])
def test_what_cannot_be_reduced_is_read_whole(tmp_path: Path, suffix: str, width: int) -> None:
    path = saved(tmp_path / f"a{suffix}", Image.fromarray(noise(600, width)))
    np.testing.assert_array_equal(read_photo(path, shorter_side=256), read_photo(path))


def test_a_large_photo_that_is_decoded_whole_is_scaled_down_and_looks_the_same(tmp_path: Path) -> None:
    coarse = Image.fromarray(noise(30, 40)).resize((2507, 1601), Image.Resampling.BICUBIC)
    path = saved(tmp_path / "a.png", coarse, compress_level=1)
    rule = Preprocessing(128)
    whole, reduced = read_photo(path), read_photo(path, shorter_side=enough_pixels(rule))
    assert whole.size == (2507, 1601)
    assert reduced.size == (802, 512)
    difference = np.abs(to_pixels(whole, rule).astype(int) - to_pixels(reduced, rule))
    assert difference.mean() < 0.5
    assert difference.max() <= 6


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOMEM, None])
def test_errors_of_the_system_and_damaged_files_are_different(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(noise(8, 8)))

    def raising(error: Exception) -> Callable[..., None]:
        def refuse(*arguments: object, **options: object) -> None:
            raise error

        return refuse

    monkeypatch.setattr(Image, "open", raising(MemoryError() if code is None else OSError(code, "refused")))
    for read in (read_photo, photo_size):
        with pytest.raises(UnreachablePhotoError, match="check its permissions and the disk"):
            read(path)
    for damage in (OSError(errno.EINVAL, "Invalid argument"), OSError("image file is truncated"), ValueError("x")):
        monkeypatch.setattr(Image, "open", raising(damage))
        with pytest.raises(PhotoError, match="replace or remove the file") as caught:
            read_photo(path)
        assert not isinstance(caught.value, UnreachablePhotoError)


def test_stretch_keeps_what_crop_cuts_away() -> None:
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20] = (255, 0, 0)
    pixels[:, 40:] = (0, 0, 255)
    photo = Image.fromarray(pixels)
    stretched = to_pixels(photo, Preprocessing(30, "stretch"))
    assert stretched[15, 2].tolist() == [255, 0, 0]
    assert stretched[15, 15].tolist() == [0, 0, 0]
    assert stretched[15, 27].tolist() == [0, 0, 255]
    cropped = to_pixels(photo, Preprocessing(30, "crop"))
    assert not cropped[:, 1:-1].any()  # the filter reaches a little beyond the square


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2)])
def test_any_photo_becomes_the_models_size(size: tuple[int, int]) -> None:
    for resize in ("crop", "stretch"):
        pixels = to_pixels(Image.new("RGB", size, (9, 8, 7)), Preprocessing(12, resize))  # type: ignore[arg-type]
        assert pixels.shape == (12, 12, 3)
        assert pixels.dtype == np.uint8
        assert pixels.flags.writeable
        assert (pixels == (9, 8, 7)).all()


def test_softmax_equals_its_formula_and_sums_to_one() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 4)) * 3
    result = softmax(logits, temperature=2.5)
    for row, probabilities in zip(logits, result, strict=True):
        exponentials = [math.exp(value / 2.5) for value in row]
        assert probabilities == pytest.approx([value / sum(exponentials) for value in exponentials])
    assert result.sum(axis=-1) == pytest.approx(1)


def test_softmax_at_its_limits() -> None:
    assert softmax(np.array([1e4, 0, -1e4], np.float32)).tolist() == [1, 0, 0]
    assert softmax(np.array([3.0, 1.0, 2.0]), temperature=1e9) == pytest.approx([1 / 3] * 3)
    logits = np.random.default_rng(1).normal(size=(3, 5))
    assert softmax(logits + 100) == pytest.approx(softmax(logits))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_softmax_refuses_a_temperature_that_divides_nothing(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        softmax(np.zeros(3), temperature)
