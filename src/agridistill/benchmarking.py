"""`benchmark`: what models cost on this machine, and what they give for it, in one result."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np

from agridistill.api import SPLITS, evaluate
from agridistill.arguments import (
    described,
    require_callable,
    require_choice,
    require_threads,
    require_whole,
    to_optional_path,
    to_path,
)
from agridistill.data.drawn_leaves import CLASSES, draw_leaf
from agridistill.errors import ConfigError, ModelError, nearest
from agridistill.preprocess import photo_size
from agridistill.progress import ProgressCallback, silent
from agridistill.runtime.artefacts import PACKAGES, TORCH, engines_for
from agridistill.runtime.benchmark import BenchmarkPlan, Target, measure
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
    models: Sequence[Path | str] | Path | str,
    *,
    engines: Sequence[str] | str = (),
    threads: int = 1,
    data: Path | str | None = None,
    split: SplitChoice = "test",
    split_file: Path | str | None = None,
    photos: Path | str | None = None,
    plan: BenchmarkPlan | Mapping[str, int] | None = None,
    progress: ProgressCallback = silent,
) -> BenchmarkResult:
    """Measures models against one another on this machine's processor, each in a process of its own, in turns.

    Args:
        models: finished run folders, exported files or names of shipped models, at least one; one may stand alone.
        engines: to run them; each model is measured with those that can run it. "all" takes every one that is
            installed, none given takes each model's default.
        threads: of one prediction; 0 takes one for each core.
        data: a folder of class folders to measure the accuracy on; None leaves it out.
        split: of `data`, as for `evaluate`.
        split_file: as for `evaluate`.
        photos: a photo or a folder of photos for the time from file to label; None draws some of 256 px.
        plan: how much is measured, as a `BenchmarkPlan` or a dict of its fields; None takes what published figures
            need.
        progress: told several times: while photos are checked and classified, and while the models take their turns.

    Raises:
        ConfigError: an argument of a wrong type or range.
        AgriDistillError: a model, an engine, the data or a photo cannot be used; no process is left.
    """
    named = [model_path(path) for path in _paths_of(models)]
    wanted = (engines,) if isinstance(engines, str) else engines
    photo_path, split_file = to_optional_path("photos", photos), to_optional_path("split_file", split_file)
    require_threads(threads)
    require_choice("split", split, SPLITS)
    require_callable("progress", progress)
    plan = _checked_plan(plan)
    threads = threads or os.cpu_count() or 1
    targets = [Target(path, engine) for path in dict.fromkeys(named) for engine in engines_for(path, wanted)]
    with tempfile.TemporaryDirectory(prefix="agridistill-") as folder:
        files = _draw(Path(folder)) if photo_path is None else _some_of(expand([photo_path]))
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


def _paths_of(models: object) -> list[Path]:
    if isinstance(models, str | Path):
        return [to_path("models", models)]
    if not isinstance(models, Iterable):
        raise ConfigError("a list of models for 'models'", described(models), "pass paths or names in a list")
    paths = [to_path("models", model) for model in models]
    if not paths:
        raise ModelError("at least one model", "none", "name a run folder or an exported model")
    return paths


def _checked_plan(plan: object) -> BenchmarkPlan:
    given = asdict(plan) if isinstance(plan, BenchmarkPlan) else {} if plan is None else plan
    if not isinstance(given, Mapping):
        raise ConfigError("a BenchmarkPlan or a dict of its fields for 'plan'", described(plan), "pass one of these")
    known = [field.name for field in fields(BenchmarkPlan)]
    for name, value in given.items():
        if name not in known:
            raise ConfigError("a known field of 'plan'", described(name), nearest(str(name), known))
        require_whole(f"plan.{name}", value, at_least=0 if name == "warm_up" else 1)
    return BenchmarkPlan(**given)


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
