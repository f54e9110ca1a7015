"""How the teacher's cache grows with views, processes and classes, and what reading it keeps in memory.

    python benchmarks/cache_growth.py PHOTOS --out docs/performance/cache_growth.json

Views and processes: real builds by a small Swin at 64 px over PHOTOS (the first 1,000), one thread a process. Classes
and memory: records of random numbers, for there the teacher plays no part.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reporting import machine, publish
from scaling import IMAGE_SIZE, linked, teacher_of

from agridistill.data.folder import scan
from agridistill.data.loader import Viewing
from agridistill.data.views import Augmentation
from agridistill.manifest import Preprocessing
from agridistill.teacher_cache import CachedTeacher
from agridistill.teacher_cache.store import CacheLayout, TeacherCache
from agridistill.training.parts import teacher_source
from agridistill.training.settings import ObjectiveSettings

PHOTOS, TURNS = 1_000, 3
VIEWS, PROCESSES, CLASSES = (1, 2, 4, 8), 2, (10, 100, 1_000)
# 50,000 photos in the default's 16 views: 98 MB.
LARGE = CacheLayout(50_000, 10, {32: (7, 7)})
LARGE_VIEWS = 16


def build(photos: Path, teacher: Path, caches: Path, views: int, rank: int, processes: int, seconds: Any) -> None:
    """One process's share of a build; its time goes into `seconds`."""
    torch.set_num_threads(1)
    meeting = f"file://{caches / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    samples = tuple(scan(photos).samples)
    viewing = Viewing(photos, samples, "f" * 64, Preprocessing(IMAGE_SIZE), Augmentation(), views)
    source = teacher_source(teacher, caches / "caches", viewing, ObjectiveSettings())
    assert isinstance(source, CachedTeacher)  # noqa: S101
    torch.distributed.barrier()
    start = time.perf_counter()
    source.prepare(torch.device("cpu"), workers=0, rank=rank, world=processes)
    seconds[rank] = time.perf_counter() - start
    torch.distributed.destroy_process_group()


def built_in(photos: Path, teacher: Path, work: Path, views: int, processes: int) -> float:
    context = multiprocessing.get_context("spawn")
    seconds = context.Array("d", processes)
    with tempfile.TemporaryDirectory(dir=work) as caches:
        given = (photos, teacher, Path(caches), views)
        workers = [context.Process(target=build, args=(*given, rank, processes, seconds)) for rank in range(processes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return max(seconds)


def filled(folder: Path, layout: CacheLayout, views: int) -> TeacherCache:
    cache = TeacherCache(folder, {"photos": "random"}, layout, views)
    rng = np.random.default_rng(0)

    for block in layout.blocks(views):
        records = layout.blank_records(block.stop - block.start)
        records["seed"], records["logits"] = np.arange(len(records)), rng.normal(size=records["logits"].shape)
        for stride in layout.maps:
            records[f"map_s{stride}"] = rng.random(records[f"map_s{stride}"].shape, np.float32)
        cache.write(block, records)
    return cache


def read_microseconds(cache: TeacherCache, batches: int = 200) -> float:
    """Median time of a record, read at random in batches of 64."""
    rng = np.random.default_rng(1)
    taken = []
    for _ in range(batches):
        photos, views = rng.integers(0, cache.layout.photos, 64), rng.integers(0, cache.views, 64)
        start = time.perf_counter()
        cache.read(photos, views)
        taken.append((time.perf_counter() - start) / 64)
    return round(1e6 * statistics.median(taken), 1)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    document: dict[str, Any] = {"machine": machine(), "photos": PHOTOS, "turns": TURNS}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        photos = linked(given.photos, work / "photos", PHOTOS)
        teacher = teacher_of(linked(given.photos, work / "few", 600), work / "teacher")
        cases = [(views, 1) for views in VIEWS] + [(VIEWS[-1], PROCESSES)]
        turns = [[built_in(photos, teacher, work, *case) for case in cases] for _ in range(TURNS)]
        document["builds"] = [
            {
                "views": views,
                "processes": processes,
                "build_s": round(statistics.median(turn[case] for turn in turns), 2),
            }
            for case, (views, processes) in enumerate(cases)
        ]
        document["classes"] = []
        for classes in CLASSES:
            layout = CacheLayout(20_000, classes, {32: (7, 7)})
            with filled(work / f"classes-{classes}", layout, 1) as cache:
                row = {"classes": classes, "record_bytes": layout.dtype.itemsize, "read_us": read_microseconds(cache)}
            document["classes"].append(row)
        with filled(work / "large", LARGE, LARGE_VIEWS) as cache:
            read_microseconds(cache, 10)
            before = resident_bytes()
            read_us = read_microseconds(cache, 5_000)
            document["large"] = {
                "photos": LARGE.photos,
                "views": LARGE_VIEWS,
                "size_bytes": LARGE.bytes_for(LARGE_VIEWS),
                "records_read": 64 * 5_000,
                "read_us": read_us,
                "memory_growth_bytes": resident_bytes() - before,
            }
    publish(document, given.out)


if __name__ == "__main__":
    main()
