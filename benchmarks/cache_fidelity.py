"""Whether a student learns the same under a cached teacher as under the living one, on real photos.

    python benchmarks/cache_fidelity.py PHOTOS --teacher RUN --out docs/performance/cache_fidelity.json

Two things. `trainings`: the recipe is run twice from one seed, with the cache and with `--no-cache`; how far apart the
losses of each step are. `rounding`: in each step of one epoch the same student is also held against the teacher's
answers before they are rounded to float16; what the cache's format costs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from reporting import machine, publish
from torch import Tensor

from agridistill.config import distill_config, read_recipe
from agridistill.data.loader import Batch
from agridistill.losses.objective import DistillationObjective
from agridistill.manifest import MANIFEST_NAME, read_manifest
from agridistill.models import LiveTeacher
from agridistill.teacher_cache.build import load_teacher
from agridistill.training.module import DistillationModule
from agridistill.training.run import distill
from agridistill.training.settings import DistillConfig


def rounding(photos: Path, teacher: Path, config: DistillConfig, out: Path) -> dict[str, list[float]]:
    """Relative difference of every term in every step of one epoch."""
    config = replace(config, distill=replace(config.distill, epochs=1))
    strides = tuple(sorted({pair.teacher for pair in config.objective.pairs}))
    live: LiveTeacher = load_teacher(teacher, strides, config.objective.attention, per_head=False)
    differences: dict[str, list[float]] = {}
    batches: list[Batch] = []
    forward, loss_terms = DistillationObjective.forward, DistillationModule.loss_terms

    def remembered(self: DistillationModule, batch: Batch, progress: float) -> dict[str, Tensor]:
        batches[:] = [batch]
        return loss_terms(self, batch, progress)

    def both(self: DistillationObjective, *positional: Any, **named: Any) -> dict[str, Tensor]:
        cached: dict[str, Tensor] = forward(self, *positional, **named)
        if batches and torch.is_grad_enabled():
            pixels = batches[0].pixels
            if pixels.shape[-1] != live.preprocessing.image_size:
                raise SystemExit("expected a teacher with the student's image size; got another; its views differ")
            logits, maps, _ = live.outputs(pixels)
            with torch.no_grad():
                alive = forward(self, *positional, **{**named, "teacher_logits": logits, "teacher_maps": maps})
            for name, value in cached.items():
                differences.setdefault(name, []).append(apart(float(value.detach()), float(alive[name])))
        return cached

    with (
        mock.patch.object(DistillationModule, "loss_terms", remembered),
        mock.patch.object(DistillationObjective, "forward", both),
    ):
        distill(photos, teacher, out, config)
    return differences


def trainings(photos: Path, teacher: Path, config: DistillConfig, out: Path) -> dict[str, list[float]]:
    """Relative difference of every term in every step of two whole trainings."""
    steps: dict[bool, list[dict[str, float]]] = {}
    loss_terms = DistillationModule.loss_terms
    for cache in (False, True):
        steps[cache] = []

        def recorded(
            self: DistillationModule, batch: Batch, progress: float, into: list[dict[str, float]] = steps[cache]
        ) -> dict[str, Tensor]:
            terms = loss_terms(self, batch, progress)
            into.append({name: float(value.detach()) for name, value in terms.items()})
            return terms

        with mock.patch.object(DistillationModule, "loss_terms", recorded):
            distill(photos, teacher, out / ("cached" if cache else "live"), config, cache=cache)
    if len(steps[True]) != len(steps[False]):
        raise SystemExit("the two trainings have not as many steps")
    return {
        name: [apart(cached[name], live[name]) for cached, live in zip(steps[True], steps[False], strict=True)]
        for name in steps[False][0]
    }


def apart(found: float, expected: float) -> float:
    """Relative difference."""
    return abs(found - expected) / max(abs(expected), 1e-12)


def summary(differences: dict[str, list[float]]) -> dict[str, Any]:
    """Of each term: the usual and the worst step."""
    terms = {name: {"median": statistics.median(each), "largest": max(each)} for name, each in differences.items()}
    return {"steps": len(differences["total"]), "relative_difference": terms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cpu.toml"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    config = distill_config(read_recipe(given.recipe))
    config = replace(config, distill=replace(config.distill, epochs=given.epochs, seed=given.seed))
    with tempfile.TemporaryDirectory() as folder:
        document = {
            "machine": machine(),
            "photos": given.photos.name,
            "learning_rate": config.distill.lr,
            "epochs": config.distill.epochs,
            "teacher_precision": read_manifest(given.teacher / MANIFEST_NAME).lineage.get("precision"),
            "trainings": summary(trainings(given.photos, given.teacher, config, Path(folder))),
            "rounding": summary(rounding(given.photos, given.teacher, config, Path(folder) / "run")),
        }
    publish(document, given.out)


if __name__ == "__main__":
    main()
