"""Measures several models in turns, so that other work on the machine affects all of them equally.

Latency is measured with one photo at a time, as in MLPerf's "single stream": the next query starts when the previous
one is answered. The figures are percentiles, by default over 1,024 queries.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
from pydantic import Field

from agridistill.api import SplitName, evaluate
from agridistill.arguments import (
    described,
    require_callable,
    require_choice,
    require_threads,
    to_optional_path,
    to_path,
)
from agridistill.benchmark.result import (
    PUBLISHED,
    Accuracy,
    BenchmarkResult,
    ModelResult,
    Percentiles,
    PhotoSet,
    bare_interpreter_bytes,
)
from agridistill.benchmark.worker import Target, Worker, start_worker, worker_command
from agridistill.errors import ConfigError, ModelError
from agridistill.host import describe_host, usable_cores
from agridistill.preprocess import photo_size
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.runtime.backends import TORCH, engines_for, model_path, package_of
from agridistill.runtime.engines import ENGINES
from agridistill.runtime.predictor import expand
from agridistill.settings_file import build_settings

AtLeastOne = Annotated[int, Field(ge=1)]

# With fewer queries, fewer than ten lie above the 99th percentile (MLPerf Inference, single stream).
PUBLISHABLE_QUERIES = 1024
# With several photos, each query has other pixels than the previous one; more photos would only fill memory.
_MOST_PHOTOS = 16
# Side in pixels and JPEG quality of PlantVillage's photos.
_DRAWN_SIDE, _DRAWN_QUALITY = 256, 90


@dataclass(frozen=True)
class BenchmarkPlan:
    """Number and size of the measurements; a query is one photo, a turn is a series of queries to one model."""

    queries: AtLeastOne = PUBLISHABLE_QUERIES  # number for each model and each kind (inference, end to end)
    turns: AtLeastOne = 16  # turns of each model; at most one for each query
    # Untimed queries at the start of each turn, because another model has filled the processor's caches.
    warm_up: Annotated[int, Field(ge=0)] = 8
    batch_size: AtLeastOne = 32  # number of photos at once to measure throughput, if the engine takes several

    def turn_sizes(self) -> tuple[int, ...]:
        """Divides the queries into turns: returns the number of queries in each turn; they differ by at most 1.

        Example:
            >>> BenchmarkPlan(queries=10, turns=4).turn_sizes()
            (2, 3, 2, 3)
        """
        turns = min(self.turns, self.queries)
        ends = [self.queries * turn // turns for turn in range(turns + 1)]
        return tuple(end - start for start, end in pairwise(ends))


def benchmark(
    models: Sequence[Path | str] | Path | str,
    *,
    engines: Sequence[str] | str = (),
    threads: int = 1,
    data: Path | str | None = None,
    split: SplitName = "test",
    split_file: Path | str | None = None,
    photos: Path | str | None = None,
    plan: BenchmarkPlan | Mapping[str, int] | None = None,
    progress: ProgressCallback = silent,
) -> BenchmarkResult:
    """Measures the speed, memory and energy of models on this machine's CPU, each in a separate process, in turns.

    Args:
        models: finished run folders, exported files or names of shipped models: a list of at least one, or a single
            one.
        engines: names of engines; each model is measured with those that can run it. "all" takes every installed
            engine; an empty sequence takes each model's default.
        threads: number of threads for one prediction; 0 means one for each core.
        data: a folder of class folders to measure the accuracy on; None skips the accuracy.
        split: split of `data`, as for `evaluate`.
        split_file: file with the split of `data`, as for `evaluate`.
        photos: a photo or a folder of photos to measure the time from file to label with; None uses generated pictures
            of 256 x 256 px.
        plan: number of queries and turns, as a `BenchmarkPlan` or a dict of its fields; None uses the defaults, which
            suffice for published figures.
        progress: called with (done, total) while photos are checked and classified, and after each turn.

    Raises:
        ConfigError: an argument has the wrong type or is out of range.
        AgriDistillError: a model, an engine, the data or a photo cannot be used. All started processes have ended.
    """
    paths = [model_path(path) for path in _paths_of(models)]
    wanted = (engines,) if isinstance(engines, str) else engines
    photo_path, split_file = to_optional_path("photos", photos), to_optional_path("split_file", split_file)
    require_threads(threads)
    require_choice("split", split, get_args(SplitName))
    require_callable("progress", progress)
    plan = _checked_plan(plan)
    threads = threads or usable_cores()
    targets = [Target(path, engine) for path in dict.fromkeys(paths) for engine in engines_for(path, wanted)]
    with tempfile.TemporaryDirectory(prefix="agridistill-") as folder:
        files = _draw(Path(folder)) if photo_path is None else expand([photo_path])
        files = files[:: math.ceil(len(files) / _MOST_PHOTOS)]
        sizes = [photo_size(file) for file in files]
        photo_set = PhotoSet(
            source="drawn" if photos is None else str(photos),
            photos=len(files),
            mean_pixels=sum(width * height for width, height in sizes) / len(files),
            mean_bytes=sum(file.stat().st_size for file in files) / len(files),
        )
        scores: list[Accuracy | None] = [None] * len(targets)
        if data is not None:
            scored = [_accuracy(target, data, split, split_file, progress) for target in targets]
            scores, used = [score for score, _ in scored], dict.fromkeys(each for _, each in scored)
        interpreter_bytes = bare_interpreter_bytes()
        measured = measure(
            targets,
            lambda target: start_worker(worker_command(target, threads, files), str(target)),
            plan,
            interpreter_bytes=interpreter_bytes,
            progress=progress,
        )
    return BenchmarkResult(
        models=tuple(replace(result, accuracy=score) for result, score in zip(measured, scores, strict=True)),
        published=PUBLISHED,
        host=describe_host(package_of(target.engine) for target in targets),
        threads=threads,
        queries=plan.queries,
        turns=len(plan.turn_sizes()),
        warm_up_queries=plan.warm_up,
        photos=photo_set,
        interpreter_memory_bytes=interpreter_bytes,
        data=None if data is None else f"{' and '.join(used)} of {data}",
    )


def measure(
    targets: Sequence[Target],
    start: Callable[[Target], AbstractContextManager[Worker]],
    plan: BenchmarkPlan,
    *,
    interpreter_bytes: int | None,
    progress: ProgressCallback = silent,
) -> list[ModelResult]:
    """Measures every target in a process of its own (worker); only one worker computes at a time.

    `start` starts the worker of a target. `interpreter_bytes`, the peak memory of a bare interpreter, is subtracted
    from each model's. An AgriDistillError reports a model that cannot be loaded or measured; all workers have ended.
    """
    with ExitStack() as workers:
        begin(progress, "loading models")
        running = []
        for target in targets:
            worker = workers.enter_context(start(target))
            running.append(_Measured(target, worker, plan, **worker.ask("load")))
        begin(progress, "measuring")
        sizes = plan.turn_sizes()
        # Single photos first, because peak memory is measured without batches: devices classify one photo at a time.
        turns = [(each.turn, queries) for each, queries in _turns(running, sizes)]
        turns += [(each.batches, queries) for each, queries in _turns([one for one in running if one.batched], sizes)]
        for done, (turn, queries) in enumerate(turns, start=1):
            turn(queries)
            progress(done, len(turns))
        return [each.result(interpreter_bytes) for each in running]


@dataclass
class _Measured:
    """A model that is being measured, with the results of its turns so far."""

    target: Target
    worker: Worker
    plan: BenchmarkPlan
    load_s: float
    turns: list[dict[str, Any]] = field(default_factory=list)
    batch_photos: int = 0
    batch_s: float = 0.0
    photos_at_once: int = 1

    @property
    def batched(self) -> bool:
        return self.target.engine == TORCH or ENGINES[self.target.engine].batches

    def turn(self, queries: int) -> None:
        self.turns.append(self.worker.ask("turn", queries=queries, warm_up=self.plan.warm_up))

    def batches(self, queries: int) -> None:
        size = self.plan.batch_size
        batches = math.ceil(queries / size)
        answer = self.worker.ask("batches", batches=batches, batch_size=size)
        self.batch_photos += batches * size
        self.batch_s += answer["seconds"]
        self.photos_at_once = answer["photos_at_once"]

    def result(self, interpreter_bytes: int | None) -> ModelResult:
        about = self.worker.ask("describe")
        weights_file = about.pop("weights_file")
        weights = self.target.model / weights_file if self.target.model.is_dir() else self.target.model
        latencies_ns = [latency for turn in self.turns for latency in turn["latencies_ns"]]
        photos, photos_s = len(latencies_ns), sum(latencies_ns) / 1e9
        peak = self.turns[-1]["peak_memory_bytes"]
        energies_j = [turn["energy_j"] for turn in self.turns]
        # In a virtual machine the counter may never change; then energy is unknown.
        metered = None not in energies_j and sum(energies_j) > 0
        return ModelResult(
            **about,
            model=str(self.target.model),
            engine=self.target.engine,
            size_bytes=weights.stat().st_size,
            latency=Percentiles.of(latencies_ns),
            latency_ms_p50_of_turns=tuple(Percentiles.of(turn["latencies_ns"]).p50 for turn in self.turns),
            end_to_end=Percentiles.of([latency for turn in self.turns for latency in turn["end_to_end_ns"]]),
            throughput_photos_per_s=self.batch_photos / self.batch_s if self.batched else photos / photos_s,
            throughput_batch_size=self.photos_at_once,
            peak_memory_bytes=None if peak is None or interpreter_bytes is None else peak - interpreter_bytes,
            energy_j=sum(energies_j) / photos if metered else None,
            load_s=self.load_s,
        )


def _turns(running: Sequence[_Measured], sizes: Sequence[int]) -> Iterator[tuple[_Measured, int]]:
    """Yields (model, queries) in rounds: each model once a round, and every round starts with another model."""
    for number, queries in enumerate(sizes):
        first = number % len(running) if running else 0
        for each in (*running[first:], *running[:first]):
            yield each, queries


def _paths_of(models: object) -> list[Path]:
    if isinstance(models, str | Path):
        return [to_path("models", models)]
    if not isinstance(models, Iterable):
        raise ConfigError("a list of models for 'models'", described(models), "pass paths or names in a list")
    paths = [to_path("models", model) for model in models]
    if not paths:
        raise ModelError("at least one model", "none", "pass a run folder or an exported model")
    return paths


def _checked_plan(plan: object) -> BenchmarkPlan:
    given = asdict(plan) if isinstance(plan, BenchmarkPlan) else {} if plan is None else plan
    if not isinstance(given, Mapping):
        raise ConfigError("a BenchmarkPlan or a dict of its fields for 'plan'", described(plan), "pass one of these")
    return build_settings(BenchmarkPlan, given, section="plan")


def _accuracy(
    target: Target, data: Path | str, split: SplitName, split_file: Path | None, progress: ProgressCallback
) -> tuple[Accuracy, str]:
    """Returns the accuracy of a model, and the split that it was measured on: "all" if the folder has none."""
    engine = None if target.engine == TORCH else target.engine
    result = evaluate(target.model, data, split=split, split_file=split_file, engine=engine, progress=progress)
    low, high = result.accuracy_ci95
    return Accuracy(result.accuracy, (low, high), result.photos), result.split


def _draw(folder: Path) -> list[Path]:
    """Draws a leaf of each class, saves it to `folder` as JPEG and returns the files."""
    from agridistill.data.drawn_leaves import CLASSES, draw_leaf

    files = [folder / f"{name}.jpg" for name in CLASSES]
    for number, (name, file) in enumerate(zip(CLASSES, files, strict=True)):
        leaf, shot = np.random.default_rng((number, 0)), np.random.default_rng((number, 1))
        draw_leaf(name, leaf, shot, _DRAWN_SIDE).save(file, quality=_DRAWN_QUALITY)
    return files
