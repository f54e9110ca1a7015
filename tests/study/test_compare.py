"""A study trains what is missing, keeps what is there, and compares photo by photo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agridistill.cli.main import main
from agridistill.config import compare_plan
from agridistill.data.prepare import split_data
from agridistill.errors import DataError, RunError
from agridistill.evaluation.evidence import FORMAT_VERSION
from agridistill.storage import only_one
from agridistill.study.compare import compare, gather_for
from agridistill.study.plan import ComparePlan

RECIPE = {
    "data": {"image_size": 64},
    "train": {"model": "swin_nano_patch4_window4_64", "epochs": 1, "batch_size": 16, "pretrained": False},
    "distill": {
        "model": "mobilenetv3_small_050",
        "epochs": 1,
        "batch_size": 16,
        "pretrained": False,
        "workers": 0,
        "precision": "fp32",
    },
    "compare": {
        "budgets": [{"name": "half", "set": ["labels=0.5"]}],
        "candidates": [{"name": "ce"}, {"name": "hybrid"}],
    },
}


def plan(**distill: object) -> ComparePlan:
    return compare_plan({**RECIPE, "distill": RECIPE["distill"] | distill})


@pytest.fixture(scope="module")
def study(leaves: Path, teacher_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs and their comparison."""
    out = tmp_path_factory.mktemp("study") / "study"
    told: list[str] = []
    seen: list[tuple[int, int]] = []
    compare(leaves, out, plan(), teacher=teacher_run, jobs=2, progress=lambda *at: seen.append(at), tell=told.append)
    finished = [line for line in told if not line.startswith("warning: ")]
    assert len(finished) == 2
    assert finished[-1].endswith("2 of 2 runs are finished")
    assert (2, 2) in seen
    return out


def test_the_document_says_what_the_runs_say(study: Path) -> None:
    document = json.loads((study / "compare.json").read_text())
    (budget,) = document["budgets"]
    assert (budget["name"], budget["labels"], budget["epochs"]) == ("half", 0.5, 1)
    baseline, hybrid = budget["rows"]
    for row in (baseline, hybrid):
        (run,) = row["runs"]
        evaluation = json.loads((study / run["run"] / "evaluation.json").read_text())
        assert row["accuracy_mean"] == run["accuracy"] == evaluation["accuracy"]
        assert row["accuracy_sd"] is None
        predictions = json.loads((study / "predictions" / "half" / f"{row['name']}-0.json").read_text())
        right = [np.argmax(photo["logits"]) == photo["target"] for photo in predictions["photos"]]
        assert np.mean(right) == pytest.approx(evaluation["accuracy"])
        assert document["test_photos"] == len(right) == evaluation["photos"]
    assert baseline["difference"] is None
    points = 100 * (hybrid["accuracy_mean"] - baseline["accuracy_mean"])
    assert hybrid["difference"]["points"] == pytest.approx(points)
    assert hybrid["difference"]["seeds"] == [0]
    (against,) = budget["best_against"]
    assert {budget["best"], against["other"]} == {"ce", "hybrid"}
    assert against["points"] == pytest.approx(points if budget["best"] == "hybrid" else -points)
    assert against["points_ci95"][0] <= against["points"] <= against["points_ci95"][1]
    (test,) = budget["mcnemar"]
    assert {test["first"], test["second"]} == {"ce", "hybrid"}
    gained = test["only_first"] - test["only_second"]
    sign = 1 if test["first"] == "hybrid" else -1
    assert sign * gained == round(points / 100 * document["test_photos"])


def test_a_share_of_the_labels_is_a_share_of_train_and_val(study: Path, teacher_run: Path) -> None:
    own, whole = (
        json.loads((run / "splits.json").read_text())["splits"] for run in (study / "runs/half/ce-0", teacher_run)
    )
    assert own["test"] == whole["test"]
    for part in ("train", "val"):
        assert set(own[part]) < set(whole[part])
        assert len(whole[part]) / 2 <= len(own[part]) <= len(whole[part]) / 2 + 6  # classes, each rounded up


def test_finished_runs_are_not_trained_again(study: Path, leaves: Path, teacher_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*.safetensors")}
    assert len(before) == 2
    first = (study / "compare.json").read_text()
    compare(leaves, study, plan(), teacher=teacher_run)
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*.safetensors")} == before
    assert (study / "compare.json").read_text() == first


def test_a_run_of_other_settings_is_no_result_of_this_study(study: Path, leaves: Path, teacher_run: Path) -> None:
    with pytest.raises(RunError, match=r"distill.lr = 0.001.*; got 0.5 for 'half/ce-0' of this study; .*remove"):
        compare(leaves, study, plan(lr=0.5), teacher=teacher_run)


def test_a_run_under_another_teacher_is_no_result_of_this_study(study: Path, leaves: Path, student_run: Path) -> None:
    with pytest.raises(RunError, match=r"the teacher that the run started with.*'half/hybrid-0' of this study"):
        compare(leaves, study, plan(), teacher=student_run)


def test_other_photos_are_no_result_of_this_study(study: Path, leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    more = Path(shutil.copytree(leaves, tmp_path / "more"))
    first = next(more.rglob("*.jpg"))
    Image.effect_noise((64, 64), 90).convert("RGB").save(first.with_name("new.jpg"))
    with pytest.raises(RunError, match=r"the data that the run started with; got other photos in .*; .*remove"):
        compare(more, study, plan(), teacher=teacher_run)


def test_another_split_or_teacher_recipe_is_no_result_of_this_study(
    study: Path, leaves: Path, teacher_run: Path, tmp_path: Path
) -> None:
    split = tmp_path / "other.json"
    split_data(leaves, split, seed=7)
    with pytest.raises(
        RunError, match=r"the test photos of '.*other.json'; got other test photos for 'half/ce-0' of this study"
    ):
        compare(leaves, study, plan(), teacher=teacher_run, split_file=split)
    copy = Path(shutil.copytree(study, tmp_path / "study"))
    shutil.copytree(teacher_run, copy / "teacher")
    with pytest.raises(RunError, match=r"train.lr = 0.001 .*for 'teacher' of this study"):
        compare(leaves, copy, compare_plan({**RECIPE, "train": {**RECIPE["train"], "lr": 0.5}}))


@pytest.mark.slow
def test_a_study_of_labels_alone_trains_no_teacher(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    candidates = [{"name": "ce"}, {"name": "other", "set": ["method=ce", "lr=2e-3"]}]
    alone = compare_plan({**RECIPE, "compare": {"candidates": candidates}})
    seen: list[tuple[int, int]] = []
    document = compare(leaves, study, alone, progress=lambda *at: seen.append(at), evidence=False)
    assert document["teacher"] is None
    assert not (study / "teacher").exists()
    assert (2, 2) in seen  # no epochs of a teacher
    # A teacher of an earlier recipe, whatever it was, is none of this study's.
    shutil.copytree(teacher_run, study / "teacher")
    assert compare(leaves, study, alone, evidence=False)["teacher"] is None


def test_a_wrong_path_is_told_before_anything_is_written(teacher_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a folder of class folders; got '.*nowhere', which does not exist"):
        compare(tmp_path / "nowhere", tmp_path / "study", plan(), teacher=teacher_run)
    assert not (tmp_path / "study").exists()


def test_two_processes_do_not_train_one_study(study: Path, leaves: Path, teacher_run: Path) -> None:
    with only_one(study / ".lock", "test"), pytest.raises(RunError, match="only one process that uses the study in"):
        compare(leaves, study, plan(), teacher=teacher_run)


@pytest.mark.slow
def test_what_the_teacher_has_learnt_of_the_test_is_told(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    split = tmp_path / "other.json"
    learnt = set(json.loads((teacher_run / "splits.json").read_text())["splits"]["train"])
    split_data(leaves, split, seed=7)
    met = len(learnt & set(json.loads(split.read_text())["splits"]["test"]))
    assert met > 0
    told: list[str] = []
    document = compare(
        leaves, tmp_path / "study", plan(), teacher=teacher_run, split_file=split, evidence=False, tell=told.append
    )
    assert document["teacher"]["test_photos_learnt"] == met
    assert document["teacher"]["labels"] == 1.0
    assert sum("the result will be too high" in line for line in told) == 1


def test_a_study_draws_its_gallery_once_for_the_same_weights(
    teacher_run: Path, leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gathered(backend: Any, *rest: object, **options: object) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, "weights_sha256": backend.manifest.weights_sha256}

    drawn: list[list[str]] = []

    def gallery(runs: Mapping[str, Path], *rest: object) -> list[dict[str, Any]]:
        drawn.append(list(runs))
        return []

    monkeypatch.setattr("agridistill.study.compare.gather_evidence", gathered)
    monkeypatch.setattr("agridistill.evaluation.evidence.gallery", gallery)
    for name in ("teacher", "teacher", "other name"):
        gather_for({name: teacher_run}, leaves, tmp_path)
    assert drawn == [["teacher"], ["other name"]]


def test_predictions_of_other_weights_are_made_anew(
    study: Path, leaves: Path, teacher_run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(study, tmp_path / "study"))
    file = copy / "predictions" / "half" / "ce-0.json"
    whole = file.read_text()
    file.write_text(whole.replace(json.loads(whole)["weights_sha256"], "0" * 64).replace('"target": 0', '"target": 1'))
    compare(leaves, copy, plan(), teacher=teacher_run)
    assert file.read_text() == whole
    file.write_text(whole[:-50])
    with pytest.raises(RunError, match=r"the predictions of a run; got a damaged .*ce-0.json"):
        compare(leaves, copy, plan(), teacher=teacher_run)


@pytest.mark.slow
def test_a_failed_run_is_named_and_the_others_go_on(leaves: Path, student_run: Path, tmp_path: Path) -> None:
    # A student of MobileNetV3 has no window attention to teach.
    kd = {"name": "windows", "set": ["method=at", "attention=window"]}
    recipe = {**RECIPE, "compare": {**RECIPE["compare"], "candidates": [kd, {"name": "ce"}]}}
    with pytest.raises(
        RunError, match=r"1 of 2 failed, the first 'half/windows-0' \(expected a Swin .*half-windows-0.log"
    ):
        compare(leaves, tmp_path / "study", compare_plan(recipe), teacher=student_run)
    assert (tmp_path / "study/runs/half/ce-0/evaluation.json").exists()
    assert not (tmp_path / "study/compare.json").exists()


@pytest.mark.slow
def test_a_killed_study_leaves_no_process_and_goes_on(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "study.toml"
    recipe.write_text(
        '[data]\nimage_size = 64\n[distill]\nmodel = "mobilenetv3_small_050"\nepochs = 12\nbatch_size = 16\n'
        'pretrained = false\nworkers = 0\nprecision = "fp32"\n[compare]\n[[compare.candidates]]\nname = "ce"\n'
    )
    out = tmp_path / "study"
    command = ["compare", str(leaves), "--recipe", str(recipe), "--teacher", str(teacher_run), "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "agridistill", *command], stderr=subprocess.DEVNULL)
    metrics = out / "runs/full/ce-0/metrics.csv"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
        assert time.monotonic() < deadline, (out / "logs/full-ce-0.log").read_text()
        time.sleep(0.05)
    (child,) = _children(process.pid)
    process.kill()  # its runs see the end of their stdin
    process.wait()
    while _alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = metrics.read_text().splitlines()
    assert 2 < len(before) < 13
    assert not (out / "runs/full/ce-0/evaluation.json").exists()
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    after = metrics.read_text().splitlines()
    assert len(after) == 13
    # All but the time that an epoch took: the last one may have been trained again, with the same result.
    assert [row.rsplit(",", 2)[0] for row in after[:3]] == [row.rsplit(",", 2)[0] for row in before[:3]]


def _children(process_id: int) -> list[int]:
    # Of every thread: one of a pool starts the run.
    tasks = Path(f"/proc/{process_id}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process_id}/stat").read_text().split(")")[1].split()[0] != "Z"


def test_the_command_prints_the_table_or_one_document(
    study: Path, leaves: Path, teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tomli_w

    recipe = tmp_path / "study.toml"
    recipe.write_text(tomli_w.dumps(RECIPE))
    command = ["compare", str(leaves), "--recipe", str(recipe), "--teacher", str(teacher_run), "--out", str(study)]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == json.loads((study / "compare.json").read_text())
    with pytest.raises(SystemExit):
        main(command)
    shown = capsys.readouterr()
    for word in (
        "half: 1 epochs, 50 % of the labels",
        "hybrid",
        "to ce, points (95 %)",
        "the best on the validation split, against",
        "McNemar test, seed 0",
        "teacher:",
    ):
        assert word in " ".join(shown.out.split())
    assert "Next: agridistill report" in shown.err


def test_a_recipe_without_a_study_is_refused(leaves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "plain.toml"
    recipe.write_text("[distill]\nepochs = 1\n")
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(leaves), "--recipe", str(recipe), "--out", str(tmp_path / "study")])
    assert ended.value.code == 2
    assert "a recipe with a section [compare]" in capsys.readouterr().err
