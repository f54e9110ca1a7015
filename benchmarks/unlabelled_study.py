"""What photos without labels bring: 10 labelled photos of each class, the rest without, five leaf-disjoint folds.

    python benchmarks/unlabelled_study.py PHOTOS RUNS docs/results/black-gram-unlabelled.json
    python benchmarks/unlabelled_study.py TOMATO RUNS docs/results/tomato-new-camera.json --new-camera

The leaf groups are dealt into folds. In each round, one fold is the test, which nothing learns from. The labelled
photos (8 a class to train, 2 to validate) come from the next fold, so that the rounds have other ones; all other photos
of the four folds have no labels. A teacher is fine-tuned on the labelled photos by the default `agridistill train`; all
students have the same number of steps. `pseudo` is `ce` with the teacher's classes as the labels of the photos without
one. What is finished in RUNS is not repeated. A difference is paired by round; its interval is Student's.

`--new-camera` deals otherwise: the labelled photos are of one session of each class, as they are; those without labels
and the test are of its other sessions, taken by a worse camera (`spoilt`). With `--same-places`, only the camera
differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from few_photos import link, shuffled_leaves
from PIL import Image
from scipy.stats import t as student_t

from agridistill import distill, load, train
from agridistill.data.unlabelled import repeats_for
from agridistill.evaluation import corruptions
from agridistill.training.settings import MAX_VIEWS

FOLDS, TRAIN, VAL, BATCH = 5, 8, 2, 16
# With a new camera: photos of a class without labels and in the test, and what stands before the shot in a file name.
UNLABELLED, TEST, SESSION = 120, 80, re.compile(r".*___(.*?)[ _.]*\d")
EPOCHS = 4  # over the photos without labels, unless --epochs says otherwise; all arms have as many steps
SCRATCH = "scratch-"  # what an arm begins with whose student starts from random weights
MAIN = ("ce", "hybrid", "hybrid-unlabelled")
# `hybrid-unlabelled` with one change: the least share of labelled photos (with nearly as many steps), the temperature.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "hybrid-unlabelled-10": {"data.labelled_share": 0.1},
    "hybrid-unlabelled-50": {"data.labelled_share": 0.5},
    "hybrid-unlabelled-t1": {"objective.temperature": 1.0},
    "hybrid-unlabelled-t2": {"objective.temperature": 2.0},
}
# `pseudo` by `hybrid` in place of `ce`: the teacher's class is the label of a photo without one, at half of the weight.
PSEUDO_HYBRID = {"objective.w_ce": 0.5, "objective.w_kd": 0.5}
ARMS = (*MAIN, "kd", "kd-unlabelled", "pseudo", "pseudo-hybrid", *(f"{SCRATCH}{arm}" for arm in MAIN), *VARIANTS)
# (first, second): the difference first - second is reported.
PAIRS = (
    ("hybrid-unlabelled", "hybrid"),
    ("hybrid-unlabelled", "ce"),
    ("hybrid-unlabelled", "pseudo"),
    ("hybrid-unlabelled", "kd-unlabelled"),
    ("kd-unlabelled", "kd"),
    ("hybrid", "ce"),
    ("pseudo", "ce"),
    (f"{SCRATCH}hybrid-unlabelled", f"{SCRATCH}hybrid"),
    (f"{SCRATCH}hybrid-unlabelled", f"{SCRATCH}ce"),
)
RECIPE = {
    "data": {"image_size": 128},
    "distill": {
        "model": "mobilenetv3_large_100",
        "weights": "leaf",
        "batch_size": BATCH,
        "lr": 5e-4,
        "layer_decay": 0.9,
        "head_first": True,
        "freeze_norm": True,
    },
}
RANDOM_START = {
    "distill": {"model": "mobilenetv3_large_100", "pretrained": False, "batch_size": BATCH, "lr": 2e-3},
    "data": RECIPE["data"],
}


def deal_folds(photos: Path, out: Path, number: int) -> dict[str, int]:
    """Links the photos of a round to `out/photos/train`, `val` and `test` and to `out/unlabelled`; returns the counts.

    Rounds 5 to 9 are the folds of a second deal, and so on. In `out/pseudo` there are the same labelled photos, those
    to train repeated as `--unlabelled` repeats them.
    """
    sizes: dict[int, Counter[int]] = defaultdict(Counter)  # class -> fold -> photos
    dealt: dict[str, list[Any]] = defaultdict(list)
    taken: Counter[tuple[str, int]] = Counter()
    deal, test_fold = divmod(number, FOLDS)
    for members in shuffled_leaves(photos, seed=deal):  # the same order in each round of a deal
        label, count = members[0].label, len(members)
        own = min(range(FOLDS), key=lambda fold: (sizes[label][fold], fold))
        sizes[label][own] += count
        part = "test" if own == test_fold else "unlabelled"
        if own == (test_fold + 1) % FOLDS and all(member.label == label for member in members):
            room = {"train": TRAIN, "val": VAL}
            part = next((p for p in room if taken[p, label] + count <= room[p]), part)
            taken[part, label] += count
        dealt[part] += members
    for part, members in dealt.items():
        link(photos, members, out / "unlabelled" if part == "unlabelled" else out / "photos" / part)
        if part in ("val", "test"):
            link(photos, members, out / "pseudo" / part)
    repeat_labelled(photos, out, dealt)
    return {part: len(members) for part, members in dealt.items()}


def deal_cameras(photos: Path, out: Path, test_fold: int, *, new_places: bool = True) -> dict[str, int]:
    """Deals a round with a new camera, like `deal_folds`.

    Only classes with several sessions take part; the photos with labels are of one of them, or with `new_places` False
    of the same sessions as the others. The number of the round is the seed that chooses sessions and leaves.
    """
    sessions: dict[int, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))  # class -> session -> leaves
    for members in shuffled_leaves(photos, seed=test_fold):
        names = {found[1].lower() for member in members if (found := SESSION.match(Path(member.path).name))}
        if len(names) == 1 and len({member.label for member in members}) == 1:
            sessions[members[0].label][names.pop()].append(members)
    rng, dealt = random.Random(test_fold), defaultdict(list)
    for label in sorted(sessions):
        large = sorted(name for name, leaves in sessions[label].items() if sum(map(len, leaves)) >= UNLABELLED + TEST)
        if len(large) < 2:
            continue
        chosen = rng.choice(large)
        known = sessions[label][chosen]
        new = [leaf for name in large if name != chosen or not new_places for leaf in sessions[label][name]]
        rng.shuffle(new)
        if not new_places:
            known, new = new[: TRAIN + VAL], new[TRAIN + VAL :]
        for leaves, most, wanted in (
            (known, 4, {"train": TRAIN, "val": VAL}),
            (new, 40, {"test": TEST, "unlabelled": UNLABELLED}),
        ):
            for part, members in share_out(leaves, most, wanted).items():
                dealt[part] += members
    for part, members in dealt.items():
        folder = out / "unlabelled" if part == "unlabelled" else out / "photos" / part
        if part in ("train", "val"):
            link(photos, members, folder)
        else:
            spoilt(photos, members, folder)
    for part in ("val", "test"):
        shutil.copytree(out / "photos" / part, out / "pseudo" / part, symlinks=True)
    repeat_labelled(photos, out, dealt)
    return {part: len(members) for part, members in dealt.items()}


def share_out(leaves: Sequence[list[Any]], most: int, wanted: Mapping[str, int]) -> dict[str, list[Any]]:
    """Fills parts of the wanted sizes with leaves, in order; at most `most` photos of a leaf take part."""
    parts: dict[str, list[Any]] = {part: [] for part in wanted}
    for members in leaves:
        part = next((part for part in parts if len(parts[part]) < wanted[part]), None)
        if part is None:
            return parts
        parts[part] += members[: min(most, wanted[part] - len(parts[part]))]
    if any(len(parts[part]) < wanted[part] for part in parts):
        raise SystemExit(f"too few photos: { ({part: len(found) for part, found in parts.items()}) } of {wanted}")
    return parts


def spoilt(photos: Path, members: list[Any], out: Path) -> None:
    """Writes photos as a worse camera in the shade takes them: darker, bluer, less sharp, noisy, compressed."""
    for member in members:
        photo = np.asarray(Image.open(photos / member.path).convert("RGB"))
        rng = np.random.default_rng(0)  # the same noise in each photo: the fixed pattern of a poor sensor
        for damage, strength in (
            (corruptions.blur, 0.008),
            (corruptions.light, 0.65),
            (corruptions.colour_cast, -0.15),
            (corruptions.noise, 12),
        ):
            photo = damage(photo, strength, rng)
        file = out / member.path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(file, "JPEG", quality=40)


DEALS: Mapping[str, Callable[[Path, Path, int], dict[str, int]]] = {
    "folds": deal_folds,
    "new camera": deal_cameras,
    "new camera, same places": partial(deal_cameras, new_places=False),
}


def repeat_labelled(photos: Path, out: Path, dealt: dict[str, list[Any]]) -> None:
    """Links the labelled photos to train to `out/pseudo`, repeated as `--unlabelled` repeats them."""
    for again in range(repeats_for(len(dealt["train"]), len(dealt["unlabelled"]))):
        for member in dealt["train"]:
            file = out / "pseudo" / "train" / Path(member.path).parent / f"labelled{again}_{Path(member.path).name}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.symlink_to((photos / member.path).resolve())


def add_pseudo_labels(folder: Path) -> float:
    """Links the photos without labels to the folders of the teacher's classes; returns how many of these are right."""
    photos = sorted(path for path in (folder / "unlabelled").rglob("*") if path.is_file())
    right = 0
    for photo, result in zip(photos, load(folder / "teacher").predict_many(photos), strict=True):
        assert result.prediction is not None  # noqa: S101 - every photo of the study is readable
        label = result.prediction.label
        right += photo.parent.name == label
        target = folder / "pseudo" / "train" / label / f"pseudo_{photo.parent.name}_{photo.name}"
        if not target.exists():
            target.symlink_to(photo.resolve())
    return right / len(photos)


def one(
    photos: Path,
    folder: Path,
    test_fold: int,
    arms: Sequence[str],
    many_epochs: int,
    kind: str,
) -> dict[str, Any]:
    """One round: dealt, its teacher and its students trained, or read where it is finished."""
    counted, teacher = folder / "counts.json", folder / "teacher"
    if not counted.exists():
        for begun in ("photos", "pseudo", "unlabelled"):
            shutil.rmtree(folder / begun, ignore_errors=True)
        counted.write_text(json.dumps({"deal": kind, **DEALS[kind](photos, folder, test_fold)}))
    counts = json.loads(counted.read_text())
    if (begun := counts.pop("deal", None)) != kind:
        raise SystemExit(f"'{folder}' holds rounds of another kind ({begun}): choose another folder for the runs")
    known = train(folder / "photos", teacher, seed=test_fold, resume=(teacher / "recipe.toml").exists())
    repeats = repeats_for(counts["train"], counts["unlabelled"])
    # Steps in an epoch of the labelled photos alone, and of all photos.
    few, many = counts["train"] // BATCH, (counts["train"] * repeats + counts["unlabelled"]) // BATCH
    found: dict[str, Any] = {"fold": test_fold, "photos": counts, "teacher": known.evaluation.accuracy}
    found |= {"accuracy": {}, "train_s": {}, "steps": {}}
    if {"pseudo", "pseudo-hybrid"} & set(arms):
        found["pseudo_labels_right"] = add_pseudo_labels(folder)
    for arm in arms:
        is_pseudo = arm.startswith("pseudo")
        extra = dict(PSEUDO_HYBRID if arm == "pseudo-hybrid" else VARIANTS.get(arm, {}))
        form, share = "hybrid-unlabelled" if arm in VARIANTS else arm, extra.get("data.labelled_share")
        is_large = is_pseudo or form.endswith("-unlabelled")
        used = counts["train"] * repeats_for(counts["train"], counts["unlabelled"], share) + counts["unlabelled"]
        steps = used // BATCH if is_large else few  # in an epoch
        epochs = round(many_epochs * many / steps)
        # As many views of a labelled photo in all arms but those of another share.
        views = min(epochs, MAX_VIEWS) if is_large else min(many_epochs, MAX_VIEWS) * repeats
        method = form.removeprefix("pseudo-").removeprefix(SCRATCH).removesuffix("-unlabelled").replace("pseudo", "ce")
        run = folder / (arm if many_epochs == EPOCHS else f"{arm}-{many_epochs}")
        if form.endswith("-unlabelled"):
            extra["data.unlabelled"] = str(folder / "unlabelled")
        result = distill(
            folder / ("pseudo" if is_pseudo else "photos"),
            None if method == "ce" else teacher,
            run,
            RANDOM_START if arm.startswith(SCRATCH) else RECIPE,
            resume=(run / "recipe.toml").exists(),
            **{"seed": test_fold, "epochs": epochs, "views": views, "objective.method": method, **extra},
        )
        found["accuracy"][arm], found["train_s"][arm] = result.evaluation.accuracy, result.train_s
        found["steps"][arm] = epochs * steps
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
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs over the photos without labels")
    parser.add_argument("--folds", nargs="+", type=int, default=range(FOLDS), help="5 to 9 are of a second deal, ...")
    parser.add_argument("--new-camera", action="store_true", help="photos without labels and test of another camera")
    parser.add_argument("--same-places", action="store_true", help="with --new-camera: of the same sessions")
    arguments = parser.parse_args()
    if arguments.same_places and not arguments.new_camera:
        parser.error("--same-places needs --new-camera")
    kind = {0: "folds", 1: "new camera", 2: "new camera, same places"}[arguments.new_camera + arguments.same_places]
    rounds = []
    for fold in arguments.folds:
        folder = arguments.runs / f"fold-{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        rounds.append(one(arguments.photos, folder, fold, arguments.arms, arguments.epochs, kind))
        print(json.dumps(rounds[-1]), flush=True)
        document = {
            "cores": os.cpu_count(),
            "photos": kind,
            "epochs": arguments.epochs,
            "summary": summary(rounds),
            "rounds": rounds,
        }
        arguments.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
