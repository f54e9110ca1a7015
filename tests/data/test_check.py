from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from agridistill.data import check as module
from agridistill.data import inspection
from agridistill.data.check import check
from agridistill.data.prepare import split_data
from agridistill.data.split import Split, write_split
from agridistill.errors import DataError

UUID = "1a69b38b-c4eb-42c4-9584-bcb14fb8db0c___"


def _split_file(path: Path, train: tuple[str, ...], val: tuple[str, ...], test: tuple[str, ...]) -> Path:
    write_split(path, Split(train, val, test), seed=0, val_fraction=0.1, test_fraction=0.1, fingerprint="")
    return path


def test_a_good_folder_has_no_problems(tmp_path: Path, write_folder) -> None:
    result = check(write_folder(tmp_path, {"rust": 5, "scab": 4}))
    assert (result.problems, result.notes) == ((), ())
    assert [(one.name, one.photos, one.leaves) for one in result.classes] == [("rust", 5, 5), ("scab", 4, 4)]
    assert result.imbalance_ratio == 5 / 4


def test_a_split_of_our_own_has_no_problems(tmp_path: Path, write_folder) -> None:
    root = write_folder(tmp_path / "data", {"rust": 20, "scab": 20})
    shutil.copy(root / "rust" / "00.png", root / "rust" / "copy.png")
    split_data(root, tmp_path / "s.json")
    result = check(root, split_file=tmp_path / "s.json")
    assert result.problems == ()
    per_split = result.classes[0].photos_per_split
    assert per_split is not None
    assert sum(per_split.values()) == 21


def test_unreadable_photos_are_a_problem_however_many(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"rust": 5, "scab": 5})
    for name in ("x.jpg", "y.jpg"):
        (tmp_path / "rust" / name).write_bytes(b"")
    result = check(tmp_path)
    assert result.unreadable == (("rust/x.jpg", "empty file"), ("rust/y.jpg", "empty file"))
    assert result.problems == ("2 photos cannot be read, the first 'rust/x.jpg' (empty file)",)


def test_a_stray_file_is_a_problem(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"rust": 5, "scab": 5})
    (tmp_path / "scab" / "svn-r6Yb5c").write_bytes(b"")
    result = check(tmp_path)
    assert result.non_photo_files == ("scab/svn-r6Yb5c",)
    assert result.problems == ("1 file that is not a photo (1 without suffix), the first 'scab/svn-r6Yb5c'",)


def test_class_folders_without_photos_are_a_problem(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"rust": 5, "scab": 5})
    (tmp_path / "mosaic").mkdir()
    (tmp_path / "wilt").mkdir()
    (tmp_path / "wilt" / "1.dng").write_bytes(b"x")
    result = check(tmp_path)
    assert result.problems == (
        "1 file that is not a photo (1 .dng), the first 'wilt/1.dng'",
        "class folder 'mosaic' without photos (an empty folder)",
        "class folder 'wilt' without photos (1 .dng)",
    )
    assert result.to_json()["without_photos"] == {"mosaic": (), "wilt": ("wilt/1.dng",)}


def test_a_photo_above_the_pixel_limit_is_a_problem(
    tmp_path: Path, write_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in (module, inspection):
        monkeypatch.setattr(one, "MAX_PIXELS", 9_999)
    write_folder(tmp_path, {"rust": 5, "scab": 5})
    Image.new("RGB", (100, 100)).save(tmp_path / "rust" / "large.png")
    result = check(tmp_path)
    assert result.oversize == (("rust/large.png", "100 x 100 pixels, more than 9,999"),)
    assert result.unreadable == ()
    assert "1 photo above 9,999 pixels, the first 'rust/large.png'" in result.problems[0]


def test_identical_files_are_a_note_and_with_two_labels_a_problem(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"rust": 5, "scab": 5})
    shutil.copy(tmp_path / "rust" / "00.png", tmp_path / "rust" / "copy.png")
    result = check(tmp_path)
    assert result.exact_duplicates == (("rust/00.png", "rust/copy.png"),)
    assert result.problems == ()
    assert result.notes == ("1 group of identical files (2 photos)",)
    shutil.copy(tmp_path / "rust" / "01.png", tmp_path / "scab" / "copy.png")
    result = check(tmp_path)
    assert result.conflicting_duplicates == (("rust/01.png", "scab/copy.png"),)
    assert result.problems == (
        "1 group of identical files in several classes, the first 'rust/01.png' and 'scab/copy.png'",
    )


def test_near_duplicates_are_found_and_identical_files_are_not_counted_again(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"rust": 5, "scab": 5})
    shutil.copy(tmp_path / "rust" / "00.png", tmp_path / "rust" / "copy.png")
    with Image.open(tmp_path / "scab" / "00.png") as image:
        image.resize((99, 99)).save(tmp_path / "scab" / "again.jpg")
    result = check(tmp_path)
    assert result.near_duplicates == (("scab/00.png", "scab/again.jpg"),)
    assert "1 group of photos that look alike (2 photos)" in result.notes


def test_a_class_with_too_few_leaves_is_a_problem(tmp_path: Path, write_folder) -> None:
    result = check(write_folder(tmp_path, {"rust": 2, "scab": 5}))
    assert result.problems == ("'rust' has 2 leaves; train, val and test each need at least one",)


def test_imbalance_is_a_note(tmp_path: Path, write_folder) -> None:
    result = check(write_folder(tmp_path, {"rust": 3, "scab": 40}))
    assert result.problems == ()
    assert result.notes == ("the largest class has 13.3 times the photos of the smallest",)


def test_a_leaf_in_two_splits_is_a_problem(tmp_path: Path, write_photo) -> None:
    names = [f"{UUID}GH_HL Leaf {leaf}.{shot}.png" for leaf in (1, 2, 3) for shot in (1, 2)]
    for seed, name in enumerate(names):
        write_photo(tmp_path / "data" / "rust" / name, seed)
        write_photo(tmp_path / "data" / "scab" / name, seed + 100)
    parts = [
        tuple(f"{folder}/{name}" for folder in ("rust", "scab") for name in chosen)
        for chosen in (names[:3], names[3:4], names[4:])
    ]
    result = check(tmp_path / "data", split_file=_split_file(tmp_path / "s.json", parts[0], parts[1], parts[2]))
    assert [one.splits for one in result.straddling_leaves] == [("train", "val")] * 2
    assert result.problems == (
        f"2 leaves in several splits, the first in train and val: 'rust/{UUID}GH_HL Leaf 2.1.png'",
    )


def test_duplicates_in_two_given_folders_are_a_problem(tmp_path: Path, write_folder, write_photo) -> None:
    root = tmp_path / "data"
    for number, part in enumerate(("train", "val", "test")):
        write_folder(root / part, {"rust": 4, "scab": 4})
        for seed, path in enumerate(sorted((root / part).rglob("*.png"))):
            write_photo(path, 10 * number + seed)
    assert check(root).problems == ()
    shutil.copy(root / "train" / "rust" / "00.png", root / "test" / "rust" / "copy.png")
    with Image.open(root / "train" / "scab" / "01.png") as image:
        image.resize((80, 80)).save(root / "val" / "scab" / "again.png")
    result = check(root)
    assert [(one.paths, one.splits) for one in result.straddling_duplicates] == [
        (("test/rust/copy.png", "train/rust/00.png"), ("train", "test"))
    ]
    assert {one.splits for one in result.straddling_leaves} == {("train", "test"), ("train", "val")}
    assert any("1 group of identical files in several splits" in text for text in result.problems)
    assert any("2 leaves in several splits" in text for text in result.problems)


def test_a_class_that_a_split_lacks_is_a_problem(tmp_path: Path, write_folder) -> None:
    root = write_folder(tmp_path / "data", {"rust": 3, "scab": 3})
    split = _split_file(
        tmp_path / "s.json", ("rust/00.png", "scab/00.png"), ("rust/01.png", "scab/01.png"), ("rust/02.png",)
    )
    result = check(root, split_file=split)
    assert result.problems == ("'scab' has no photos in test",)
    assert result.notes == ("1 photo that the split does not name",)


@pytest.mark.parametrize(
    ("given", "lacking"), [(("train", "test"), "val"), (("train", "val"), "test"), (("train",), "val and test")]
)
def test_a_part_that_training_cuts_from_train_is_only_noted(
    tmp_path: Path, write_photo, given: tuple[str, ...], lacking: str
) -> None:
    for seed, (part, name) in enumerate((part, name) for part in given for name in ("rust", "scab")):
        for shot in range(4):
            write_photo(tmp_path / part / name / f"{shot}.png", 10 * seed + shot)
    result = check(tmp_path)
    assert result.problems == ()
    assert result.notes == (f"no photos in {lacking}: training will move leaves from train there",)


def test_a_class_that_one_given_folder_lacks_is_a_problem(tmp_path: Path, write_photo) -> None:
    for seed, place in enumerate(("train/rust", "train/scab", "val/rust", "test/rust", "test/scab")):
        for shot in range(4):
            write_photo(tmp_path / place / f"{shot}.png", 10 * seed + shot)
    assert check(tmp_path).problems == ("'scab' has no photos in val",)


def test_look_alikes_of_different_named_leaves_are_only_noted(tmp_path: Path, write_pose, write_folder) -> None:
    root = write_folder(tmp_path / "data", {"rust": 3, "scab": 3})
    for number in (10, 900):
        write_pose(root / "rust" / f"{UUID}RS_HL {number}.png", number)
    split = _split_file(
        tmp_path / "s.json",
        ("rust/00.png", "scab/00.png", f"rust/{UUID}RS_HL 10.png"),
        ("rust/01.png", "scab/01.png"),
        ("rust/02.png", "scab/02.png", f"rust/{UUID}RS_HL 900.png"),
    )
    result = check(root, split_file=split)
    assert result.problems == ()
    assert "1 group of similar photos in several splits; by their names, they show different leaves" in result.notes


def test_a_split_of_other_data_is_an_error(tmp_path: Path, write_folder) -> None:
    root = write_folder(tmp_path / "data", {"rust": 3, "scab": 3})
    with pytest.raises(DataError, match=r"the first 'rust/gone.png'"):
        check(root, split_file=_split_file(tmp_path / "s.json", ("rust/gone.png",), (), ()))


def test_the_result_is_plain_json(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"rust": 5, "scab": 5})
    (tmp_path / "rust" / "x.jpg").write_bytes(b"")
    document = json.loads(json.dumps(check(tmp_path).to_json(), allow_nan=False))
    assert document["unreadable"] == [{"path": "rust/x.jpg", "reason": "empty file"}]
    assert document["classes"][0] == {"name": "rust", "photos": 5, "leaves": 5, "photos_per_split": None}
    assert document["imbalance_ratio"] == 1.0
    assert len(document["problems"]) == 1
