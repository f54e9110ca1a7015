from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from PIL import Image

from agridistill.data.folder import scan
from agridistill.data.inspection import fingerprint, inspect_photo, inspect_photos, usable_samples
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


def test_a_photo_above_the_pixel_limit_is_told_by_its_size(tmp_path: Path) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "x.png")
    assert inspect_photo(tmp_path / "x.png", max_pixels=1999).error == "50 x 40 pixels, more than 1,999"
    assert inspect_photo(tmp_path / "x.png", max_pixels=2000).error is None


def test_photos_above_pillows_own_limit_are_judged_by_ours(
    tmp_path: Path, write_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = scan(write_folder(tmp_path, {"rust": 2, "scab": 2}))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert all(record.error is None for record in inspect_photos(folder).records.values())
    small = inspect_photos(folder, max_pixels=2000).records["rust/00.png"]
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
    assert set(inspection.records) == {sample.path for sample in folder.samples}
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
    with pytest.raises(DataError, match="none of 'scab'"):
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
