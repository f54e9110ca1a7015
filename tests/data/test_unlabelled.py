"""Photos without labels: found at any depth, without what the data folder shows as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill.data.drawn_leaves import CLASSES, draw_leaf
from agridistill.data.folder import UNLABELLED
from agridistill.data.prepare import PreparedData, prepare_data
from agridistill.data.unlabelled import UnlabelledPhotos, find_unlabelled, repeats_for
from agridistill.errors import DataError


@pytest.fixture(scope="module")
def prepared(leaves: Path) -> PreparedData:
    return prepare_data(leaves)


def found(folder: Path, prepared: PreparedData, only: tuple[str, ...] = ()) -> UnlabelledPhotos:
    parts = {"train": prepared.train, "val": prepared.val, "test": prepared.test}
    return find_unlabelled(folder, parts, prepared.inspection, only=only)


def save_new(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        leaf, shot = np.random.default_rng((7, number)), np.random.default_rng((8, number))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        draw_leaf(CLASSES[number % len(CLASSES)], leaf, shot, 64).save(folder / name, quality=90)


def test_photos_are_found_at_any_depth_and_have_no_label(tmp_path: Path, prepared: PreparedData) -> None:
    save_new(tmp_path, "a.jpg", "2026/november/b.jpg", "2026/rust/c.jpg")
    photos = found(tmp_path, prepared)
    assert [sample.path for sample in photos.samples] == ["2026/november/b.jpg", "2026/rust/c.jpg", "a.jpg"]
    assert {sample.label for sample in photos.samples} == {UNLABELLED}


@pytest.mark.parametrize("part", ["val", "test", "train"])
def test_what_the_data_folder_shows_is_left_out_and_counted(
    part: str, tmp_path: Path, prepared: PreparedData, caplog: pytest.LogCaptureFixture
) -> None:
    save_new(tmp_path, "new.jpg")
    sample = getattr(prepared, part)[0]
    (tmp_path / "copy.jpg").write_bytes((prepared.root / sample.path).read_bytes())
    photo = Image.open(prepared.root / sample.path)
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png")
    photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((50, 50)).save(tmp_path / "flipped.jpg", quality=60)
    assert [each.path for each in found(tmp_path, prepared).samples] == ["new.jpg"]
    (line,) = [record.getMessage() for record in caplog.records]
    counts = "0 that show validation or test leaves, 3 copies" if part == "train" else "3 that show validation or test"
    assert f"left out: {counts}" in line
    assert line.endswith("photos that remain: 1")


def test_unreadable_photos_and_other_files_are_reported_and_left_out(
    tmp_path: Path, prepared: PreparedData, caplog: pytest.LogCaptureFixture
) -> None:
    save_new(tmp_path, "new.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    (tmp_path / "event.json").write_text("{}")
    photos = found(tmp_path, prepared)
    assert [sample.path for sample in photos.samples] == ["new.jpg"]
    assert [path for path, _ in photos.skipped] == ["bad.jpg"]
    assert [record.getMessage() for record in caplog.records] == [
        f"left out: the unreadable photo {tmp_path / 'bad.jpg'} (not a photo)",
        f"photos without labels in '{tmp_path}': left out: 1 file that is not a photo (1 .json), "
        "the first 'event.json'",
    ]


def test_a_resume_uses_exactly_the_photos_of_its_start(tmp_path: Path, prepared: PreparedData) -> None:
    save_new(tmp_path, "a.jpg", "b.jpg")
    first = found(tmp_path, prepared)
    save_new(tmp_path, "x/1.jpg", "x/2.jpg", "x/3.jpg")
    assert found(tmp_path, prepared, ("a.jpg", "b.jpg")).fingerprint == first.fingerprint
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"without 1 of 2, the first '.*b.jpg'"):
        found(tmp_path, prepared, ("a.jpg", "b.jpg"))


def test_a_folder_of_which_nothing_can_be_used_is_refused(tmp_path: Path, prepared: PreparedData) -> None:
    with pytest.raises(DataError, match="which does not exist"):
        found(tmp_path / "absent", prepared)
    with pytest.raises(DataError, match=r"photos in the folder of --unlabelled; got no files in"):
        found(tmp_path, prepared)
    (tmp_path / "1.cr2").write_bytes(b"raw")
    with pytest.raises(DataError, match=r"got 1 \.cr2 in '.*'; "):
        found(tmp_path, prepared)
    (tmp_path / "copy.jpg").write_bytes((prepared.root / prepared.val[0].path).read_bytes())
    with pytest.raises(DataError, match="none of 1 in"):
        found(tmp_path, prepared)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.6])
@pytest.mark.parametrize(("labelled", "unlabelled"), [(40, 755), (1, 1000), (500, 500), (1000, 10), (30, 70)])
def test_photos_with_labels_are_repeated_no_more_than_their_share_needs(
    labelled: int, unlabelled: int, share: float
) -> None:
    repeats = repeats_for(labelled, unlabelled, share)

    def reached(times: int) -> float:
        return times * labelled / (times * labelled + unlabelled)

    assert reached(repeats) >= share - 1e-9
    assert repeats == 1 or reached(repeats - 1) < share
