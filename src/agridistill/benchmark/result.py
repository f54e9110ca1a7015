"""BenchmarkResult: every number of a benchmark, as JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agridistill.benchmark.host import Host
from agridistill.benchmark.published import PublishedResult

UNMEASURED = "unmeasured"

CSV_COLUMNS = (
    "source",
    "model",
    "engine",
    "device",
    "architecture",
    "precision",
    "image_size_px",
    "accuracy",
    "accuracy_ci95_low",
    "accuracy_ci95_high",
    "accuracy_photos",
    "size_bytes",
    "parameters",
    "macs",
    "flops",
    "latency_ms",
    "latency_ms_p50",
    "latency_ms_p90",
    "latency_ms_p99",
    "end_to_end_ms_p50",
    "end_to_end_ms_p90",
    "end_to_end_ms_p99",
    "throughput_photos_per_s",
    "throughput_batch_size",
    "peak_memory_bytes",
    "energy_j",
    "load_s",
    "threads",
    "queries",
    "processor",
    "date_utc",
)


@dataclass(frozen=True)
class Percentiles:
    """Latencies below which 50, 90 and 99 % of the queries stay, in milliseconds."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, latencies_ns: Sequence[int]) -> Percentiles:
        """Percentiles of latencies in nanoseconds, at least one; each is a latency that was seen (nearest rank).

        Example:
            >>> Percentiles.of([4_000_000, 1_000_000, 2_000_000, 3_000_000])
            Percentiles(p50=2.0, p90=4.0, p99=4.0)
        """
        p50, p90, p99 = np.quantile(latencies_ns, (0.5, 0.9, 0.99), method="inverted_cdf") / 1e6
        return cls(float(p50), float(p90), float(p99))

    def to_json(self, name: str) -> dict[str, float]:
        """Three keys that start with `name`."""
        return {f"{name}_ms_p50": self.p50, f"{name}_ms_p90": self.p90, f"{name}_ms_p99": self.p99}


@dataclass(frozen=True)
class Accuracy:
    """Share of labelled photos that a model classifies rightly.

    Attributes:
        share: 0 to 1.
        ci95: its 95 % interval.
        photos: evaluated.
    """

    share: float
    ci95: tuple[float, float]
    photos: int


@dataclass(frozen=True)
class ModelResult:
    """One model with one engine.

    Attributes:
        model: the path as it was given.
        engine: that ran it.
        architecture: timm's name.
        precision: of the weights, "fp32" or "int8".
        image_size: side of the input in pixels.
        size_bytes: of the file with the weights.
        parameters: None where unknown.
        macs: multiply-accumulates for one photo; None where unknown.
        latency: of inference alone, from one prepared photo to logits.
        latency_ms_p50_of_turns: the median of each turn by itself: how steady the machine was.
        end_to_end: from one file to its label: read, decoded, resized, classified.
        throughput_photos_per_s: of inference on prepared photos.
        throughput_batch_size: photos at once; 1 where the engine takes no more.
        peak_memory_bytes: while single photos were classified, above a bare interpreter's; None where unknown.
        energy_j: of all processor packages for one inference; None where unmeasured.
        load_s: in a fresh process until the model is ready, the engine's import included.
        accuracy: on the benchmark's data; None without.
    """

    model: str
    engine: str
    architecture: str
    precision: str
    image_size: int
    size_bytes: int
    parameters: int | None
    macs: int | None
    latency: Percentiles
    latency_ms_p50_of_turns: tuple[float, ...]
    end_to_end: Percentiles
    throughput_photos_per_s: float
    throughput_batch_size: int
    peak_memory_bytes: int | None
    energy_j: float | None
    load_s: float
    accuracy: Accuracy | None = None

    @property
    def flops(self) -> int | None:
        """Floating-point operations for one photo: 1 MAC is 2 FLOPs."""
        return None if self.macs is None else 2 * self.macs

    def to_json(self) -> dict[str, Any]:
        """Every figure; what is unknown or unmeasured is null."""
        accuracy = self.accuracy
        return {
            "source": "measured",
            "model": self.model,
            "engine": self.engine,
            "architecture": self.architecture,
            "precision": self.precision,
            "image_size_px": self.image_size,
            "accuracy": accuracy and accuracy.share,
            "accuracy_ci95": accuracy and list(accuracy.ci95),
            "accuracy_photos": accuracy and accuracy.photos,
            "size_bytes": self.size_bytes,
            "parameters": self.parameters,
            "macs": self.macs,
            "flops": self.flops,
            **self.latency.to_json("latency"),
            "latency_ms_p50_of_turns": list(self.latency_ms_p50_of_turns),
            **self.end_to_end.to_json("end_to_end"),
            "throughput_photos_per_s": self.throughput_photos_per_s,
            "throughput_batch_size": self.throughput_batch_size,
            "peak_memory_bytes": self.peak_memory_bytes,
            "energy_j": self.energy_j,
            "load_s": self.load_s,
        }


@dataclass(frozen=True)
class PhotoSet:
    """The photos that were asked about.

    Attributes:
        source: "drawn", or the path that was given.
        photos: how many; queries go through them in turn.
        mean_pixels: of the files as they are stored.
        mean_bytes: of the files.
    """

    source: str
    photos: int
    mean_pixels: float
    mean_bytes: float

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return {
            "source": self.source,
            "photos": self.photos,
            "mean_pixels": self.mean_pixels,
            "mean_bytes": self.mean_bytes,
        }


@dataclass(frozen=True)
class BenchmarkResult:
    """All models, measured in turns on one machine.

    Attributes:
        models: in the order in which they were named.
        published: others' figures to stand beside them.
        host: the machine.
        threads: of each model.
        queries: of each kind (inference, end to end) for each model.
        turns: into which they are divided.
        warm_up_queries: untimed ones before each turn.
        photos: that were asked about.
        interpreter_memory_bytes: of a bare Python; no model's peak contains it. None where unknown.
        data: what the accuracy was measured on, "test of photos"; None without.
    """

    models: tuple[ModelResult, ...]
    published: tuple[PublishedResult, ...]
    host: Host
    threads: int
    queries: int
    turns: int
    warm_up_queries: int
    photos: PhotoSet
    interpreter_memory_bytes: int | None
    data: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON document; what is unknown or unmeasured is null."""
        return {
            "host": self.host.to_json(),
            "threads": self.threads,
            "queries": self.queries,
            "turns": self.turns,
            "warm_up_queries": self.warm_up_queries,
            "photos": self.photos.to_json(),
            "data": self.data,
            "interpreter_memory_bytes": self.interpreter_memory_bytes,
            "models": [model.to_json() for model in self.models],
            "published": [paper.to_json() for paper in self.published],
        }

    def to_csv(self) -> str:
        """One line a model, with the machine in each, so that files of several machines can be joined."""
        where = {
            "threads": self.threads,
            "queries": self.queries,
            "processor": self.host.processor,
            "date_utc": self.host.date_utc,
        }
        measured = (_flat(model) | where for model in self.models)
        return _table((*measured, *(paper.to_json() for paper in self.published)))


def _flat(model: ModelResult) -> dict[str, Any]:
    row = model.to_json()
    if model.accuracy is not None:
        row["accuracy_ci95_low"], row["accuracy_ci95_high"] = model.accuracy.ci95
    if model.energy_j is None:
        row["energy_j"] = UNMEASURED
    return row


def _table(rows: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
