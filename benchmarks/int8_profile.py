r"""Operator by operator: where an exported model spends its time on one core.

    python benchmarks/int8_profile.py MODEL.onnx... --photos PHOTOS --out docs/performance/int8_profile.json

Each model runs under ONNX Runtime's and OpenVINO's own profilers, one photo at a time, in turns; a figure is the median
over the queries of the time that all operators of one kind took together. Profiling slows a model by some tenths of a
millisecond: latency is measured by `agridistill benchmark`, this tells what it consists of.
Needs the extra `export`, and openvino.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import openvino
from reporting import machine, publish

from agridistill.api import load
from agridistill.preprocess import Pixels
from agridistill.runtime.predictor import expand, read_batches

TURNS, QUERIES, WARM_UP, PHOTOS = 5, 60, 10, 30
_CALL = "model_run"


def with_onnx_runtime(model: Path, photos: Sequence[Pixels]) -> list[Mapping[str, float]]:
    """Milliseconds of each kind of operator in each query."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        for number in range(WARM_UP + QUERIES):
            session.run(None, {"pixels": photos[number % len(photos)][None]})
        events = json.loads(Path(session.end_profiling()).read_text())
    queries: list[dict[str, float]] = []
    kinds: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kinds[event["args"]["op_name"]] += event["dur"] / 1e3
        elif event["name"] == _CALL:
            queries.append(dict(kinds))
            kinds.clear()
    return queries[-QUERIES:]


def with_openvino(model: Path, photos: Sequence[Pixels]) -> list[Mapping[str, float]]:
    """The same; a kind is an operator and the precision that it computes in."""
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERF_COUNT": True,
    }
    request = openvino.Core().compile_model(str(model), "CPU", options).create_infer_request()
    queries: list[Mapping[str, float]] = []
    for number in range(WARM_UP + QUERIES):
        request.infer([photos[number % len(photos)][None]])
        kinds: dict[str, float] = defaultdict(float)
        for node in request.profiling_info:
            spent = node.real_time.total_seconds() * 1e3
            if spent:
                kinds[f"{node.node_type}, {'int8' if node.exec_type.lower().endswith('i8') else 'fp32'}"] += spent
        queries.append(dict(kinds))
    return queries[-QUERIES:]


ENGINES = {"onnxruntime": with_onnx_runtime, "openvino": with_openvino}


def summary(queries: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Medians over the queries, the costly kinds first."""
    kinds = {name for query in queries for name in query}
    medians = {name: median(query.get(name, 0.0) for query in queries) for name in kinds}
    return {
        "operators_ms": round(median(sum(query.values()) for query in queries), 3),
        "kinds_ms": {name: round(ms, 3) for name, ms in sorted(medians.items(), key=lambda item: -item[1])},
    }


def main() -> None:
    """Profiles, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    pixels: dict[Path, list[Pixels]] = {}
    for model in given.models:
        preprocessing = load(model).manifest.preprocessing
        batches = read_batches(expand([given.photos])[:PHOTOS], preprocessing, batch_size=1)
        pixels[model] = [photo for batch in batches for _, photo in batch if isinstance(photo, np.ndarray)]
    found: dict[tuple[str, Path], list[Mapping[str, float]]] = defaultdict(list)
    for _ in range(TURNS):
        for engine, profile in ENGINES.items():
            for model in given.models:
                found[engine, model] += profile(model, pixels[model])
    profiles = [
        {"model": model.name, "engine": engine, **summary(queries)} for (engine, model), queries in found.items()
    ]
    versions = {"onnxruntime": onnxruntime.__version__, "openvino": openvino.get_version()}
    publish({"machine": machine(), "versions": versions, "threads": 1, "profiles": profiles}, given.out)


if __name__ == "__main__":
    main()
