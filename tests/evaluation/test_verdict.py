"""Verdicts about models, from confusion matrices and epoch logs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agridistill.data.split import Split, read_split, write_split
from agridistill.evaluation.evaluate import EvaluationResult
from agridistill.evaluation.learning import Learning, read_learning
from agridistill.evaluation.metrics import ClassScores, wilson_interval
from agridistill.evaluation.verdict import ModelVerdict, judge, judge_artefact


def result(*rows: Sequence[int], split: str = "test", leaves: int | None = None, size: int = 224) -> EvaluationResult:
    """An evaluation with this confusion matrix; classes are "a", "b", ..."""
    names = tuple("abcdefghijklmnopqrstuvwxyz"[: len(rows)])
    photos, right = sum(map(sum, rows)), sum(row[number] for number, row in enumerate(rows))
    scores = tuple(
        ClassScores(name, 0.5, row[number] / sum(row), 0.5, sum(row))
        if sum(row)
        else ClassScores(name, None, None, None, 0)
        for number, (name, row) in enumerate(zip(names, rows, strict=True))
    )
    return EvaluationResult(
        model="m",
        split=split,
        classes=names,
        photos=photos,
        leaves=leaves or photos,
        skipped_photos=(),
        accuracy=right / photos,
        accuracy_ci95=wilson_interval(right / photos, leaves or photos),
        macro_f1=0.5,
        nll_nats=1.0,
        calibration_error=0.1,
        per_class=scores,
        confusion_matrix=tuple(map(tuple, rows)),
        image_size=size,
        temperature=1.0,
    )


def epochs(*accuracy: float, nll: Sequence[float] = (), ce: Sequence[float] = ()) -> list[dict[str, float]]:
    """Rows of metrics.csv."""
    return [
        {"epoch": 1.0 + number, "val/accuracy": value}
        | ({"val/nll": nll[number]} if nll else {})
        | ({"train/ce": ce[number]} if ce else {})
        for number, value in enumerate(accuracy)
    ]


def words(verdict: ModelVerdict) -> str:
    return " ".join((verdict.headline, *verdict.remarks, *verdict.advice))


UNKNOWN: dict[str, Any] = {"seed": None, "val_fraction": None, "test_fraction": None, "fingerprint": ""}
GOOD = result((95, 3, 2), (4, 92, 4), (2, 2, 96))
WEAK = result((70, 20, 10), (20, 70, 10), (15, 15, 70))


def test_a_good_model_is_usable_and_needs_nothing() -> None:
    verdict = judge(GOOD)
    assert verdict == ModelVerdict(
        "usable",
        "Usable: right on 94 % of new photos (95 % interval 91 to 96)",
        (
            "For a first opinion: about 1 photo in 18 gets a wrong name, so look again before you treat a plant.",
            "It is better than chance (33 %).",
        ),
    )
    assert verdict.usable


def test_a_very_good_model_may_answer_without_a_check() -> None:
    remark = judge(result((99, 1), (1, 99))).remarks[0]
    assert remark == "For answers without a check: about 1 photo in 100 gets a wrong name."
    remark = judge(result((100, 0), (0, 100))).remarks[0]
    assert remark == "For answers without a check: none of the photos got a wrong name."


def test_nearly_all_is_not_rounded_to_all() -> None:
    assert "right on 99.8 % of new photos" in judge(result((499, 1), (1, 499))).headline


@pytest.mark.parametrize("photos", [(30, 30, 30), (900, 50, 50), (2, 1, 1)])
def test_a_model_that_names_one_class_is_never_praised(photos: tuple[int, ...]) -> None:
    verdict = judge(result(*((count, 0, 0) for count in photos)))
    assert verdict.level == "unusable"
    assert not verdict.usable
    assert verdict.headline == "Not usable: it names one class for every photo, 'a'"
    assert "never names" not in words(verdict)
    assert verdict.advice


def test_where_the_photos_are_of_one_class_nothing_is_proven() -> None:
    verdict = judge(result((40, 0), (0, 0)))
    assert verdict.level == "unproven"
    assert verdict.headline.endswith("but all these photos are of one class")


def test_chance_level_is_not_usable() -> None:
    verdict = judge(result((20, 15, 15), (18, 17, 15), (16, 17, 17)))
    assert verdict.level == "unusable"
    assert (
        verdict.headline
        == "Not usable: no better than chance (33 %): right on 36 % of new photos (95 % interval 29 to 44)"
    )


def test_naming_the_largest_class_is_the_measure_where_classes_are_uneven() -> None:
    """96 % right, and all of it by calling leaves healthy."""
    verdict = judge(result((188, 2), (6, 4)))
    assert verdict.level == "unusable"
    assert "no better than naming 'a' for every photo (95 %): right on 96 %" in verdict.headline


def test_more_often_wrong_than_right_is_not_usable_though_above_chance() -> None:
    rows = [[6 * (column == row) + 9 * (column == (row + 1) % 5) for column in range(5)] for row in range(5)]
    verdict = judge(result(*rows))
    assert verdict.headline.startswith("Not usable: more often wrong than right: right on 40 %")


def test_a_middling_model_is_weak() -> None:
    verdict = judge(WEAK)
    assert (verdict.level, verdict.usable) == ("weak", True)
    assert verdict.headline == "Weak: right on 70 % of new photos (95 % interval 65 to 75)"
    assert "about 1 photo in 3 gets a wrong name" in verdict.remarks[0]
    assert verdict.advice == ("Add photos of every class, of other plants and days.",)


def test_a_class_that_is_never_named_makes_a_good_model_weak() -> None:
    learning = Learning(train_photos={"a": 200, "b": 200, "c": 12})
    verdict = judge(result((98, 2, 0), (2, 98, 0), (5, 5, 0)), learning=learning)
    assert verdict.level == "weak"
    assert verdict.headline.endswith("but it never names 'c'")
    assert words(verdict).count("never names") == 1
    assert verdict.advice == ("Add photos of 'c': it has 12 for training, aim at 30.",)


def test_a_class_that_is_mostly_missed_makes_a_good_model_weak() -> None:
    verdict = judge(result((97, 3, 0), (3, 97, 0), (10, 8, 4)))
    assert verdict.headline.endswith("but it misses most of 'c'")
    assert "It finds 'c' less often than the others: 4 of 22 photos." in verdict.remarks


def test_a_class_below_the_others_is_a_remark() -> None:
    verdict = judge(result((97, 3, 0), (3, 97, 0), (15, 10, 75)))
    assert verdict.level == "usable"
    assert "It finds 'c' less often than the others: 75 of 100 photos." in verdict.remarks
    assert len(verdict.advice) == 1
    assert "'c'" in verdict.advice[0]


def test_one_missed_photo_does_not_damn_its_class() -> None:
    verdict = judge(result((30, 0, 0), (0, 30, 0), (1, 0, 0)))
    assert verdict.level == "usable"
    assert "It never names 'c'." in verdict.remarks


def test_the_usual_spread_between_classes_is_no_remark() -> None:
    assert "less often" not in words(judge(result((95, 5), (13, 87))))
    assert "less often" not in words(judge(result((10, 0), (2, 8))))


def test_classes_without_test_photos_are_named() -> None:
    verdict = judge(result((48, 2, 0), (2, 48, 0), (0, 0, 0)))
    assert verdict.headline == "Usable: right on 96 % of new photos (95 % interval 90 to 98), of 2 of its 3 classes"
    assert "There are no photos of 'c' here: nothing is known about it." in verdict.remarks
    assert any("classes that were not tested" in line for line in verdict.advice)


@pytest.mark.parametrize(
    ("rows", "headline"),
    [
        (
            ((2, 0, 0), (1, 1, 0), (1, 0, 1)),
            "Unproven: right on 4 of 6 photos (95 % interval 30 to 90), too few to distinguish it",
        ),
        (
            ((2, 0, 0), (1, 1, 0), (0, 0, 2)),
            "Unproven: right on 5 of 6 photos (95 % interval 44 to 97), too few to tell w",
        ),
        (
            ((1, 0), (0, 1)),
            "Unproven: right on 2 of 2 photos (95 % interval 34 to 100), too few to distinguish it from chance (50",
        ),
    ],
)
def test_too_few_photos_prove_nothing(rows: Sequence[Sequence[int]], headline: str) -> None:
    verdict = judge(result(*rows))
    assert verdict.level == "unproven"
    assert not verdict.usable
    assert verdict.headline.startswith(headline)
    assert any(line.startswith("Test it on at least") for line in verdict.advice)


def test_a_small_test_says_how_little_it_says() -> None:
    verdict = judge(result((9, 1), (1, 9)))
    assert verdict.level == "usable"
    assert "20 photos are few: of other photos, between 70 and 97 % may be right." in verdict.remarks
    assert verdict.advice == ("Test it on at least 40 photos, each of another leaf (evaluate RUN FOLDER --split all).",)


def test_many_photos_of_few_leaves_say_little_too() -> None:
    verdict = judge(result((90, 10), (10, 90), leaves=20))
    remark = "200 photos of 20 leaves are few: of other photos, between 70 and 97 % may be right."
    assert remark in verdict.remarks
    assert verdict.advice[0].startswith("Test it on at least 210 photos")


def test_photos_that_it_learnt_from_prove_nothing() -> None:
    verdict = judge(result((100, 0), (0, 100), split="train"))
    assert verdict.level == "unproven"
    assert (
        verdict.headline
        == "Unproven: right on 100 % of the photos that it learnt from, which says nothing about new ones"
    )


@pytest.mark.parametrize(("split", "noun"), [("val", "validation photos"), ("all", "these photos")])
def test_other_splits_are_not_called_new(split: str, noun: str) -> None:
    assert f"of {noun} (" in judge(result((99, 1), (1, 99), split=split)).headline


def test_a_model_that_was_still_improving_is_told_with_the_epochs_that_help() -> None:
    rows = epochs(0.5, 0.6, 0.7, 0.75, 0.8, 0.83, 0.88, 0.92, nll=(1.5, 1.2, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4))
    verdict = judge(GOOD, learning=Learning(rows))
    assert verdict.level == "usable"
    assert verdict.remarks[-1] == (
        "It was still improving when it stopped: from 82 to 90 % of the validation photos in the last epochs."
    )
    assert verdict.advice == ("Train longer: --epochs 16 (it was 8).",)


@pytest.mark.parametrize(
    "rows",
    [
        epochs(0.5, 0.7, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, nll=(1.0, 0.8, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4)),
        # More right, but no surer: one photo of a small validation set.
        epochs(0.5, 0.7, 0.9, 0.88, 0.9, 0.88, 0.9, 0.92, nll=(1.0, 0.8, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4)),
        epochs(0.5, 0.7, 0.9, nll=(1.0, 0.6, 0.3)),
    ],
)
def test_a_model_that_came_to_its_end_is_not_sent_on(rows: list[dict[str, float]]) -> None:
    assert judge(GOOD, learning=Learning(rows)) == judge(GOOD)


def test_a_model_that_never_began_to_learn_is_told() -> None:
    rows = epochs(0.33, 0.35, 0.33, 0.36, 0.33, 0.33, ce=(1.1, 1.1, 1.1, 1.1, 1.1, 1.09))
    learning = Learning(rows, {"a": 100, "b": 100, "c": 100}, from_scratch=True)
    verdict = judge(result((30, 0, 0), (30, 0, 0), (30, 0, 0), size=128), learning=learning)
    assert verdict.remarks == (
        "It never began to learn: after 6 epochs it is no better on validation photos than chance.",
    )
    assert [line.partition(":")[0].partition(" (")[0] for line in verdict.advice] == [
        "Start from pretrained weights",
        "Train longer",
        "Check the labels",
        "Show it more detail",
    ]
    assert "--epochs 12 (it was 6)" in words(verdict)
    assert "--image-size 224 (it was 128)" in words(verdict)


def test_a_model_that_knows_its_photos_by_heart_needs_more_photos() -> None:
    rows = epochs(0.33, 0.35, 0.33, 0.36, 0.33, 0.33, ce=(1.1, 0.8, 0.5, 0.3, 0.2, 0.1))
    learning = Learning(rows, {"a": 12, "b": 10, "c": 40}, from_scratch=False)
    verdict = judge(result((20, 15, 15), (18, 17, 15), (16, 17, 17)), learning=learning)
    assert any("memorised" in line for line in verdict.remarks)
    assert verdict.advice == (
        "Add photos of every class, of other plants and days; 'b' has 10 for training, aim at 30.",
    )


def test_one_photo_of_a_short_validation_split_is_no_trend() -> None:
    rows = epochs(0.9, 0.9, 0.92, 0.92, 0.96, 0.96, 1.0, 1.0, nll=(0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2))
    assert Learning(rows, val_photos=1000).progress(0.5) == "still improving"
    assert Learning(rows, val_photos=25).progress(0.5) != "still improving"


def test_a_weak_model_that_stopped_learning_is_not_sent_on_training() -> None:
    rows = epochs(0.4, 0.6, 0.72, 0.7, 0.7, 0.71, 0.7, 0.7)
    verdict = judge(WEAK, learning=Learning(rows, {"a": 120, "b": 150, "c": 200}))
    assert "It stopped learning after epoch 3 of 8: more epochs alone will not help." in verdict.remarks
    assert verdict.advice == (
        "Add photos of every class, of other plants and days; 'a' has 120 for training, aim at 300.",
    )


def test_a_run_of_few_epochs_is_sent_on() -> None:
    verdict = judge(WEAK, learning=Learning(epochs(0.4, 0.6)))
    assert "It trained for 2 epochs only, too few to tell whether it was still improving." in verdict.remarks
    assert verdict.advice[0] == "Train longer: --epochs 10 (it was 2)."


def test_a_verdict_is_a_json_document() -> None:
    verdict = judge(WEAK)
    assert json.loads(json.dumps(verdict.to_json())) == {
        "usable": True,
        "level": "weak",
        "headline": verdict.headline,
        "remarks": list(verdict.remarks),
        "advice": list(verdict.advice),
    }


def test_a_run_folder_says_how_it_learnt(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,train/ce,val/accuracy\n1,1.1,0.5\n2,,0.75\n")
    (tmp_path / "environment.json").write_text('{"train_photos": {"a": 2, "b": 1, "c": 0}}')
    write_split(tmp_path / "splits.json", Split(("a/1.jpg",), ("a/2.jpg", "a/3.jpg"), ()), **UNKNOWN)
    (tmp_path / "recipe.toml").write_text("[data]\n[distill]\npretrained = false\n")
    found = read_learning(tmp_path, ["a", "b", "c"])
    assert found.rows == ({"epoch": 1, "train/ce": 1.1, "val/accuracy": 0.5}, {"epoch": 2, "val/accuracy": 0.75})
    assert found.train_photos == {"a": 2, "b": 1, "c": 0}
    assert found.val_photos == 2
    assert found.from_scratch is True
    (tmp_path / "recipe.toml").write_text("[train]\npretrained = false\nweights = 'w.safetensors'\n")
    assert read_learning(tmp_path, ["a", "b", "c"]).from_scratch is False


@pytest.mark.parametrize(
    ("method", "unlabelled", "photos", "advised"),
    [
        ("hybrid", "", 29, True),
        ("hybrid", "", 30, False),
        ("ce", "", 8, False),
        ("dkd", "", 8, False),
        ("kd", "unlabelled = 'more'", 8, False),
    ],
)
def test_a_student_of_few_labels_may_learn_without(
    tmp_path: Path, method: str, unlabelled: str, photos: int, advised: bool
) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,val/accuracy\n1,0.5\n")
    (tmp_path / "environment.json").write_text(json.dumps({"train_photos": {"a": photos, "b": photos, "c": 30}}))
    write_split(tmp_path / "splits.json", Split(("a/1.jpg",), ("a/2.jpg",), ()), **UNKNOWN)
    recipe = f"[data]\n{unlabelled}\n[distill]\npretrained = true\n[objective]\nmethod = '{method}'\n"
    (tmp_path / "recipe.toml").write_text(recipe)
    advice = judge(GOOD, learning=read_learning(tmp_path, ["a", "b", "c"])).advice
    assert any("--unlabelled DIR" in line for line in advice) == advised


def test_what_a_run_folder_does_not_say_is_unknown(tmp_path: Path) -> None:
    assert read_learning(tmp_path, ["a"]) == Learning()
    (tmp_path / "metrics.csv").write_text("epoch,val/accuracy\n1,half\n")
    write_split(tmp_path / "splits.json", Split(train=("elsewhere/1.jpg",), val=(), test=()), **UNKNOWN)
    (tmp_path / "recipe.toml").write_text("[train\n")
    assert read_learning(tmp_path, ["a"]) == Learning()


def test_a_real_run_stores_the_verdict_that_its_folder_gives(student_run: Path) -> None:
    stored = json.loads((student_run / "evaluation.json").read_text())
    evaluation = EvaluationResult.from_json(stored)
    learning = read_learning(student_run, evaluation.classes)
    assert learning.epochs == 2
    assert learning.from_scratch is True
    counted = sum((learning.train_photos or {}).values())
    assert counted == len(read_split(student_run / "splits.json").train)
    assert stored["verdict"] == json.loads(json.dumps(judge(evaluation, learning=learning).to_json()))


ARTEFACT = {"photos": 200, "accuracy": 0.93, "coverage": 0.9, "accuracy_of_answers": 0.97, "classes": 3}


def test_an_artefact_that_answers_is_usable() -> None:
    assert judge_artefact(**ARTEFACT) == ModelVerdict(  # type: ignore[arg-type]
        "usable",
        "Usable: it answers 90 % of the photos, 97 % of these correctly; about the others it is unsure",
    )
    assert judge_artefact(**ARTEFACT | {"coverage": 1.0}, run=judge(GOOD)).headline == (  # type: ignore[arg-type]
        "Usable: it answers 100 % of the photos, 97 % of these correctly"
    )


def test_an_artefact_that_answers_nothing_is_unusable_with_the_remedy() -> None:
    verdict = judge_artefact(**ARTEFACT | {"coverage": 0.0, "accuracy_of_answers": 1.0})  # type: ignore[arg-type]
    assert not verdict.usable
    assert verdict.headline == "Not usable: it answers no photo, because it is unsure about all of them"
    assert verdict.advice == ("Export it again with --answers 0.90.",)
    assert "100 %" not in words(verdict)


@pytest.mark.parametrize(
    ("changes", "headline"),
    [
        (
            {"accuracy": 0.34, "coverage": 0.0},
            "Not usable: no better than chance (33 %): it names 34 % of 200 photos correctly",
        ),
        (
            {"accuracy": 0.45, "classes": 10},
            "Not usable: more often wrong than right: it names 45 % of 200 photos correctly",
        ),
        ({"coverage": 0.3}, "Weak: it answers 30 % of the photos, 97 % of these correctly"),
        (
            {"coverage": 1.0, "accuracy_of_answers": 0.7},
            "Weak: it answers 100 % of the photos, 70 % of these correctly",
        ),
    ],
)
def test_an_artefact_below_the_bar(changes: dict[str, float], headline: str) -> None:
    assert judge_artefact(**ARTEFACT | changes).headline == headline  # type: ignore[arg-type]


def test_an_artefact_is_never_better_than_its_run() -> None:
    run = judge(result((30, 0, 0), (30, 0, 0), (30, 0, 0)))
    verdict = judge_artefact(**ARTEFACT, run=run)  # type: ignore[arg-type]
    assert verdict.level == "unusable"
    assert verdict.headline == "Not usable, like its run: it names one class for every photo, 'a'"
    assert verdict.advice == run.advice
    verdict = judge_artefact(**ARTEFACT | {"coverage": 0.3}, run=judge(WEAK))  # type: ignore[arg-type]
    assert verdict.headline == "Weak: it answers 30 % of the photos, 97 % of these correctly"
    assert verdict.remarks == (f"Its run: {judge(WEAK).headline}.",)


def test_an_artefact_that_was_measured_on_few_photos_says_so() -> None:
    verdict = judge_artefact(**ARTEFACT | {"photos": 20})  # type: ignore[arg-type]
    assert verdict.remarks == ("20 photos are few: of other photos it may name between 74 and 98 % correctly.",)


def test_a_verdict_needs_no_torch() -> None:
    code = "import sys, agridistill.evaluation.verdict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
