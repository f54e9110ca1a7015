"""One photo under several labels: a warning, and above a share a refusal."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill.data.drawn_leaves import draw_leaf
from agridistill.data.prepare import PreparedData, prepare_data, split_data
from agridistill.data.split import Split, read_split, write_split
from agridistill.errors import DataError


def _paths(prepared: PreparedData) -> dict[str, set[str]]:
    return {name: {sample.path for sample in getattr(prepared, name)} for name in ("train", "val", "test")}


def test_class_folders_become_three_disjoint_parts(tmp_path: Path, write_folder) -> None:
    prepared = prepare_data(write_folder(tmp_path, {"rust": 20, "scab": 20}))
    parts = _paths(prepared)
    assert [len(part) for part in parts.values()] == [28, 6, 6]
    assert len(set.union(*parts.values())) == 40
    assert {name: set(paths) for name, paths in prepared.split.parts().items()} == parts
    assert prepared.classes == ("rust", "scab")


def test_the_same_folder_gives_the_same_parts(tmp_path: Path, write_folder) -> None:
    first = prepare_data(write_folder(tmp_path / "a", {"rust": 20, "scab": 20}))
    second = prepare_data(write_folder(tmp_path / "b", {"rust": 20, "scab": 20}))
    assert first.split == second.split
    assert first.fingerprint == second.fingerprint
    assert prepare_data(tmp_path / "a", split_seed=1).split != first.split


def test_bad_photos_and_strays_are_named_and_left_out(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"rust": 20, "scab": 20})
    (tmp_path / "rust" / "bad.jpg").write_bytes(b"x")
    (tmp_path / "rust" / "svn-r6Yb5c").write_bytes(b"")
    prepared = prepare_data(tmp_path)
    assert prepared.skipped == (("rust/bad.jpg", "not a photo"),)
    assert prepared.non_photo_files == ("rust/svn-r6Yb5c",)
    assert len(prepared.train + prepared.val + prepared.test) == 40


@pytest.mark.parametrize(("name", "held"), [("1.dng", "1 .dng"), (None, "an empty folder")])
def test_a_class_that_would_vanish_is_refused(tmp_path: Path, write_folder, name: str | None, held: str) -> None:
    write_folder(tmp_path, {"rust": 5, "scab": 5})
    (tmp_path / "mosaic").mkdir()
    if name is not None:
        (tmp_path / "mosaic" / name).write_bytes(b"x")
    with pytest.raises(DataError) as raised:
        prepare_data(tmp_path)
    assert str(raised.value) == (
        f"expected photos in every class folder; got 'mosaic' without photos ({held}); "
        "save the photos as JPEG or move the folder away"
    )


def test_given_folders_are_used_as_they_are(tmp_path: Path, write_folder) -> None:
    for part, count in (("train", 4), ("valid", 2), ("test", 3)):
        write_folder(tmp_path / part, {"rust": count, "scab": count})
    prepared = prepare_data(tmp_path)
    assert [len(part) for part in _paths(prepared).values()] == [8, 4, 6]
    assert all(sample.path.startswith("valid/") for sample in prepared.val)


@pytest.mark.parametrize(("given", "cut"), [("val", "test"), ("test", "val")])
def test_a_part_without_a_folder_is_cut_from_train(tmp_path: Path, write_folder, given: str, cut: str) -> None:
    write_folder(tmp_path / "train", {"rust": 20, "scab": 20})
    write_folder(tmp_path / given, {"rust": 3, "scab": 3})
    parts = _paths(prepare_data(tmp_path))
    assert len(parts[given]) == 6
    assert len(parts[cut]) == 6
    assert all(path.startswith("train/") for path in parts[cut])
    assert len(parts["train"]) == 34


def test_a_split_file_decides(tmp_path: Path, write_folder) -> None:
    root = write_folder(tmp_path / "data", {"rust": 3, "scab": 3})
    split = Split(("rust/00.png", "scab/00.png"), ("rust/01.png",), ("scab/01.png",))
    write_split(tmp_path / "s.json", split, seed=0, val_fraction=0.1, test_fraction=0.1, fingerprint="")
    prepared = prepare_data(root, split_file=tmp_path / "s.json")
    assert prepared.split == split


def test_a_photo_of_the_split_file_that_went_bad_is_skipped(tmp_path: Path, write_folder) -> None:
    root = write_folder(tmp_path / "data", {"rust": 20, "scab": 20})
    split_data(root, tmp_path / "s.json")
    bad = read_split(tmp_path / "s.json").train[0]
    (root / bad).write_bytes(b"")
    prepared = prepare_data(root, split_file=tmp_path / "s.json")
    assert prepared.skipped == ((bad, "empty file"),)
    assert len(prepared.train) == 27


def test_a_split_without_training_photos_of_a_class_is_an_error(tmp_path: Path, write_folder) -> None:
    root = write_folder(tmp_path / "data", {"rust": 3, "scab": 3})
    split = Split(("rust/00.png",), ("scab/01.png",), ("scab/02.png",))
    write_split(tmp_path / "s.json", split, seed=0, val_fraction=0.1, test_fraction=0.1, fingerprint="")
    with pytest.raises(DataError, match="training photos of every class; got none of 'scab'"):
        prepare_data(root, split_file=tmp_path / "s.json")


def test_a_split_without_test_photos_is_an_error(tmp_path: Path, write_folder) -> None:
    root = write_folder(tmp_path / "data", {"rust": 3, "scab": 3})
    split = Split(("rust/00.png", "scab/00.png"), ("scab/01.png",), ())
    write_split(tmp_path / "s.json", split, seed=0, val_fraction=0.1, test_fraction=0.1, fingerprint="")
    with pytest.raises(DataError, match="photos in test; got none"):
        prepare_data(root, split_file=tmp_path / "s.json")


def test_a_written_split_is_not_replaced_unasked(tmp_path: Path, write_folder) -> None:
    root = write_folder(tmp_path / "data", {"rust": 20, "scab": 20})
    prepared = split_data(root, tmp_path / "s.json")
    assert read_split(tmp_path / "s.json") == prepared.split
    with pytest.raises(DataError, match="which already exists; choose another name or pass --force"):
        split_data(root, tmp_path / "s.json", seed=1)
    assert read_split(tmp_path / "s.json") == prepared.split
    assert split_data(root, tmp_path / "s.json", seed=1, force=True).split == read_split(tmp_path / "s.json")


@pytest.mark.parametrize("from_file", [True, False])
def test_a_given_split_that_shares_leaves_is_told(
    tmp_path: Path, write_folder, write_photo, caplog: pytest.LogCaptureFixture, from_file: bool
) -> None:
    root = tmp_path / "data"
    for part, seeds in (("train", (0, 1)), ("val", (2, 3)), ("test", (4, 5))):
        for name, first in (("rust", 0), ("scab", 10)):
            for seed in seeds:
                write_photo(root / part / name / f"{seed}.png", first + seed)
    prepared = prepare_data(root)
    assert caplog.text == ""
    # The same file in train and in test: one leaf.
    write_photo(root / "test" / "rust" / "again.png", 0)
    split_file = tmp_path / "s.json" if from_file else None
    if split_file is not None:
        parts = {name: tuple(sorted(paths)) for name, paths in _paths(prepared).items()}
        split = Split(parts["train"], parts["val"], (*parts["test"], "test/rust/again.png"))
        write_split(split_file, split, seed=0, val_fraction=0.1, test_fraction=0.1, fingerprint="")
    prepare_data(root, split_file=split_file)
    assert "(such leaves: 1; their test photos: 1 of 5)" in caplog.text
    assert "agridistill data check" in caplog.text


def _copies(root: Path, count: int) -> None:
    for number in range(count):
        shutil.copy(root / "rust" / f"{number:02}.png", root / "scab" / f"wrong{number}.png")


def test_a_few_identical_files_under_two_labels_are_a_warning(
    tmp_path: Path, write_folder, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_folder(tmp_path / "photos", {"rust": 20, "scab": 20})
    _copies(root, 1)
    split_data(root, tmp_path / "s.json")
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 41 photos have copies (also flipped, turned or scaled) under other labels, the first "
        "'rust/00.png' and 'scab/wrong0.png'; 'agridistill data check' lists all"
    ]


@pytest.mark.parametrize("turn", [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90])
def test_copies_that_were_scaled_flipped_or_turned_count(
    tmp_path: Path, turn: Image.Transpose | None, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "photos"
    for number in range(12):
        name = ("healthy", "rust")[number % 2]
        (root / name).mkdir(parents=True, exist_ok=True)
        leaf = np.random.default_rng(number)
        draw_leaf("ringed_lesions", leaf, leaf, 128).save(root / name / f"{number}.png")
    with Image.open(root / "healthy" / "0.png") as photo:
        copy = photo.transpose(turn) if turn is not None else photo
        copy.resize((96, 96)).save(root / "rust" / "other.jpg", quality=80)
    split_data(root, tmp_path / "s.json", conflicts=1)
    (message,) = caplog.messages
    assert message.startswith("2 of 13 photos have copies (")
    assert "'healthy/0.png' and 'rust/other.jpg'" in message


def test_many_identical_files_under_two_labels_are_refused(
    tmp_path: Path, write_folder, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_folder(tmp_path / "photos", {"rust": 20, "scab": 20})
    _copies(root, 10)
    with pytest.raises(DataError) as raised:
        split_data(root, tmp_path / "s.json")
    assert str(raised.value) == (
        "expected at most 5% of photos with copies (also flipped, turned or scaled) under other labels; got "
        f"20 of 50 photos in '{root}', the first 'rust/00.png' and 'scab/wrong0.png'; "
        f"remove the wrong copies ('agridistill data check {root} --json' lists all), "
        "or pass --conflicts SHARE if the labels are right"
    )
    assert not (tmp_path / "s.json").exists()
    split_data(root, tmp_path / "s.json", conflicts=0.4)
    assert "20 of 50 photos" in caplog.text


def test_copies_within_a_class_are_no_conflict(tmp_path: Path, write_folder, caplog: pytest.LogCaptureFixture) -> None:
    root = write_folder(tmp_path / "photos", {"rust": 10, "scab": 10})
    for number in range(8):
        shutil.copy(root / "rust" / f"{number:02}.png", root / "rust" / f"again{number}.png")
    split_data(root, tmp_path / "s.json")
    assert caplog.text == ""


def test_one_folder_linked_as_two_classes_is_refused(tmp_path: Path, write_folder) -> None:
    root = write_folder(tmp_path / "photos", {"rust": 10, "scab": 10})
    (root / "mould").symlink_to(root / "rust")
    with pytest.raises(DataError, match="under other labels; got 20 of 30 photos"):
        split_data(root, tmp_path / "s.json")


def test_training_refuses_them_too_unless_they_are_meant(
    tmp_path: Path, write_folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from agridistill.training.run import distill, train
    from agridistill.training.settings import DataSettings, DistillConfig, ObjectiveSettings, TrainConfig

    class StartedError(Exception):
        pass

    def started(*args: object) -> None:
        raise StartedError

    monkeypatch.setattr("agridistill.training.run.carry_out", started)
    root = write_folder(tmp_path / "photos", {"rust": 20, "scab": 20})
    _copies(root, 10)
    with pytest.raises(DataError, match="or pass --set conflicts=SHARE if the labels are right"):
        train(root, tmp_path / "run", TrainConfig())
    with pytest.raises(DataError, match="under other labels; got 20 of 50 photos"):
        distill(root, None, tmp_path / "run", DistillConfig(objective=ObjectiveSettings(method="ce")))
    with pytest.raises(StartedError):
        train(root, tmp_path / "run", TrainConfig(data=DataSettings(conflicts=0.5)))
    assert "20 of 50 photos" in caplog.text
