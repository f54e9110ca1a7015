"""What follows a training: calibration, evaluation and the last files of the run folder; and the result of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agridistill.data.likeness import LearntPhotos, read_learnt, write_learnt
from agridistill.data.prepare import PreparedData
from agridistill.data.split import read_split
from agridistill.errors import AgriDistillError, RunError
from agridistill.evaluation.calibration import familiarity_of, fit_answering
from agridistill.evaluation.evaluate import EvaluationResult, evaluate, predict_logits
from agridistill.evaluation.learning import read_learning
from agridistill.evaluation.verdict import judge
from agridistill.manifest import ModelManifest, read_manifest
from agridistill.models import TorchBackend, complexity, network_of
from agridistill.storage import write_json
from agridistill.training.run_folder import RunFolder


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    out: Path  # the run folder
    evaluation: EvaluationResult  # on the test split
    best_epoch: int  # whose weights were kept, counted from 1
    train_s: float  # seconds in training epochs
    skipped: tuple[tuple[str, str], ...]  # unreadable photos that were left out, with the reason


def complete_run(
    folder: RunFolder,
    prepared: PreparedData,
    manifest: ModelManifest,
    *,
    parents: Sequence[RunFolder],
    best_epoch: int,
    train_s: float,
) -> RunResult:
    """Calibrates on the validation split, evaluates on the test split, and completes the run folder.

    `manifest` is not calibrated yet; `parents` are the runs whose photos this model knows through teacher or weights.
    """
    network, root = network_of(manifest, folder.path), prepared.root
    answering = fit_answering(predict_logits(TorchBackend(network, manifest), prepared.val, root))
    familiarity = familiarity_of(root, prepared.train, prepared.val, manifest.preprocessing)
    manifest = replace(
        manifest,
        temperature=answering.temperature,
        threshold=answering.abstention.threshold,
        familiarity=familiarity.to_json() if familiarity else {},
    )
    phashes = (prepared.phashes[sample.path] for sample in (*prepared.train, *prepared.val))
    write_learnt(folder.learnt, prepared.fingerprint, phashes, _photos_of(parents))
    # Written once, calibrated: a folder with a manifest is a model that can be used.
    manifest.write(folder.manifest)
    size = complexity(network, manifest.preprocessing.image_size)
    result = evaluate(TorchBackend(network, manifest), prepared.test, root, classes=prepared.classes, split="test")
    result = replace(result, parameters=size.parameters, macs=size.macs)
    verdict = judge(result, learning=read_learning(folder.path, prepared.classes))
    document = result.to_json() | {"train_s": train_s, "best_epoch": best_epoch, "verdict": verdict.to_json()}
    write_json(folder.evaluation, document)
    return RunResult(folder.path, result, best_epoch, train_s, prepared.skipped)


def _photos_of(runs: Sequence[RunFolder]) -> list[LearntPhotos]:
    found = (read_learnt(run.learnt, read_manifest(run.manifest)) for run in runs if run.manifest.exists())
    return [photos for photos in found if photos]


def read_result(folder: RunFolder, skipped: tuple[tuple[str, str], ...]) -> RunResult:
    """The stored result of a finished run."""
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


def teacher_evaluation(student: Path, teacher: Path) -> EvaluationResult | None:
    """The teacher's evaluation, where the student learnt from a teacher and both have the same test photos."""
    teacher_run, student_run = RunFolder(teacher), RunFolder(student)
    try:
        result = EvaluationResult.from_json(json.loads(teacher_run.evaluation.read_text(encoding="utf-8")))
        same_photos = _test_photos(teacher_run) == _test_photos(student_run)
        distilled = "teacher_sha256" in read_manifest(student_run.manifest).lineage
    except (OSError, ValueError, AgriDistillError):
        return None  # nothing to compare with
    return result if distilled and same_photos else None


def _test_photos(folder: RunFolder) -> tuple[object, ...]:
    return folder.read_environment().get("data_fingerprint"), read_split(folder.splits).test
