"""What the default `train` makes of a few photos of each class, and what is left of it in int8.

    python benchmarks/few_photos.py PHOTOS RUNS docs/results/few-photos.json

For each number of photos and each seed, whole leaf groups are drawn into a folder of their own until it has that many
photos of each class; `agridistill train` and `agridistill export --precision int8` run on it as a user would run them,
and both models are evaluated on all other photos. What is finished in RUNS is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from agridistill.data.folder import Sample, scan
from agridistill.data.inspection import inspect_photos, usable_samples
from agridistill.data.leaf_ids import assign_leaf_ids


def shuffled_leaves(photos: Path, seed: int) -> list[list[Sample]]:
    """All readable photos in groups of one leaf, in random order."""
    folder = scan(photos)
    inspection = inspect_photos(folder)
    readable, _ = usable_samples(folder, inspection)
    groups = defaultdict(list)
    for sample in assign_leaf_ids(folder, readable, inspection):
        groups[sample.leaf_id].append(sample)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    return [groups[leaf] for leaf in order]


def link(photos: Path, members: list[Sample], out: Path) -> None:
    """Links photos of a data folder into another one, `out`."""
    for member in members:
        file = out / member.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to((photos / member.path).resolve())


def draw(photos: Path, out: Path, count: int, seed: int) -> None:
    """Links `count` photos of each class to `out/few` and all others to `out/rest`; leaf groups stay whole."""
    taken: dict[int, int] = defaultdict(int)
    for members in shuffled_leaves(photos, seed):
        label = members[0].label
        few = all(member.label == label for member in members) and taken[label] + len(members) <= count
        taken[label] += len(members) if few else 0
        link(photos, members, out / ("few" if few else "rest"))


def command(*words: object) -> tuple[dict[str, Any], float]:
    """The JSON document of a command, and its seconds from start to end."""
    start = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, "-m", "agridistill", *map(str, words), "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout), time.perf_counter() - start


def one(photos: Path, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """One draw: trained, exported and evaluated, or read where it is finished."""
    stored = folder / "result.json"
    if stored.exists():
        return json.loads(stored.read_text())
    if not (folder / "few").exists():
        draw(photos, folder, count, seed)
    run, artefact, rest = folder / "run", folder / "run.onnx", folder / "rest"
    seconds: dict[str, float | None] = {"train": None, "export": None}
    if not (run / "evaluation.json").exists():
        again = ["--resume"] if (run / "recipe.toml").exists() else []
        _, taken = command("train", folder / "few", "--out", run, *([] if again else ["--seed", seed]), *again)
        seconds["train"] = None if again else taken
    exported, seconds["export"] = command("export", run, "--out", artefact, "--precision", "int8")
    network, _ = command("evaluate", run, rest, "--split", "all")
    rounded, _ = command("evaluate", artefact, rest, "--split", "all")
    result = {
        "photos_per_class": count,
        "seed": seed,
        "rest_photos": network["photos"],
        "accuracy": network["accuracy"],
        "accuracy_int8": rounded["accuracy"],
        "own_test_accuracy": json.loads((run / "evaluation.json").read_text())["accuracy"],
        "train_wall_s": seconds["train"],
        "export_wall_s": seconds["export"],
        "size_bytes": exported["size_bytes"],
        "threshold": exported["threshold"],
    }
    stored.write_text(json.dumps(result, indent=2))
    return result


def main() -> None:
    """Runs all draws and writes them with their means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[30, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        for count in arguments.counts:
            rows.append(one(arguments.photos, arguments.runs / f"{count}-{seed}", count, seed))
            print(json.dumps(rows[-1]), flush=True)
            means = {
                str(number): {
                    key: statistics.mean(row[key] for row in rows if row["photos_per_class"] == number)
                    for key in ("accuracy", "accuracy_int8")
                }
                for number in {row["photos_per_class"] for row in rows}
            }
            arguments.out.write_text(
                json.dumps({"cores": os.cpu_count(), "means": means, "draws": rows}, indent=2) + "\n"
            )


if __name__ == "__main__":
    main()
