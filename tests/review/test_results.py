"""Reviewed photos become what `train` reads, and nothing is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from agridistill.data.labels import Layout, read_layout
from agridistill.errors import DataError, RunError
from agridistill.review.results import write_class_folders, write_label_table

LABELS = {"north/1.jpg": "rust", "south/1.jpg": "rust", "north/2.jpg": 'late, "blight"', "3.jpg": "healthy"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "inbox"
    for name in LABELS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(f"photo {name}".encode())
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_photos_are_copied_into_class_folders_once(photos: Path, tmp_path: Path) -> None:
    into = tmp_path / "out"
    assert write_class_folders(photos, LABELS, into) == 4
    copied = contents(into)
    assert copied == {
        "rust/north__1.jpg": b"photo north/1.jpg",
        "rust/south__1.jpg": b"photo south/1.jpg",
        'late, "blight"/north__2.jpg': b"photo north/2.jpg",
        "healthy/3.jpg": b"photo 3.jpg",
    }
    assert write_class_folders(photos, LABELS, into) == 0
    assert contents(into) == copied
    assert read_layout(into).classes == ("healthy", 'late, "blight"', "rust")


def test_another_photo_of_the_same_name_is_kept(photos: Path, tmp_path: Path) -> None:
    into = tmp_path / "out"
    (into / "healthy").mkdir(parents=True)
    (into / "healthy" / "3.jpg").write_bytes(b"another photo")
    with pytest.raises(RunError, match=r"got '.*healthy/3.jpg'; choose another --into"):
        write_class_folders(photos, LABELS, into)
    assert contents(into) == {"healthy/3.jpg": b"another photo"}


def test_a_photo_keeps_its_name_when_another_of_this_name_gets_a_label(photos: Path, tmp_path: Path) -> None:
    into = tmp_path / "out"
    write_class_folders(photos, {"north/1.jpg": "rust"}, into)
    both = {"north/1.jpg": "rust", "south/1.jpg": "rust"}
    assert write_class_folders(photos, both, into) == 1
    assert sorted(contents(into)) == ["rust/north__1.jpg", "rust/south__1.jpg"]
    with pytest.raises(RunError, match=r"rust/north__1.jpg', from before its label was changed to 'healthy'"):
        write_class_folders(photos, both | {"north/1.jpg": "healthy"}, into)


def test_a_photo_without_its_label_does_not_stay_in_a_class_unnoticed(photos: Path, tmp_path: Path) -> None:
    into = tmp_path / "out"
    write_class_folders(photos, LABELS, into)
    fewer = {photo: label for photo, label in LABELS.items() if photo != "3.jpg"}
    with pytest.raises(RunError, match=r"healthy/3.jpg', from before its label was removed; remove this file"):
        write_class_folders(photos, fewer, into, without=["3.jpg"])
    (into / "healthy" / "3.jpg").write_bytes(b"another photo of this name")
    assert write_class_folders(photos, fewer, into, without=["3.jpg"]) == 0


def test_two_photos_never_get_one_name(photos: Path, tmp_path: Path) -> None:
    (photos / "north__1.jpg").write_bytes(b"another photo")
    with pytest.raises(RunError, match="photos with different names in --into"):
        write_class_folders(photos, LABELS | {"north__1.jpg": "rust"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_photo_with_a_changed_label_does_not_get_into_two_classes(photos: Path, tmp_path: Path) -> None:
    into = tmp_path / "out"
    write_class_folders(photos, LABELS, into)
    with pytest.raises(RunError, match=r"healthy/3.jpg', from before its label was changed to 'rust'"):
        write_class_folders(photos, {**LABELS, "3.jpg": "rust"}, into)


@pytest.mark.parametrize("label", ["../up", "", "a//b", "..\\up"])
def test_a_class_that_leads_out_of_the_folder_is_refused(photos: Path, tmp_path: Path, label: str) -> None:
    with pytest.raises(DataError, match="a class that can be the name of a folder"):
        write_class_folders(photos, {"3.jpg": label}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_copies_beside_the_reviewed_photos_would_be_reviewed_again(photos: Path) -> None:
    with pytest.raises(RunError, match="--into outside the reviewed folder, and not around it"):
        write_class_folders(photos, LABELS, photos / "out")
    with pytest.raises(RunError, match=r"and not around it; got '.*inbox' in"):
        write_class_folders(photos, LABELS, photos.parent)


def test_the_table_is_what_train_reads(photos: Path, tmp_path: Path) -> None:
    write_label_table(LABELS, tmp_path / "labels.csv", {})
    folder = read_layout(photos, Layout(label_file=tmp_path / "labels.csv"))
    assert {sample.path: folder.classes[sample.label] for sample in folder.samples} == LABELS
    assert folder.problems == ()
