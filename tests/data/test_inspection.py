"""Photos that have not changed are not read twice, and nothing else is taken for unchanged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill.data import inspection
from agridistill.data.folder import scan
from agridistill.data.inspection import (
    PhotoRecord,
    fingerprint,
    inspect_photo,
    inspect_photos,
    usable_samples,
)
from agridistill.errors import DataError


def test_a_record_holds_content_and_upright_size(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").resize((60, 40)).save(path, exif=exif)
    record = inspect_photo(path)
    assert (record.width, record.height) == (40, 60)
    assert record.digest == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    assert record.error is None


def test_a_photo_and_its_scaled_copy_have_close_hashes(tmp_path: Path, write_photo) -> None:
    original = write_photo(tmp_path / "a.png", 1)
    with Image.open(original) as image:
        image.resize((200, 200)).save(tmp_path / "b.jpg", quality=60)
    other = write_photo(tmp_path / "c.png", 2)
    first, copy, different = (inspect_photo(path).phash for path in (original, tmp_path / "b.jpg", other))
    assert first is not None
    assert copy is not None
    assert different is not None
    assert (first ^ copy).bit_count() <= 4
    assert (first ^ different).bit_count() > 10


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty file"), (b"plain words", "not a photo"), (b"GIF89a" + bytes(20), "not a photo")],
)
def test_what_is_no_photo_gets_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    record = inspect_photo(tmp_path / "x.jpg")
    assert (record.error, record.phash) == (reason, None)


def test_a_cut_off_photo_gets_a_reason_without_its_path(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((200, 200), 60).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:3000])
    record = inspect_photo(tmp_path / "cut.jpg")
    assert "truncated" in str(record.error)
    assert "cut.jpg" not in str(record.error)
    assert (record.width, record.height) == (200, 200)


def test_a_photo_above_the_pixel_limit_is_told_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "x.png")
    monkeypatch.setattr(inspection, "MAX_PIXELS", 2000)
    assert inspect_photo(tmp_path / "x.png").error is None
    monkeypatch.setattr(inspection, "MAX_PIXELS", 1999)
    assert inspect_photo(tmp_path / "x.png").error == "50 x 40 pixels, more than 1,999"


def test_photos_above_pillows_own_limit_are_judged_by_ours(
    tmp_path: Path, write_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = scan(write_folder(tmp_path, {"rust": 2, "scab": 2}))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert all(record.error is None for record in inspect_photos(folder).values())
    monkeypatch.setattr(inspection, "MAX_PIXELS", 2000)
    small = inspect_photos(folder)["rust/00.png"]
    assert (small.width, small.height, small.error) == (48, 48, "48 x 48 pixels, more than 2,000")
    assert Image.MAX_IMAGE_PIXELS == 100


def test_links_and_pipes_are_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert inspect_photo(tmp_path / "broken.jpg").error == "a broken link"
    assert inspect_photo(tmp_path / "pipe.jpg").error == "not a regular file"


def test_every_photo_is_read_once_and_progress_reaches_the_total(tmp_path: Path, write_folder) -> None:
    folder = scan(write_folder(tmp_path, {"rust": 40, "scab": 30}))
    seen: list[tuple[int, int]] = []
    inspection = inspect_photos(folder, progress=lambda done, total: seen.append((done, total)))
    assert set(inspection) == {sample.path for sample in folder.samples}
    assert seen == [(done, 70) for done in range(1, 71)]


def test_few_bad_photos_are_named_and_left_out(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"rust": 19, "scab": 20})
    (tmp_path / "rust" / "bad.jpg").write_bytes(b"")
    folder = scan(tmp_path)
    good, skipped = usable_samples(folder, inspect_photos(folder))
    assert len(good) == 39
    assert skipped == (("rust/bad.jpg", "empty file"),)


def test_more_than_five_percent_bad_photos_are_an_error(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"rust": 18, "scab": 19})
    for name in ("x.jpg", "y.jpg"):
        (tmp_path / "rust" / name).write_bytes(b"")
    folder = scan(tmp_path)
    with pytest.raises(DataError) as raised:
        usable_samples(folder, inspect_photos(folder))
    message = str(raised.value)
    assert "at most 5% unreadable photos" in message
    assert "2 of 39" in message
    assert "'rust/x.jpg' (empty file)" in message
    assert "agridistill data check" in message


def test_a_class_without_a_readable_photo_is_an_error(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"rust": 40})
    (tmp_path / "scab").mkdir()
    (tmp_path / "scab" / "x.jpg").write_bytes(b"")
    folder = scan(tmp_path)
    with pytest.raises(DataError, match="no readable photo of 'scab'"):
        usable_samples(folder, inspect_photos(folder))


def test_the_fingerprint_names_the_data(tmp_path: Path, write_folder, write_photo) -> None:
    def of(root: Path) -> str:
        folder = scan(root)
        return fingerprint(folder.classes, folder.samples[::-1], inspect_photos(folder))

    first = of(write_folder(tmp_path / "a", {"rust": 3, "scab": 3}))
    assert first == of(write_folder(tmp_path / "b", {"rust": 3, "scab": 3}))
    write_photo(tmp_path / "b" / "rust" / "00.png", 99)
    changed = of(tmp_path / "b")
    (tmp_path / "b" / "rust" / "00.png").rename(tmp_path / "b" / "rust" / "renamed.png")
    renamed = of(tmp_path / "b")
    (tmp_path / "b" / "scab").rename(tmp_path / "b" / "spot")
    assert len({first, changed, renamed, of(tmp_path / "b")}) == 4


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

    def noted(path: Path) -> PhotoRecord:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(inspection, "inspect_photo", noted)
    return names


def inspect(photos: Path) -> dict[str, PhotoRecord]:
    return dict(inspect_photos(scan(photos), remember=True))


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


def test_other_limits_and_other_folders_share_nothing(
    photos: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect(photos)
    monkeypatch.setattr(inspection, "MAX_PIXELS", 10)
    assert inspect(photos)["a/0.png"].error is not None
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
        inspect_photos(
            scan(photos),
            remember=True,
            progress=lambda done, total, told=told: told.append((done, total)),
        )
        assert told[-1] == (6, 6)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 3, "photos": {"a/0.png": [1]}}', '{"format": 4}'])
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


def test_the_turns_of_a_photo_are_those_of_pillow() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    image = Image.fromarray(grey)
    expected = [image, *(image.transpose(turn) for turn in Image.Transpose)]
    assert np.array_equal(inspection._turns(grey), np.stack([np.asarray(one) for one in expected]))


def test_photos_that_are_gone_leave_the_store(photos: Path, tmp_path: Path) -> None:
    inspect(photos)
    (photos / "a" / "0.png").unlink()
    inspect(photos)
    (store,) = (tmp_path / "home").rglob("*.json")
    assert len(json.loads(store.read_text())["photos"]) == 5
