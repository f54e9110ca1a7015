"""Class folders whose names are one to people: the normal forms of macOS, capitals, spaces."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from agridistill.data.check import check
from agridistill.data.folder import scan
from agridistill.data.prepare import prepare_data, split_data
from agridistill.data.split import match_split, read_split
from agridistill.data.structure import alike_names

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
    expected = "classes whose names differ in capitals, spaces or normal form alone: 'Rust' and 'rust'"
    assert check(root).problems == (expected,)
    split_data(root, tmp_path / "s.json")
    assert [record.getMessage() for record in caplog.records] == [expected]


def test_two_normal_forms_of_one_name_are_one_class_and_a_problem(tmp_path: Path, write_folder) -> None:
    root = write_folder(tmp_path, {COMPOSED: 4, DECOMPOSED: 4, "Saine": 4})
    result = check(root)
    assert [(one.name, one.photos) for one in result.classes] == [(COMPOSED, 8), ("Saine", 4)]
    assert result.problems == (f"2 class folders '{COMPOSED}' in different Unicode normal forms, which are one class",)


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
