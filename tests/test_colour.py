"""Photos with a colour profile of their own reach every model as sRGB."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from tests.icc import SPACES, cmyk_profile, decode, grey_profile, rgb_profile, srgb_of_lab

from agridistill import colour
from agridistill.data.small_copies import SmallCopies
from agridistill.data.views import Augmentation
from agridistill.edge.sources import SourceSettings
from agridistill.edge.sources.source import PhotoReader
from agridistill.manifest import Preprocessing
from agridistill.preprocess import read_photo, upright_rgb
from agridistill.runtime.reading import read_pixels

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
