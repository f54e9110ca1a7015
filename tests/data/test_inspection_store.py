"""Photos that have not changed are not read twice, and nothing else is taken for unchanged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from agridistill.data import inspection
from agridistill.data.folder import scan
from agridistill.data.inspection import InspectionStore, PhotoRecord, inspect_photos


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six photos, taken for long settled, and a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(inspection, "_SETTLED_NS", 0)
    for number in range(6):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 9, 9)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the photos that are read."""
    names: list[str] = []
    original = inspection.inspect_photo

    def noted(path: Path, max_pixels: int) -> PhotoRecord:
        names.append(path.name)
        return original(path, max_pixels)

    monkeypatch.setattr(inspection, "inspect_photo", noted)
    return names


def inspect(photos: Path, max_pixels: int = 1000) -> dict[str, PhotoRecord]:
    store = InspectionStore(photos, max_pixels)
    return dict(inspect_photos(scan(photos), max_pixels=max_pixels, store=store).records)


def test_unchanged_photos_are_read_once(photos: Path, read: list[str]) -> None:
    first = inspect(photos)
    assert len(read) == 6
    assert inspect(photos) == first
    assert len(read) == 6


def test_a_changed_photo_is_read_again(photos: Path, read: list[str]) -> None:
    before = inspect(photos)
    read.clear()
    changed, touched = photos / "a" / "0.png", photos / "b" / "1.png"
    times, size = (changed.stat().st_atime_ns, changed.stat().st_mtime_ns), changed.stat().st_size
    Image.new("RGB", (8, 8), (7, 9, 9)).save(changed)
    os.utime(changed, ns=times)
    touched.touch()
    # Of the same size and with the old time of writing, as rsync and cp -p leave it.
    assert (changed.stat().st_size, changed.stat().st_mtime_ns) == (size, times[1])
    after = inspect(photos)
    assert sorted(read) == ["0.png", "1.png"]
    assert after["a/0.png"].digest != before["a/0.png"].digest
    assert after["b/1.png"] == before["b/1.png"]


def test_other_limits_and_other_folders_share_nothing(photos: Path, read: list[str]) -> None:
    inspect(photos)
    assert inspect(photos, max_pixels=10)["a/0.png"].error is not None
    shutil.copytree(photos, photos.with_name("copy"))
    inspect(photos.with_name("copy"))
    assert len(read) == 18


def test_bad_photos_are_read_every_time(photos: Path, read: list[str]) -> None:
    (photos / "a" / "0.png").write_bytes(b"no photo")
    inspect(photos)
    read.clear()
    assert inspect(photos)["a/0.png"].error is not None
    assert read == ["0.png"]


def test_photos_that_have_only_just_changed_are_read_again(
    photos: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "_SETTLED_NS", 10**12)
    inspect(photos)
    inspect(photos)
    assert len(read) == 12


def test_progress_reaches_its_end_also_where_nothing_is_read(photos: Path) -> None:
    for _ in range(2):
        told: list[tuple[int, int]] = []
        store = InspectionStore(photos, 1000)
        inspect_photos(
            scan(photos),
            max_pixels=1000,
            store=store,
            progress=lambda done, total, told=told: told.append((done, total)),
        )
        assert told[-1] == (6, 6)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": 1, "photos": {}}', '{"format": 2, "photos": {"a/0.png": [1]}}', '{"format": 2}']
)
def test_a_damaged_store_only_costs_time(photos: Path, tmp_path: Path, read: list[str], content: str) -> None:
    first = inspect(photos)
    (store,) = (tmp_path / "home").rglob("*.json")
    store.write_text(content)
    read.clear()
    assert inspect(photos) == first
    assert len(read) == 6
    assert len(json.loads(store.read_text())["photos"]) == 6


def test_a_store_that_cannot_be_written_only_costs_time(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("in the way")
    assert len(inspect(photos)) == 6


def test_photos_that_are_gone_leave_the_store(photos: Path, tmp_path: Path) -> None:
    inspect(photos)
    (photos / "a" / "0.png").unlink()
    inspect(photos)
    (store,) = (tmp_path / "home").rglob("*.json")
    assert len(json.loads(store.read_text())["photos"]) == 5
