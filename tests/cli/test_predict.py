"""`predict`: labels, JSON and errors; with --explain a picture for each photo, and no photo lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.cli.running import Capture, run
from tests.colour_backend import colour_photo

from agridistill.api import load
from agridistill.cli import commands
from agridistill.data.folder import scan
from agridistill.errors import PhotoError


def with_threshold(run_folder: Path, copy: Path, threshold: float) -> Path:
    shutil.copytree(run_folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"threshold": threshold}))
    return copy


@pytest.fixture
def photos(leaves: Path, tmp_path: Path) -> Path:
    """A folder of three photos."""
    for number, sample in enumerate(scan(leaves).samples[::30][:3]):
        (tmp_path / "photos").mkdir(exist_ok=True)
        shutil.copy(leaves / sample.path, tmp_path / "photos" / f"{number}{Path(sample.path).suffix}")
    return tmp_path / "photos"


def test_each_photo_gets_a_line_with_label_and_probability(teacher_run: Path, photos: Path, capsys: Capture) -> None:
    code, out, err = run(capsys, "predict", teacher_run, photos)
    predictor = load(teacher_run)
    expected = []
    for path in sorted(photos.iterdir()):
        answer = predictor.predict(path)
        expected.append(f"{path}: {answer.words}")
    assert code == 0
    assert out.splitlines() == expected
    assert err.splitlines() == [f"Next: agridistill evaluate {teacher_run} DATA"]


def test_top_names_the_most_probable_classes(teacher_run: Path, photos: Path, capsys: Capture) -> None:
    path = min(photos.iterdir())
    _, out, _ = run(capsys, "predict", teacher_run, path, "--top", 3)
    top = load(teacher_run).predict(path, top=3).top
    assert out == f"{path}: " + load(teacher_run).predict(path, top=3).words + "\n"
    assert all(label.replace("_", " ") in out for label, _ in top)
    assert out.count("%") == 3


def test_below_the_threshold_the_model_is_unsure_and_top_still_counts(
    teacher_run: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = min(photos.iterdir())
    doubtful = with_threshold(teacher_run, tmp_path / "run", 1.0)
    code, out, _ = run(capsys, "predict", doubtful, path, "--top", 2)
    answer = load(doubtful).predict(path, top=2)
    assert code == 0
    assert (answer.verdict, out.count("%")) == ("unsure", 2)
    assert out == f"{path}: {answer.words}\n"
    assert ": unsure (" in out


def test_a_bad_photo_is_told_the_rest_goes_on_and_the_exit_code_is_1(
    teacher_run: Path, photos: Path, capsys: Capture
) -> None:
    bad = photos / "0b.jpg"
    bad.write_text("no photo")
    code, out, err = run(capsys, "predict", teacher_run, photos)
    assert code == 1
    assert len(out.splitlines()) == 3
    assert f"error: expected a readable photo; got '{bad}' (not a JPEG, PNG, WebP, BMP" in err
    assert "1 of 4 photos could not be read" in err
    assert "Next:" not in err


def test_json_is_one_document_and_nothing_else_on_stdout(teacher_run: Path, photos: Path, capsys: Capture) -> None:
    bad = photos / "9.jpg"
    bad.write_text("no photo")
    code, out, _ = run(capsys, "predict", teacher_run, photos, "--top", 2, "--json")
    document: dict[str, Any] = json.loads(out)
    assert code == 1
    assert document["model"] == str(teacher_run)
    assert [entry["photo"] for entry in document["photos"]] == [str(path) for path in sorted(photos.iterdir())[:3]]
    first = document["photos"][0]
    answer = load(teacher_run).predict(Path(first["photo"]), top=2)
    assert first["label"] == answer.label
    assert first["probability"] == pytest.approx(answer.probability, abs=1e-5)
    assert first["abstained"] is answer.abstained
    assert (first["verdict"], first["reason"]) == (answer.verdict, answer.reason)
    assert [entry["label"] for entry in first["top"]] == [label for label, _ in answer.top]
    assert [entry["photo"] for entry in document["errors"]] == [str(bad)]
    assert "(not a JPEG" in document["errors"][0]["error"]


def test_markup_and_odd_bytes_in_a_file_name_are_shown_as_they_are(
    teacher_run: Path, photos: Path, capsys: Capture
) -> None:
    source = min(photos.iterdir())
    named = photos / "[red]leaf.png"
    latin = Path(str(photos / "bl") + b"\xe4".decode("utf-8", "surrogateescape") + "tt.png")
    shutil.copy(source, named)
    try:
        shutil.copy(source, latin)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes only Unicode names")
    code, out, _ = run(capsys, "predict", teacher_run, named, latin)
    assert code == 0
    assert "[red]leaf.png: " in out
    assert "bl\\udce4tt.png: " in out
    code, out, _ = run(capsys, "predict", teacher_run, latin, "--json")
    assert json.loads(out)["photos"][0]["photo"].endswith("bl\\udce4tt.png")


def test_one_mistyped_photo_does_not_cost_the_others(colour_model: Path, photos: Path, capsys: Capture) -> None:
    code, out, err = run(capsys, "predict", colour_model, "nowhere.jpg", photos)
    assert (code, len(out.splitlines())) == (2, 3)
    line = "expected a photo or a folder of photos; got 'nowhere.jpg', which does not exist; check the path"
    assert err.splitlines() == [f"error: {line}"]
    code, out, err = run(capsys, "predict", colour_model, "nowhere.jpg", photos, "--json")
    document = json.loads(out)
    assert (code, len(document["photos"]), document["errors"]) == (2, 3, [{"photo": "nowhere.jpg", "error": line}])


def test_the_short_way_without_a_parser_prints_and_ends_as_the_parser_does(
    colour_model: Path, photos: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    real = commands.parser
    monkeypatch.setattr(commands, "parser", lambda command: parsed.append(command) or real(command))
    outcomes = []
    for option in ((), ("--top", "1")):
        outcomes.append(run(capsys, "predict", colour_model, photos, "gone.jpg", *option))
    assert outcomes[0] == outcomes[1]
    assert parsed == ["predict"]


def test_a_first_answer_without_a_terminal_imports_neither_typer_nor_rich(colour_model: Path, photos: Path) -> None:
    code = f"""
import gc
import sys
from agridistill.cli.main import main
gc.disable()  # as the program does while it starts
try:
    main(["predict", {str(colour_model)!r}, {str(photos)!r}])
finally:
    assert gc.isenabled()
    print(sorted({{"rich", "typer", "pydantic", "torch"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_empty_text_is_no_photo(colour_model: Path) -> None:
    with pytest.raises(PhotoError, match="expected a photo's path; got an empty string"):
        load(colour_model).predict("")


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
    assert "ignored 1 files that --explain wrote to" in err
    scanned = scan(here)
    assert [sample.path for sample in scanned.samples] == ["green/y.jpg", "green/z-explained.png", "red/x.jpg"]
    assert scanned.non_photo_files == ("red/x-explained.png",)
