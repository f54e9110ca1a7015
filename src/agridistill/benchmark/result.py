"""Holds every number of a benchmark, and reads the machine's counters of memory and energy."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agridistill.host import Host
from agridistill.storage import csv_text

_POWERCAP = Path("/sys/class/powercap")


def peak_memory_bytes() -> int | None:
    """Returns the largest amount of RAM that this process has used so far, in bytes; None if it is not counted."""
    # Prefer /proc to resource.getrusage, because ru_maxrss of a child process is at least its parent's.
    # bare_interpreter_bytes runs the source of this function in an interpreter that has imported only sys; pathlib
    # would increase the memory that it measures.
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def bare_interpreter_bytes() -> int | None:
    """Returns the peak memory, in bytes, of a Python interpreter that does nothing; None if it is not counted."""
    code = f"import sys\n{inspect.getsource(peak_memory_bytes)}\nprint(peak_memory_bytes() or '')"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    return int(done.stdout) if done.stdout.strip() else None


class EnergyCounter:
    """Reads how much energy all processors of the machine have used, for all processes, from Linux's RAPL counters."""

    def __init__(self, root: Path = _POWERCAP) -> None:
        self._counters: list[tuple[Path, int]] = []
        # Only whole packages: cores and memory are parts of them, and "psys" and "intel-rapl-mmio" count them again.
        for zone in sorted(root.glob("intel-rapl:*")):
            try:
                if (zone / "name").read_text().startswith("package"):
                    self._counters.append((zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())))
            except (OSError, ValueError):
                continue

    def read(self) -> tuple[int, ...] | None:
        """Returns the counters in microjoules; None if there are none, or the user has no permission to read them."""
        try:
            return tuple(int(counter.read_text()) for counter, _ in self._counters) or None
        except (OSError, ValueError):
            return None

    def joules_since(self, start: tuple[int, ...] | None) -> float | None:
        """Returns the energy in joules since `start`, a result of `read`; None if it is unknown.

        Each counter may wrap around once; at 100 W that takes at least half an hour.
        """
        now = self.read()
        if start is None or now is None:
            return None
        used = (
            after - before if after >= before else after - before + range_uj
            for before, after, (_, range_uj) in zip(start, now, self._counters, strict=True)
        )
        return sum(used) / 1e6


UNMEASURED = "unmeasured"
PAPER = "arXiv 2504.16128"

# fmt: off
CSV_COLUMNS = (
    "source", "model", "engine", "device", "architecture", "precision", "image_size_px",
    "accuracy", "accuracy_ci95_low", "accuracy_ci95_high", "accuracy_photos",
    "size_bytes", "parameters", "macs", "flops",
    "latency_ms", "latency_ms_p50", "latency_ms_p90", "latency_ms_p99",
    "end_to_end_ms_p50", "end_to_end_ms_p90", "end_to_end_ms_p99",
    "throughput_photos_per_s", "throughput_batch_size", "peak_memory_bytes", "energy_j", "load_s",
    "threads", "queries", "processor", "date_utc",
)
# fmt: on


@dataclass(frozen=True)
class Percentiles:
    """Latencies in milliseconds that 50, 90 and 99 % of the queries do not exceed."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, latencies_ns: Sequence[int]) -> Percentiles:
        """Computes percentiles of at least one latency in nanoseconds; each is an observed latency (nearest rank).

        Example:
            >>> Percentiles.of([4_000_000, 1_000_000, 2_000_000, 3_000_000])
            Percentiles(p50=2.0, p90=4.0, p99=4.0)
        """
        p50, p90, p99 = np.quantile(latencies_ns, (0.5, 0.9, 0.99), method="inverted_cdf") / 1e6
        return cls(float(p50), float(p90), float(p99))

    def to_json(self, name: str) -> dict[str, float]:
        """Returns the percentiles under the keys `NAME_ms_p50`, `NAME_ms_p90` and `NAME_ms_p99`."""
        return {f"{name}_ms_p50": self.p50, f"{name}_ms_p90": self.p90, f"{name}_ms_p99": self.p99}


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a model on labelled photos, with its 95 % interval."""

    share: float  # 0 to 1
    ci95: tuple[float, float]
    photos: int


@dataclass(frozen=True)
class ModelResult:
    """The measurements of one model in one engine; figures that are unknown or not measured are None."""

    model: str  # the path that the caller passed
    engine: str
    architecture: str  # timm's name of the network
    precision: str  # "fp32" or "int8"
    image_size: int  # side of the input in pixels
    size_bytes: int  # size of the file with the weights
    parameters: int | None
    macs: int | None  # multiply-accumulates for one photo
    latency: Percentiles  # time of inference only, from one preprocessed photo to logits
    latency_ms_p50_of_turns: tuple[float, ...]  # the median of each turn; shows how steady the machine was
    end_to_end: Percentiles  # time from one file to its label: read, decode, resize, classify
    throughput_photos_per_s: float  # inference only, on preprocessed photos
    throughput_batch_size: int  # number of photos at once; 1 if the engine takes no more
    peak_memory_bytes: int | None  # while classifying single photos, without the memory of a bare interpreter
    energy_j: float | None  # energy of all processor packages for one inference, in joules
    load_s: float  # time until the model is ready in a new process, including the import of the engine
    accuracy: Accuracy | None = None  # on the benchmark's data; None without data

    @property
    def flops(self) -> int | None:
        """Floating-point operations for one photo: 1 MAC is 2 FLOPs."""
        return None if self.macs is None else 2 * self.macs

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON document with every figure; those that are unknown or not measured are None."""
        document = {"source": "measured", **asdict(self), "flops": self.flops}
        document["image_size_px"] = document.pop("image_size")
        del document["latency"], document["end_to_end"]
        accuracy = self.accuracy
        return document | {
            "accuracy": accuracy and accuracy.share,
            "accuracy_ci95": accuracy and list(accuracy.ci95),
            "accuracy_photos": accuracy and accuracy.photos,
            **self.latency.to_json("latency"),
            **self.end_to_end.to_json("end_to_end"),
        }


@dataclass(frozen=True)
class PublishedResult:
    """The figures that the paper reports for one model; this package does not measure them."""

    model: str  # the name that the paper uses
    device: str | None  # device that the latency was measured on; None if the paper gives no latency
    accuracy: float  # on PlantVillage's tomato leaves (18,160 photos), 0 to 1
    macs: int  # for one photo; the paper calls them FLOPs
    size_bytes: int | None = None  # the paper calls it memory
    latency_ms: float | None = None  # of one photo; the paper does not say whether mean or median

    @property
    def flops(self) -> int:
        """Floating-point operations for one photo: 1 MAC is 2 FLOPs."""
        return 2 * self.macs

    def to_json(self) -> dict[str, Any]:
        """Returns every figure as a JSON document with "source": "published"."""
        return {"source": "published", "paper": PAPER, **asdict(self), "flops": self.flops}


_STUDENT = "distilled MobileNetV3"
PUBLISHED = (
    PublishedResult("Swin-L", None, accuracy=0.959, macs=34_100_000_000),
    PublishedResult(_STUDENT, "PC", accuracy=0.924, macs=220_000_000, size_bytes=13_000_000, latency_ms=23),
    PublishedResult(_STUDENT, "smartphone", accuracy=0.924, macs=220_000_000, size_bytes=13_000_000, latency_ms=86),
)


@dataclass(frozen=True)
class PhotoSet:
    """The photos that a benchmark used."""

    source: str  # "drawn", or the path that the caller passed
    photos: int  # number of photos; the queries use them in turn
    mean_pixels: float  # mean number of pixels of the files
    mean_bytes: float  # mean size of the files


@dataclass(frozen=True)
class BenchmarkResult:
    """The result of a benchmark: all models, measured in turns on one machine."""

    models: tuple[ModelResult, ...]  # in the order of the arguments
    published: tuple[PublishedResult, ...]
    host: Host
    threads: int  # number of threads of each model
    queries: int  # number of queries of each kind (inference, end to end) for each model
    turns: int  # number of turns that the queries are divided into
    warm_up_queries: int  # number of untimed queries before each turn
    photos: PhotoSet
    interpreter_memory_bytes: int | None  # peak memory of a bare Python, subtracted from each model's; None if unknown
    data: str | None = None  # split and folder that accuracy was measured on, such as "test of photos"

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON document with every figure; those that are unknown or not measured are None."""
        models, published = [[row.to_json() for row in rows] for rows in (self.models, self.published)]
        return asdict(self) | {"models": models, "published": published}

    def to_csv(self) -> str:
        """Returns a CSV text with one line for each model; each line names the machine, so that files can be joined."""
        host = {"processor": self.host.processor, "date_utc": self.host.date_utc}
        run = {"threads": self.threads, "queries": self.queries, **host}
        rows = []
        for model in self.models:
            row = model.to_json() | run
            if model.accuracy is not None:
                row["accuracy_ci95_low"], row["accuracy_ci95_high"] = model.accuracy.ci95
            if model.energy_j is None:
                row["energy_j"] = UNMEASURED
            rows.append(row)
        rows += [paper.to_json() for paper in self.published]
        return csv_text([CSV_COLUMNS, *([row.get(column) for column in CSV_COLUMNS] for row in rows)])
