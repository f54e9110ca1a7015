"""Summarises the runs of a study in one JSON document: means, deviations, and paired differences with intervals.

The interval of a difference takes into account that several photos show one leaf, and that a method has several seeds.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agridistill.data.labels import FOLDERS, Layout
from agridistill.data.split import read_split
from agridistill.errors import RunError
from agridistill.evaluation.evaluate import Predictions, predictions_on_test
from agridistill.evaluation.metrics import mcnemar
from agridistill.models import load_backend
from agridistill.progress import ProgressCallback, silent
from agridistill.study.plan import BudgetSettings, CandidateSettings, ComparePlan, Job
from agridistill.training.run_folder import RunFolder

FORMAT_VERSION = 1
RESAMPLES = 10_000
_CHUNK = 500
_AVERAGED = ("accuracy", "val_accuracy", "macro_f1", "nll_nats", "calibration_error", "train_s")
_FIGURES = (
    *("model", "accuracy", "accuracy_ci95", "macro_f1", "nll_nats", "calibration_error", "parameters", "macs"),
    *("image_size", "best_epoch", "train_s"),
)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of a study: its entry in `compare.json` (`figures`), and its predictions on the test split."""

    job: Job
    figures: Mapping[str, Any]
    predictions: Predictions


def run_of(out: Path, job: Job) -> Path:
    """Returns the run folder of a job; `out` is the folder of the study."""
    return out / "runs" / job.name


def summarise(
    data: Path,
    out: Path,
    plan: ComparePlan,
    teacher: Path | None,
    *,
    layout: Layout = FOLDERS,
    progress: ProgressCallback = silent,
) -> dict[str, Any]:
    """Summarises the runs of the finished study in `out`, and computes predictions on the test split that are missing.

    Returns the content of `compare.json`. "best" of a budget is the best method on the validation split, "best_against"
    has its differences to the other methods, "mcnemar" the tests between it and the second best.

    Raises:
        RunError: two runs have different test splits.
    """
    runs = []
    for job in plan.jobs:
        folder = run_of(out, job)
        file = out / "predictions" / f"{job.name}.json"
        predictions = predictions_on_test(load_backend(folder), data, folder, file, layout=layout, progress=progress)
        figures = {"seed": job.seed, "run": str(folder.relative_to(out)), **read_figures(folder)}
        runs.append(FinishedRun(job, figures, predictions))
    first = runs[0]
    for run in runs:
        if run.predictions.paths != first.predictions.paths:
            expected = "one test split for all runs of a study"
            got = f"different test photos in '{run.job.name}' and in '{first.job.name}'"
            raise RunError(expected, got, "train all runs with the same --splits FILE, in another --out")
    settings = plan.settings
    by_budget = [(budget, [run for run in runs if run.job.budget == budget.name]) for budget in settings.budgets]
    has_teacher = teacher is not None and RunFolder(teacher).evaluation.exists()
    return {
        "format_version": FORMAT_VERSION,
        "baseline": settings.baseline,
        "tuning": settings.tuning,
        "test_photos": len(first.predictions.paths),
        "test_leaves": len(set(first.predictions.leaf_ids)),
        "teacher": _teacher(teacher, first.predictions.paths) if teacher is not None and has_teacher else None,
        "budgets": [_budget(budget, plan, own) for budget, own in by_budget if own],
    }


def read_figures(run: Path) -> dict[str, Any]:
    """Reads the figures of a finished run from its folder; a RunError if it is not finished, or a file is damaged."""
    folder = RunFolder(run)
    try:
        evaluation = json.loads(folder.evaluation.read_text(encoding="utf-8"))
        with folder.metrics.open(encoding="utf-8") as file:
            by_epoch = [float(row["val/accuracy"]) for row in csv.DictReader(file)]
        environment = folder.read_environment()
        return {
            **{key: evaluation[key] for key in _FIGURES},
            "val_accuracy": max(by_epoch),
            "val_accuracy_by_epoch": by_epoch,
            "hardware": environment["hardware"],
            "versions": environment["versions"],
        }
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError("a finished run", f"'{run}' ({type(error).__name__}: {error})", "train it again") from None


def _teacher(teacher: Path, test_paths: Sequence[str]) -> dict[str, Any]:
    """Returns the teacher's figures, its share of labels, and how many test photos were its training photos."""
    folder = RunFolder(teacher)
    learnt = set(read_split(folder.splits).train)
    labels = folder.read_recipe()["data"]["labels"]
    overlap = len(learnt & set(test_paths))
    return {"run": teacher.name, "labels": labels, "test_photos_learnt": overlap, **read_figures(teacher)}


def _budget(budget: BudgetSettings, plan: ComparePlan, runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Returns the rows of one budget, and the comparison of its best method with the others."""
    config = plan.budgets[budget.name]
    candidates = plan.settings.candidates
    by_name = {one.name: [run for run in runs if run.job.candidate == one.name] for one in candidates}
    baseline = by_name[plan.settings.baseline]
    rows = [_row(one, by_name[one.name], baseline) for one in candidates if by_name[one.name]]
    best, *others = (row["name"] for row in _ranked_methods(rows))
    return {
        "name": budget.name,
        "set": list(budget.set),
        "epochs": config.distill.epochs,
        "labels": config.data.labels,
        "image_size": config.data.image_size,
        "rows": rows,
        "best": best,
        "best_against": [{"other": name, **_difference(by_name[best], by_name[name])} for name in others],
        "mcnemar": _mcnemar_by_seed(by_name[best], by_name[others[0]]) if others else [],
    }


def _row(candidate: CandidateSettings, runs: Sequence[FinishedRun], baseline: Sequence[FinishedRun]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": candidate.name,
        "set": list(candidate.set),
        **{key: runs[0].figures[key] for key in ("model", "parameters", "macs")},
        "seeds": [run.job.seed for run in runs],
        "runs": [dict(run.figures) for run in runs],
    }
    for key in _AVERAGED:
        values = [run.figures[key] for run in runs]
        row[f"{key}_mean"] = float(np.mean(values))
        row[f"{key}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    row["difference"] = _difference(runs, baseline) if baseline and runs != baseline else None
    return row


def _ranked_methods(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the rows of the methods by validation accuracy over the seeds that all have, the best first.

    Methods are the candidates with the most frequent network. The test split does not decide the order, because the
    methods are compared on it afterwards.
    """
    models = [row["model"] for row in rows]
    student = max(models, key=models.count)
    methods = [row for row in rows if row["model"] == student]
    common = set.intersection(*(set(row["seeds"]) for row in methods))

    def val_accuracy(row: Mapping[str, Any]) -> float:
        return float(np.mean([run["val_accuracy"] for run in row["runs"] if not common or run["seed"] in common]))

    return sorted(methods, key=lambda row: -val_accuracy(row))


def _difference(runs: Sequence[FinishedRun], others: Sequence[FinishedRun]) -> dict[str, Any]:
    """Compares `runs` with `others` over the seeds that both have, or over all seeds if they share none."""
    shared = sorted({run.job.seed for run in runs} & {run.job.seed for run in others})

    def correct(runs: Sequence[FinishedRun]) -> Any:
        used = [run for run in runs if not shared or run.job.seed in shared]
        return np.stack([run.predictions.correct for run in sorted(used, key=lambda run: run.job.seed)])

    leaf_ids = runs[0].predictions.leaf_ids
    found = paired_difference(correct(runs), correct(others), leaf_ids, paired_seeds=bool(shared))
    return {**asdict(found), "points_ci95": list(found.points_ci95), "seeds": shared or None}


@dataclass(frozen=True)
class Difference:
    """The mean accuracy of a method minus that of a baseline on the same photos, with a confidence interval."""

    points: float  # percentage points; above 0 the method is better
    points_ci95: tuple[float, float]
    of_leaves_alone: bool  # one of the two has a single run: the interval lacks chance in training, and is too narrow


def paired_difference(
    method: NDArray[np.bool_],
    baseline: NDArray[np.bool_],
    leaf_ids: Sequence[str],
    *,
    paired_seeds: bool,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Computes the accuracy of a method minus that of a baseline, with a bootstrap interval over leaves and seeds.

    Each resample draws as many leaves as there are, with replacement, and uses all photos of each drawn leaf for both
    methods (Efron and Tibshirani 1993, chapter 8, for clusters). It then adds a random error of the mean over seeds,
    drawn from Student's t distribution with the standard deviation and degrees of freedom of the seeds: drawing two or
    three seeds with replacement would lose most of their variance. A further error is that of one more leaf of typical
    size, on all of whose photos the methods differ: with few leaves, a bootstrap misses what no leaf at hand shows.

    Args:
        method: `(S, N)` bool: whether the run with each of S seeds classifies each of N photos correctly.
        baseline: `(R, N)` bool: the same for the baseline with R seeds, on the same photos.
        leaf_ids: the leaf id of each of the N photos.
        paired_seeds: whether both have the same seeds in the same order; the error is then that of the differences.
    """
    names, leaf = np.unique(np.asarray(leaf_ids), return_inverse=True)
    photos = np.bincount(leaf)
    gains = np.bincount(leaf, method.mean(axis=0) - baseline.mean(axis=0), len(names))
    rng = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    for start in range(0, resamples, _CHUNK):
        leaves = rng.integers(0, len(names), (min(_CHUNK, resamples - start), len(names)))
        means.append(gains[leaves].sum(axis=1) / photos[leaves].sum(axis=1))
    resampled = np.concatenate(means)
    resampled += rng.normal(0.0, (photos**2).sum() / photos.sum() ** 2, len(resampled))
    by_seed = [method.mean(axis=1), baseline.mean(axis=1)]
    samples = [by_seed[0] - by_seed[1]] if paired_seeds else by_seed
    for values in samples:
        if len(values) > 1:
            error = np.std(values, ddof=1) / np.sqrt(len(values))
            resampled = resampled + error * rng.standard_t(len(values) - 1, len(resampled))
    # Two very different seeds give a wide interval, but a difference of accuracies lies between -1 and 1.
    low, high = np.percentile(resampled, [2.5, 97.5]).clip(-1, 1)
    points = 100 * (float(method.mean()) - float(baseline.mean()))
    return Difference(points, (100 * float(low), 100 * float(high)), any(len(values) < 2 for values in samples))


def _mcnemar_by_seed(runs: Sequence[FinishedRun], others: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    seconds = {run.job.seed: run for run in others}
    return [
        {
            "first": run.job.candidate,
            "second": second.job.candidate,
            "seed": run.job.seed,
            **mcnemar(run.predictions.correct, second.predictions.correct),
        }
        for run in runs
        if (second := seconds.get(run.job.seed)) is not None
    ]
