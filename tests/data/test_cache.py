"""Large photos are decoded once; views and photos as they are lose nothing by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill.data import cache
from agridistill.data.cache import SmallCopies
from agridistill.data.views import VIEWS_VERSION, Augmentation, render_view
from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import read_photo, to_pixels

INPUT = Preprocessing(32)
VIEWS = Augmentation(min_scale=0.25, cast=0.0, brightness=0.0, contrast=0.0, saturation=0.0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def photo(folder: Path, width: int, height: int, name: str = "a.jpg", **options: object) -> Path:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / name, quality=97, **options)  # type: ignore[arg-type]
    return folder / name


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the photos that are decoded whole."""
    names: list[str] = []

    def noted(source: Path | bytes) -> Image.Image:
        if isinstance(source, Path):
            names.append(source.name)
        return read_photo(source)

    monkeypatch.setattr(cache, "read_photo", noted)
    return names


def test_a_large_photo_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(tmp_path, 640, 480)
    names = decoded(monkeypatch)
    first = SmallCopies(tmp_path, INPUT, VIEWS).read("a.jpg")
    again = SmallCopies(tmp_path, INPUT, VIEWS).read("a.jpg")
    assert names == ["a.jpg"]
    # The closest view shows a quarter of the photo's area in 32 x 32 pixels.
    assert min(first.size) == 64
    assert np.array_equal(np.asarray(first), np.asarray(again))


def test_a_small_photo_is_used_itself(tmp_path: Path, own_cache: Path) -> None:
    path = photo(tmp_path, 160, 120)
    assert np.array_equal(np.asarray(SmallCopies(tmp_path, INPUT, VIEWS).read("a.jpg")), np.asarray(read_photo(path)))
    assert not own_cache.exists()


def test_a_photo_as_it_is_stays_exactly_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = photo(tmp_path, 640, 480)
    names = decoded(monkeypatch)
    for resize in ("crop", "stretch"):
        as_it_is = Preprocessing(32, resize)  # type: ignore[arg-type]
        expected = to_pixels(read_photo(path), as_it_is)
        for _ in range(2):
            copies = SmallCopies(tmp_path, as_it_is, None)
            assert np.array_equal(to_pixels(copies.read("a.jpg"), as_it_is), expected)
    assert names == ["a.jpg", "a.jpg"]


def test_views_of_the_copy_look_like_views_of_the_photo(tmp_path: Path) -> None:
    path = photo(tmp_path, 640, 480)
    copies = SmallCopies(tmp_path, INPUT, VIEWS)
    for seed in range(20):
        ours = render_view(copies.read("a.jpg"), seed, VIEWS, INPUT).astype(float)
        theirs = render_view(read_photo(path), seed, VIEWS, INPUT).astype(float)
        assert np.abs(ours - theirs).mean() < 2


def test_exif_orientation_is_kept(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = photo(tmp_path, 640, 480, exif=exif)
    copy = SmallCopies(tmp_path, INPUT, VIEWS).read("a.jpg")
    assert copy.height > copy.width
    assert read_photo(path).height == 640


def test_a_changed_photo_has_a_new_copy(tmp_path: Path) -> None:
    photo(tmp_path, 640, 480)
    before = SmallCopies(tmp_path, INPUT, VIEWS).read("a.jpg")
    Image.new("RGB", (640, 480), "red").save(tmp_path / "a.jpg")
    after = np.asarray(SmallCopies(tmp_path, INPUT, VIEWS).read("a.jpg"))
    assert not np.array_equal(np.asarray(before), after)
    assert after[..., 0].min() > 200


def test_a_damaged_copy_is_made_again(tmp_path: Path, own_cache: Path) -> None:
    photo(tmp_path, 640, 480)
    before = np.asarray(SmallCopies(tmp_path, INPUT, VIEWS).read("a.jpg"))
    (copy,) = (path for path in own_cache.rglob("*") if path.is_file())
    whole = copy.read_bytes()
    # Any decoder would take the flipped one.
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:100], b"", bytes(flipped)):
        copy.write_bytes(damaged)
        assert np.array_equal(np.asarray(SmallCopies(tmp_path, INPUT, VIEWS).read("a.jpg")), before)
        assert copy.read_bytes() == whole


@pytest.mark.parametrize("changed", ["our way", "Pillow", "libjpeg-turbo"])
def test_another_way_of_making_copies_has_copies_of_its_own(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    photo(tmp_path, 640, 480)
    SmallCopies(tmp_path, INPUT, VIEWS).read("a.jpg")
    if changed == "our way":
        monkeypatch.setattr(cache, "VIEWS_VERSION", VIEWS_VERSION + 1)
    elif changed == "Pillow":
        monkeypatch.setattr("PIL.__version__", "0.0")
    else:
        monkeypatch.setattr("PIL.features.version", lambda _: "0.0")
    names = decoded(monkeypatch)
    SmallCopies(tmp_path, INPUT, VIEWS).read("a.jpg")
    assert names == ["a.jpg"]
    assert len([path for path in own_cache.rglob("*") if path.is_file()]) == 2


def test_without_a_place_for_copies_all_goes_on(tmp_path: Path, own_cache: Path) -> None:
    photo(tmp_path, 640, 480)
    own_cache.write_text("in the way")
    assert min(SmallCopies(tmp_path, INPUT, VIEWS).read("a.jpg").size) == 64


@pytest.mark.parametrize("content", [b"", b"no photo", b"\x89PNG\r\n\x1a\n"])
def test_a_bad_photo_is_told_as_ever(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    copies = SmallCopies(tmp_path, INPUT, VIEWS)
    with pytest.raises(PhotoError, match=r"a\.jpg"):
        copies.read("a.jpg")
    with pytest.raises(PhotoError, match="does not exist"):
        copies.read("b.jpg")
