r"""The same int8 file on processors with and without int8 dot products (VNNI): does it give the same answers?

    python benchmarks/int8_processors.py MODEL... --photos PHOTOS --emulator "qemu-x86_64 -cpu Haswell" \
        --out docs/performance/int8_processors.json

Without VNNI (AVX2: `-cpu Haswell`; SSE4: `-cpu Nehalem`) x86 adds products of 8 bits in pairs of 16 bits, which may
saturate. Each model answers the same photos on this processor and under QEMU's user-mode emulation of another (Debian's
package `qemu-user`), with ONNX Runtime on one core. Accuracy is counted where PHOTOS are class folders.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from reporting import machine, publish

from agridistill.api import load
from agridistill.runtime.predictor import expand, read_batches


def answers(model: Path, pixels: Path) -> list[list[float]]:
    """Logits of each photo."""
    backend = load(model, threads=1).backend
    return [backend.logits(photo[None])[0].tolist() for photo in np.load(pixels)]


def compared(model: Path, photos: list[Path], emulator: list[str], work: Path) -> dict[str, Any]:
    manifest = load(model).manifest
    batches = read_batches(photos, manifest.preprocessing, batch_size=32)
    read = [(Path(str(source)), pixels) for batch in batches for source, pixels in batch]
    kept = [(source, pixels) for source, pixels in read if isinstance(pixels, np.ndarray)]
    file = work / "pixels.npy"
    np.save(file, np.stack([pixels for _, pixels in kept]))
    own = [sys.executable, __file__, str(model), "--answer", str(file)]
    found = []
    for before in ([], emulator):
        done = subprocess.run([*before, *own], stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
        found.append(np.array(json.loads(done.stdout.splitlines()[-1])))
    here, there = found
    labels = np.array([manifest.classes.index(source.parent.name) for source, _ in kept])
    return {
        "model": model.name,
        "photos": len(kept),
        "accuracy_percent": [round(100 * float((each.argmax(1) == labels).mean()), 2) for each in (here, there)],
        "same_answer_percent": round(100 * float((here.argmax(1) == there.argmax(1)).mean()), 2),
        "logit_difference_std": round(float((here - there).std() / here.std()), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--emulator", type=shlex.split, default=["qemu-x86_64", "-cpu", "Haswell"])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.answer:
        print(json.dumps(answers(given.models[0], given.answer)))
        return
    every = expand([given.photos])
    photos = every[:: max(1, len(every) // given.count)][: given.count]
    with tempfile.TemporaryDirectory() as folder:
        rows = [compared(model, photos, given.emulator, Path(folder)) for model in given.models]
    publish({"machine": machine(), "emulator": " ".join(given.emulator), "models": rows}, given.out)


if __name__ == "__main__":
    main()
