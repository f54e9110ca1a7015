"""The runs of a study as one JSON document: means, spreads, and paired differences with their intervals."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agridistill.data.labels import FOLDERS, Layout
from agridistill.data.split import read_split
from agridistill.errors import RunError
from agridistill.evaluation.predictions import Predictions, predictions_on_test
from agridistill.models.saved import load_backend
from agridistill.progress import ProgressCallback, silent
from agridistill.study.plan import BudgetSettings, ComparePlan, Job
from agridistill.study.statistics import mcnemar, paired_difference
from agridistill.training.run_folder import RunFolder

FORMAT_VERSION = 1
_AVERAGED = ("accuracy", "val_accuracy", "macro_f1", "nll_nats", "calibration_error", "train_s")


@dataclass(frozen=True)
class FinishedRun:
    """A run of a study, and what it says about each test photo.

    Attributes:
        job: that it came from.
        figures: of its evaluation and training, for the document.
        predictions: on the test split.
    """

    job: Job
    figures: Mapping[str, Any]
    predictions: Predictions


def summarise(
    data: Path,
    out: Path,
    plan: ComparePlan,
    teacher: Path | None,
    *,
    layout: Layout = FOLDERS,
    progress: ProgressCallback = silent,
) -> dict[str, Any]:
    """Reads every run of a finished study.

    Args:
        data: that the runs were trained on.
        out: folder of the study.
        plan: of the study.
        teacher: its run folder; None where nobody listens to one.
        layout: how the labels of the data are found.
        progress: told how far the predictions are, where they have to be made.

    Returns:
        A JSON document: the teacher, and for each budget its rows (one a candidate, with every run, means, standard
        deviations over seeds and the paired difference to the baseline), the method that is best on the validation
        split, its paired differences to the other methods, and McNemar's tests between it and the second.

    Raises:
        RunError: runs of different test splits.
    """
    runs = [
        _finished(job, out / "runs" / job.budget / f"{job.candidate}-{job.seed}", out, data, layout, progress)
        for job in plan.jobs
    ]
    _require_one_test(runs)
    settings = plan.settings
    of_budgets = [(budget, [run for run in runs if run.job.budget == budget.name]) for budget in settings.budgets]
    return {
        "format_version": FORMAT_VERSION,
        "baseline": settings.baseline,
        "tuning": settings.tuning,
        "test_photos": len(runs[0].predictions.paths),
        "test_leaves": len(set(runs[0].predictions.leaf_ids)),
        "teacher": _teacher(teacher, runs) if teacher is not None and RunFolder(teacher).evaluation.exists() else None,
        "budgets": [_budget(budget, plan, of_budget) for budget, of_budget in of_budgets if of_budget],
    }


def _budget(budget: BudgetSettings, plan: ComparePlan, runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """The rows of one budget's runs, and its best method against the others."""
    baseline, config = plan.settings.baseline, plan.budgets[budget.name]
    rows = []
    for candidate in plan.settings.candidates:
        own = [run for run in runs if run.job.candidate == candidate.name]
        if own:
            rows.append(_row(candidate.name, candidate.set, own, runs, baseline))
    best = _methods(rows)
    return {
        "name": budget.name,
        "set": list(budget.set),
        "epochs": config.distill.epochs,
        "labels": config.data.labels,
        "image_size": config.data.image_size,
        "rows": rows,
        "best": best[0]["name"],
        "best_against": _against_others(best, runs),
        "mcnemar": _finalists(best[:2], runs),
    }


def _teacher(teacher: Path, runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """The teacher's figures, the share of the labels that it learnt from, and the test photos that it had seen."""
    folder = RunFolder(teacher)
    learnt = set(read_split(folder.splits).train) if folder.splits.exists() else set()
    try:
        labels = tomllib.loads(folder.recipe.read_text(encoding="utf-8")).get("data", {}).get("labels", 1.0)
    except (OSError, ValueError):
        labels = None
    return {
        "run": teacher.name,
        "labels": labels,
        "test_photos_learnt": len(learnt & set(runs[0].predictions.paths)),
        **figures_of(teacher),
    }


def figures_of(run: Path) -> dict[str, Any]:
    """What a finished run folder says in numbers."""
    folder = RunFolder(run)
    try:
        evaluation = json.loads(folder.evaluation.read_text(encoding="utf-8"))
        with folder.metrics.open(encoding="utf-8") as file:
            epochs = list(csv.DictReader(file))
        by_epoch = [float(row["val/accuracy"]) for row in epochs]
        return {
            "model": evaluation["model"],
            "accuracy": evaluation["accuracy"],
            "accuracy_ci95": evaluation["accuracy_ci95"],
            "val_accuracy": max(by_epoch),
            "macro_f1": evaluation["macro_f1"],
            "nll_nats": evaluation["nll_nats"],
            "calibration_error": evaluation["calibration_error"],
            "parameters": evaluation["parameters"],
            "macs": evaluation["macs"],
            "image_size": evaluation["image_size"],
            "best_epoch": evaluation["best_epoch"],
            "train_s": evaluation["train_s"],
            "val_accuracy_by_epoch": by_epoch,
            "hardware": folder.read_environment().get("hardware"),
            "versions": folder.read_environment().get("versions"),
        }
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError("a finished run", f"'{run}' ({type(error).__name__}: {error})", "train it anew") from None


def _finished(job: Job, run: Path, out: Path, data: Path, layout: Layout, progress: ProgressCallback) -> FinishedRun:
    file = out / "predictions" / job.budget / f"{job.candidate}-{job.seed}.json"
    predictions = predictions_on_test(load_backend(run), data, run, file, layout=layout, progress=progress)
    return FinishedRun(job, {"seed": job.seed, "run": str(run.relative_to(out)), **figures_of(run)}, predictions)


def _require_one_test(runs: Sequence[FinishedRun]) -> None:
    for run in runs[1:]:
        if run.predictions.paths != runs[0].predictions.paths:
            raise RunError(
                "one test split for all runs of a study",
                f"other photos in '{run.job.name}' than in '{runs[0].job.name}'",
                "pass --splits FILE and choose another --out",
            )


def _row(
    name: str, changes: Sequence[str], own: Sequence[FinishedRun], of_budget: Sequence[FinishedRun], baseline: str
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "set": list(changes),
        "model": own[0].figures["model"],
        "parameters": own[0].figures["parameters"],
        "macs": own[0].figures["macs"],
        "seeds": [run.job.seed for run in own],
        "runs": [dict(run.figures) for run in own],
    }
    for key in _AVERAGED:
        values = [run.figures[key] for run in own]
        row[f"{key}_mean"] = float(np.mean(values))
        # Of one seed there is no spread.
        row[f"{key}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    theirs = [run for run in of_budget if run.job.candidate == baseline]
    row["difference"] = _difference(own, theirs) if theirs and name != baseline else None
    return row


def _difference(own: Sequence[FinishedRun], theirs: Sequence[FinishedRun]) -> dict[str, Any]:
    """To the baseline, over the seeds that both have, or over all where they share none."""
    shared = sorted({run.job.seed for run in own} & {run.job.seed for run in theirs})
    first, second = ([run for run in runs if not shared or run.job.seed in shared] for runs in (own, theirs))
    found = paired_difference(
        np.stack([run.predictions.correct for run in sorted(first, key=lambda run: run.job.seed)]),
        np.stack([run.predictions.correct for run in sorted(second, key=lambda run: run.job.seed)]),
        own[0].predictions.leaf_ids,
        paired_seeds=bool(shared),
    )
    return {
        "points": found.points,
        "points_ci95": list(found.points_ci95),
        "seeds": shared or None,
        "of_leaves_alone": found.of_leaves_alone,
    }


def _against_others(methods: Sequence[Mapping[str, Any]], of_budget: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """The first method minus each of the others, in their order."""
    runs = {row["name"]: [run for run in of_budget if run.job.candidate == row["name"]] for row in methods}
    best, *others = runs.values()
    return [{"other": name, **_difference(best, own)} for name, own in zip([*runs][1:], others, strict=True)]


def _methods(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The candidates of the study's student, best first on the validation split, over the seeds that all have.

    By the validation split: finalists that the test split chose would be tested on what chose them. Networks of other
    sizes are no finalists of a comparison of methods.
    """
    models = [row["model"] for row in rows]
    student = max(models, key=models.count)
    methods = [row for row in rows if row["model"] == student]
    common = set.intersection(*(set(row["seeds"]) for row in methods))

    def val_accuracy(row: Mapping[str, Any]) -> float:
        return float(np.mean([run["val_accuracy"] for run in row["runs"] if not common or run["seed"] in common]))

    return sorted(methods, key=lambda row: -val_accuracy(row))


def _finalists(rows: Sequence[Mapping[str, Any]], of_budget: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """McNemar's test between two candidates, seed by seed."""
    if len(rows) < 2:
        return []
    first, second = rows
    answers = {(run.job.candidate, run.job.seed): run.predictions.correct for run in of_budget}
    return [
        {
            "first": first["name"],
            "second": second["name"],
            "seed": seed,
            **asdict(mcnemar(answers[first["name"], seed], answers[second["name"], seed])),
        }
        for seed in first["seeds"]
        if seed in second["seeds"]
    ]
