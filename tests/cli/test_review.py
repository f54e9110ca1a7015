"""`agridistill review`: what it says and writes; the page has its own tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from tests.cli.running import Capture, run
from tests.colour_backend import colour_photo

from agridistill.review.record import LABEL, UNDO, Action, Judgements, ReviewLog


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four photos, three of them judged by two reviewers, who agree on two."""
    root = tmp_path / "inbox"
    for number in range(4):
        colour_photo(root / "north" / f"{number}.jpg", "green", number)
    choices = [("anna", "rust", 0), ("anna", "rust", 1), ("anna", "healthy", 2), ("ben", "rust", 0)]
    choices += [("ben", "healthy", 1), ("ben", "healthy", 2)]
    log = ReviewLog(root / "review.csv")
    log.append([Action("2026-06-01T08:00:00Z", who, LABEL, label, f"north/{at}.jpg") for who, label, at in choices])
    log.append([Action("2026-06-01T08:00:00Z", "anna", "not a leaf", "", "north/3.jpg")])
    return root


def test_agreement_is_a_table_with_the_disputed_photos(folder: Path, capsys: Capture) -> None:
    code, out, _ = run(capsys, "review", folder, "--agreement")
    assert code == 0
    assert re.search(r"anna and ben +3 +66.7 % +0.40", out)
    assert re.search(r"north/1.jpg +anna: rust, ben: healthy", out)
    document = json.loads(run(capsys, "review", folder, "--agreement", "--json")[1])
    (pair,) = document["agreement"]
    assert pair["kappa"] == pytest.approx(0.4)
    assert document["disagreements"] == [{"photo": "north/1.jpg", "choices": {"anna": "rust", "ben": "healthy"}}]


def test_the_results_leave_out_disputed_and_special_photos_and_say_so(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    into, table = tmp_path / "reviewed", tmp_path / "labels.csv"
    code, out, err = run(capsys, "review", folder, "--into", into, "--table", table)
    assert (code, out) == (0, "")
    again = json.loads(run(capsys, "review", folder, "--into", into, "--json")[1])
    assert (again["copied"], again["labels"]) == (0, len(list(into.rglob("*.jpg"))))
    assert sorted(path.relative_to(into).as_posix() for path in into.rglob("*.jpg")) == [
        "healthy/north__2.jpg",
        "rust/north__0.jpg",
    ]
    assert table.read_text() == "image,label\nnorth/0.jpg,rust\nnorth/2.jpg,healthy\n"
    assert "left out: 1 photos judged as several, not a leaf or cannot tell" in err
    assert "left out: 1 photos on which reviewers disagree, the first 'north/1.jpg'" in err
    assert f"Next: agridistill train {into} --out model" in err


def test_a_record_names_no_file_outside_the_folder(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    outside = [f"north/../../{tmp_path.name}/secret.txt", "../secret.txt", str(tmp_path / "secret.txt"), "review.csv"]
    log = ReviewLog(folder / "review.csv")
    log.append([Action("2026-06-01T08:00:00Z", "anna", LABEL, "rust", photo) for photo in outside])
    into, table = tmp_path / "reviewed", tmp_path / "labels.csv"
    code, _, err = run(capsys, "review", folder, "--into", into, "--table", table)
    assert code == 0
    assert not [path for path in into.rglob("*") if path.is_file() and path.suffix != ".jpg"]
    assert table.read_text() == "image,label\nnorth/0.jpg,rust\nnorth/2.jpg,healthy\n"
    assert "left out: 5 photos judged as several, not a leaf or cannot tell, or not there" in err


def test_a_choice_that_was_taken_back_is_not_left_in_its_class_unnoticed(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    into = tmp_path / "reviewed"
    assert run(capsys, "review", folder, "--into", into)[0] == 0
    log = ReviewLog(folder / "review.csv")
    log.append([Action("2026-06-01T09:00:00Z", who, UNDO, "", "north/0.jpg") for who in ("anna", "ben")])
    code, _, err = run(capsys, "review", folder, "--into", into)
    assert code == 2
    assert "rust/north__0.jpg', from before its label was removed; remove this file" in err


def test_without_labels_there_is_nothing_to_train(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["--out", tmp_path / "none.csv", "--into", tmp_path / "reviewed", "--table", tmp_path / "labels.csv"]
    code, _, err = run(capsys, "review", folder, *words)
    assert (code, "Next:" in err) == (0, False)


def test_corrected_labels_are_a_table_of_all_photos(tmp_path: Path, capsys: Capture) -> None:
    data = tmp_path / "data"
    for number, name in enumerate(("rust/0", "rust/1", "rust/2", "healthy/3")):
        colour_photo(data / f"{name}.jpg", "green", number)
    log = ReviewLog(data / "review.csv")
    log.append([Action("t", "anna", LABEL, "healthy", "rust/1.jpg"), Action("t", "anna", "several", "", "rust/2.jpg")])
    code, _, err = run(capsys, "review", "--suspects", data, "--table", tmp_path / "labels.csv")
    assert code == 0
    wanted = "image,label\nhealthy/3.jpg,healthy\nrust/0.jpg,rust\nrust/1.jpg,healthy\n"
    assert (tmp_path / "labels.csv").read_text() == wanted
    assert f"Next: agridistill train {data} --labels {tmp_path / 'labels.csv'} --out model" in err


def test_labels_of_a_table_are_corrected_in_a_new_one(tmp_path: Path, capsys: Capture) -> None:
    data, table = tmp_path / "data", tmp_path / "old.csv"
    for number in range(4):
        colour_photo(data / f"{number}.jpg", "green", number)
    table.write_text("photo,disease\n0.jpg,rust\n1.jpg,healthy\n2.jpg,rust\n3.jpg,healthy\n")
    ReviewLog(data / "review.csv").append([Action("t", "anna", LABEL, "healthy", "0.jpg")])
    words = ("review", "--suspects", data, "--labels", table)
    columns = ("--label-columns", "photo,disease")
    assert run(capsys, *words, *columns, "--table", tmp_path / "new.csv")[0] == 0
    wanted = "image,label\n0.jpg,healthy\n1.jpg,healthy\n2.jpg,rust\n3.jpg,healthy\n"
    assert (tmp_path / "new.csv").read_text() == wanted
    code, _, err = run(capsys, *words, *columns, "--table", table)
    assert (code, "another file for --table than for --labels" in err) == (2, True)


def test_a_corrected_table_has_the_split_of_the_one_before(tmp_path: Path, capsys: Capture) -> None:
    data, table = tmp_path / "data", tmp_path / "old.csv"
    for number in range(4):
        colour_photo(data / f"{number}.jpg", "green", number)
    rows = "0.jpg,rust,train\n1.jpg,healthy,train\n2.jpg,rust,test\n3.jpg,healthy,val\n"
    table.write_text(f"image,label,split\n{rows}")
    ReviewLog(data / "review.csv").append([Action("t", "anna", LABEL, "healthy", "0.jpg")])
    words = ("review", "--suspects", data, "--labels", table, "--table")
    assert run(capsys, *words, tmp_path / "new.csv")[0] == 0
    wanted = f"image,label,split\n{rows.replace('0.jpg,rust', '0.jpg,healthy')}"
    assert (tmp_path / "new.csv").read_text() == wanted
    (tmp_path / "new.csv").write_text("image,label\n0.jpg,rust\n")
    code, _, err = run(capsys, *words, tmp_path / "new.csv")
    assert (code, "earlier result for --table" in err) == (2, True)


def test_a_table_of_other_photos_is_not_replaced(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("image,label\nnorth/0.jpg,rust\nsouth/9.jpg,mildew\n")
    code, _, err = run(capsys, "review", folder, "--table", table)
    assert (code, "with a label of 'south/9.jpg', which this review does not know" in err) == (2, True)
    assert "south/9.jpg" in table.read_text()
    table.write_text("image,label\nnorth/1.jpg,rust\n")  # of an earlier result: the reviewers now disagree
    assert run(capsys, "review", folder, "--table", table)[0] == 0
    assert table.read_text().startswith("image,label\nnorth/0.jpg,rust\n")


def test_an_export_without_choices_can_be_replaced(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ("--export", tmp_path / "tasks.json")
    for record in (tmp_path / "none.csv", folder / "review.csv"):
        assert run(capsys, "review", folder, "--out", record, *words)[0] == 0
    assert len(json.loads((tmp_path / "tasks.json").read_text())) == 4


def test_nested_classes_are_offered_and_trained(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    ReviewLog(tmp_path / "nested.csv").append([Action("t", "anna", LABEL, "Tomato/rust", "north/0.jpg")])
    words = ("--out", tmp_path / "nested.csv", "--into", tmp_path / "reviewed")
    code, _, err = run(capsys, "review", folder, *words)
    assert (code, f"Next: agridistill train {tmp_path / 'reviewed'} --nested --out model" in err) == (0, True)
    assert (tmp_path / "reviewed/Tomato/rust/north__0.jpg").exists()
    code, _, err = run(capsys, "review", folder, "--nested")
    assert (code, "say where --suspects or --classes finds labels" in err) == (2, True)


def test_what_a_colleague_took_back_is_taken_back_here(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    choice = Action("2026-06-01T08:00:00Z", "carl", LABEL, "rust", "north/0.jpg")
    theirs = ReviewLog(tmp_path / "carl.csv")
    theirs.append([choice])
    for new in (1, 0):
        assert f"{new} new lines" in run(capsys, "review", folder, "--import", theirs.path)[2]
    theirs.append([choice._replace(time="2026-06-02T08:00:00Z", verdict=UNDO, label="")])
    for new in (1, 0):
        assert f"{new} new lines" in run(capsys, "review", folder, "--import", theirs.path)[2]
    assert not Judgements(ReviewLog(folder / "review.csv").read()).of("carl")


def test_what_is_exported_is_imported_once(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    export, other = tmp_path / "tasks.json", tmp_path / "other.csv"
    assert run(capsys, "review", folder, "--export", export)[0] == 0
    for new in (7, 0):
        code, _, err = run(capsys, "review", folder, "--out", other, "--import", export)
        assert code == 0
        assert f"{new} new lines from '{export}' in '{other}'" in err
    assert sorted(ReviewLog(other).read()) == sorted(ReviewLog(folder / "review.csv").read())


def test_an_import_does_not_replace_what_a_reviewer_chose_later(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    ReviewLog(tmp_path / "old.csv").append([Action("2026-05-01T08:00:00Z", "anna", LABEL, "mildew", "north/0.jpg")])
    ReviewLog(tmp_path / "new.csv").append([Action("2026-07-01T08:00:00Z", "anna", LABEL, "mildew", "north/1.jpg")])
    for file, new in (("old.csv", 0), ("new.csv", 1), ("new.csv", 0)):
        code, _, err = run(capsys, "review", folder, "--import", tmp_path / file)
        assert (code, f"{new} new lines" in err) == (0, True)
    assert ReviewLog(folder / "review.csv").read()[-1].photo == "north/1.jpg"


def test_a_table_does_not_replace_what_was_chosen_after_it_was_written(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("image,label\nnorth/0.jpg,mildew\nnorth/3.jpg,mildew\n")
    os.utime(table, (1.7e9, 1.7e9))
    code, _, err = run(capsys, "review", folder, "--import", table, "--reviewer", "ben")
    assert (code, "1 new lines" in err) == (0, True)
    assert ReviewLog(folder / "review.csv").read()[-1] == Action(
        "2023-11-14T22:13:20Z", "ben", LABEL, "mildew", "north/3.jpg"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "pass either FOLDER or --suspects PHOTOS"),
        (["{folder}"], "pass --model MODEL, --classes PHOTOS or both"),
        (["{folder}/gone", "--model", "tomato"], "'{folder}/gone', which does not exist"),
        (["{folder}", "--classes", "{folder}", "--teacher", "tomato"], "--teacher needs --model"),
        (["{folder}", "--agreement", "--out", "{folder}/north/0.jpg"], "earlier result for --out"),
        (["{folder}", "--import", "{folder}/gone.json"], "gone.json"),
        (["{folder}", "--classes", "{folder}", "--labels", "a.csv"], "a.csv"),
        (["{folder}", "--table", "{folder}/review.csv"], "earlier result for --table"),
    ],
)
def test_what_cannot_be_used_is_one_line(folder: Path, capsys: Capture, words: list[str], told: str) -> None:
    code, out, err = run(capsys, "review", *(word.format(folder=folder) for word in words))
    assert (code, out) == (2, "")
    assert told.format(folder=folder) in err
    assert len(err.strip().splitlines()) == 1


def test_a_teacher_of_other_classes_is_one_line(folder: Path, colour_model: Path, capsys: Capture) -> None:
    code, _, err = run(capsys, "review", folder, "--model", "tomato", "--teacher", colour_model)
    assert code == 2
    assert f"a --teacher with the classes of --model in the same order; got '{colour_model}' with other classes" in err


@pytest.mark.slow
def test_the_command_serves_the_page_until_ctrl_c(folder: Path, colour_model: Path) -> None:
    command = [sys.executable, "-m", "agridistill", "review", folder, "--model", colour_model, "--port", "0"]
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr as lines:
        address = re.search(r"page: (\S+) \(Ctrl-C ends it\)", lines.readline())
        assert address is not None
        with urllib.request.urlopen(f"{address[1]}api/state", timeout=10) as answer:  # noqa: S310 - loopback
            classes = [one["label"] for one in json.load(answer)["classes"]]
        process.send_signal(signal.SIGINT)
        rest = lines.read()
    assert classes == ["green", "red"]
    assert process.wait() == 0
    assert rest.splitlines()[-1] == f"Next: agridistill review {folder} --into reviewed"
