"""Folders as people have them: what is a split, what is a class, and what is refused with what to pass instead."""

from __future__ import annotations

import logging
import shutil
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from agridistill.data.check import check
from agridistill.data.folder import scan
from agridistill.data.prepare import prepare_data, split_data
from agridistill.data.split import match_split, read_split
from agridistill.data.structure import alike_names, split_named
from agridistill.errors import DataError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def holders(*tops: str, classes: tuple[str, ...] = ("rust", "scab")) -> list[str]:
    """Photos of the classes in each of some folders."""
    return [f"{top}/{name}/{number}.jpg" for top in tops for name in classes for number in range(2)]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            (name, "train")
            for name in ("train", "Training", "TRAIN", "train_set", "train-set", "trainset", "Train Images")
        ),
        *((name, "train") for name in ("train_images", "images_train", "training_data", "train2017", "TrainImages")),
        *((name, "val") for name in ("val", "valid", "Validation", "dev", "val_set", "dev-set", "validation_images")),
        *((name, "test") for name in ("test", "Testing", "test set", "testset", "test_images", "test1", "holdout")),
        *((name, "eval") for name in ("eval", "Evaluation", "eval_set")),
        *((name, None) for name in ("trains", "rain", "attest", "valida", "device", "invalid", "latest", "train_test")),
        *((name, None) for name in ("field test", "train_augmented", "healthy", "évaluer")),
    ],
)
def test_split_names_are_known_in_all_usual_spellings(name: str, split: str | None) -> None:
    assert split_named(name) == split


@pytest.mark.parametrize(
    ("tops", "splits"),
    [
        (("Training", "Test"), {"Training": "train", "Test": "test"}),
        (("train_set", "val_set"), {"train_set": "train", "val_set": "val"}),
        (("train", "dev"), {"train": "train", "dev": "val"}),
        (("train_images", "test_images"), {"train_images": "train", "test_images": "test"}),
        (("TRAIN", "Valid-Set", "Testing"), {"TRAIN": "train", "Valid-Set": "val", "Testing": "test"}),
        (("tomato_train", "tomato_test"), {"tomato_train": "train", "tomato_test": "test"}),
        # "eval" is the test where there is none, and for validation where there is one.
        (("train", "eval"), {"train": "train", "eval": "test"}),
        (("training", "validation", "evaluation"), {"training": "train", "validation": "val", "evaluation": "test"}),
        (("train", "eval", "test"), {"train": "train", "eval": "val", "test": "test"}),
    ],
)
def test_split_folders_with_class_folders_give_the_split(
    tmp_path: Path, tops: tuple[str, ...], splits: dict[str, str]
) -> None:
    folder = scan(make(tmp_path, *holders(*tops)))
    assert folder.classes == ("rust", "scab")
    assert folder.given_split is not None
    assert {path.split("/")[0]: split for path, split in folder.given_split.items()} == splits


@pytest.mark.parametrize("names", [("train", "bus"), ("valid", "invalid"), ("train", "bus", "tram")])
def test_classes_that_are_called_like_a_split_stay_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = scan(make(tmp_path, *(f"{name}/{number}.jpg" for name in names for number in range(2))))
    assert (folder.classes, folder.given_split) == (tuple(sorted(names)), None)


def refused(root: Path, *, nested: bool | None = None) -> str:
    with pytest.raises(DataError) as caught:
        scan(root, nested=nested)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(str(root), "ROOT")


def test_flat_split_folders_beside_a_table_name_the_table(tmp_path: Path) -> None:
    make(
        tmp_path, "train_images/1.jpg", "train_images/2.jpg", "test_images/3.jpg", "train.csv", "sample_submission.csv"
    )
    assert refused(tmp_path).endswith(
        "got photos without class folders in 'ROOT/train_images'; pass --labels 'ROOT/train.csv'"
    )
    (tmp_path / "train.csv").unlink()
    (tmp_path / "sample_submission.csv").unlink()
    assert refused(tmp_path).endswith("pass --labels FILE with the label of each photo")
    (tmp_path / "review.csv").write_text("time,reviewer,verdict,label,photo\n")
    assert refused(tmp_path).endswith("by 'agridistill review ROOT --table FILE', and pass --labels FILE")


@pytest.mark.parametrize(
    "photos",
    [("images/1.jpg",), ("1.jpg", "2.jpg"), ("images/1.jpg", "masks/1.png"), ("images_1/1.jpg", "images_2/2.jpg")],
)
def test_folders_that_say_nothing_of_their_photos_ask_for_labels(tmp_path: Path, photos: tuple[str, ...]) -> None:
    assert "pass --labels 'ROOT/labels.csv'" in refused(make(tmp_path, *photos, "labels.csv"))


@pytest.mark.parametrize(
    "names",
    [
        ("100CANON", "101CANON"),
        ("100MEDIA", "PANORAMA"),
        ("2024-05-01", "20240502"),
        ("Rust-20240301T100000Z-001/Rust", "Rust-20240301T100000Z-1-002/Rust"),
        ("leaves-20240301T100000Z-001/leaves/rust", "leaves-20240301T100000Z-002/leaves/scab"),
    ],
)
def test_folders_that_programs_have_named_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    make(tmp_path, *(f"{name}/1.jpg" for name in names))
    text = refused(tmp_path)
    assert text.startswith("expected folders that are named after what their photos show; got '")
    assert "move the photos into a folder for each class" in text
    assert len(scan(tmp_path, nested=False).classes) == 2


def test_numbers_and_letters_are_classes_as_they_are(tmp_path: Path) -> None:
    names = ("0", "101", "101000", "100percent", "2024-13-01", "Grade1")
    assert scan(make(tmp_path, *(f"{name}/1.jpg" for name in names))).classes == tuple(sorted(names))


def test_class_folders_with_a_split_in_each_name_are_refused(tmp_path: Path) -> None:
    names = ("Rust_Train", "Scab_Train", "Rust_Test", "Scab_Test")
    text = refused(make(tmp_path, *(f"{name}/1.jpg" for name in names)))
    assert text.startswith(
        "expected train, val and test folders that hold the class folders; got 'Rust_Test', 'Rust_Tra"
    )
    assert "move the photos of 'Rust_Test' to 'test/rust' and so on, or pass --flat" in text
    assert len(scan(tmp_path, nested=False).classes) == 4


def test_masks_in_class_folders_are_to_be_moved(tmp_path: Path) -> None:
    text = refused(make(tmp_path, *holders("healthy", "rust", classes=("images", "masks"))))
    assert "folders in them such as 'images', 'masks' in 'ROOT/healthy'; move masks and the like out of 'ROOT'" in text


def test_split_folders_in_split_folders_are_to_be_moved_up(tmp_path: Path) -> None:
    text = refused(make(tmp_path, *holders("train/train", "test/test")))
    assert text.endswith("move the folders in 'test/test' one level up, and do the same in train")


@pytest.mark.parametrize("top", ["", "train"])
def test_a_linked_class_whose_disk_is_missing_is_refused(tmp_path: Path, top: str) -> None:
    make(tmp_path, *holders(top or "."))
    (tmp_path / top / "mold").symlink_to("/nowhere/mold", target_is_directory=True)
    assert refused(tmp_path).endswith("mold' (No such file or directory); correct the link or remove it")


def test_a_level_above_the_classes_is_refused_with_what_to_pass(tmp_path: Path) -> None:
    make(tmp_path, *holders("color", "grayscale", "segmented"))
    text = refused(tmp_path)
    assert "got 'color', 'grayscale', 'segmented' in 'ROOT', which hold folders such as 'color/rust'" in text
    assert "pass 'ROOT/color', or --nested for classes such as 'color/rust'" in text
    assert text.endswith("or --flat to make 'color' and every such folder one class")
    assert scan(tmp_path / "color").classes == ("rust", "scab")


def test_nested_classes_are_named_by_their_path(tmp_path: Path) -> None:
    make(tmp_path, *holders("Tomato", classes=("healthy", "Late blight")), *holders("Potato", classes=("healthy",)))
    make(tmp_path, "Potato/readme.txt", "Tomato/svg/1.svg")
    assert "--nested for classes such as 'Tomato/Late blight'" in refused(tmp_path)
    folder = scan(tmp_path, nested=True)
    assert folder.classes == ("Potato/healthy", "Tomato/Late blight", "Tomato/healthy")
    assert {sample.path: folder.classes[sample.label] for sample in folder.samples} == {
        sample.path: sample.path.rsplit("/", 1)[0] for sample in folder.samples
    }
    # A folder that holds other files alone would be a class that is missing; one above classes is none.
    assert folder.without_photos == {"Tomato/svg": ("Tomato/svg/1.svg",)}
    assert scan(tmp_path, nested=False).classes == ("Potato", "Tomato")


def test_nested_classes_in_split_folders(tmp_path: Path) -> None:
    make(tmp_path, *holders("train/Tomato", "train/Potato", "test/Tomato", "test/Potato"))
    assert "; pass --nested for classes such as 'Potato/rust', or --flat" in refused(tmp_path)
    folder = scan(tmp_path, nested=True)
    assert folder.classes == ("Potato/rust", "Potato/scab", "Tomato/rust", "Tomato/scab")
    assert folder.given_split is not None
    assert folder.given_split["test/Tomato/rust/0.jpg"] == "test"


def test_the_same_classes_beside_and_in_a_folder_are_refused(tmp_path: Path) -> None:
    make(tmp_path, *holders("PlantVillage"), "rust/9.jpg", "scab/9.jpg")
    text = refused(tmp_path)
    assert "got 'PlantVillage', which contains 'rust', next to 'rust' in 'ROOT'" in text
    assert "pass 'ROOT/PlantVillage'" in text


def test_some_classes_that_hold_the_same_folders_are_refused(tmp_path: Path) -> None:
    make(tmp_path, *holders("Tomato", "Potato"), "Pepper/1.jpg")
    assert "--nested for classes such as 'Potato/rust'" in refused(tmp_path)


def test_a_preview_beside_the_folders_changes_nothing(tmp_path: Path) -> None:
    names = tuple("abcdef")
    make(tmp_path, *holders("Tomato", "Potato", classes=names), "Tomato/preview.jpg", "Potato/preview.jpg")
    assert "--nested" in refused(tmp_path)


def test_a_wrapping_folder_is_named(tmp_path: Path) -> None:
    make(tmp_path, *holders("a/PlantVillage"))
    assert refused(tmp_path).endswith("pass the folder that holds the class folders, 'ROOT/a/PlantVillage'")
    make(tmp_path, "__results__/x/1.jpg", "__results__/y/1.jpg")
    assert "pass 'ROOT/__results__', or" in refused(tmp_path)


def test_wrapped_splits_beside_test_photos_are_named(tmp_path: Path) -> None:
    top = "New Plant Diseases Dataset(Augmented)"
    make(tmp_path, *holders(f"{top}/{top}/train", f"{top}/{top}/valid"), "test/test/1.jpg")
    assert refused(tmp_path).endswith(f"pass 'ROOT/{top}/{top}'")
    assert set((scan(tmp_path / top / top).given_split or {}).values()) == {"train", "val"}


def test_splits_in_class_folders_are_refused(tmp_path: Path) -> None:
    make(tmp_path, *(f"{name}/{split}/1.jpg" for name in ("rust", "scab") for split in ("Train", "Test")))
    text = refused(tmp_path)
    assert "move the photos to 'Test/rust' and so on, or pass --flat to make 'rust'" in text
    assert "'rust/Test' and 'rust/Train'" in refused(tmp_path, nested=True)
    assert scan(tmp_path, nested=False).classes == ("rust", "scab")


def test_photos_to_test_on_beside_class_folders_are_no_class(tmp_path: Path) -> None:
    make(tmp_path, "healthy/1.jpg", "rust/1.jpg", "Test/1.jpg")
    assert "got 'Test' next to 'healthy' in 'ROOT'; move 'Test' away, or pass --flat" in refused(tmp_path)
    assert scan(tmp_path, nested=False).classes == ("Test", "healthy", "rust")


@pytest.mark.parametrize(
    "photos",
    [
        ("rust/2024-05-01/1.jpg", "scab/2024-06-01/1.jpg"),
        ("rust/images/1.jpg", "scab/images/1.jpg", "mold/images/1.jpg"),
        ("rust/1.jpg", "rust/more/2.jpg", "scab/1.jpg", "scab/more/2.jpg"),
    ],
)
def test_folders_in_classes_that_lose_nothing_are_taken(tmp_path: Path, photos: tuple[str, ...]) -> None:
    folder = scan(make(tmp_path, *photos))
    assert folder.classes == tuple(sorted({path.split("/")[0] for path in photos}))
    assert folder.notes == ()


def test_one_class_of_several_folders_is_noted(tmp_path: Path) -> None:
    folder = scan(make(tmp_path, "rust/a/1.jpg", "rust/b/2.jpg", "scab/1.jpg"))
    assert folder.classes == ("rust", "scab")
    assert folder.notes == ("all photos in the 2 folders of 'rust' get the class 'rust'",)


def test_photos_in_no_class_folder_are_reported(
    tmp_path: Path,
    write_folder,
    write_photo,
    caplog: pytest.LogCaptureFixture,  # type: ignore[no-untyped-def]
) -> None:
    write_folder(tmp_path / "train", {"rust": 8, "scab": 8})
    write_photo(tmp_path / "test" / "1.png", 91)
    write_photo(tmp_path / "loose.png", 92)
    sentence = "left out: 2 photos without a label, the first 'loose.png'"
    assert sentence in check(tmp_path).notes
    with caplog.at_level(logging.WARNING):
        prepared = prepare_data(tmp_path)
    assert sentence in caplog.text
    assert len(prepared.test) > 0


COMPOSED = "Rouille brul\u00e9e"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def test_class_names_are_composed_wherever_the_folder_comes_from(tmp_path: Path, write_folder) -> None:
    root = write_folder(tmp_path, {DECOMPOSED: 4, "S\u0301": 4, "Saine": 4})
    found = scan(root)
    assert found.classes == ("Rouille brul\u00e9e", "Saine", "\u015a")
    assert found.alike_names == ()
    assert found.samples[0].path == f"{DECOMPOSED}/00.png"  # where the file is


def test_train_and_test_may_have_other_normal_forms(tmp_path: Path, write_folder) -> None:
    for part, name in (("train", COMPOSED), ("val", DECOMPOSED), ("test", COMPOSED)):
        write_folder(tmp_path / part, {name: 2, "Saine": 2})
    assert scan(tmp_path).classes == (COMPOSED, "Saine")


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["Rust", "rust", "Scab"], (("Rust", "rust"),)),
        (["late blight", "Late  Blight ", "late_blight"], (("Late  Blight ", "late blight", "late_blight"),)),
        ([COMPOSED, DECOMPOSED], ((DECOMPOSED, COMPOSED),)),
        (["stage 1 1", "stage 11", "stage 1"], ()),
        (["Blight early", "Early blight"], ()),
    ],
)
def test_names_that_people_take_for_one(names: list[str], groups: tuple[tuple[str, ...], ...]) -> None:
    assert alike_names(names) == groups


def test_alike_names_are_a_problem_and_a_warning(
    tmp_path: Path, write_folder, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_folder(tmp_path / "photos", {"Rust": 6, "rust": 6, "scab": 6})
    expected = "these class names differ only in capitals, spaces or Unicode normal form: 'Rust' and 'rust'"
    assert check(root).problems == (expected,)
    split_data(root, tmp_path / "s.json")
    assert caplog.messages == [f"data folder '{root}': {expected}"]


def test_two_normal_forms_of_one_name_are_one_class_and_a_problem(tmp_path: Path, write_folder) -> None:
    root = write_folder(tmp_path, {COMPOSED: 4, DECOMPOSED: 4, "Saine": 4})
    result = check(root)
    assert [(one.name, one.photos) for one in result.classes] == [(COMPOSED, 8), ("Saine", 4)]
    assert result.problems == (
        f"2 class folders '{COMPOSED}', whose names differ in Unicode normal form, are merged into one class",
    )


def test_a_split_holds_for_a_copy_in_another_normal_form(tmp_path: Path, write_folder) -> None:
    root = write_folder(tmp_path / "linux", {COMPOSED: 8, "Saine": 8})
    split = split_data(root, tmp_path / "s.json").split
    copy = tmp_path / "mac"
    shutil.copytree(root / "Saine", copy / "Saine")
    shutil.copytree(root / COMPOSED, copy / DECOMPOSED)
    part_of = match_split(read_split(tmp_path / "s.json"), scan(copy).samples)
    prepared = prepare_data(copy, split_file=tmp_path / "s.json")
    assert [unicodedata.normalize("NFC", sample.path) for sample in prepared.test] == list(split.test)
    assert part_of[prepared.test[0].path] == "test"


def test_a_photo_saved_with_a_decomposed_name_is_read(tmp_path: Path) -> None:
    for name in (f"{DECOMPOSED}/{DECOMPOSED}.png", "Saine/1.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    assert scan(tmp_path).samples[0].path == f"{DECOMPOSED}/{DECOMPOSED}.png"
