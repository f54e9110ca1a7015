import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from tests.cli.running import Capture, run

from agridistill.cli.evaluate import print_evaluation
from agridistill.evaluation.evaluate import EvaluationResult
from agridistill.evaluation.metrics import ClassScores, Interval


def result(classes: int = 2, **changes: object) -> EvaluationResult:
    names = tuple(f"class {number}" for number in range(classes))
    fields: dict[str, object] = {
        "model": "mobilenetv3_large_100",
        "split": "test",
        "classes": names,
        "photos": 1234,
        "leaves": 400,
        "skipped_photos": ("'a.jpg' (cut off)",),
        "accuracy": 0.9125,
        "accuracy_ci95": Interval(0.8949, 0.9274),
        "macro_f1": 0.9034,
        "nll_nats": 0.25,
        "calibration_error": 0.0213,
        "per_class": tuple(ClassScores(name, 0.5, 0.25, 1 / 3, 617) for name in names),
        "confusion_matrix": tuple(tuple(10 * row + column for column in range(classes)) for row in range(classes)),
        "image_size": 128,
        "temperature": 1.25,
        "parameters": 4_210_000,
        "macs": 215_300_000,
    }
    return EvaluationResult(**(fields | changes))  # type: ignore[arg-type]


def test_the_runs_own_test_split_gives_the_result_of_the_run(teacher_run: Path, leaves: Path, capsys: Capture) -> None:
    code, out, err = run(capsys, "evaluate", teacher_run, leaves, "--json")
    stored = json.loads((teacher_run / "evaluation.json").read_text())
    again = json.loads(out)
    assert code == 0
    assert again["parameters"] > 0
    assert again["flops"] == 2 * again["macs"]
    assert {key: again[key] for key in again if key != "nll_nats"} == {
        key: stored[key] for key in again if key != "nll_nats"
    }
    assert again["nll_nats"] == pytest.approx(stored["nll_nats"], abs=1e-4)
    # Stdout is the document; the verdict on a run of one epoch is no reason to go on.
    assert again["verdict"]["headline"] in err.splitlines()
    assert again["verdict"]["level"] == "unusable"
    assert "Next:" not in err


def test_evidence_never_replaces_the_figures_of_a_run(teacher_run: Path, leaves: Path, capsys: Capture) -> None:
    before = (teacher_run / "evaluation.json").read_bytes()
    code, _, err = run(capsys, "evaluate", teacher_run, leaves, "--evidence", teacher_run)
    assert code == 2
    assert f"expected a folder of its own for --evidence; got '{teacher_run}', which holds a run; choose another" in err
    assert (teacher_run / "evaluation.json").read_bytes() == before


def test_a_full_disk_does_not_lose_the_figures(
    teacher_run: Path, leaves: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("agridistill.storage.write_json", full)
    code, out, err = run(capsys, "evaluate", teacher_run, leaves, "--json", "--out", tmp_path / "new.json")
    assert code == 2
    assert "got a full disk" in err
    assert json.loads(out)["photos"] > 0


def test_the_table_and_the_file_tell_the_same(teacher_run: Path, leaves: Path, tmp_path: Path, capsys: Capture) -> None:
    code, out, _ = run(capsys, "evaluate", teacher_run, leaves, "--split", "val", "--out", tmp_path / "val.json")
    document = json.loads((tmp_path / "val.json").read_text())
    assert code == 0
    assert document["split"] == "val"
    assert f"on the val split of {leaves}" in out
    assert f"{100 * document['accuracy']:.1f} %" in out
    assert "confusion matrix: rows are the truth, columns the prediction" in out
    for name in document["classes"]:
        assert name in out


def test_photos_that_the_model_learnt_from_are_told(
    teacher_run: Path, leaves: Path, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    code, out, _ = run(capsys, "evaluate", teacher_run, leaves, "--split", "all", "--json")
    assert code == 0
    learnt = len(json.loads((teacher_run / "splits.json").read_text())["splits"]["train"])
    assert (
        f"{learnt} of these {json.loads(out)['photos']} photos are among those that the model was trained on"
        in caplog.text
    )


def test_a_photo_that_cannot_be_read_is_told_and_counted(
    teacher_run: Path, leaves: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(leaves, tmp_path / "leaves")
    bad = min((tmp_path / "leaves").rglob("*.*g"))
    bad.write_bytes(b"")
    code, out, err = run(capsys, "evaluate", teacher_run, tmp_path / "leaves", "--split", "all")
    assert code == 0
    assert "1 unreadable left out" in out
    assert f"left out: 1 unreadable photos, the first {bad.relative_to(tmp_path / 'leaves')}: empty file" in err


def test_data_that_the_model_was_not_trained_on_needs_a_choice(
    teacher_run: Path, leaves: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(leaves, tmp_path / "leaves")
    min((tmp_path / "leaves").rglob("*.*g")).unlink()
    code, out, err = run(capsys, "evaluate", teacher_run, tmp_path / "leaves")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].endswith("pass --splits FILE, or --split all for every photo")


def test_a_part_of_the_classes_under_other_names_is_scored(
    teacher_run: Path, leaves: Path, tmp_path: Path, capsys: Capture
) -> None:
    classes = sorted(folder.name for folder in leaves.iterdir() if folder.is_dir())
    farm = tmp_path / "farm"
    shutil.copytree(leaves / classes[0], farm / classes[0])
    shutil.copytree(leaves / classes[1], farm / "as we call it")
    code, out, err = run(capsys, "evaluate", teacher_run, farm, "--split", "all")
    assert (code, out) == (2, "")
    assert "got 'as we call it'" in err
    assert "--map" in err
    (tmp_path / "names.toml").write_text(f'"as we call it" = "{classes[1]}"\n', encoding="utf-8")
    code, out, err = run(capsys, "evaluate", teacher_run, farm, "--split", "all", "--map", tmp_path / "names.toml")
    assert code == 0, err
    assert "–: no photos of this class; it is left out of macro-F1" in out
    assert len([line for line in out.splitlines() if line.split()[-4:] == ["–", "–", "–", "0"]]) == len(classes) - 2


def test_the_table_shows_each_figure_with_its_unit(capsys: Capture) -> None:
    print_evaluation(result(), title="x")
    out = capsys.readouterr().out
    for figure in (
        "91.2 % (89.5–92.7)",
        "0.903",
        "0.250 nats",
        "2.1 %",
        "1.25",
        "1,234 of 400 leaves; 1 unreadable left out",
        "4.21 M",
        "215 M",
        "431 M",
        "128 x 128 px",
    ):
        assert figure in out
    assert "left out of macro-F1" not in out
    print_evaluation(result(leaves=1234), title="x")
    assert "1,234; 1 unreadable left out" in capsys.readouterr().out


def test_a_class_without_photos_has_dashes_and_a_word_why(capsys: Capture) -> None:
    scores = (ClassScores("present", 1.0, 1.0, 1.0, 5), ClassScores("[b]absent", None, None, None, 0))
    print_evaluation(result(per_class=scores), title="x")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "absent" in line] == [["[b]absent", "–", "–", "–", "0"]]
    assert "–: no photos of this class; it is left out of macro-F1" in lines


def test_many_classes_show_their_most_frequent_confusions(capsys: Capture) -> None:
    print_evaluation(result(classes=16), title="x")
    out = capsys.readouterr().out
    assert "most frequent confusions" in out
    assert "confusion matrix" not in out
    first = next(line for line in out.splitlines() if line.split()[:2] == ["class", "15"] and line.split()[-1] == "164")
    assert first.split() == ["class", "15", "class", "14", "164"]
