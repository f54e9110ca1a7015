"""`predict --explain`: a picture for each photo, and no photo lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tests.colour_backend import colour_photo

from agridistill.cli.main import main
from agridistill.data.folder import scan

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return ended.value.code, out, err  # type: ignore[return-value]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_a_picture_is_written_here_and_named(colour_model: Path, here: Path, capsys: Capture) -> None:
    photo = colour_photo(here.parent / "photos" / "leaf.jpg", "red")
    plain = run(capsys, "predict", colour_model, photo)
    code, out, err = run(capsys, "predict", colour_model, photo, "--explain")
    assert (code, out) == plain[:2]
    assert err.splitlines()[0] == f"{photo}: where the model looked: leaf-explained.png"
    assert [file.name for file in here.iterdir()] == ["leaf-explained.png"]
    with Image.open(here / "leaf-explained.png") as picture:
        assert picture.format == "PNG"


def test_photos_of_one_name_get_pictures_of_their_own(colour_model: Path, here: Path, capsys: Capture) -> None:
    photos = [colour_photo(here / name, "red") for name in ("a/x.jpg", "b/x.jpg", "x-explained.png")]
    before = [photo.read_bytes() for photo in photos]
    bad = here / "bad.jpg"
    bad.write_text("no photo")
    code, out, err = run(capsys, "predict", colour_model, *photos, bad, "--explain", "--explain-out", ".")
    assert code == 1
    assert len(out.splitlines()) == 3
    assert sorted(file.name for file in here.glob("*.png")) == [
        "x-explained-2.png",
        "x-explained-3.png",
        "x-explained-explained.png",
        "x-explained.png",
    ]
    assert [photo.read_bytes() for photo in photos] == before
    assert err.count("where the model looked") == 3


def test_the_folder_alone_asks_for_pictures_and_is_made(colour_model: Path, here: Path, capsys: Capture) -> None:
    photo = colour_photo(here / "leaf.jpg", "red")
    code, out, _ = run(capsys, "predict", colour_model, photo, "--explain-out", here / "new" / "pictures", "--json")
    assert code == 0
    assert json.loads(out)["photos"][0]["label"] == "red"
    assert (here / "new" / "pictures" / "leaf-explained.png").is_file()


def test_a_file_in_the_folders_place_is_one_line_before_any_answer(
    colour_model: Path, here: Path, capsys: Capture
) -> None:
    photo = colour_photo(here / "leaf.jpg", "red")
    code, out, err = run(capsys, "predict", colour_model, photo, "--explain-out", photo)
    assert (code, out) == (2, "")
    assert err == f"error: expected a folder for --explain-out; got the file '{photo}'; choose another --explain-out\n"


def test_a_run_folder_is_explained_as_well(teacher_run: Path, leaves: Path, here: Path, capsys: Capture) -> None:
    photo = next(leaves.rglob("*.jpg"))
    code, _, err = run(capsys, "predict", teacher_run, photo, "--explain")
    assert code == 0
    assert (here / f"{photo.stem}-explained.png").is_file()
    assert "where the model looked" in err


def test_pictures_beside_the_photos_are_left_out_afterwards(colour_model: Path, here: Path, capsys: Capture) -> None:
    for name in ("red/x.jpg", "green/y.jpg"):
        colour_photo(here / name, "red")
    colour_photo(here / "green/z-explained.png", "green")
    photos = here / "red"
    run(capsys, "predict", colour_model, photos, "--explain", "--explain-out", photos)
    assert (photos / "x-explained.png").exists()
    code, out, err = run(capsys, "predict", colour_model, photos)
    assert (code, len(out.splitlines())) == (0, 1)
    assert "pictures that --explain wrote: 1, the first 'x-explained.png'" in err
    scanned = scan(here)
    assert [sample.path for sample in scanned.samples] == ["green/y.jpg", "green/z-explained.png", "red/x.jpg"]
    assert scanned.non_photo_files == ("red/x-explained.png",)
