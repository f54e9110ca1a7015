"""Whether compressed features teach as well as those of the live teacher: `hybrid-hint` with and without the cache.

    python benchmarks/compressed_features.py PHOTOS RUNS --out docs/results/compressed-features.json

A small Swin learns from all labels, then students with a tenth of the labels learn from it, with the same photos,
views, seeds and steps. With the cache, the features of the first stage are the compressed ones; with `--no-cache` they
are those of the network. The figures are of the validation split. The interval of the paired difference is Student's
over the seeds. What is finished in RUNS is not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from few_photos import command
from reporting import machine, publish
from scipy.stats import t as student_t

TEACHER = ("--model", "swin_nano_patch4_window4_64", "--epochs", 10, "--set", "lr=1e-3")
STUDENT = ("--student", "mobilenetv3_large_minimal_100", "--epochs", 20, "--set", "views=8")
COMMON = ("--image-size", 64, "--set", "pretrained=false", "--set", "precision=fp32")
WAYS: dict[str, tuple[str, ...]] = {"compressed": (), "live": ("--no-cache",)}


def trained(words: tuple[Any, ...], run: Path) -> dict[str, float]:
    """The validation figures of the best epoch of a run, which is trained unless it is finished."""
    if not (run / "evaluation.json").exists():
        command(*words, "--out", run, *(["--resume"] if (run / "recipe.toml").exists() else []))
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    accuracy, nll = rows[0].index("val/accuracy"), rows[0].index("val/nll")
    best = max(rows[1:], key=lambda row: (float(row[accuracy]), -float(row[nll])))
    return {"val_accuracy": float(best[accuracy]), "val_nll": float(best[nll])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    teacher = given.runs / "teacher"
    of_teacher = trained(("train", given.photos, *TEACHER, *COMMON), teacher)
    rows = []
    for seed in given.seeds:
        words = ("distill", given.photos, "--teacher", teacher, "--method", "hybrid-hint", *STUDENT, *COMMON)
        words = (*words, "--set", "data.labels=0.1", "--seed", seed)
        rows.append({name: trained((*words, *way), given.runs / f"{name}-{seed}") for name, way in WAYS.items()})
        print(json.dumps({"seed": seed, **rows[-1]}), flush=True)

    def difference(figure: str) -> dict[str, float]:
        each = [row["compressed"][figure] - row["live"][figure] for row in rows]
        half = student_t.ppf(0.975, len(each) - 1) * statistics.stdev(each) / np.sqrt(len(each))
        mean = statistics.mean(each)
        return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}

    publish(
        {
            "machine": machine(),
            "teacher": of_teacher,
            "seeds": given.seeds,
            "runs": rows,
            "means": {
                name: {figure: round(statistics.mean(row[name][figure] for row in rows), 4) for figure in rows[0][name]}
                for name in WAYS
            },
            "compressed_minus_live": {figure: difference(figure) for figure in ("val_accuracy", "val_nll")},
        },
        given.out,
    )


if __name__ == "__main__":
    main()
