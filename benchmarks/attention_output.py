"""What `export --attention` costs a device: latency and size of a file with the second output, and without it.

    python benchmarks/attention_output.py --out docs/performance/attention_output.json

Each network has random weights, whose values do not change the time. The two files of a network classify one photo in
turns, on one thread. Times are of the processor, which other work on the machine changes least; the cost is the median
over the turns of the ratio of their median times.
Needs the extra `export`; with openvino, that engine is measured as well.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from reporting import machine, publish

from agridistill.api import load
from agridistill.export.onnx import to_onnx
from agridistill.manifest import ModelManifest, Preprocessing
from agridistill.models import create_model, normalise_batch, with_attention
from agridistill.models.int8 import calibrate, folded, quantised
from agridistill.runtime.engines import Backend

NETWORKS = (("mobilenetv3_large_minimal_100", 224), ("efficientnet_lite0", 224))
CLASSES, STRIDE, TURNS, QUERIES, WARM_UP = 10, 16, 30, 6, 2


def files_of(name: str, size: int, folder: Path, *, int8: bool, pixels: np.ndarray[Any, Any]) -> list[Path]:
    """Writes a network without and with the second output."""
    preprocessing = Preprocessing(size)
    network = create_model(name, CLASSES, image_size=size).eval()
    form = quantised(network, preprocessing) if int8 else folded(network)
    if int8:
        calibrate(form, [normalise_batch(torch.from_numpy(pixels).permute(0, 3, 1, 2), preprocessing)])
    precision: Any = "int8" if int8 else "fp32"
    manifest = ModelManifest(name, tuple("abcdefghij"), preprocessing, "", "", precision=precision)
    files = [folder / f"{name}-{int8}-{attention}.onnx" for attention in (False, True)]
    for file, attention in zip(files, (False, True), strict=True):
        written = with_attention(form, STRIDE) if attention else form
        file.write_bytes(to_onnx(written, preprocessing, int8=int8, attention=attention).SerializeToString())
        manifest.with_weights(file).write(file.with_suffix(".json"))
    return files


def cpu_ms(backends: list[Backend], photo: np.ndarray[Any, Any]) -> list[list[float]]:
    """For each turn the median time of each backend."""
    found = []
    for turn in range(TURNS):
        medians = [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):
            taken = []
            for query in range(WARM_UP + QUERIES):
                start = time.process_time()
                backends[which].logits(photo)
                if query >= WARM_UP:
                    taken.append(1e3 * (time.process_time() - start))
            medians[which] = median(taken)
        found.append(medians)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    torch.manual_seed(0)
    rows = []
    for name, size in NETWORKS:
        pixels = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8)
        for int8 in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                files = files_of(name, size, Path(folder), int8=int8, pixels=pixels)
                for engine in ("onnxruntime", *(["openvino"] if find_spec("openvino") else [])):
                    backends = [load(file, engine=engine, threads=1).backend for file in files]
                    plain, attentive = (backend.logits(pixels) for backend in backends)
                    turns = cpu_ms(backends, pixels[:1])
                    rows.append(
                        {
                            "model": name,
                            "image_size": size,
                            "precision": "int8" if int8 else "fp32",
                            "engine": engine,
                            "without_cpu_ms": round(median(first for first, _ in turns), 3),
                            "with_cpu_ms": round(median(second for _, second in turns), 3),
                            "cost_percent": round(100 * (median(second / first for first, second in turns) - 1), 2),
                            "size_bytes_more": files[1].stat().st_size - files[0].stat().st_size,
                            "largest_logit_difference": float(np.abs(plain - attentive).max()),
                        }
                    )
    publish({"machine": machine(), "threads": 1, "turns": TURNS, "files": rows}, out)


if __name__ == "__main__":
    main()
