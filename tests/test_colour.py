"""Photos reach every model as 8-bit sRGB: by their colour profile, bits, planes and bands, or refused in one line."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from tests.icc import SPACES, cmyk_profile, decode, grey_profile, rgb_profile, srgb_of_lab
from tests.tiffs import GREY, WHITE_IS_ZERO, write_tiff

from agridistill import colour
from agridistill.colour import coloured, overlaid
from agridistill.data.inspection import inspect_photo
from agridistill.data.views import Augmentation, SmallCopies
from agridistill.edge.sources import SourceSettings
from agridistill.edge.sources.source import PhotoReader
from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import read_photo, upright_rgb
from agridistill.runtime.predictor import read_pixels

P3 = rgb_profile("display-p3")


def tiles(seed: int = 0, *, side: int = 16) -> np.ndarray:
    """Colours of the whole cube, each as large as JPEG's blocks."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return colours.repeat(side, axis=0).repeat(side, axis=1)


def saved(path: Path, pixels: np.ndarray, profile: bytes | None, **options: object) -> Path:
    Image.fromarray(pixels).save(path, icc_profile=profile, **options)
    return path


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_colours_become_those_of_srgb(tmp_path: Path, space: str, suffix: str) -> None:
    lossless = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", tiles(), rgb_profile(space), **lossless)
    photo = read_photo(path)
    # ProPhoto's darkest levels are steeper than 8 bits can say.
    assert np.abs(np.asarray(photo) - decode(tiles(), space)).max() <= 3
    assert np.abs(tiles() - decode(tiles(), space)).max() > 30
    assert "icc_profile" not in photo.info


def test_a_phones_jpeg_is_converted_in_every_way_that_it_is_read(tmp_path: Path) -> None:
    pixels = tiles(side=64)
    path = saved(tmp_path / "a.jpg", pixels, P3, quality=95, subsampling=0)
    expected = decode(pixels, "display-p3")
    for photo in (read_photo(path), read_photo(path.read_bytes()), upright_rgb(Image.open(path))):
        assert np.abs(np.asarray(photo) - expected)[32::64, 32::64].max() <= 4
    # Decoded at half its size, as for prediction and the field agent, and through a small copy, as in training.
    half = read_photo(path, shorter_side=128)
    assert half.size == (192, 128)
    assert np.abs(np.asarray(half) - expected[::2, ::2])[16::32, 16::32].max() <= 4
    frame = PhotoReader(SourceSettings(shorter_side=128)).read(path)
    assert np.array_equal(frame, np.asarray(half))
    pixels_of_predict = read_pixels(path, Preprocessing(64, "stretch"))
    view = SmallCopies(tmp_path, Preprocessing(64, "stretch"), Augmentation()).read("a.jpg")
    plain = SmallCopies(tmp_path, Preprocessing(64, "stretch"), None).read("a.jpg")
    assert np.abs(np.asarray(plain.resize((64, 64))).astype(int) - pixels_of_predict).mean() < 2
    assert np.abs(np.asarray(view).mean(axis=(0, 1)) - expected.mean(axis=(0, 1))).max() < 2


@pytest.mark.parametrize(
    "profile",
    [None, rgb_profile("srgb"), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()],
    ids=["none", "by hand", "by Little CMS"],
)
def test_srgb_stays_as_it_is(tmp_path: Path, profile: bytes | None) -> None:
    path = saved(tmp_path / "a.png", tiles(), profile)
    assert np.array_equal(np.asarray(read_photo(path)), tiles())


@pytest.mark.parametrize(
    "broken",
    [b"x", b"", P3[:200], P3[:128] + bytes(len(P3) - 128), P3[:16] + b"GRAY" + P3[20:], P3[:16] + b"6CLR" + P3[20:]],
    ids=["one byte", "empty", "cut off", "zeros", "of another space", "of six inks"],
)
def test_a_profile_that_cannot_be_used_counts_as_srgb(tmp_path: Path, broken: bytes) -> None:
    path = saved(tmp_path / "a.png", tiles(), broken)
    assert np.array_equal(np.asarray(read_photo(path)), tiles())


def test_a_profile_of_megabytes_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colour, "_MAX_PROFILE_BYTES", len(P3) - 1)
    path = saved(tmp_path / "a.png", tiles(), P3)
    assert np.array_equal(np.asarray(read_photo(path)), tiles())


def test_grey_is_read_by_its_own_curve(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    photo = np.asarray(read_photo(saved(tmp_path / "a.png", grey, grey_profile(1.4))))
    light = (grey / 255) ** 1.4
    expected = 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    # Little CMS draws a straight line through the darkest levels.
    assert np.abs(photo - expected[..., None])[1:].max() <= 2
    assert np.abs(photo - grey[..., None].astype(int)).max() > 20
    # Grey that kept the profile of the colours that it was made from.
    photo = np.asarray(read_photo(saved(tmp_path / "b.png", grey, rgb_profile("prophoto"))))
    assert np.abs(photo - decode(np.stack([grey] * 3, axis=-1), "prophoto")).max() <= 3


def test_grey_of_16_bits_and_transparency_keep_their_profile(tmp_path: Path) -> None:
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    plain, linear = (
        np.asarray(read_photo(saved(tmp_path / f"{name}.png", deep, profile))).astype(int)
        for name, profile in (("a", None), ("b", grey_profile(1.0)))
    )
    assert (linear - plain)[4, 4].min() > 30
    rgba = np.dstack([tiles(), np.full(tiles().shape[:2], 255, np.uint8)])
    rgba[:16, :16, 3] = 0
    photo = np.asarray(read_photo(saved(tmp_path / "c.png", rgba, P3)))
    assert np.abs(photo - decode(tiles(), "display-p3"))[16:].max() <= 3
    assert photo[:16, :16].min() >= 254


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_inks_are_mixed_by_their_profile(tmp_path: Path, suffix: str) -> None:
    paper, inks = np.array([100.0, 0, 0]), np.array([[30.0, 15, 20], [35, -40, 0], [8, 0, -60], [90, 0, 0]])
    used = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1)
    lab = paper - used @ inks
    lab[..., 0] = lab[..., 0].clip(0)
    # The Lab of the darkest overprint is black: black point compensation then changes nothing.
    lab[1, 1, 1, 1] = 0
    expected = srgb_of_lab(lab.reshape(16, 3))
    pixels = (255 * used.reshape(1, 16, 4)).astype(np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    image = Image.fromarray(pixels, "CMYK") if suffix == "tif" else Image.frombytes("CMYK", (256, 16), pixels.tobytes())
    image.save(tmp_path / f"a.{suffix}", icc_profile=cmyk_profile(lab), quality=100, subsampling=0)
    photo = np.asarray(read_photo(tmp_path / f"a.{suffix}"))[8, 8::16]
    inside = [0, 4, 8]  # paper, magenta and cyan: colours that sRGB has
    assert np.abs(photo - expected)[inside].max() <= 4
    naive = np.asarray(Image.open(tmp_path / f"a.{suffix}").convert("RGB"))[8, 8::16].astype(int)
    assert np.abs(naive - expected)[[4, 8]].max() > 60


def test_a_picture_is_not_converted_twice(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", tiles(), P3)
    once = read_photo(path)
    copy = io.BytesIO()
    once.save(copy, "PNG")
    assert np.array_equal(np.asarray(read_photo(copy.getvalue())), np.asarray(once))
    opened = Image.open(path)
    opened.load()
    assert np.array_equal(np.asarray(upright_rgb(opened)), np.asarray(once))
    assert np.array_equal(np.asarray(opened), tiles())  # the caller's picture is its own


def test_threads_share_a_transform(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{seed}.png", tiles(seed), P3) for seed in range(8)]
    alone = [np.asarray(read_photo(path)) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert all(map(np.array_equal, pool.map(lambda path: np.asarray(read_photo(path)), paths), alone))


def test_a_profile_is_prepared_once_for_all_photos(tmp_path: Path) -> None:
    colour._transform.cache_clear()
    for seed in range(5):
        read_photo(saved(tmp_path / f"{seed}.png", tiles(seed), P3))
    assert colour._transform.cache_info().misses == 1


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
    assert "all 16-bit values below 16,384: fewer bits are used, or the photo is nearly black" in message
    assert message.endswith("save it as RGB with 8 bits, or scale its values to the full 16 bits")


@pytest.mark.parametrize("photometric", [GREY, WHITE_IS_ZERO])
def test_grey_of_16_bits_is_scaled_to_8(tmp_path: Path, photometric: int) -> None:
    pixels = leaf(1, bits=16)
    path = write_tiff(tmp_path / "a.tif", pixels, photometric=photometric)
    expected = pixels[..., 0] / 65535 * 255
    expected = expected if photometric == GREY else 255 - expected
    assert np.abs(np.asarray(read_photo(path))[..., 0] - expected).max() <= 0.51
    assert np.array_equal(np.asarray(upright_rgb(Image.open(path))), np.asarray(read_photo(path)))


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
        f"expected a readable photo; got '{path}' (a TIFF with 16 bits and uncompressed separate planes, which Pillow "
        "reads wrongly); save it as RGB with 8 bits"
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
    assert "fourth band is marked as transparency but holds something else" in message
    assert message.endswith("save the photo with its three colour bands only")


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


def test_the_colours_are_those_of_cividis() -> None:
    colormaps = pytest.importorskip("matplotlib").colormaps
    values = np.linspace(0, 1, 256)[None]
    reference = colormaps["cividis"](values)[:, :, :3] * 255
    assert np.abs(coloured(values) - reference).max() < 12
    assert np.array_equal(coloured(np.array([[-1.0, 2.0]])), coloured(np.array([[0.0, 1.0]])))


def test_the_highest_value_is_yellow_the_lowest_blue_whatever_the_scale() -> None:
    grey = Image.new("RGB", (8, 4), (128, 128, 128))
    for scale in (1e-3, 1.0, 1e3):
        drawn = np.asarray(overlaid(grey, np.array([[0.0, 1.0]]) * scale)).astype(int)
        assert drawn.shape == (4, 8, 3)
        assert (drawn[:, 0, 2] > drawn[:, 0, 0]).all()
        assert (drawn[:, -1, 0] > drawn[:, -1, 2]).all()


def test_a_map_of_one_value_and_a_range_of_ones_own_are_drawn() -> None:
    grey = Image.new("RGB", (4, 4), (128, 128, 128))
    flat = np.asarray(overlaid(grey, np.full((2, 2), 0.2)))
    assert np.array_equal(flat, np.asarray(overlaid(grey, np.zeros((2, 2)), low=0.0, high=1.0)))
