"""Which finished run goes to a device."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from agridistill.cli.export import better_form, form_lines, known_forms, measure_forms
from agridistill.export import forms
from agridistill.export.forms import DeviceForm, _rank, device_forms
from agridistill.training.run import distill, train
from agridistill.training.settings import (
    DataSettings,
    DistillConfig,
    FitSettings,
    ObjectiveSettings,
    TrainConfig,
)

pytestmark = pytest.mark.slow


def form(name: str, accuracy: float, latency_ms: float) -> DeviceForm:
    return DeviceForm(Path(name), name, accuracy, 100, latency_ms, 4_000_000)


def test_the_more_accurate_form_is_proposed_unless_the_photos_cannot_tell_them_apart() -> None:
    clear = [form("student", 0.80, 3.0), form("teacher", 0.95, 9.0)]
    assert [each.model for each in sorted(clear, key=_rank(clear))] == ["teacher", "student"]
    level = [form("teacher", 0.95, 9.0), form("student", 0.94, 3.0)]
    assert [each.model for each in sorted(level, key=_rank(level))] == ["student", "teacher"]


def test_the_lines_name_accuracy_latency_and_size_of_each_and_the_reason() -> None:
    lines = form_lines([form("teacher", 0.95, 9.0), form("student", 0.80, 3.0)])
    assert "95 %" in lines[0]
    assert "9.0 ms" in lines[0]
    assert "4.0 MB" in lines[0]
    assert lines[-1] == "Better for a device: teacher, more accurate."


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


@pytest.fixture
def two_runs(student_run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A teacher that is usable by its evaluation, and a student."""
    teacher, student = (Path(shutil.copytree(student_run, tmp_path / name)) for name in ("teacher", "student"))
    return teacher, student


def test_measured_forms_are_kept_and_named_again(
    two_runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, student = two_runs
    monkeypatch.setattr("agridistill.cli.export.verdict_on_run", lambda run: None)
    measured = (
        DeviceForm(teacher, "a", 0.9, 100, 9.0, 4_000_000),
        DeviceForm(student, "b", 0.5, 100, 3.0, 3_000_000),
    )
    monkeypatch.setattr(forms, "device_forms", lambda *args, **options: measured)
    assert measure_forms(student, teacher, data=Path("photos")) == measured
    assert known_forms(student) == measured
    assert better_form(student, measured) == teacher
    err = capsys.readouterr().err.replace("\n", " ")
    assert "90 % of 100 validation photos (95 % interval 83 % to 94 %), 9.0 ms, 4.0 MB" in err
    assert better_form(student, measured[::-1]) is None
    assert known_forms(teacher) == ()
    shutil.rmtree(teacher)
    assert known_forms(student) == ()


def test_a_form_that_misses_its_gate_is_never_proposed(capsys: pytest.CaptureFixture[str]) -> None:
    missing = replace(form("teacher", 0.95, 9.0), misses="same answer on 91 % instead of 95 %")
    forms = [missing, form("student", 0.80, 3.0)]
    ranked = sorted(forms, key=_rank(forms))
    assert [each.model for each in ranked] == ["student", "teacher"]
    assert better_form(Path("student"), ranked) is None
    assert "cannot be exported in int8: same answer on 91 %" in capsys.readouterr().err.replace("\n", " ")
    assert better_form(Path("student"), [missing]) is None


def test_the_reason_does_not_deny_a_lower_accuracy() -> None:
    assert form_lines([form("s", 0.88, 2.5), form("t", 0.92, 7.9)])[-1].endswith(
        "faster; with 100 photos, the difference in accuracy is not significant."
    )
    assert form_lines([form("s", 0.9, 2.5), form("t", 0.9, 7.9)])[-1].endswith(" photos as accurate.")
