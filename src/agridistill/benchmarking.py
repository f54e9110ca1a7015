"""`benchmark`: what models cost on this machine, and what they give for it, in one result."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from agridistill.api import evaluate
from agridistill.data.synthetic import CLASSES, draw_leaf
from agridistill.errors import ModelError
from agridistill.preprocess import photo_size
from agridistill.progress import ProgressCallback, silent
from agridistill.runtime.artefacts import PACKAGES, TORCH, engines_for
from agridistill.runtime.benchmark import PUBLISHABLE_QUERIES, BenchmarkPlan, Target, measure
from agridistill.runtime.benchmark_result import Accuracy, BenchmarkResult, PhotoSet
from agridistill.runtime.host import bare_interpreter_bytes, describe_host
from agridistill.runtime.published import PUBLISHED
from agridistill.runtime.reading import expand
from agridistill.runtime.shipped import model_path
from agridistill.runtime.worker_process import WorkerProcess

SplitChoice = Literal["train", "val", "test", "all"]

# Enough for a query's pixels to differ from the last one's; more would only fill memory.
_PHOTOS = 16
# As PlantVillage's photos are.
_DRAWN_SIDE, _DRAWN_QUALITY = 256, 90


def benchmark(
    models: Sequence[Path | str],
    *,
    engines: Sequence[str] = (),
    threads: int = 1,
    data: Path | str | None = None,
    split: SplitChoice = "test",
    split_file: Path | None = None,
    photos: Path | str | None = None,
    plan: BenchmarkPlan | None = None,
    progress: ProgressCallback = silent,
) -> BenchmarkResult:
    """Measures models against one another on this machine's processor, each in a process of its own, in turns.

    Args:
        models: finished run folders or exported files, at least one.
        engines: to run them; each model is measured with those that can run it. "all" takes every one that is
            installed, none given takes each model's default.
        threads: of one prediction; 0 takes one for each core.
        data: a folder of class folders to measure the accuracy on; None leaves it out.
        split: of `data`, as for `evaluate`.
        split_file: as for `evaluate`.
        photos: a photo or a folder of photos for the time from file to label; None draws some of 256 px.
        plan: how much is measured; None takes what published figures need.
        progress: told several times: while photos are checked and classified, and while the models take their turns.

    Raises:
        AgriDistillError: a model, an engine, the data or a photo cannot be used; no process is left.
    """
    if not models:
        raise ModelError("at least one model", "none", "name a run folder or an exported model")
    plan = plan or BenchmarkPlan(PUBLISHABLE_QUERIES)
    threads = threads or os.cpu_count() or 1
    paths = dict.fromkeys(model_path(model) for model in models)
    targets = [Target(path, engine) for path in paths for engine in engines_for(path, engines)]
    with tempfile.TemporaryDirectory(prefix="agridistill-") as folder:
        files = _draw(Path(folder)) if photos is None else _some_of(expand([Path(photos)]))
        photo_set = _described(files, "drawn" if photos is None else str(photos))
        scores: list[Accuracy | None] = [None] * len(targets)
        if data is not None:
            scores = [_accuracy(target, data, split, split_file, progress) for target in targets]
        interpreter_bytes = bare_interpreter_bytes()
        measured = measure(
            targets,
            lambda target: WorkerProcess(worker_command(target, threads, files), str(target)),
            plan,
            interpreter_bytes=interpreter_bytes,
            progress=progress,
        )
    return BenchmarkResult(
        models=tuple(replace(result, accuracy=score) for result, score in zip(measured, scores, strict=True)),
        published=PUBLISHED,
        host=describe_host(PACKAGES[target.engine][1] for target in targets),
        threads=threads,
        queries=plan.queries,
        turns=len(plan.turn_sizes()),
        warm_up_queries=plan.warm_up,
        photos=photo_set,
        interpreter_memory_bytes=interpreter_bytes,
        data=None if data is None else f"{split} of {data}",
    )


def worker_command(target: Target, threads: int, photos: Sequence[Path]) -> list[str]:
    """The command line of the process that measures a target.

    It finds the modules that this process finds, also those on a path that only this process knows.
    """
    job = {
        "model": str(target.model),
        "engine": target.engine,
        "threads": threads,
        "photos": [str(photo) for photo in photos],
    }
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; from agridistill.benchmark_worker import main; main(sys.argv[1])"
    )
    return [sys.executable, "-P", "-c", program, json.dumps(job)]


def _accuracy(
    target: Target, data: Path | str, split: SplitChoice, split_file: Path | None, progress: ProgressCallback
) -> Accuracy:
    engine = None if target.engine == TORCH else target.engine
    result = evaluate(target.model, data, split=split, split_file=split_file, engine=engine, progress=progress)
    low, high = result.accuracy_ci95
    return Accuracy(result.accuracy, (low, high), result.photos)


def _draw(folder: Path) -> list[Path]:
    """A drawn leaf of each class as a JPEG file."""
    files = []
    for number, name in enumerate(CLASSES):
        leaf, shot = np.random.default_rng((number, 0)), np.random.default_rng((number, 1))
        file = folder / f"{name}.jpg"
        draw_leaf(name, leaf, shot, _DRAWN_SIDE).save(file, quality=_DRAWN_QUALITY)
        files.append(file)
    return files


def _some_of(files: Sequence[Path]) -> list[Path]:
    """At most `_PHOTOS`, spread over all."""
    wanted = min(_PHOTOS, len(files))
    return [files[len(files) * number // wanted] for number in range(wanted)]


def _described(files: Sequence[Path], source: str) -> PhotoSet:
    sizes = [photo_size(file) for file in files]
    return PhotoSet(
        source=source,
        photos=len(files),
        mean_pixels=sum(width * height for width, height in sizes) / len(files),
        mean_bytes=sum(file.stat().st_size for file in files) / len(files),
    )
