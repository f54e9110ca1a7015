"""Where an epoch's time goes: each part of it alone, the student's operators, and the loaders beside the training.

    python benchmarks/input_path.py PHOTOS --out docs/performance/input_path.json

MobileNetV3-Large under a warm cache, 128 px. The parts are timed one after the other in one process. Then whole epochs
with different loaders, in turns; "in memory" trains on batches that are already there: what the student's own
arithmetic costs, and so the floor of every epoch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from distillation_throughput import Bench
from PIL import Image
from reporting import machine, publish
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from agridistill.data import loader as loaders
from agridistill.data.loader import Batch, PhotoDataset, ViewSampler, collate
from agridistill.data.views import SmallCopies, render_view
from agridistill.preprocess import read_photo
from agridistill.training.trainer import keep_freed_memory

TURNS = 5
# Workers, whether they are niced, whether they keep views.
LOADERS = {
    "no workers": (0, False, False),
    "1 worker": (1, True, False),
    "2 workers": (2, True, False),
    "2 workers, not niced": (2, False, False),
    "2 workers, kept views": (2, True, True),
}


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def parts(bench: Bench, photos: Path) -> dict[str, float]:
    """Milliseconds a photo of each part of a training step, medians of the turns."""
    viewing = bench.viewing
    images = [read_photo(photos / sample.path) for sample in bench.samples]
    keys = [viewing.key(0, position) for position in range(len(images))]
    items = [bench.dataset[key] for key in keys]
    kept = PhotoDataset(photos, bench.samples, viewing.preprocessing, viewing.augmentation, keep_views=True)
    size = bench.batch_size
    step = bench.timed_step("ours, warm cache")
    taken: dict[str, list[float]] = {}
    for turn in range(TURNS + 1):
        now = {
            "read and decode": seconds_of(lambda: [read_photo(photos / sample.path) for sample in bench.samples]),
            "view": seconds_of(
                lambda: [
                    render_view(image, viewing.key(0, position).seed, viewing.augmentation, viewing.preprocessing)
                    for position, image in enumerate(images)
                ]
            ),
            # The first turn, which draws them, does not count.
            "kept view, in place of both": seconds_of(lambda: [kept[key] for key in keys]),
            "collate": seconds_of(lambda: [collate(items[at : at + size]) for at in range(0, len(items), size)]),
        }
        for batch in bench.batches:
            for name, seconds in step(batch).items():
                now[name] = now.get(name, 0.0) + seconds
        if turn:
            for name, seconds in now.items():
                taken.setdefault(name, []).append(seconds)
    return {name: round(1000 * statistics.median(each) / len(images), 3) for name, each in taken.items()}


def operators(bench: Bench) -> list[dict[str, Any]]:
    """The operators that most of a step's time is spent in."""
    step = bench.step("ours, warm cache")
    step(bench.batches[0])
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for batch in bench.batches:
            step(batch)
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    largest = sorted(events, key=lambda event: -event.self_cpu_time_total)[:12]
    return [
        {"operator": event.key, "share": round(event.self_cpu_time_total / total, 3), "calls": event.count}
        for event in largest
    ]


def epochs(bench: Bench, photos: Path) -> dict[str, list[float]]:
    """Seconds of an epoch with each loader, in turns."""
    viewing = bench.viewing

    def loader(workers: int, niced: bool, keep: bool) -> Iterable[Batch | None]:
        sampler = ViewSampler(viewing, seed=0, batch_size=bench.batch_size)
        dataset = PhotoDataset(photos, viewing.samples, viewing.preprocessing, viewing.augmentation, keep_views=keep)
        return DataLoader(
            dataset,
            batch_size=bench.batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=loaders._yield_to_training if niced else None,
            persistent_workers=workers > 0,
        )

    plans: dict[str, Iterable[Batch | None]] = {"in memory": bench.batches}
    plans |= {name: loader(*settings) for name, settings in LOADERS.items()}
    steps = {name: bench.step("plain") for name in plans}
    taken: dict[str, list[float]] = {name: [] for name in plans}
    for turn in range(TURNS + 1):
        for name, batches in plans.items():
            step = steps[name]
            seconds = seconds_of(lambda batches=batches, step=step: [step(batch) for batch in batches])  # type: ignore[misc]
            if turn:
                taken[name].append(seconds)
        print(f"turn {turn} of {TURNS}", file=sys.stderr, flush=True)
    return taken


def large_photos(bench: Bench, photos: Path, work: Path, count: int = 8) -> dict[str, float]:
    """Milliseconds to read a photo of 12 megapixels: itself, and through its small copy."""
    folder = work / "large"
    folder.mkdir()
    for number, sample in enumerate(bench.samples[:count]):
        read_photo(photos / sample.path).resize((4000, 3000), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    copies = SmallCopies(folder, bench.preprocessing, bench.viewing.augmentation)
    names = [f"{number}.jpg" for number in range(count)]
    every = {
        "itself": lambda: [read_photo(folder / name) for name in names],
        "first read": lambda: [copies.read(name) for name in names],
        "further reads": lambda: [copies.read(name) for name in names],
    }
    return {name: round(1000 * seconds_of(read) / count, 2) for name, read in every.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        work = Path(folder)
        bench = Bench(given.photos, given.image_size, given.batch_size, work / "cache", given.steps)
        document: dict[str, Any] = {
            "machine": machine(),
            "image_size": given.image_size,
            "batch_size": given.batch_size,
            "photos_an_epoch": len(bench.samples),
            "ms_a_photo": parts(bench, given.photos),
            "operators": operators(bench),
            "large_photo_ms": large_photos(bench, given.photos, work),
        }
        taken = epochs(bench, given.photos)
    document["epochs"] = {
        name: {
            "photos_per_s": round(len(bench.samples) / statistics.median(seconds), 1),
            "times_in_memory": round(
                statistics.median(t / m for t, m in zip(seconds, taken["in memory"], strict=True)), 3
            ),
        }
        for name, seconds in taken.items()
    }
    publish(document, given.out)


if __name__ == "__main__":
    main()
