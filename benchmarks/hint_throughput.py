"""What a step of `hybrid-hint` costs, whose first stage compares features: from the cache, and from the live teacher.

    python benchmarks/hint_throughput.py PHOTOS --out docs/performance/hint_throughput.json

Swin-T teacher, MobileNetV3-Large student, AdamW, fp32, channels-last. One process trains all in turns on the same
batches; the first turn warms up, medians of the others. A whole training is a quarter of steps of the first stage and
three quarters of the second. With "live features", logits and maps come from the
cache, and the features from the teacher's network in every step.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from distillation_throughput import STRIDE, TEACHER, W_ATT, W_CE, W_KD, Bench, in_turns
from reporting import machine, publish
from torch.nn.functional import cross_entropy

from agridistill.data.loader import Batch
from agridistill.losses import DistillationObjective, StagePair, get_method
from agridistill.manifest import ModelManifest
from agridistill.models import LiveTeacher, StageTap
from agridistill.teacher_cache import CachedTeacher, cache_key
from agridistill.training.module import DistillationModule
from agridistill.training.settings import FitSettings
from agridistill.training.trainer import keep_freed_memory

TURNS, HINT_SHARE = 8, 0.25
ROWS = ("plain", "first stage, cached features", "first stage, live features", "second stage")


class HintBench(Bench):
    """The steps of both stages, with a cache that has compressed features."""

    def __init__(self, photos: Path, size: int, batch_size: int, work: Path) -> None:
        super().__init__(photos, size, batch_size, work)
        manifest = ModelManifest(
            TEACHER, [str(number) for number in range(self.classes)], self.preprocessing, "none", "none"
        )
        key = cache_key(self.viewing, manifest, strides=[STRIDE], kind="activation", per_head=False, features=True)
        self.cached = CachedTeacher(work, key, self.viewing, self.with_features)
        self.cached.prepare(torch.device("cpu"), workers=0)

    def with_features(self) -> LiveTeacher:
        return LiveTeacher(self._teacher(), self.preprocessing, strides=[STRIDE], features=[STRIDE])

    def hint_step(self, name: str) -> Callable[[Batch], None]:
        student = copy.deepcopy(self.student).train()
        live = self.with_features() if "live" in name else None
        pairs = [StagePair(STRIDE, STRIDE)]
        with StageTap(student, [STRIDE]) as tap:
            channels = {STRIDE: tap.channels(STRIDE)}
        objective = DistillationObjective(
            get_method("hybrid-hint"),
            w_ce=W_CE,
            w_kd=W_KD,
            w_att=W_ATT,
            hint_share=HINT_SHARE,
            pairs=pairs,
            student_channels=channels,
            teacher_channels=live.feature_counts() if live else self.cached.feature_counts(),
        )
        module = DistillationModule(
            student,
            objective,
            FitSettings(lr=1e-4, weight_decay=0.0, warmup=0.0),
            teacher=self.cached,
            preprocessing=self.preprocessing,
            num_classes=self.classes,
            total_steps=1,
        )
        optimizer = torch.optim.AdamW([*student.parameters(), *objective.parameters()], lr=1e-4)
        progress = 0.5 if name == "second stage" else 0.1

        def step(batch: Batch) -> None:
            optimizer.zero_grad(set_to_none=True)
            if name == "plain":
                loss = cross_entropy(student(self._input(batch)), batch.target)
            else:
                outputs = self.cached.outputs(batch)
                if live is not None:
                    outputs = outputs._replace(features=live.outputs(batch.pixels).features)
                loss = module._terms(batch.pixels, batch.target, outputs, progress)["total"]
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as work:
        bench = HintBench(given.photos, given.image_size, given.batch_size, Path(work))
        steps = {name: bench.hint_step(name) for name in ROWS}
        count = len(bench.batches)
        timed = in_turns(steps, bench.batches, TURNS)
        seconds = {name: [taken / count for taken in each] for name, each in timed.items()}
        bytes_a_view = bench.cached.layout.dtype.itemsize

    def whole(first: str) -> list[float]:
        rest = seconds["second stage"]
        return [HINT_SHARE * a + (1 - HINT_SHARE) * b for a, b in zip(seconds[first], rest, strict=True)]

    def ratio(taken: list[float], others: list[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(taken, others, strict=True)), 3)

    plain = seconds["plain"]
    cached, live = whole("first stage, cached features"), whole("first stage, live features")
    publish(
        {
            "image_size": given.image_size,
            "batch_size": given.batch_size,
            "turns": TURNS,
            "machine": machine(),
            "bytes_a_view": bytes_a_view,
            "milliseconds_a_step": {name: round(1000 * statistics.median(taken), 1) for name, taken in seconds.items()},
            "stages_times_plain": {name: ratio(taken, plain) for name, taken in seconds.items()},
            "training_times_plain": {"cached features": ratio(cached, plain), "live features": ratio(live, plain)},
            "live_times_cached": ratio(live, cached),
        },
        given.out,
    )


if __name__ == "__main__":
    main()
