"""Which finished run goes to a device."""

from __future__ import annotations

from pathlib import Path

from agridistill.cli.device_forms import form_lines
from agridistill.exporting.forms import DeviceForm, _rank, device_forms, teacher_of
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
    assert teacher_of(student) == teacher
    forms = device_forms(student)
    assert {each.run for each in forms} == {teacher, student}
    assert all(each.latency_ms > 0 and each.size_bytes > 100_000 for each in forms)


def test_a_swin_has_no_int8_form(teacher_run: Path) -> None:
    assert device_forms(teacher_run) == ()


def test_a_teacher_that_is_gone_is_left_out(student_run: Path) -> None:
    assert teacher_of(student_run) is None
