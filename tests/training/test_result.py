from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agridistill.training.run_folder import teacher_evaluation


@pytest.fixture
def teacher(teacher_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(teacher_run, tmp_path / "teacher"))


@pytest.fixture
def student(teacher_run: Path, tmp_path: Path) -> Path:
    """A run on the teacher's photos that has learnt from it."""
    out = Path(shutil.copytree(teacher_run, tmp_path / "student"))
    change(out / "manifest.json", lambda document: document["lineage"].update(teacher_sha256="0" * 64))
    return out


def change(path: Path, how: Callable[[dict[str, dict[str, object]]], object]) -> None:
    document = json.loads(path.read_text())
    how(document)
    path.write_text(json.dumps(document))


def test_a_teacher_is_compared_by_its_own_evaluation(teacher: Path, student: Path) -> None:
    change(student / "evaluation.json", lambda document: document.update(accuracy=0.5))
    found = teacher_evaluation(student, teacher)
    assert found is not None
    assert found.accuracy == json.loads((teacher / "evaluation.json").read_text())["accuracy"]


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
    student: Path,
    file: str,
    how: Callable[[dict[str, dict[str, object]]], object],
) -> None:
    assert teacher_evaluation(student, teacher) is not None
    change(teacher / file, how)
    assert teacher_evaluation(student, teacher) is None


def test_a_teacher_that_was_not_asked_is_not_compared(teacher: Path, student: Path) -> None:
    change(student / "manifest.json", lambda document: document["lineage"].pop("teacher_sha256"))
    assert teacher_evaluation(student, teacher) is None


def test_without_the_teachers_evaluation_nothing_is_said(teacher: Path, student: Path) -> None:
    for damaged in ("", "[]"):
        (teacher / "evaluation.json").write_text(damaged)
        assert teacher_evaluation(student, teacher) is None
    (teacher / "evaluation.json").unlink()
    assert teacher_evaluation(student, teacher) is None
