"""Runs -> one JSON document and one picture: what docs/results.md quotes.

    python benchmarks/summarise_runs.py DATA --teacher RUN --baseline RUN... --method RUN... --out docs/results/cpu

Writes OUT.json (every figure, and the paired difference between the methods on the same test photos) and OUT.png
(validation accuracy by epoch; needs the `report` extra). Runs are paired in the order given: give the same seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from agridistill.api import load
from agridistill.data.prepare import prepare_data
from agridistill.evaluation.evaluate import predict_logits
from agridistill.storage import replacing, write_json

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESAMPLES = 10_000
FIGURES = (
    "accuracy",
    "accuracy_ci95",
    "macro_f1",
    "nll_nats",
    "calibration_error",
    "parameters",
    "macs",
    "photos",
    "leaves",
)


def summary_of(run: Path) -> dict[str, Any]:
    evaluation = json.loads((run / "evaluation.json").read_text())
    environment = json.loads((run / "environment.json").read_text())
    with (run / "metrics.csv").open() as file:
        epochs = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return {
        "run": run.name,
        "model": evaluation["model"],
        "seed": environment["seed"],
        "precision": environment["precision"],
        **{key: evaluation[key] for key in FIGURES},
        "best_epoch": evaluation["best_epoch"],
        "train_s": evaluation["train_s"],
        "val_accuracy_by_epoch": [row["val/accuracy"] for row in epochs],
        "val_nll_by_epoch": [row["val/nll"] for row in epochs],
        "train_ce_by_epoch": [row["train/ce"] for row in epochs],
        "per_class": evaluation["per_class"],
        "hardware": environment["hardware"],
        "versions": environment["versions"],
        "data_fingerprint": environment["data_fingerprint"],
    }


def correct_on_test(run: Path, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Which test photos a run gets right, and their leaves; photos in the order of their paths."""
    prepared = prepare_data(data, split_file=run / "splits.json")
    found = predict_logits(load(run).backend, prepared.test, data)
    return found.logits.argmax(1) == found.target, np.asarray(found.leaf_ids)


def paired_difference(baseline: list[np.ndarray], method: list[np.ndarray], leaves: np.ndarray) -> dict[str, Any]:
    """Mean difference in accuracy, in points, with its 95 % interval from resampled leaves (seeds as they are)."""
    difference = np.mean(method, axis=0) - np.mean(baseline, axis=0)
    names, leaf = np.unique(leaves, return_inverse=True)
    of_leaf = np.bincount(leaf, difference)
    photos = np.bincount(leaf)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(names), (RESAMPLES, len(names)))
    means = of_leaf[drawn].sum(1) / photos[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "difference_points": 100 * float(difference.mean()),
        "difference_points_ci95": [100 * float(low), 100 * float(high)],
        "difference_points_by_seed": [100 * float(m.mean() - b.mean()) for b, m in zip(baseline, method, strict=True)],
    }


def draw(path: Path, groups: dict[str, list[dict[str, Any]]]) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    styles = {"teacher": ("#000000", ":"), "baseline": ("#d55e00", "--"), "method": ("#0072b2", "-")}
    for name, runs in groups.items():
        colour, line = styles[name]
        for number, run in enumerate(runs):
            values = [100 * value for value in run["val_accuracy_by_epoch"]]
            label = {
                "teacher": "Swin teacher",
                "baseline": "student alone (ce)",
                "method": "student with teacher (hybrid)",
            }
            axes.plot(range(1, len(values) + 1), values, line, color=colour, label=None if number else label[name])
    axes.set(xlabel="epoch", ylabel="validation accuracy, %", ylim=(40, 100))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--baseline", type=Path, nargs="+", required=True)
    parser.add_argument("--method", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    groups = {
        "teacher": [summary_of(given.teacher)],
        "baseline": [summary_of(run) for run in given.baseline],
        "method": [summary_of(run) for run in given.method],
    }
    baseline, method = ([correct_on_test(run, given.data) for run in runs] for runs in (given.baseline, given.method))
    paired = paired_difference([row[0] for row in baseline], [row[0] for row in method], baseline[0][1])
    write_json(given.out.with_suffix(".json"), {**groups, "paired": paired})
    draw(given.out.with_suffix(".png"), groups)
    for name, runs in groups.items():
        print(name, [f"{100 * run['accuracy']:.2f} %" for run in runs])
    print(json.dumps(paired, indent=2))


if __name__ == "__main__":
    main()
