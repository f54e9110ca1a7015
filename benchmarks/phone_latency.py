"""How long the phone page takes from a photo's file to its answer, against `predict`, and what memory many photos take.

    PYTHONPATH=. python benchmarks/phone_latency.py PHOTOS --site site --out docs/performance/phone_latency.json

Both run on one core, in turns, photo by photo: the page in Chromium, and `Predictor.predict` in this process with one
thread. Small photos are those of the data, large ones the same at 12 megapixels, as a phone's camera writes them. Then
the page classifies many photos, and the memory of its processes is read between them. Exits with 1 if the page takes
more than 2.5 times as long (p50), or if its memory grows.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from reporting import machine, publish
from tests.app.phone import Phone, browser, serving
from tests.app.photo_forms import scaled, shaped, stored

import agridistill
from agridistill.data.folder import scan

MOST_RATIO, WARM_UP, MOST_GROWTH = 2.5, 5, 0.1
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def engine_for(model: str) -> str:
    """The engine of `predict` that is of the same family as the page's."""
    return "litert" if model.endswith(".tflite") else "onnxruntime"


def large(photo: Path) -> bytes:
    with Image.open(photo) as image:
        return stored(shaped(scaled(image.convert("RGB"), 3000 / image.height), 4 / 3))[0]


def in_turns(phone: Phone, predictor: agridistill.Predictor, photos: list[bytes]) -> dict[str, Any]:
    """Times each photo in both; the median of each, and of the ratios."""
    for photo in photos[:WARM_UP]:
        phone.see(photo)
        predictor.predict(photo)
    page_ms, predict_ms, parts = [], [], []
    for photo in photos:
        seen = phone.see(photo)
        begin = time.perf_counter()
        predictor.predict(photo)
        predict_ms.append(1000 * (time.perf_counter() - begin))
        page_ms.append(seen["milliseconds"])
        parts.append(seen["parts"])
    ratio = float(np.median(page_ms) / np.median(predict_ms))
    return {
        "photos": len(photos),
        "page_p50_ms": round(float(np.median(page_ms)), 2),
        "page_p95_ms": round(float(np.quantile(page_ms, 0.95)), 2),
        "page_photo_p50_ms": round(float(np.median([each["photo"] for each in parts])), 2),
        "page_model_p50_ms": round(float(np.median([each["model"] for each in parts])), 2),
        "predict_p50_ms": round(float(np.median(predict_ms)), 2),
        "predict_p95_ms": round(float(np.quantile(predict_ms, 0.95)), 2),
        "ratio_p50": round(ratio, 2),
    }


def memory_mb(group: int) -> float:
    """The memory of all processes of a process group without what they share, in MB."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(state[2]) == group:
                resident, shared = (folder / "statm").read_text().split()[1:3]
                total += (int(resident) - int(shared)) * _PAGE_BYTES
        except OSError:
            continue
    return round(total / 1e6, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--site", type=Path, required=True)
    parser.add_argument(
        "--model", default="tomato", help="the model of predict, which may be another form of the page's"
    )
    parser.add_argument("--count", type=int, default=60, help="photos of each size")
    parser.add_argument("--many", type=int, default=500, help="photos for the memory")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    os.sched_setaffinity(0, {given.core})  # the browser inherits it
    scanned = scan(given.photos)
    paths = [given.photos / sample.path for sample in scanned.samples[:: max(1, len(scanned.samples) // given.many)]]
    few = paths[:: max(1, len(paths) // given.count)][: given.count]
    predictor = agridistill.load(given.model, engine=engine_for(given.model), threads=1)
    with (
        tempfile.TemporaryDirectory() as profile,
        sync_playwright() as playwright,
        serving(given.site) as server,
        browser(playwright, Path(profile)) as (context, process),
    ):
        phone = Phone.of(context.new_page()).open(server.address)
        sizes = {
            "of the data": in_turns(phone, predictor, [path.read_bytes() for path in few]),
            "12 megapixels": in_turns(phone, predictor, [large(path) for path in few[: given.count // 3]]),
        }
        memory = []
        for number, path in enumerate(paths[: given.many]):
            phone.see(path.read_bytes())
            if number % (given.many // 10) == 0:
                memory.append({"photos": number, "mb": memory_mb(process.pid)})
        engine = phone.engine()
    growth = float(np.mean([each["mb"] for each in memory[-3:]]) / np.mean([each["mb"] for each in memory[1:4]]) - 1)
    document = {
        "machine": machine(),
        "model": given.model.split("/")[-1],
        "core": given.core,
        "engine": engine,
        "sizes": sizes,
        "memory_of_all_browser_processes": memory,
        "memory_growth": round(growth, 3),
    }
    publish(document, given.out)
    return 0 if sizes["of the data"]["ratio_p50"] <= MOST_RATIO and growth <= MOST_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
