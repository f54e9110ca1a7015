import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agridistill.data.folder import Sample, scan
from agridistill.errors import DataError, ModelError, RunError
from agridistill.evaluation.evaluate import EvaluationResult, LabelledLogits, evaluate, predict_logits, score
from agridistill.evaluation.metrics import accuracy_interval
from agridistill.manifest import ModelManifest, Preprocessing, require_same_classes

MakeBackend = Callable[..., Any]
CLASSES = ("green", "red")


def three_class_manifest(temperature: float = 1.0) -> ModelManifest:
    return ModelManifest("any", ("a", "b", "absent"), Preprocessing(32), "none", "0", temperature)


def three_class_logits() -> LabelledLogits:
    logits = np.array([[2, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 3]], np.float32)
    return LabelledLogits(logits, np.array([0, 1, 1, 0]), ("x", "x", "y", "z"), ("'b.jpg' (cut off)",))


def test_logits_come_in_the_samples_order_with_labels_and_leaves(
    colour_backend: MakeBackend, colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agridistill.evaluation.evaluate._BATCH", 6)
    samples = [
        Sample(sample.path, sample.label, f"leaf {n // 3}") for n, sample in enumerate(scan(colour_folder).samples)
    ]
    backend = colour_backend()
    steps: list[tuple[int, int]] = []
    found = predict_logits(backend, samples, colour_folder, progress=lambda *step: steps.append(step))
    assert backend.batch_sizes == [6, 6, 6, 2]
    assert steps == [(done, 20) for done in range(1, 21)]
    assert found.target.tolist() == [sample.label for sample in samples]
    assert list(found.leaf_ids) == [sample.leaf_id for sample in samples]
    assert (found.logits.shape, found.logits.dtype) == ((20, 2), np.float32)
    for row, sample in zip(found.logits, samples, strict=True):
        assert row == pytest.approx(predict_logits(backend, [sample], colour_folder).logits[0])
    assert found.logits.argmax(axis=1).tolist() == found.target.tolist()


def test_a_bad_photo_is_named_and_left_out_and_shifts_nothing(
    colour_backend: MakeBackend, colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agridistill.evaluation.evaluate._BATCH", 3)
    (colour_folder / "green" / "3.jpg").write_bytes(b"cut")
    (colour_folder / "red" / "0.jpg").unlink()
    samples = (*scan(colour_folder).samples, Sample("red/0.jpg", 1, "gone"))
    result = evaluate(colour_backend(), samples, colour_folder, split="test")
    assert (result.photos, result.skipped, result.accuracy) == (18, 2, 1.0)
    assert "green/3.jpg" in result.skipped_photos[0]
    assert "red/0.jpg" in result.skipped_photos[1]
    assert result.to_json()["skipped"] == 2


def test_photos_that_were_left_out_before_are_counted_as_well(colour_backend: MakeBackend, colour_folder: Path) -> None:
    samples = scan(colour_folder).samples
    result = evaluate(colour_backend(), samples, colour_folder, split="all", skipped=["'x.jpg' (empty)"])
    assert result.skipped_photos == ("'x.jpg' (empty)",)


def test_the_scores_follow_from_logits_labels_and_leaves() -> None:
    result = replace(
        score(three_class_logits(), three_class_manifest(temperature=2.0), split="val"), parameters=7, macs=50
    )
    assert (result.split, result.photos, result.leaves, result.skipped) == ("val", 4, 3, 1)
    assert result.accuracy == 0.5
    assert result.accuracy_ci95 == accuracy_interval(np.array([True, False, True, False]), ["x", "x", "y", "z"])
    assert result.confusion_matrix == ((1, 0, 1), (1, 1, 0), (0, 0, 0))
    assert [scores.f1 for scores in result.per_class] == [pytest.approx(1 / 2), pytest.approx(2 / 3), None]
    assert result.macro_f1 == pytest.approx((1 / 2 + 2 / 3) / 2)
    e = math.exp
    tempered = [e(1) / (e(1) + 2), 1 / (e(1) + 2), e(0.5) / (e(0.5) + 2), 1 / (e(1.5) + 2)]
    assert result.nll_nats == pytest.approx(-sum(map(math.log, tempered)) / 4)
    confidences = [e(1) / (e(1) + 2)] * 2 + [e(0.5) / (e(0.5) + 2), e(1.5) / (e(1.5) + 2)]
    # The two of equal confidence share a bin, the others have one each.
    gaps = [abs(2 * confidences[0] - 1), abs(confidences[2] - 1), confidences[3]]
    assert result.calibration_error == pytest.approx(sum(gaps) / 4)
    assert (result.parameters, result.macs, result.flops, result.temperature) == (7, 50, 100, 2.0)


def test_a_result_reads_back_from_its_json() -> None:
    result = replace(score(three_class_logits(), three_class_manifest(), split="test"), parameters=7, macs=50)
    text = json.dumps(result.to_json(), allow_nan=False)
    assert EvaluationResult.from_json(json.loads(text) | {"train_s": 3.5}) == result
    renamed = json.loads(text.replace('"absent"', '"caf\\udce9"'))  # a folder whose name is not UTF-8
    assert EvaluationResult.from_json(renamed).classes[2] == "caf\udce9"
    absent = json.loads(text)["per_class"][2]
    assert absent == {"class": "absent", "precision": None, "recall": None, "f1": None, "photos": 0}


def test_unknown_costs_are_null() -> None:
    document = score(three_class_logits(), three_class_manifest(), split="test").to_json()
    assert (document["parameters"], document["macs"], document["flops"]) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"macro_f1": "absent"}, "got 'macro_f1': Field required; evaluate the model again"),
        # pydantic names what is missing of a pair by its place or by its name, depending on the release.
        ({"accuracy_ci95": [1]}, r"expected a complete evaluation in JSON; got 'accuracy_ci95\.(1|high)': "),
        ({"per_class": 3}, "expected a complete evaluation in JSON; got 'per_class': "),
    ],
)
def test_a_damaged_result_is_refused(changes: dict[str, Any], message: str) -> None:
    document = score(three_class_logits(), three_class_manifest(), split="test").to_json() | changes
    with pytest.raises(RunError, match=message):
        EvaluationResult.from_json({key: value for key, value in document.items() if value != "absent"})


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            ("blue", "green"),
            "got 'red' in the model only and 'blue' in the data only; rename the class folders",
        ),
        (("green",), "got 'red' in the model only; "),
        (("red", "green"), "got the same classes in another order"),
        (("green", "red", *"abcdef"), "got 'a', 'b', 'c', 'd', 'e', … in the data only; "),
    ],
)
def test_a_model_of_other_classes_is_refused(classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(ModelError, match="expected a model with the same classes as the data; " + message):
        require_same_classes(CLASSES, classes)


def test_a_split_without_usable_photos_is_an_error(colour_backend: MakeBackend, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected photos in the split 'val'; got none in '.*'; choose another split"):
        evaluate(colour_backend(), [], tmp_path, split="val")
    with pytest.raises(
        DataError,
        match=r"expected readable photos in the split 'val'; got 1 unreadable ones, the first: .*nowhere\.jpg",
    ):
        evaluate(colour_backend(), [Sample("nowhere.jpg", 0, "a")], tmp_path, split="val")
