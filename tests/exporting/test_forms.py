"""Which finished run goes to a device."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agridistill.cli.device_forms import better_teacher_line, form_lines
from agridistill.exporting.forms import DeviceForm, _rank, device_forms
from agridistill.training.run import distill, train
from agridistill.training.settings import (
    DataSettings,
    DistillConfig,
    FitSettings,
    ObjectiveSettings,
    TrainConfig,
)


def form(name: str, accuracy: float, latency_ms: float) -> DeviceForm:
    return DeviceForm(Path(name), name, accuracy, 100, latency_ms, 4_000_000)


def test_the_more_accurate_form_is_proposed_unless_the_photos_cannot_tell_them_apart() -> None:
    clear = [form("student", 0.80, 3.0), form("teacher", 0.95, 9.0)]
    assert [each.model for each in sorted(clear, key=_rank(clear))] == ["teacher", "student"]
    level = [form("teacher", 0.95, 9.0), form("student", 0.94, 3.0)]
    assert [each.model for each in sorted(level, key=_rank(level))] == ["student", "teacher"]


def test_the_lines_name_accuracy_latency_and_size_of_each_and_the_reason() -> None:
    lines = form_lines([form("teacher", 0.95, 9.0), form("student", 0.80, 3.0)])
    assert "95.0%" in lines[0]
    assert "9.0 ms" in lines[0]
    assert "4.0 MB" in lines[0]
    assert lines[-1] == "For a device: teacher, more accurate."


def test_a_student_and_its_convolutional_teacher_are_measured_as_int8_artefacts(leaves: Path, tmp_path: Path) -> None:
    fit = FitSettings(
        model="mobilenetv3_small_minimal_100", epochs=1, batch_size=16, pretrained=False, workers=0, precision="fp32"
    )
    data = DataSettings(image_size=32)
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    train(leaves, teacher, TrainConfig(data=data, train=fit))
    distill(leaves, teacher, student, DistillConfig(data=data, distill=fit, objective=ObjectiveSettings(method="kd")))
    forms = device_forms(student, teacher)
    assert {each.run for each in forms} == {teacher, student}
    assert all(each.latency_ms > 0 and each.size_bytes > 100_000 for each in forms)


def test_a_swin_has_no_int8_form(student_run: Path, teacher_run: Path) -> None:
    assert device_forms(student_run, teacher_run) == ()


def test_the_export_of_a_student_names_a_teacher_that_is_clearly_better(
    leaves: Path, student_run: Path, tmp_path: Path
) -> None:
    teacher, student = (Path(shutil.copytree(student_run, tmp_path / name)) for name in ("teacher", "student"))
    edit(student / "environment.json", lambda document: document.update(teacher=str(teacher)))
    edit(student / "manifest.json", lambda document: document["lineage"].update(teacher_sha256="0" * 64))
    for accuracy, interval, named in ((0.5, [0.4, 0.6], True), (0.5, [0.2, 0.95], False)):
        edit(teacher / "evaluation.json", lambda document: document.update(accuracy=0.9))
        edit(
            student / "evaluation.json",
            lambda document, accuracy=accuracy, interval=interval: document.update(
                accuracy=accuracy, accuracy_ci95=interval
            ),
        )
        line = better_teacher_line(student)
        assert (str(teacher) in line and "90.0% against 50.0%" in line) == named
        assert bool(line) == named
    assert better_teacher_line(student_run) == ""


def edit(path: Path, how: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    how(document)
    path.write_text(json.dumps(document))
