"""What a finished run gives back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from agridistill.evaluation.result import EvaluationResult
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


def read_result(folder: RunFolder, skipped: tuple[tuple[str, str], ...]) -> RunResult:
    """What the first process wrote, for all of them.

    Args:
        folder: of a finished run.
        skipped: unreadable photos that were left out, with the reason.
    """
    document = json.loads(folder.evaluation.read_text(encoding="utf-8"))
    result = EvaluationResult.from_json(document)
    return RunResult(folder.path, result, document["best_epoch"], document["train_s"], skipped)
