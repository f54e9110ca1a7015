from __future__ import annotations

from pathlib import Path

import pytest

from agridistill.data.folder import described_without_photos, scan
from agridistill.errors import DataError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_labels_follow_the_sorted_class_names(tmp_path: Path) -> None:
    folder = scan(make(tmp_path, "rust/1.jpg", "blight/2.JPG", "blight/a/3.jpeg"))
    assert folder.classes == ("blight", "rust")
    assert [(sample.path, sample.label) for sample in folder.samples] == [
        ("blight/2.JPG", 0),
        ("blight/a/3.jpeg", 0),
        ("rust/1.jpg", 1),
    ]
    assert folder.given_split is None


def test_unknown_leaves_are_leaves_of_their_own(tmp_path: Path) -> None:
    folder = scan(make(tmp_path, "a/1.jpg", "b/2.jpg"))
    assert [sample.leaf_id for sample in folder.samples] == ["a/1.jpg", "b/2.jpg"]


def test_other_files_are_strays_and_hidden_ones_are_passed_over(tmp_path: Path) -> None:
    folder = scan(
        make(tmp_path, "a/1.jpg", "a/svn-r6Yb5c", "a/.DS_Store", ".git/x.jpg", "b/2.png", "b/notes.txt", "README.md")
    )
    assert folder.non_photo_files == ("a/svn-r6Yb5c", "b/notes.txt")
    assert len(folder.samples) == 2


def test_train_val_and_test_folders_give_the_split(tmp_path: Path) -> None:
    folder = scan(make(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "valid/a/3.jpg", "test/b/4.jpg"))
    assert folder.classes == ("a", "b")
    assert folder.given_split == {
        "train/a/1.jpg": "train",
        "train/b/2.jpg": "train",
        "valid/a/3.jpg": "val",
        "test/b/4.jpg": "test",
    }


def test_split_folders_may_be_written_in_capitals(tmp_path: Path) -> None:
    folder = scan(make(tmp_path, "Train/a/1.jpg", "Train/b/2.jpg", "TEST/a/3.jpg"))
    assert folder.classes == ("a", "b")
    assert folder.given_split == {"Train/a/1.jpg": "train", "Train/b/2.jpg": "train", "TEST/a/3.jpg": "test"}


def test_a_folder_of_something_else_beside_split_folders_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "Test/a/3.jpg", "raw/a/4.jpg")
    with pytest.raises(DataError, match=r"got 'raw' next to 'Test' and 'train' in '.*'; move 'raw' away"):
        scan(tmp_path)


def test_split_folders_without_one_to_train_on_are_no_classes(tmp_path: Path) -> None:
    make(tmp_path, "val/a/1.jpg", "val/b/2.jpg", "Test/a/3.jpg", "Test/b/4.jpg")
    with pytest.raises(DataError, match=r"a train folder next to the val and test folders; .* such as '.*/Test'$"):
        scan(tmp_path)
    assert scan(tmp_path / "Test").classes == ("a", "b")


@pytest.mark.parametrize("other", ["validation", "Val"])
def test_two_folders_of_one_split_are_refused(tmp_path: Path, other: str) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "valid/a/3.jpg", f"{other}/b/4.jpg", "test/a/5.jpg")
    with pytest.raises(DataError, match=f"expected one folder of val photos; got .*'{other}'.* merge the two folders"):
        scan(tmp_path)


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    folder = scan(make(tmp_path, "bus/1.jpg", "train/2.jpg"))
    assert (folder.classes, folder.given_split) == (("bus", "train"), None)


def test_a_class_only_in_test_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/c/4.jpg")
    with pytest.raises(DataError, match="'c' in test but not in train"):
        scan(tmp_path)


def test_a_wrong_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere', which does not exist; check the path"):
        scan(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "photo.jpg")
    with pytest.raises(DataError, match="got the file"):
        scan(tmp_path / "photo.jpg")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no photos in class folders"):
        scan(tmp_path)


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least two class folders with photos; got only 'a'"):
        scan(make(tmp_path, "a/1.jpg", "b/readme.txt"))


def test_the_only_class_is_told_beside_what_the_other_folders_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'b' without photos \(2 .dng\); put the photos"):
        scan(make(tmp_path, "a/1.jpg", "b/1.dng", "b/2.DNG"))


def test_class_folders_without_photos_are_recorded_with_what_they_hold(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "b/1.png", "c/2.dng", "c/1.dng")
    (tmp_path / "d").mkdir()
    folder = scan(tmp_path)
    assert folder.classes == ("a", "b")
    assert folder.without_photos == {"c": ("c/1.dng", "c/2.dng"), "d": ()}
    assert folder.non_photo_files == ("c/1.dng", "c/2.dng")


def test_a_class_with_photos_in_one_split_only_is_not_without_photos(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "train/c/3.dng", "test/a/3.jpg", "test/b/4.dng", "test/c/5.dng")
    folder = scan(tmp_path)
    assert folder.without_photos == {"c": ("test/c/5.dng", "train/c/3.dng")}
    assert folder.given_split == {"train/a/1.jpg": "train", "train/b/2.jpg": "train", "test/a/3.jpg": "test"}


def test_a_folder_without_photos_is_described_by_what_it_holds() -> None:
    assert described_without_photos("c", ()) == "'c' without photos (an empty folder)"
    assert described_without_photos("c", ["c/x"]) == "'c' without photos (1 without suffix)"
    files = [f"c/{letter}.{letter}" for letter in "abcdef"]
    assert described_without_photos("c", files) == "'c' without photos (1 .a, 1 .b, 1 .c, 1 .d, 1 .e, …)"
