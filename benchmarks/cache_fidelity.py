"""How far the loss under a cached teacher is from the loss under the living one, in every step of a real epoch.

    python benchmarks/cache_fidelity.py PHOTOS --teacher RUN --out docs/performance/cache_fidelity.json

One epoch of a hybrid student under the teacher's cache. In each step the same student, on the same photos, is also
held against the live teacher: what differs is float16 and the cache, not the path that two trainings take.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from reporting import machine, publish
from torch import Tensor

from agridistill.config import distill_config, read_recipe
from agridistill.data.datamodule import Batch
from agridistill.distillation.objective import DistillationObjective
from agridistill.models.teacher import LiveTeacher
from agridistill.training.module import DistillationModule
from agridistill.training.run import distill
from agridistill.training.teachers import load_teacher


def compare(photos: Path, teacher: Path, recipe: Path, out: Path, seed: int) -> dict[str, list[float]]:
    """Relative difference of every term in every step."""
    config = distill_config(read_recipe(recipe))
    config = replace(config, distill=replace(config.distill, epochs=1, seed=seed))
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
            logits, maps = live.outputs(batches[0])
            with torch.no_grad():
                alive = forward(self, *positional, **{**named, "teacher_logits": logits, "teacher_maps": maps})
            for name, value in cached.items():
                apart = abs(float(value.detach()) - float(alive[name])) / max(abs(float(alive[name])), 1e-12)
                differences.setdefault(name, []).append(apart)
        return cached

    DistillationModule.loss_terms = remembered  # type: ignore[method-assign]
    DistillationObjective.forward = both  # type: ignore[method-assign]
    distill(photos, teacher, out, config)
    return differences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cpu.toml"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        differences = compare(given.photos, given.teacher, given.recipe, Path(folder) / "run", given.seed)
    document = {
        "machine": machine(),
        "steps": len(differences["total"]),
        "relative_difference": {
            name: {"median": statistics.median(each), "largest": max(each)} for name, each in differences.items()
        },
    }
    publish(document, given.out)


if __name__ == "__main__":
    main()
