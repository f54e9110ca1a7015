"""Resident memory of a process that predicts on a device: one exported model, 10,000 photos, no torch.

    python benchmarks/device_memory.py MODEL PHOTOS --out docs/performance/device_memory.json

Each way of asking runs in a process of its own, in which torch and its companions cannot be imported: "one by one" asks
for a photo at a time, as a camera does; "stream" hands over all of them. Memory is what the kernel counts as resident
(Linux only). Exits with 1 where a process takes more than its limit, or does not stay flat.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reporting import machine, publish

import agridistill
from agridistill.photo_files import PHOTO_SUFFIXES

LIMIT_MB, FLAT_MB, SETTLED_AFTER = 150.0, 2.0, 1000
ABSENT = ("torch", "torchvision", "timm", "lightning", "onnx", "sklearn")
MOST_PHOTOS = 500


def memory_mb(kind: str) -> float:
    """Of this process, in 10^6 bytes: "VmRSS" now, "VmHWM" the most so far."""
    status = Path("/proc/self/status").read_text()
    (kib,) = (line.split()[1] for line in status.splitlines() if line.startswith(f"{kind}:"))
    return round(int(kib) * 1024 / 1e6, 1)


class Absent:
    """A finder that knows nothing of the training libraries, as the base install."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def measure(model: Path, photos: Path, way: str, predictions: int) -> dict[str, Any]:
    """Resident memory in the course of the predictions; runs in the child."""
    sys.meta_path.insert(0, Absent())  # type: ignore[arg-type]
    found = sorted(path for path in photos.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    # Every class: the folders come one after the other.
    chosen = found[:: max(1, len(found) // MOST_PHOTOS)]
    predictor = agridistill.load(model)
    told: dict[str, float] = {"0": memory_mb("VmRSS")}
    for number, _ in enumerate(_answers(predictor, itertools.cycle(chosen), way), start=1):
        if number in (1, 10, 100) or number % SETTLED_AFTER == 0:
            told[str(number)] = memory_mb("VmRSS")
        if number == predictions:
            break
    settled = [value for number, value in told.items() if int(number) >= SETTLED_AFTER]
    return {
        "resident_mb": told,
        "peak_mb": memory_mb("VmHWM"),
        "spread_after_1000_mb": round(max(settled) - min(settled), 1),
        "distinct_photos": len(chosen),
        "largest_photo_bytes": max(path.stat().st_size for path in chosen),
        "training_libraries_imported": sorted(set(ABSENT) & set(sys.modules)),
    }


def _answers(predictor: Any, photos: Iterator[Path], way: str) -> Iterator[object]:
    if way == "stream":
        return iter(predictor.predict_many(photos))
    return (predictor.predict(photo) for photo in photos)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an exported .onnx or .tflite file")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--predictions", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", choices=("one by one", "stream"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.predictions < SETTLED_AFTER:
        parser.error(f"--predictions: at least {SETTLED_AFTER}")
    if given.child:
        print(json.dumps(measure(given.model, given.photos, given.child, given.predictions)))
        return 0
    ways = {}
    for way in ("one by one", "stream"):
        command = [sys.executable, __file__, str(given.model), str(given.photos), "--child", way]
        done = subprocess.run(  # noqa: S603 - this script itself
            [*command, "--predictions", str(given.predictions)], stdout=subprocess.PIPE, text=True, check=True
        )
        ways[way] = json.loads(done.stdout)
    holds = all(
        max(way["resident_mb"].values()) <= LIMIT_MB
        and way["spread_after_1000_mb"] <= FLAT_MB
        and not way["training_libraries_imported"]
        for way in ways.values()
    )
    document = {
        "machine": machine(),
        "model": given.model.name,
        "model_bytes": given.model.stat().st_size,
        "predictions": given.predictions,
        "limit_mb": LIMIT_MB,
        "flat_mb": FLAT_MB,
        "holds": holds,
        "ways": ways,
    }
    publish(document, given.out)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
