"""What `--balance` makes of a class with a tenth of the others' photos.

    python benchmarks/balance.py PHOTOS RUNS docs/results/balance.json --rare powdery_mildew

For each seed whole leaf groups are drawn until each class has `--count` photos and the rare one a tenth of them;
`agridistill train` runs on them as a user would run it, without and with `--balance`, and both models are evaluated on
all other photos. What is finished in RUNS is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from few_photos import command, draw

from agridistill.data.folder import scan
from agridistill.storage import write_json


def thin_out(few: Path, rare: str, keep: int) -> None:
    """Leaves so many photos of the rare class; the others are in neither part, for they may be copies of these."""
    for photo in sorted((few / rare).iterdir())[keep:]:
        photo.unlink()


def one(photos: Path, folder: Path, rare: str, count: int, seed: int, *, balance: bool) -> dict[str, Any]:
    """One run: trained and evaluated, or read where it is finished."""
    run = folder / ("balanced" if balance else "plain")
    if not (folder / "few").exists():
        draw(photos, folder, count, seed)
        thin_out(folder / "few", rare, count // 10)
    if not (run / "evaluation.json").exists():
        again = ["--resume"] if (run / "recipe.toml").exists() else ["--seed", seed, *(["--balance"] * balance)]
        command("train", folder / "few", "--out", run, *again)
    found, _ = command("evaluate", run, folder / "rest", "--split", "all")
    scores = {row["class"]: row for row in found["per_class"]}
    return {
        "seed": seed,
        "balance": balance,
        "train_photos": {path.name: len(list(path.iterdir())) for path in sorted((folder / "few").iterdir())},
        "test_photos": found["photos"],
        "accuracy": found["accuracy"],
        "macro_f1": found["macro_f1"],
        "rare_recall": scores[rare]["recall"],
        "rare_precision": scores[rare]["precision"],
        "lowest_other_recall": min(row["recall"] for name, row in scores.items() if name != rare),
    }


def main() -> None:
    """Runs all seeds and writes them as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rare", required=True, help="the class that is thinned out")
    parser.add_argument("--count", type=int, default=50, help="photos of each other class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    if given.rare not in scan(given.photos).classes:
        parser.error(f"--rare must be one of {', '.join(scan(given.photos).classes)}")
    rows = []
    for seed in given.seeds:
        for balance in (False, True):
            rows.append(one(given.photos, given.runs / str(seed), given.rare, given.count, seed, balance=balance))
            print(json.dumps(rows[-1]), flush=True)
            write_json(given.out, {"rare": given.rare, "cores": os.cpu_count(), "runs": rows})


if __name__ == "__main__":
    main()
