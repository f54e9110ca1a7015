"""Compares methods where a team with few photos stands: 30 photos of each class, five leaf-disjoint folds.

    python benchmarks/few_photos_study.py PHOTOS RUNS docs/results/black-gram.json

The leaf groups are dealt into folds. In each fold, the photos to learn from (24 a class to train, 6 to validate) come
from that fold, and all photos of the other folds are the test. A teacher is fine-tuned on the photos to learn from by
the default `agridistill train`; the students are trained by `agridistill compare`. What is finished in RUNS is not
repeated. The difference to `ce` is paired by fold; its interval is Student's over the folds, whose photos to learn from
are disjoint.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from few_photos import link, shuffled_leaves
from scipy.stats import t as student_t

FOLDS = 5
_RECIPE = """
[data]
image_size = 128

[distill]
model = "mobilenetv3_large_100"
pretrained = false
epochs = {epochs}
batch_size = 16
lr = 5e-4
layer_decay = 0.9
head_first = true
freeze_norm = true

[compare]
baseline = "ce"
seeds = [{seed}]
tuning = "no method was tuned: every one has its default weights, and all have the same student, epochs and views"

[[compare.candidates]]
name = "ce-scratch"
set = ["objective.method=ce", "lr=2e-3", "layer_decay=1.0", "head_first=false", "freeze_norm=false"]
"""
_CANDIDATE = """
[[compare.candidates]]
name = "{name}"
set = ["distill.weights=leaf", "objective.method={name}"]
"""
METHODS = ("ce", "kd", "at", "hybrid", "hybrid-hint")


def deal(photos: Path, out: Path, fold: int, train: int, val: int) -> dict[str, int]:
    """Links the photos of a fold to `out/train`, `out/val` and `out/test`; returns the number of photos in each.

    Photos of the fold beyond `train` and `val`, and its leaves with more than one label, are in no part.
    """
    sizes: dict[int, Counter[int]] = defaultdict(Counter)  # class -> fold -> photos
    counts = {"train": 0, "val": 0, "test": 0}
    taken: Counter[tuple[str, int]] = Counter()
    for members in shuffled_leaves(photos, seed=0):  # the same order for each fold
        label, number = members[0].label, len(members)
        own = min(range(FOLDS), key=lambda each: (sizes[label][each], each))
        sizes[label][own] += number
        part = "test"
        if own == fold:
            one_label = all(member.label == label for member in members)
            room = {"train": train, "val": val} if one_label else {}
            part = next((p for p in room if taken[p, label] + number <= room[p]), "")
            taken[part, label] += number
        if part:
            link(photos, members, out / part)
            counts[part] += number
    return counts


def command(*words: object) -> None:
    """Runs a command of AgriDistill; its progress goes to the screen."""
    subprocess.run([sys.executable, "-m", "agridistill", *map(str, words)], check=True)  # noqa: S603 - our own


def one(photos: Path, folder: Path, fold: int, methods: Sequence[str], epochs: int) -> dict[str, Any]:
    """One fold: dealt, its teacher and its students trained, or read where it is finished."""
    data, teacher, study = folder / "photos", folder / "teacher", folder / "study"
    if not (folder / "counts.json").exists():
        counts = deal(photos, data, fold, train=24, val=6)
        (folder / "counts.json").write_text(json.dumps(counts))
    if not (teacher / "evaluation.json").exists():
        again = ["--resume"] if (teacher / "recipe.toml").exists() else ["--seed", fold]
        command("train", data, "--out", teacher, *again)
    recipe = folder / "recipe.toml"
    candidates = "".join(_CANDIDATE.format(name=name) for name in methods)
    recipe.write_text(_RECIPE.format(epochs=epochs, seed=fold) + candidates)
    command(
        *("compare", data, "--recipe", recipe, "--teacher", teacher, "--out", study, "--jobs", 2, "--no-evidence"),
    )
    found = json.loads((study / "compare.json").read_text())
    rows = {row["name"]: row["runs"][0]["accuracy"] for row in found["budgets"][0]["rows"]}
    seconds = {row["name"]: row["runs"][0]["train_s"] for row in found["budgets"][0]["rows"]}
    counts = json.loads((folder / "counts.json").read_text())
    own = json.loads((teacher / "evaluation.json").read_text())["accuracy"]
    return {"fold": fold, "photos": counts, "teacher": own, "accuracy": rows, "train_s": seconds}


def summary(folds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the folds, and differences to `ce` in points with 95 % intervals (None with one fold)."""
    rows = {}
    baseline = np.array([fold["accuracy"]["ce"] for fold in folds])
    for name in ("teacher", *folds[0]["accuracy"]):
        values = np.array([fold["teacher"] if name == "teacher" else fold["accuracy"][name] for fold in folds])
        difference = 100 * (values - baseline)
        row: dict[str, Any] = {"mean": float(values.mean()), "minus_ce_points": float(difference.mean())}
        if len(folds) > 1:
            half = float(student_t.ppf(0.975, len(folds) - 1) * difference.std(ddof=1) / len(folds) ** 0.5)
            row |= {
                "sd": float(values.std(ddof=1)),
                "ci95": [row["minus_ce_points"] - half, row["minus_ce_points"] + half],
            }
        rows[name] = row
    return rows


def main() -> None:
    """Runs all folds and writes them with their summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="ce among them")
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    folds = []
    for fold in range(FOLDS):
        folder = arguments.runs / f"fold-{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        folds.append(one(arguments.photos, folder, fold, arguments.methods, arguments.epochs))
        print(json.dumps(folds[-1]), flush=True)
        document = {"cores": os.cpu_count(), "epochs": arguments.epochs, "summary": summary(folds), "folds": folds}
        arguments.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
