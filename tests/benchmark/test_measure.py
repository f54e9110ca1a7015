"""The asking side with a worker that is made up: what is asked when, and what follows from the answers."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agridistill.benchmark.result import ModelResult, Percentiles
from agridistill.benchmark.run import BenchmarkPlan, Target, measure
from agridistill.errors import ModelError


class MadeUpWorker:
    """Answers at once; each of its latencies is another number of microseconds."""

    def __init__(self, target: Target, log: list[tuple[str, str, dict[str, Any]]], **answers: Any) -> None:
        self._target, self._log, self._answers = target, log, answers
        self._latencies = iter(range(1_000, 10**9, 1_000))

    def ask(self, question: str, **details: Any) -> dict[str, Any]:
        self._log.append((self._target.engine, question, details))
        if question == "load":
            return {"load_s": 0.5}
        if question == "turn":
            inference, end_to_end = ([next(self._latencies) for _ in range(details["queries"])] for _ in range(2))
            peak = self._answers.get("peak_memory_bytes", 30_000_000)
            energy_j = self._answers.get("energy_j")
            answer = {"latencies_ns": inference, "energy_j": energy_j, "end_to_end_ns": end_to_end}
            return answer | {"peak_memory_bytes": peak}
        if question == "batches":
            return {"seconds": 0.25, "photos_at_once": 4}
        return {
            "architecture": "mean_colour",
            "precision": "fp32",
            "image_size": 16,
            "weights_file": "model.bin",
            "parameters": 6,
            "macs": None,
        }


class Bench:
    """Measures made-up models and keeps what was asked."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "a.onnx"
        self.file.write_bytes(bytes(123))
        self.log: list[tuple[str, str, dict[str, Any]]] = []
        self.progress: list[tuple[int, int]] = []
        self.left: list[str] = []

    def measure(
        self, *engines: str, plan: BenchmarkPlan, interpreter_bytes: int | None = 9_000_000, **answers: Any
    ) -> list[ModelResult]:
        @contextlib.contextmanager
        def start(target: Target) -> Iterator[MadeUpWorker]:
            try:
                yield MadeUpWorker(target, self.log, **answers)
            finally:
                self.left.append(target.engine)

        targets = [Target(self.file, engine) for engine in engines]
        return measure(
            targets,
            start,
            plan,
            interpreter_bytes=interpreter_bytes,
            progress=lambda done, total: self.progress.append((done, total)),
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("queries", [1, 2, 3, 10, 99, 100, 101, 1024])
def test_percentiles_are_latencies_that_so_many_queries_did_not_exceed(queries: int) -> None:
    latencies = np.random.default_rng(queries).integers(10**5, 10**8, queries).tolist()
    found = Percentiles.of(latencies)
    ordered = sorted(latencies)
    for share, value in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        assert value == ordered[math.ceil(share * queries - 1e-9) - 1] / 1e6
    if queries == 1024:
        plain = np.percentile(latencies, (50, 90, 99)) / 1e6
        assert (found.p50, found.p90, found.p99) == pytest.approx(tuple(plain), rel=0.02)


@pytest.mark.parametrize(("queries", "turns"), [(1, 16), (16, 16), (17, 16), (1024, 16), (1000, 7)])
def test_the_turns_together_have_all_queries(queries: int, turns: int) -> None:
    sizes = BenchmarkPlan(queries=queries, turns=turns).turn_sizes()
    assert sum(sizes) == queries
    assert len(sizes) == min(queries, turns)
    assert max(sizes) - min(sizes) <= 1


def test_models_take_turns_and_each_round_starts_with_another(bench: Bench) -> None:
    bench.measure("onnxruntime", "openvino", "torch", plan=BenchmarkPlan(queries=6, turns=3, warm_up=2))
    asked = [(engine, question) for engine, question, _ in bench.log]
    turn = [(engine, "turn") for engine in ("onnxruntime", "openvino", "torch")]
    assert asked[:3] == [(engine, "load") for engine in ("onnxruntime", "openvino", "torch")]
    assert asked[3:12] == turn + turn[1:] + turn[:1] + turn[2:] + turn[:2]
    assert all(details == {"queries": 2, "warm_up": 2} for _, _, details in bench.log[3:12])


def test_single_photos_come_first_so_that_their_peak_memory_holds_nothing_larger(bench: Bench) -> None:
    bench.measure("onnxruntime", "openvino", plan=BenchmarkPlan(queries=4, turns=2))
    questions = [question for _, question, _ in bench.log]
    assert questions == ["load"] * 2 + ["turn"] * 4 + ["batches"] * 4 + ["describe"] * 2


def test_every_query_of_every_turn_counts(bench: Bench) -> None:
    (result,) = bench.measure("onnxruntime", plan=BenchmarkPlan(queries=100, turns=4))
    # Its latencies count up from 1 microsecond: 25 of inference, 25 of end to end, and so on.
    inference = [n for n in range(1, 201) if (n - 1) // 25 % 2 == 0]
    assert result.latency.p50 == inference[49] / 1000
    assert result.latency.p99 == inference[98] / 1000
    assert result.end_to_end.p99 == 0.199
    assert result.latency_ms_p50_of_turns == (0.013, 0.063, 0.113, 0.163)


def test_throughput_is_of_batches_where_the_engine_takes_them(bench: Bench) -> None:
    plan = BenchmarkPlan(queries=90, turns=2, batch_size=32)
    batched, single = bench.measure("onnxruntime", "litert", plan=plan)
    asked = [(engine, details) for engine, question, details in bench.log if question == "batches"]
    assert asked == [("onnxruntime", {"batches": 2, "batch_size": 32})] * 2
    assert batched.throughput_photos_per_s == pytest.approx(2 * 2 * 32 / 0.5)
    assert batched.throughput_batch_size == 4
    mean_s = np.mean([n for n in range(1, 181) if (n - 1) // 45 % 2 == 0]) / 1e6
    assert single.throughput_photos_per_s == pytest.approx(1 / mean_s)
    assert single.throughput_batch_size == 1


def test_a_models_memory_is_what_is_above_the_interpreters(bench: Bench) -> None:
    plan = BenchmarkPlan(queries=1)
    assert bench.measure("openvino", plan=plan)[0].peak_memory_bytes == 21_000_000
    assert bench.measure("openvino", plan=plan, interpreter_bytes=None)[0].peak_memory_bytes is None
    assert bench.measure("openvino", plan=plan, peak_memory_bytes=None)[0].peak_memory_bytes is None


@pytest.mark.parametrize(("each_turn", "expected"), [(None, None), (0.0, None), (3.0, 3.0 * 4 / 10)])
def test_energy_is_for_one_photo_and_never_zero(bench: Bench, each_turn: float | None, expected: float | None) -> None:
    (result,) = bench.measure("openvino", plan=BenchmarkPlan(queries=10, turns=4), energy_j=each_turn)
    assert result.energy_j == (None if expected is None else pytest.approx(expected))


def test_size_is_of_the_file_or_of_the_runs_weights(bench: Bench, tmp_path: Path) -> None:
    assert bench.measure("openvino", plan=BenchmarkPlan(queries=1))[0].size_bytes == 123
    bench.file = tmp_path / "run"
    bench.file.mkdir()
    (bench.file / "model.bin").write_bytes(bytes(77))
    assert bench.measure("torch", plan=BenchmarkPlan(queries=1))[0].size_bytes == 77


def test_progress_ends_with_all_turns(bench: Bench) -> None:
    bench.measure("onnxruntime", "litert", plan=BenchmarkPlan(queries=5, turns=5))
    total = 5 * (1 + 1 + 1)
    assert bench.progress == [(done, total) for done in range(1, total + 1)]


def test_a_model_that_fails_ends_the_workers_of_all(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = MadeUpWorker.ask

    def fail(worker: MadeUpWorker, question: str, **details: Any) -> dict[str, Any]:
        if worker._target.engine == "openvino" and question == "turn":
            raise ModelError("a model", "none", "export it again")
        return answer(worker, question, **details)

    monkeypatch.setattr(MadeUpWorker, "ask", fail)
    with pytest.raises(ModelError, match="export it again"):
        bench.measure("onnxruntime", "openvino", plan=BenchmarkPlan(queries=2))
    assert sorted(bench.left) == ["onnxruntime", "openvino"]
