"""What a finished run gives back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from agridistill.data.splits import read_split
from agridistill.errors import AgriDistillError, RunError
from agridistill.evaluation.evaluate import EvaluationResult
from agridistill.manifest import read_manifest
from agridistill.training.run_folder import RunFolder


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        out: the run folder.
        evaluation: on the test split.
        best_epoch: whose weights were kept, counted from 1.
        train_s: seconds spent in training epochs.
        skipped: unreadable photos that were left out, with the reason.
    """

    out: Path
    evaluation: EvaluationResult
    best_epoch: int
    train_s: float
    skipped: tuple[tuple[str, str], ...]


def teacher_evaluation(student: Path, teacher: Path) -> EvaluationResult | None:
    """The teacher's evaluation, where the student learnt from a teacher and both have the same test photos.

    Args:
        student: a finished run.
        teacher: the run folder that it was given.
    """
    theirs, ours = RunFolder(teacher), RunFolder(student)
    try:
        result = EvaluationResult.from_json(json.loads(theirs.evaluation.read_text(encoding="utf-8")))
        same_photos = _test_photos(theirs) == _test_photos(ours)
        learnt = "teacher_sha256" in read_manifest(ours.manifest).lineage
    except (OSError, ValueError, AgriDistillError):
        # Nothing to compare with; the student is finished all the same.
        return None
    return result if learnt and same_photos else None


def _test_photos(folder: RunFolder) -> tuple[object, ...]:
    return folder.read_environment().get("data_fingerprint"), read_split(folder.splits).test


def read_result(folder: RunFolder, skipped: tuple[tuple[str, str], ...]) -> RunResult:
    """What the first process wrote, for all of them.

    Args:
        folder: of a finished run.
        skipped: unreadable photos that were left out, with the reason.
    """
    document = json.loads(folder.evaluation.read_text(encoding="utf-8"))
    result = EvaluationResult.from_json(document)
    return RunResult(folder.path, result, document["best_epoch"], document["train_s"], skipped)


def stored_result(folder: RunFolder) -> RunResult:
    """The result of a finished run, from its files alone.

    Raises:
        RunError: a damaged file.
    """
    skipped = folder.read_environment().get("skipped", [])
    try:
        return read_result(folder, tuple((str(path), str(reason)) for path, reason in skipped))
    except (KeyError, OSError, RunError, TypeError, ValueError) as error:
        reason = error.got if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
        raise RunError(
            "the whole result of a finished run",
            f"a damaged '{folder.evaluation}' ({reason})",
            "restore the file, or start a new run; the model itself can be used",
        ) from None
