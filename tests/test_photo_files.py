from __future__ import annotations

from pathlib import Path

import pytest

from agridistill.data.folder import scan
from agridistill.errors import DataError
from agridistill.photo_files import files_below, is_photo, subfolders
from agridistill.runtime.predictor import expand

OF_MACHINES = (
    *("@eaDir", "#recycle", "#snapshot", "@Recycle", "~snapshot", "$RECYCLE.BIN", "System Volume Information"),
    *("lost+found", "__MACOSX", ".thumbnails", ".Trashes", "LOST.DIR", "FOUND.000"),
)


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def below(root: Path) -> list[str]:
    def refuse(error: OSError) -> None:
        raise error

    return sorted(f"{inside}{name}" for inside, names in files_below(root, refuse) for name in names)


@pytest.mark.parametrize("folder", OF_MACHINES)
def test_folders_of_machines_are_no_classes_and_hold_no_photos(tmp_path: Path, folder: str) -> None:
    make(tmp_path, "rust/1.jpg", "scab/2.jpg", f"{folder}/3.jpg", f"{folder}/x/4.jpg", f"rust/{folder}/1.jpg/S.jpg")
    found = scan(tmp_path)
    assert found.classes == ("rust", "scab")
    assert [sample.path for sample in found.samples] == ["rust/1.jpg", "scab/2.jpg"]
    assert (found.non_photo_files, found.without_photos) == ((), {})
    assert expand([tmp_path]) == [tmp_path / "rust" / "1.jpg", tmp_path / "scab" / "2.jpg"]


def test_files_of_machines_are_neither_photos_nor_strays(tmp_path: Path) -> None:
    make(tmp_path, "rust/1.jpg", "rust/._1.jpg", "rust/Thumbs.db", "rust/desktop.ini", "scab/2.jpg", "scab/.DS_Store")
    found = scan(tmp_path)
    assert ([sample.path for sample in found.samples], found.non_photo_files) == (["rust/1.jpg", "scab/2.jpg"], ())


def test_a_folder_of_a_machine_that_is_named_is_read(tmp_path: Path) -> None:
    make(tmp_path, "#recycle/1.jpg")
    assert expand([tmp_path / "#recycle"]) == [tmp_path / "#recycle" / "1.jpg"]


@pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "a.jfif", "a.jpe", "a.mpo", "a.jpeg", "a.tif", "a.webp"])
def test_suffixes_of_photos(name: str) -> None:
    assert is_photo(name)
    assert not is_photo(f"._{name}")


def test_linked_subfolders_are_followed(tmp_path: Path) -> None:
    make(tmp_path / "card", "1.jpg", "deep/2.jpg")
    make(tmp_path / "photos", "rust/3.jpg", "scab/4.jpg")
    (tmp_path / "photos" / "rust" / "card").symlink_to(tmp_path / "card")
    (tmp_path / "photos" / "mosaic").symlink_to(tmp_path / "card" / "deep")
    found = scan(tmp_path / "photos")
    assert found.classes == ("mosaic", "rust", "scab")
    assert [sample.path for sample in found.samples] == [
        *("mosaic/2.jpg", "rust/3.jpg", "rust/card/1.jpg", "rust/card/deep/2.jpg", "scab/4.jpg"),
    ]
    assert len(expand([tmp_path / "photos"])) == 4  # each once: "mosaic" and "rust/card/deep" are one folder


def test_links_that_lead_back_are_loops(tmp_path: Path) -> None:
    make(tmp_path / "photos", "rust/1.jpg", "scab/2.jpg")
    make(tmp_path / "card", "3.jpg")
    (tmp_path / "photos" / "all").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "up").symlink_to(tmp_path)
    (tmp_path / "photos" / "rust" / "all").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "rust" / "self").symlink_to("self")
    (tmp_path / "photos" / "rust" / "card").symlink_to(tmp_path / "card")
    (tmp_path / "card" / "back").symlink_to(tmp_path / "photos")
    found = scan(tmp_path / "photos")
    assert found.classes == ("rust", "scab")
    assert [sample.path for sample in found.samples] == ["rust/1.jpg", "rust/card/3.jpg", "scab/2.jpg"]
    assert subfolders(tmp_path / "photos") == ["rust", "scab"]


def test_a_folder_behind_several_links_is_given_once_and_under_its_own_name(tmp_path: Path) -> None:
    make(tmp_path, "z/1.jpg", "z/deep/2.jpg", "out/3.jpg")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (tmp_path / "b").symlink_to(tmp_path / "z" / "deep")
    assert below(tmp_path) == ["out/3.jpg", "z/1.jpg", "z/deep/2.jpg"]
    (tmp_path / "z" / "again").symlink_to(tmp_path / "out")
    assert below(tmp_path) == ["out/3.jpg", "z/1.jpg", "z/deep/2.jpg"]


def test_a_link_that_leads_nowhere_is_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    make(tmp_path, "rust/1.jpg", "scab/2.jpg")
    (tmp_path / "rust" / "gone").symlink_to(tmp_path / "nowhere")
    assert scan(tmp_path).non_photo_files == ("rust/gone",)


def test_a_folder_with_only_thumbnails_holds_no_photos(tmp_path: Path) -> None:
    make(tmp_path, "@eaDir/1.jpg/SYNOFILE_THUMB_M.jpg")
    with pytest.raises(DataError, match="expected a folder with photos"):
        expand([tmp_path])


def test_a_folder_for_prediction_tells_what_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "1.jpg", "a/2.dng", "a/3.DNG", "notes.txt", "Thumbs.db")
    assert expand([tmp_path, tmp_path / "1.jpg"]) == [tmp_path / "1.jpg"] * 2
    first = tmp_path / "a" / "2.dng"
    assert [record.getMessage() for record in caplog.records] == [
        f"ignored 3 files that are not photos (2 .dng, 1 .txt), the first '{first}'"
    ]


def test_a_folder_without_photos_is_told_with_what_it_holds(tmp_path: Path) -> None:
    make(tmp_path, "1.dng", "notes.txt")
    with pytest.raises(DataError, match=r"without photos \(it contains 1 \.dng, 1 \.txt\); pass another folder"):
        expand([tmp_path])
