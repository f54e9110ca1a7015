"""What photos without labels bring: 10 labelled photos of each class, the rest without, five leaf-disjoint folds.

    python benchmarks/unlabelled_study.py PHOTOS RUNS docs/results/black-gram-unlabelled.json

The leaf groups are dealt into folds. In each round, one fold is the test, which nothing learns from. The labelled photos
(8 a class to train, 2 to validate) come from the next fold, so that the rounds have other ones; all other photos of the
four folds have no labels. A teacher is fine-tuned on the labelled photos by the default `agridistill train`; all
students have the same number of steps. `pseudo` is `ce` with the teacher's classes as the labels of the photos without
one. What is finished in RUNS is not repeated. A difference is paired by round; its interval is Student's.
"""

from __future__ import annotations

import argparse
import csv
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

from agridistill.data.unlabelled import repeats_for

FOLDS, TRAIN, VAL, BATCH, STEPS = 5, 8, 2, 16, 320
MAIN = ("ce", "hybrid", "hybrid-unlabelled")
ARMS = (*MAIN, "kd", "kd-unlabelled", "pseudo")
# (first, second): the difference first - second is reported.
PAIRS = (
    ("hybrid-unlabelled", "hybrid"),
    ("hybrid-unlabelled", "ce"),
    ("hybrid-unlabelled", "pseudo"),
    ("hybrid-unlabelled", "kd-unlabelled"),
    ("kd-unlabelled", "kd"),
    ("hybrid", "ce"),
    ("pseudo", "ce"),
)
_RECIPE = """
[data]
image_size = 128

[distill]
model = "mobilenetv3_large_100"
weights = "leaf"
batch_size = {batch}
lr = 5e-4
layer_decay = 0.9
head_first = true
freeze_norm = true
"""


def deal(photos: Path, out: Path, test_fold: int) -> dict[str, int]:
    """Links the photos of a round to `out/photos/train`, `val` and `test` and to `out/unlabelled`; returns the counts.

    In `out/pseudo` there are the same labelled photos, those to train repeated as `--unlabelled` repeats them.
    """
    sizes: dict[int, Counter[int]] = defaultdict(Counter)  # class -> fold -> photos
    dealt: dict[str, list[Any]] = defaultdict(list)
    taken: Counter[tuple[str, int]] = Counter()
    for members in shuffled_leaves(photos, seed=0):  # the same order in each round
        label, number = members[0].label, len(members)
        own = min(range(FOLDS), key=lambda fold: (sizes[label][fold], fold))
        sizes[label][own] += number
        part = "test" if own == test_fold else "unlabelled"
        if own == (test_fold + 1) % FOLDS and all(member.label == label for member in members):
            room = {"train": TRAIN, "val": VAL}
            part = next((p for p in room if taken[p, label] + number <= room[p]), part)
            taken[part, label] += number
        dealt[part] += members
    for part, members in dealt.items():
        link(photos, members, out / "unlabelled" if part == "unlabelled" else out / "photos" / part)
        if part in ("val", "test"):
            link(photos, members, out / "pseudo" / part)
    for again in range(repeats_for(len(dealt["train"]), len(dealt["unlabelled"]))):
        for member in dealt["train"]:
            file = out / "pseudo" / "train" / Path(member.path).parent / f"labelled{again}_{Path(member.path).name}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.symlink_to((photos / member.path).resolve())
    return {part: len(members) for part, members in dealt.items()}


def command(*words: object, **options: Any) -> None:
    """Runs a command of AgriDistill; its progress goes to the screen."""
    subprocess.run([sys.executable, "-m", "agridistill", *map(str, words)], check=True, **options)  # noqa: S603 - ours


def add_pseudo_labels(folder: Path) -> float:
    """Links the photos without labels to the folders of the teacher's classes; returns how many of these are right."""
    rows = folder / "pseudo.csv"
    if not rows.exists():
        with (folder / "pseudo.part").open("w") as file:
            command("predict", folder / "teacher", folder / "unlabelled", "--csv", stdout=file)
        (folder / "pseudo.part").rename(rows)
    right = []
    with rows.open(newline="") as file:
        for row in csv.DictReader(file):
            photo = Path(row["path"])
            right.append(photo.parent.name == row["label"])
            target = folder / "pseudo" / "train" / row["label"] / f"pseudo_{photo.parent.name}_{photo.name}"
            if not target.exists():
                target.symlink_to(photo.resolve())
    return sum(right) / len(right)


def one(photos: Path, folder: Path, test_fold: int, arms: Sequence[str]) -> dict[str, Any]:
    """One round: dealt, its teacher and its students trained, or read where it is finished."""
    counted, teacher = folder / "counts.json", folder / "teacher"
    if not counted.exists():
        counted.write_text(json.dumps(deal(photos, folder, test_fold)))
    counts = json.loads(counted.read_text())
    if not (teacher / "evaluation.json").exists():
        again = ["--resume"] if (teacher / "recipe.toml").exists() else ["--seed", test_fold]
        command("train", folder / "photos", "--out", teacher, *again)
    (folder / "recipe.toml").write_text(_RECIPE.format(batch=BATCH))
    uses = counts["train"] * repeats_for(counts["train"], counts["unlabelled"]) + counts["unlabelled"]
    epochs = {"few": round(STEPS / (counts["train"] // BATCH)), "many": round(STEPS / (uses // BATCH))}
    # As many views of a labelled photo in all arms.
    views = {"few": epochs["many"] * repeats_for(counts["train"], counts["unlabelled"]), "many": epochs["many"]}
    found: dict[str, Any] = {"fold": test_fold, "photos": counts, "accuracy": {}, "train_s": {}, "steps": {}}
    for arm in arms:
        run, size = folder / arm, "many" if arm == "pseudo" or arm.endswith("-unlabelled") else "few"
        if arm == "pseudo":
            found["pseudo_labels_right"] = add_pseudo_labels(folder)
        if not (run / "evaluation.json").exists():
            method = "ce" if arm == "pseudo" else arm.removesuffix("-unlabelled")
            data = folder / ("pseudo" if arm == "pseudo" else "photos")
            words: list[object] = ["distill", data, "--out", run, "--recipe", folder / "recipe.toml"]
            words += ["--seed", test_fold, "--method", method, "--epochs", epochs[size], "--views", views[size]]
            words += ["--teacher", teacher] if method != "ce" else []
            words += ["--unlabelled", folder / "unlabelled"] if arm.endswith("-unlabelled") else []
            command(*words, *(["--resume"] if (run / "recipe.toml").exists() else []))
        stored = json.loads((run / "evaluation.json").read_text())
        found["accuracy"][arm], found["train_s"][arm] = stored["accuracy"], stored["train_s"]
        found["steps"][arm] = epochs[size] * ((counts["train"] if size == "few" else uses) // BATCH)
    found["teacher"] = json.loads((teacher / "evaluation.json").read_text())["accuracy"]
    return found


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the rounds, and differences in points with 95 % intervals (None with one round)."""
    accuracy = {arm: np.array([each["accuracy"][arm] for each in rounds]) for arm in rounds[0]["accuracy"]}
    accuracy["teacher"] = np.array([each["teacher"] for each in rounds])
    differences = {}
    for first, second in PAIRS:
        if first in accuracy and second in accuracy:
            values = 100 * (accuracy[first] - accuracy[second])
            mean, interval = float(values.mean()), None
            if len(values) > 1:
                half = float(student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
                interval = [mean - half, mean + half]
            differences[f"{first} - {second}"] = {"points": mean, "ci95": interval}
    means = {
        arm: {"mean": float(values.mean()), "sd": float(values.std(ddof=1)) if len(values) > 1 else None}
        for arm, values in accuracy.items()
    }
    return {"accuracy": means, "differences": differences}


def main() -> None:
    """Runs the rounds and writes them with their summary after each one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--folds", nargs="+", type=int, default=range(FOLDS), choices=range(FOLDS))
    arguments = parser.parse_args()
    rounds = []
    for fold in arguments.folds:
        folder = arguments.runs / f"fold-{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        rounds.append(one(arguments.photos, folder, fold, arguments.arms))
        print(json.dumps(rounds[-1]), flush=True)
        document = {"cores": os.cpu_count(), "summary": summary(rounds), "rounds": rounds}
        arguments.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
