"""Measures models against one another: they take turns, so that whatever disturbs the machine disturbs them all.

Latency is that of one photo at a time, as MLPerf's "single stream" has it: the next query starts when the last is
answered, and the figures are percentiles over at least 1,024 queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from agridistill.benchmark.result import ModelResult, Percentiles
from agridistill.benchmark.worker import Worker
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.runtime.backends import ENGINES

# Below this the 99th percentile rests on fewer than ten queries (MLPerf Inference, single stream).
PUBLISHABLE_QUERIES = 1024


@dataclass(frozen=True)
class Target:
    """A model and the engine that is to run it."""

    model: Path
    engine: str

    def __str__(self) -> str:
        return f"'{self.model}' with {self.engine}"


@dataclass(frozen=True)
class BenchmarkPlan:
    """How much is measured.

    Attributes:
        queries: of each kind (inference, end to end) for each model, at least 1.
        turns: that each model takes; no more than there are queries.
        warm_up: untimed queries at the start of each turn: another model has filled the caches meanwhile.
        batch_size: photos at once for throughput, where the engine takes several.
    """

    queries: int = PUBLISHABLE_QUERIES
    turns: int = 16
    warm_up: int = 8
    batch_size: int = 32

    def turn_sizes(self) -> tuple[int, ...]:
        """Queries of each turn; they differ by at most 1.

        Example:
            >>> BenchmarkPlan(queries=10, turns=4).turn_sizes()
            (2, 3, 2, 3)
        """
        turns = min(self.turns, self.queries)
        ends = [self.queries * turn // turns for turn in range(turns + 1)]
        return tuple(end - start for start, end in pairwise(ends))


Start = Callable[[Target], AbstractContextManager[Worker]]


def measure(
    targets: Sequence[Target],
    start: Start,
    plan: BenchmarkPlan,
    *,
    interpreter_bytes: int | None,
    progress: ProgressCallback = silent,
) -> list[ModelResult]:
    """Measures every target, each in its own worker; only one of them works at a time.

    Args:
        targets: at least one.
        start: starts the worker of a target.
        plan: how much is measured.
        interpreter_bytes: peak memory of a bare interpreter, which is no model's.
        progress: called with turns done and in total.

    Raises:
        AgriDistillError: a model cannot be loaded or measured; no worker is left.
    """
    with ExitStack() as workers:
        begin(progress, "loading models")
        running = []
        for target in targets:
            worker = workers.enter_context(start(target))
            running.append(_Measured(target, worker, plan, **worker.ask("load")))
        begin(progress, "measuring")
        _take_turns(running, plan, progress)
        return [each.result(interpreter_bytes) for each in running]


@dataclass
class _Measured:
    """A model while it is measured: what its turns have given so far."""

    target: Target
    worker: Worker
    plan: BenchmarkPlan
    load_s: float
    first_query_s: float
    latencies_ns: list[list[int]] = field(default_factory=list)
    end_to_end_ns: list[int] = field(default_factory=list)
    energies_j: list[float | None] = field(default_factory=list)
    peak_bytes: int | None = None
    batch_photos: int = 0
    batch_s: float = 0.0

    @property
    def batched(self) -> bool:
        engine = ENGINES.get(self.target.engine)
        return engine is None or engine.batches

    def infer(self, queries: int) -> None:
        answer = self._ask("inference", queries)
        self.latencies_ns.append(answer["latencies_ns"])
        self.energies_j.append(answer["energy_j"])

    def predict_files(self, queries: int) -> None:
        self.end_to_end_ns += self._ask("end_to_end", queries)["latencies_ns"]

    def note_memory(self) -> None:
        self.peak_bytes = self.worker.ask("memory")["peak_memory_bytes"]

    def infer_batches(self, queries: int) -> None:
        size = self.plan.batch_size
        batches = math.ceil(queries / size)
        expected_s = self.first_query_s * size * (batches + 1)
        answer = self.worker.ask("batches", batches=batches, batch_size=size, expected_s=expected_s)
        self.batch_photos += batches * size
        self.batch_s += answer["seconds"]

    def result(self, interpreter_bytes: int | None) -> ModelResult:
        about = self.worker.ask("describe")
        every = [latency for turn in self.latencies_ns for latency in turn]
        weights = self.target.model / about["weights_file"] if self.target.model.is_dir() else self.target.model
        known = self.peak_bytes is not None and interpreter_bytes is not None
        per_second = self.batch_photos / self.batch_s if self.batched else 1e9 * len(every) / sum(every)
        return ModelResult(
            model=str(self.target.model),
            engine=self.target.engine,
            architecture=about["architecture"],
            precision=about["precision"],
            image_size=about["image_size"],
            size_bytes=weights.stat().st_size,
            parameters=about["parameters"],
            macs=about["macs"],
            latency=Percentiles.of(every),
            latency_ms_p50_of_turns=tuple(Percentiles.of(turn).p50 for turn in self.latencies_ns),
            end_to_end=Percentiles.of(self.end_to_end_ns),
            throughput_photos_per_s=per_second,
            throughput_batch_size=self.plan.batch_size if self.batched else 1,
            peak_memory_bytes=(self.peak_bytes or 0) - (interpreter_bytes or 0) if known else None,
            energy_j=_joules_a_query(self.energies_j, len(every)),
            load_s=self.load_s,
        )

    def _ask(self, question: str, queries: int) -> dict[str, Any]:
        expected_s = self.first_query_s * (queries + self.plan.warm_up)
        return self.worker.ask(question, queries=queries, warm_up=self.plan.warm_up, expected_s=expected_s)


def _take_turns(running: Sequence[_Measured], plan: BenchmarkPlan, progress: ProgressCallback) -> None:
    sizes = plan.turn_sizes()
    batched = [each for each in running if each.batched]
    total = len(sizes) * (2 * len(running) + len(batched))
    done = 0
    for each, queries in _turns(running, sizes):
        for kind in (each.infer, each.predict_files):
            kind(queries)
            done += 1
            progress(done, total)
    # Before the batches: a device that answers one photo at a time needs no room for 32.
    for each in running:
        each.note_memory()
    for each, queries in _turns(batched, sizes):
        each.infer_batches(queries)
        done += 1
        progress(done, total)


def _turns(running: Sequence[_Measured], sizes: Sequence[int]) -> Iterator[tuple[_Measured, int]]:
    """Each model once a round; every round starts with another, so that none always follows the same one."""
    for number, queries in enumerate(sizes):
        first = number % len(running) if running else 0
        for each in (*running[first:], *running[:first]):
            yield each, queries


def _joules_a_query(energies_j: Sequence[float | None], queries: int) -> float | None:
    """None unless every turn was measured; a counter that stands still (in a virtual machine) has measured nothing."""
    measured = [energy for energy in energies_j if energy is not None]
    total = sum(measured)
    return total / queries if len(measured) == len(energies_j) and total > 0 else None
