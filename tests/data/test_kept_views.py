"""Views are drawn once where they are kept, and are the same pixels either way."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill.data import cache, loader
from agridistill.data.cache import SPARE_BYTES, KeptViews
from agridistill.data.folder import Sample
from agridistill.data.loader import PhotoDataset, ViewKey
from agridistill.data.views import VIEWS_VERSION, Augmentation
from agridistill.manifest import Preprocessing
from agridistill.preprocess import Pixels

INPUT = Preprocessing(32)
VIEWS = Augmentation(noise=20.0)
CLOSER = Augmentation(min_scale=0.1)
KEYS = [ViewKey(position, view, 10 * position + view) for position in (0, 1) for view in (0, 1)]
SAMPLES = [Sample("a.jpg", 0, "a"), Sample("b.jpg", 1, "b")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


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


def pixels_of(folder: Path, *, keep: bool, augmentation: Augmentation = VIEWS) -> list[Pixels]:
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
            monkeypatch.setattr(cache, "VIEWS_VERSION", VIEWS_VERSION + 1)
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
    assert PhotoDataset(photos, SAMPLES, INPUT, VIEWS, keep_views=True)[KEYS[0]] is None
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
    views = KeptViews(photos, INPUT, VIEWS)
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
        assert KeptViews(photos, INPUT, VIEWS).room_bytes() == 0
    monkeypatch.setattr(shutil, "disk_usage", refuse)
    assert KeptViews(photos, INPUT, VIEWS).room_bytes() == 0
    assert np.array_equal(pixels_of(photos, keep=True), pixels_of(photos, keep=False))


def test_a_whole_number_and_its_fraction_are_one_setting(photos: Path, drawn: list[int]) -> None:
    pixels_of(photos, keep=True, augmentation=Augmentation(noise=20))
    drawn.clear()
    pixels_of(photos, keep=True, augmentation=Augmentation(noise=20.0))
    assert not drawn
