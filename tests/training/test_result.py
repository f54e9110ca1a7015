from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agridistill.training.result import RunResult, read_result, weaker_teacher
from agridistill.training.run_folder import RunFolder


@pytest.fixture
def teacher(teacher_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(teacher_run, tmp_path / "teacher"))


@pytest.fixture
def student(teacher_run: Path, tmp_path: Path) -> Callable[[float], RunResult]:
    """A run on the teacher's photos that is so much better, and has learnt from it."""
    out = Path(shutil.copytree(teacher_run, tmp_path / "student"))
    change(out / "manifest.json", lambda document: document["lineage"].update(teacher_sha256="0" * 64))
    result = read_result(RunFolder(out), ())
    accuracy = result.evaluation.accuracy
    return lambda gain: replace(result, evaluation=replace(result.evaluation, accuracy=accuracy + gain))


def change(path: Path, how: Callable[[dict[str, dict[str, object]]], object]) -> None:
    document = json.loads(path.read_text())
    how(document)
    path.write_text(json.dumps(document))


def test_a_teacher_is_weaker_where_the_student_is_right_more_often(
    teacher: Path, student: Callable[[float], RunResult]
) -> None:
    found = weaker_teacher(student(0.01), teacher)
    assert found is not None
    assert found.accuracy == student(0).evaluation.accuracy
    for gain in (0, -0.01, 1e-5):
        assert weaker_teacher(student(gain), teacher) is None


@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("splits.json", lambda document: document["splits"]["train"].append(document["splits"]["test"].pop())),
        ("environment.json", lambda document: document.update(data_fingerprint="1" * 64)),
        ("evaluation.json", lambda document: document.clear()),
    ],
)
def test_a_teacher_of_other_photos_is_not_compared(
    teacher: Path,
    student: Callable[[float], RunResult],
    file: str,
    how: Callable[[dict[str, dict[str, object]]], object],
) -> None:
    assert weaker_teacher(student(0.5), teacher) is not None
    change(teacher / file, how)
    assert weaker_teacher(student(0.5), teacher) is None


def test_a_teacher_that_was_not_asked_is_not_compared(teacher: Path, student: Callable[[float], RunResult]) -> None:
    result = student(0.5)
    change(result.out / "manifest.json", lambda document: document["lineage"].pop("teacher_sha256"))
    assert weaker_teacher(result, teacher) is None


def test_without_the_teachers_evaluation_nothing_is_said(teacher: Path, student: Callable[[float], RunResult]) -> None:
    for damaged in ("", "[]"):
        (teacher / "evaluation.json").write_text(damaged)
        assert weaker_teacher(student(0.5), teacher) is None
    (teacher / "evaluation.json").unlink()
    assert weaker_teacher(student(0.5), teacher) is None
