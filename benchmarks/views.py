"""How many views a cached teacher has to be asked about: a student's accuracy against the number of views.

    python benchmarks/views.py PHOTOS --teacher RUN --work FOLDER --out docs/performance/views.json

One hybrid student for each number of views and seed, everything else equal, few photos and many epochs: the case in
which a photo is seen most often. Judged on photos of the validation split; the test split is left alone. Finished runs
in the work folder are kept, so it goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

from reporting import machine, publish

from agridistill.config import distill_config, read_recipe, with_overrides
from agridistill.data.split import Split, read_split, write_split
from agridistill.training.run import distill
from agridistill.training.run_folder import RunFolder

VIEWS = (1, 2, 4, 8, 16, 32)
STUDENT, EPOCHS, TRAIN_PHOTOS, WATCHED_PHOTOS = "mobilenetv3_small_100", 32, 1_000, 300


def few_photos(teacher: Path, out: Path) -> Path:
    """A split of its own: some of the teacher's training photos; its validation photos watch and judge."""
    whole = read_split(RunFolder(teacher).splits)
    train, val = (random.Random(0).sample(list(part), len(part)) for part in (whole.train, whole.val))
    split = Split(tuple(sorted(train[:TRAIN_PHOTOS])), tuple(val[:WATCHED_PHOTOS]), tuple(val[WATCHED_PHOTOS:]))
    write_split(out, split, seed=0, val_fraction=0.15, test_fraction=0.15, fingerprint="")
    return out


def student(photos: Path, teacher: Path, split: Path, run: Path, views: int, seed: int, recipe: Path) -> dict[str, Any]:
    folder = RunFolder(run)
    if not folder.evaluation.exists():
        changes = [f"views={views}", f"seed={seed}", f"epochs={EPOCHS}", f'model="{STUDENT}"']
        config = distill_config(with_overrides(read_recipe(recipe), "distill", changes))
        resume = folder.recipe.exists()
        distill(photos, teacher, run, config, split_file=None if resume else split, resume=resume)
    document: dict[str, Any] = json.loads(folder.evaluation.read_text(encoding="utf-8"))
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cpu.toml"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    split = few_photos(given.teacher, given.work / "few.json")
    rows = []
    found: dict[int, list[dict[str, Any]]] = {views: [] for views in VIEWS}
    for seed in range(given.seeds):
        # Most views first: the others then find their cache built.
        for views in sorted(VIEWS, reverse=True):
            run = given.work / f"{views}-{seed}"
            found[views].append(student(given.photos, given.teacher, split, run, views, seed, given.recipe))
            print(f"seed {seed}, {views} views: {100 * found[views][-1]['accuracy']:.2f} %", flush=True)
    for views, results in found.items():
        accuracy = [round(100 * result["accuracy"], 2) for result in results]
        nll = [round(result["nll_nats"], 4) for result in results]
        row = {"views": views, "accuracy_percent": accuracy, "mean_percent": round(statistics.mean(accuracy), 2)}
        rows.append({**row, "nll": nll, "mean_nll": round(statistics.mean(nll), 4)})
    document = {
        "machine": machine(),
        "student": STUDENT,
        "epochs": EPOCHS,
        "training_photos": TRAIN_PHOTOS,
        "judged_on": len(read_split(split).test),
        "seeds": given.seeds,
        "rows": rows,
    }
    publish(document, given.out)


if __name__ == "__main__":
    main()
