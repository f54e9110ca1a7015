"""The verdict about a model, for people: one coloured headline, what was found, and what helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from agridistill.cli.output import shown, stderr, stdout

if TYPE_CHECKING:
    from agridistill.evaluation.evaluate import EvaluationResult
    from agridistill.evaluation.verdict import ModelVerdict
    from agridistill.exporting.artefact import ExportResult

# Without colours the first word of the headline says the same.
_STYLES = {"usable": "bold green", "weak": "bold yellow", "unproven": "bold yellow", "unusable": "bold red"}


def print_verdict(verdict: ModelVerdict, *, json: bool = False) -> None:
    """On stdout after the scores; with `json`, where stdout is one document, on stderr."""
    console = stderr if json else stdout
    console.print(shown(verdict.headline), markup=False, style=_STYLES[verdict.level])
    for line in verdict.remarks:
        console.print(f"  {shown(line)}", markup=False)
    if verdict.advice:
        console.print("What helps:", style="bold")
    for line in verdict.advice:
        console.print(f"  - {shown(line)}", markup=False)


def verdict_on(result: EvaluationResult, model: Path) -> ModelVerdict:
    """The verdict about a run folder or an artefact that was evaluated."""
    from agridistill.evaluation.learning import read_learning
    from agridistill.evaluation.verdict import judge

    return judge(result, learning=read_learning(model, result.classes) if model.is_dir() else None)


def verdict_on_artefact(result: ExportResult, run: Path) -> ModelVerdict:
    """The verdict about an artefact that was just written."""
    from agridistill.evaluation.verdict import judge_artefact
    from agridistill.manifest import read_manifest
    from agridistill.runtime.artefacts import manifest_path

    return judge_artefact(
        photos=result.parity.photos,
        accuracy=result.parity.accuracy,
        coverage=result.abstention.coverage,
        accuracy_of_answers=result.abstention.accuracy,
        classes=len(read_manifest(manifest_path(result.out)).classes),
        run=verdict_on_run(run),
    )


def verdict_on_run(run: Path) -> ModelVerdict | None:
    """The verdict about a finished run from its files; None where they do not tell."""
    from agridistill.errors import RunError
    from agridistill.evaluation.evaluate import EvaluationResult

    try:
        document = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
        return verdict_on(EvaluationResult.from_json(document), run)
    except (OSError, ValueError, RunError):
        # The artefact has figures of its own.
        return None
