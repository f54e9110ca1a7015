"""Large photos are decoded once and kept views are drawn once; the pixels stay the same."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill.data import loader
from agridistill.data import views as module
from agridistill.data.folder import Sample
from agridistill.data.loader import PhotoDataset, ViewKey
from agridistill.data.views import SPARE_BYTES, VIEWS_VERSION, Augmentation, KeptViews, SmallCopies, render_view
from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import Pixels, read_photo, to_pixels

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

    monkeypatch.setattr(module, "read_photo", noted)
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
        monkeypatch.setattr(module, "VIEWS_VERSION", VIEWS_VERSION + 1)
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


NOISY = Augmentation(noise=20.0)
CLOSER = Augmentation(min_scale=0.1)
KEYS = [ViewKey(position, view, 10 * position + view) for position in (0, 1) for view in (0, 1)]
SAMPLES = [Sample("a.jpg", 0, "a"), Sample("b.jpg", 1, "b")]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for sample in SAMPLES:
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(folder / sample.path)
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the views that are drawn."""
    seeds: list[int] = []
    draw: Callable[..., Pixels] = loader.render_view

    def noted(image: Image.Image, seed: int, *rest: object) -> Pixels:
        seeds.append(seed)
        return draw(image, seed, *rest)

    monkeypatch.setattr(loader, "render_view", noted)
    return seeds


def pixels_of(folder: Path, *, keep: bool, augmentation: Augmentation = NOISY) -> list[Pixels]:
    dataset = PhotoDataset(folder, SAMPLES, INPUT, augmentation, keep_views=keep)
    items = [dataset[key] for key in KEYS]
    assert all(item is not None for item in items)
    return [item[0] for item in items if item is not None]


def kept_files(own_cache: Path) -> list[Path]:
    return sorted(path for path in own_cache.rglob("*") if path.is_file())


def test_kept_views_are_drawn_once_and_are_the_same_pixels(photos: Path, drawn: list[int]) -> None:
    plain = pixels_of(photos, keep=False)
    drawn.clear()
    first = pixels_of(photos, keep=True)
    assert drawn == [key.seed for key in KEYS]
    again = pixels_of(photos, keep=True)
    assert len(drawn) == len(KEYS)
    assert np.array_equal(first, plain)
    assert np.array_equal(again, plain)


def test_nothing_is_kept_unasked(photos: Path, own_cache: Path) -> None:
    pixels_of(photos, keep=False)
    assert not own_cache.exists()


def test_photos_as_they_are_are_not_kept(photos: Path, own_cache: Path) -> None:
    assert PhotoDataset(photos, SAMPLES, INPUT, None, keep_views=True)[ViewKey(0, -1, -1)] is not None
    assert not own_cache.exists()


def test_a_changed_photo_and_another_way_have_views_of_their_own(
    photos: Path, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels_of(photos, keep=True)
    Image.new("RGB", (64, 48), "red").save(photos / "a.jpg")
    drawn.clear()
    assert not np.array_equal(pixels_of(photos, keep=True), pixels_of(photos, keep=True, augmentation=CLOSER))
    # Both views of the changed photo, then all four in the other way.
    assert drawn == [KEYS[0].seed, KEYS[1].seed, *(key.seed for key in KEYS)]
    for change in ("our version", "numpy"):
        drawn.clear()
        if change == "numpy":
            monkeypatch.setattr(np, "__version__", "0.0")
        else:
            monkeypatch.setattr(module, "VIEWS_VERSION", VIEWS_VERSION + 1)
        pixels_of(photos, keep=True)
        assert len(drawn) == len(KEYS), change


def test_a_damaged_view_is_drawn_again(photos: Path, own_cache: Path) -> None:
    before = pixels_of(photos, keep=True)
    path = kept_files(own_cache)[0]
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    # Four zeros are the checksum of nothing.
    for damaged in (b"", bytes(4), whole[:100], bytes(flipped)):
        path.write_bytes(damaged)
        assert np.array_equal(pixels_of(photos, keep=True), before)
        assert path.read_bytes() == whole


def test_without_a_place_all_goes_on(photos: Path, own_cache: Path) -> None:
    own_cache.write_text("in the way")
    assert np.array_equal(pixels_of(photos, keep=True), pixels_of(photos, keep=False))


def test_a_photo_that_is_gone_is_left_out_also_where_its_views_are_kept(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels_of(photos, keep=True)
    (photos / "a.jpg").unlink()
    assert PhotoDataset(photos, SAMPLES, INPUT, NOISY, keep_views=True)[KEYS[0]] is None
    assert "a.jpg" in caplog.text


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the disk says is free."""
    free = [1 << 50]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, free[0]))
    return free


def test_views_leave_room_on_the_disk(photos: Path, own_cache: Path, drawn: list[int], free_bytes: list[int]) -> None:
    free_bytes[0] = SPARE_BYTES
    plain = pixels_of(photos, keep=False)
    assert np.array_equal(pixels_of(photos, keep=True), plain)
    assert not own_cache.exists()
    free_bytes[0] = SPARE_BYTES + 1
    pixels_of(photos, keep=True)
    assert len(kept_files(own_cache)) == len(KEYS)
    # What is kept already is read whatever the disk says.
    free_bytes[0] = 0
    drawn.clear()
    assert np.array_equal(pixels_of(photos, keep=True), plain)
    assert not drawn


def test_room_and_what_is_kept_are_told(photos: Path, own_cache: Path, free_bytes: list[int]) -> None:
    views = KeptViews(photos, INPUT, NOISY)
    seen = [(SAMPLES[key.position].path, key.seed) for key in KEYS]
    free_bytes[0] = SPARE_BYTES + 5
    assert views.room_bytes() == 5
    free_bytes[0] = SPARE_BYTES - 5
    assert views.room_bytes() == 0
    free_bytes[0] = 1 << 50
    assert views.count(seen) == 0
    pixels_of(photos, keep=True)
    assert views.count(seen) == len(KEYS)
    assert views.count([("a.jpg", 999), ("gone.jpg", 1)]) == 0
    # 3,072 bytes of pixels and a checksum: one block of the file system.
    assert views.view_bytes == 4096
    assert all(path.stat().st_size <= 4096 for path in kept_files(own_cache))


def test_where_the_folder_cannot_be_used_there_is_no_room(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError

    # A read-only file system.
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert KeptViews(photos, INPUT, NOISY).room_bytes() == 0
    monkeypatch.setattr(shutil, "disk_usage", refuse)
    assert KeptViews(photos, INPUT, NOISY).room_bytes() == 0
    assert np.array_equal(pixels_of(photos, keep=True), pixels_of(photos, keep=False))


def test_a_whole_number_and_its_fraction_are_one_setting(photos: Path, drawn: list[int]) -> None:
    pixels_of(photos, keep=True, augmentation=Augmentation(noise=20))
    drawn.clear()
    pixels_of(photos, keep=True, augmentation=Augmentation(noise=20.0))
    assert not drawn
