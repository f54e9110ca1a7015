"""Where the time of `predict`, `evaluate` and `data check` on folders goes: the parts of a photo, on one core.

    PYTHONPATH=. taskset -c 1 python benchmarks/folder_profile.py PHOTOS models/tomato/tomato-int8.onnx \
        --out docs/performance/folder_profile.json

Small photos are as they are in PHOTOS, large ones the same at 12 megapixels, as a phone's camera writes them. Each part
runs alone, in one thread; medians over the photos, in milliseconds. `evaluate` does the parts of both commands, because
it looks for training photos among those that it tests.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from folders_and_agent import large
from reporting import machine, publish

from agridistill.data.inspection import inspect_photo
from agridistill.preprocess import enough_pixels, read_photo, to_pixels
from agridistill.runtime.backends import open_artefact
from agridistill.runtime.verdict import Familiarity, QualitySettings, quality_problem

SMALL, LARGE, WARM_UP = 300, 40, 5


def parts(photos: list[Path], model: Path) -> dict[str, float]:
    """Medians in milliseconds."""
    backend, settings = open_artefact(model, engine="onnxruntime", threads=1), QualitySettings()
    preprocessing, familiarity = backend.manifest.preprocessing, Familiarity.from_json(backend.manifest.familiarity)
    times: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, work: Any, *arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        found = work(*arguments, **named)
        times[name].append(1000 * (time.perf_counter() - begin))
        return found

    for photo in [*photos[:WARM_UP], *photos]:
        image = timed("predict: read and decode", read_photo, photo, shorter_side=enough_pixels(preprocessing))
        pixels = timed("predict: resize", to_pixels, image, preprocessing)
        timed("predict: network", backend.logits, pixels[None])
        timed("predict: quality gate", quality_problem, pixels, settings)
        timed("predict: familiarity", familiarity.ood_score, pixels)
        timed("data check: read, decode and hash", inspect_photo, photo)
    return {name: round(median(each[WARM_UP:]), 2) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of class folders")
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    every = sorted(given.photos.rglob("*.jpg"))
    chosen = every[:: max(1, len(every) // SMALL)][:SMALL]
    with tempfile.TemporaryDirectory() as folder:
        held = [Path(folder) / f"{number}.jpg" for number in range(LARGE)]
        for path, photo in zip(held, chosen, strict=False):
            path.write_bytes(large(photo))
        rows = {"224 px": parts(chosen, given.model), "12 megapixels": parts(held, given.model)}
    publish({"machine": machine(), "milliseconds_a_photo": rows}, given.out)


if __name__ == "__main__":
    main()
