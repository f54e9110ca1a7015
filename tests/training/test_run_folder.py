"""What a run folder holds, when a run may start in it, and which results are compared."""

from __future__ import annotations

import errno
import json
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from tests.training.small_runs import DATA, FIT

from agridistill.errors import RunError
from agridistill.evaluation.evaluate import EvaluationResult
from agridistill.manifest import read_manifest
from agridistill.training.run import train
from agridistill.training.run_folder import RunFolder, teacher_evaluation
from agridistill.training.settings import TrainConfig


def test_a_finished_run_is_never_overwritten(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds a finished run; choose another --out"):
        train(leaves, teacher_run, TrainConfig())
    (tmp_path / "mine.txt").touch()
    with pytest.raises(RunError, match="holds other files"):
        train(leaves, tmp_path, TrainConfig())
    with pytest.raises(RunError, match="an unfinished run to resume; got none"):
        train(leaves, tmp_path / "new", TrainConfig(), resume=True)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_reported_in_one_line(
    leaves: Path, teacher_run: Path, tmp_path: Path, content: bytes
) -> None:
    run = tmp_path / "run"
    shutil.copytree(teacher_run, run)
    (run / "evaluation.json").unlink()
    (run / "last.ckpt").write_bytes(content)
    config = TrainConfig(DATA, train=replace(FIT, model="swin_nano_patch4_window4_64"))
    with pytest.raises(RunError, match="a complete checkpoint; got a damaged") as caught:
        train(leaves, run, config, resume=True)
    assert "\n" not in str(caught.value)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    for name in ("splits.json", "notes.txt"):  # a split alone may be the user's
        (tmp_path / name).write_text("{}")
        with pytest.raises(RunError, match="which holds other files"):
            RunFolder(tmp_path).require_startable(resume=False)
        (tmp_path / name).unlink()
    (tmp_path / ".recipe.toml.7-ab.part").touch()
    RunFolder(tmp_path).require_startable(resume=False)


def test_a_fork_of_a_package_does_not_prevent_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "Pillow":
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    folder = RunFolder(tmp_path)
    folder.write_environment({})
    assert json.loads(folder.environment.read_text())["versions"]["Pillow"] is None


@pytest.mark.parametrize("method", ["write_environment", "write_recipe"])
def test_a_start_that_fails_can_be_given_again(
    leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    config = TrainConfig(DATA, train=FIT)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, method, full)
        with pytest.raises(OSError, match="No space left"):
            train(leaves, tmp_path / "run", config)
    assert train(leaves, tmp_path / "run", config).best_epoch == 1


def test_a_run_folder_holds_what_the_design_promises(teacher_run: Path) -> None:
    evaluation = json.loads((teacher_run / "evaluation.json").read_text())
    assert EvaluationResult.from_json(evaluation).photos > 0
    assert evaluation["train_s"] > 0
    assert evaluation["best_epoch"] == 1
    environment = json.loads((teacher_run / "environment.json").read_text())
    assert environment["seed"] == 0
    assert len(environment["data_fingerprint"]) == 64
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    recipe = tomllib.loads((teacher_run / "recipe.toml").read_text())
    assert recipe["train"]["epochs"] == 1
    assert recipe["data"]["image_size"] == 64
    manifest = read_manifest(teacher_run / "manifest.json")
    assert manifest.lineage["method"] == "ce"
    assert manifest.temperature > 0
    assert list((teacher_run / "tensorboard").glob("events*"))
    assert (teacher_run / "last.ckpt").exists()
    assert not list(teacher_run.glob("*.part"))


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


@pytest.mark.parametrize("key", ["layout", "start", "teacher_sha256"])
def test_an_environment_that_lacks_a_key_is_named_as_damaged(teacher_run: Path, tmp_path: Path, key: str) -> None:
    folder = RunFolder(tmp_path)
    document = json.loads(RunFolder(teacher_run).environment.read_text())
    del document[key]
    folder.environment.write_text(json.dumps(document))
    with pytest.raises(RunError, match=f"damaged '.*environment.json' .no '{key}' in it.; start a new run"):
        folder.read_environment()
