"""Labels from a table and nested classes, from the command to the file for a device."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import agridistill
from agridistill.cli.main import main
from agridistill.errors import DataError, RunError
from agridistill.evaluation.learning import read_learning

TINY = {"model": "mobilenetv3_small_050", "epochs": 1, "batch_size": 16, "pretrained": False, "workers": 0}
SETTINGS = {"train": {**TINY, "precision": "fp32"}, "data": {"image_size": 64}}


@pytest.fixture(scope="module")
def flat(leaves: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn leaves in one folder, and a table of their labels, of which one photo has none."""
    root = tmp_path_factory.mktemp("flat")
    (root / "images").mkdir()
    rows = []
    for number, photo in enumerate(sorted(leaves.glob("*/*"))):
        shutil.copy(photo, root / "images" / f"{number}{photo.suffix}")
        rows.append(f"{number}{photo.suffix};{photo.parent.name}")
    (root / "labels.csv").write_text("\n".join(["image;label", *rows[:-1]]) + "\n")
    return root


@pytest.fixture(scope="module")
def run(flat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with labels from the table."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return agridistill.train(flat, out, SETTINGS, label_file=flat / "labels.csv").out


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return ended.value.code, out, err  # type: ignore[return-value]


def test_a_run_knows_its_labels(run: Path, flat: Path) -> None:
    environment = json.loads((run / "environment.json").read_text())
    assert environment["layout"]["label_file"] == str(flat / "labels.csv")
    classes = json.loads((run / "manifest.json").read_text())["classes"]
    counts = read_learning(run, classes).train_photos
    train = json.loads((run / "splits.json").read_text())["splits"]["train"]
    assert counts is not None
    assert sum(counts.values()) == len(train)
    assert min(counts.values()) > 0


def test_it_is_scored_on_its_own_test_split(run: Path, flat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = json.loads((run / "evaluation.json").read_text())
    found = agridistill.evaluate(run, flat, label_file=flat / "labels.csv")
    assert (found.photos, found.accuracy) == (stored["photos"], stored["accuracy"])
    code, out, err = command(capsys, "evaluate", run, flat, "--labels", flat / "labels.csv", "--json")
    assert (code, json.loads(out)["accuracy"]) == (0, stored["accuracy"])
    assert "left out: 1 photo without a label" in err
    with pytest.raises(DataError, match=r"pass --labels '.*labels.csv', or --flat"):
        agridistill.evaluate(run, flat)


def test_a_resume_needs_no_option_and_refuses_other_labels(run: Path, flat: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(run, again)
    for name in ("evaluation.json", "manifest.json"):
        (again / name).unlink()
    assert agridistill.train(flat, again, resume=True).out == again
    lines = (flat / "labels.csv").read_text().splitlines()
    swapped = [lines[0], lines[1].partition(";")[0] + ";" + lines[-1].partition(";")[2], *lines[2:]]
    (tmp_path / "others.csv").write_text("\n".join(swapped))
    with pytest.raises(RunError, match="the data that the run started with"):
        agridistill.train(flat, again, resume=True, label_file=tmp_path / "others.csv")


@pytest.mark.slow
def test_its_export_finds_the_labels(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    result = agridistill.export(run, tmp_path / "leaf.onnx")
    assert result.parity.top1_agreement == 1


def test_nested_classes_go_from_the_command_to_the_words(
    leaves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, folder in enumerate(sorted(leaves.iterdir())[:4]):
        shutil.copytree(folder, tmp_path / "crops" / ("Tomato", "Potato")[number % 2] / folder.name)
    data = tmp_path / "crops"
    words = ("--set", "train.pretrained=false", "--epochs", 1, "--image-size", 64, "--model", "mobilenetv3_small_050")
    code, _, err = command(capsys, "train", data, "--out", tmp_path / "run", *words, "--precision", "fp32")
    assert code == 2
    assert "--nested for classes such as 'Potato/" in err
    code, out, _ = command(
        capsys, "train", data, "--nested", "--out", tmp_path / "run", *words, "--precision", "fp32", "--json"
    )
    assert code == 0
    names = json.loads(out)["classes"]
    assert [name.split("/")[0] for name in names] == ["Potato", "Potato", "Tomato", "Tomato"]
    photo = next((data / names[0]).iterdir())
    answer = agridistill.load(tmp_path / "run").predict(photo)
    assert answer.label in names


def test_data_split_and_train_agree_on_a_table(flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ("--labels", flat / "labels.csv", "--label-columns", "image, label")
    code, _, err = command(capsys, "data", "split", flat, *labels, "--out", tmp_path / "s.json")
    assert code == 0
    assert f"Next: agridistill train {flat} --labels {flat / 'labels.csv'} --label-columns image,label --splits" in err
    code, out, _ = command(capsys, "data", "check", flat, *labels, "--splits", tmp_path / "s.json", "--json")
    assert code == 0
    assert json.loads(out)["problems"] == []
    code, _, err = command(capsys, "data", "check", flat, *labels, "--nested")
    assert (code, "leave out --nested or --flat" in err) == (2, True)
