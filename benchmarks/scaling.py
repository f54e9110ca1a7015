"""How time and memory grow with the number of photos: reading, asking the teacher, starting a second student, an epoch.

    python benchmarks/scaling.py PHOTOS --out docs/performance/scaling.json

The photos of PHOTOS are repeated by links. Each size runs in processes of its own: a first student, which reads the
photos and builds the cache of one view, and a second one, which finds both done. A small Swin and MobileNetV3-Small at
64 px: what is looked for is the growth, not the cost of a network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from reporting import machine, peak_memory_mb, publish

from agridistill.data.folder import scan
from agridistill.data.split import Split, read_split, write_split
from agridistill.teacher_cache import read_document

SIZES = (1_000, 5_000, 50_000)
TEACHER, STUDENT, IMAGE_SIZE = "swin_nano_patch4_window4_64", "mobilenetv3_small_050", 64


def linked(photos: Path, folder: Path, count: int) -> Path:
    """A folder of `count` links to photos, evenly over the classes."""
    known = scan(photos)
    every = len(known.samples)
    for number in range(count):
        sample = known.samples[number * every // count if count < every else number % every]
        link = folder / known.classes[sample.label] / f"{number}{Path(sample.path).suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((photos / sample.path).resolve())
    return folder


def student(data: Path, split: Path, teacher: Path, out: Path) -> dict[str, float]:
    """One epoch under a cached teacher, in this process; when its parts began."""
    begin = time.perf_counter()
    from agridistill.teacher_cache import build
    from agridistill.training import run
    from agridistill.training.module import DistillationModule
    from agridistill.training.settings import DataSettings, DistillConfig, FitSettings

    imported = time.perf_counter()
    marks: dict[str, float] = {}
    original, prepare = DistillationModule.on_train_batch_start, build.CachedTeacher.prepare

    def first_batch(self: Any, batch: Any, index: int) -> None:
        marks.setdefault("first_step", time.perf_counter())
        original(self, batch, index)

    def timed(self: Any, *positional: Any, **named: Any) -> None:
        start = time.perf_counter()
        prepare(self, *positional, **named)
        marks["cache_s"] = time.perf_counter() - start

    DistillationModule.on_train_batch_start = first_batch  # type: ignore[method-assign]
    build.CachedTeacher.prepare = timed  # type: ignore[method-assign]
    fit = FitSettings(model=STUDENT, epochs=1, batch_size=64, pretrained=False, precision="fp32", workers=0)
    config = DistillConfig(data=DataSettings(image_size=IMAGE_SIZE), distill=fit)
    result = run.distill(data, teacher, out, config, split_file=split)
    return {
        "import_s": round(imported - begin, 2),
        "start_s": round(marks["first_step"] - imported, 2),
        "cache_s": round(marks["cache_s"], 2),
        "epoch_s": round(result.train_s, 2),
        "peak_memory_mb": peak_memory_mb(),
    }


def teacher_of(data: Path, out: Path) -> Path:
    from agridistill.training.run import train
    from agridistill.training.settings import DataSettings, FitSettings, TrainConfig

    fit = FitSettings(model=TEACHER, epochs=1, batch_size=64, pretrained=False, precision="fp32", workers=0)
    return train(data, out, TrainConfig(data=DataSettings(image_size=IMAGE_SIZE), train=fit)).out


def split_of(data: Path, out: Path) -> Path:
    """Nearly all photos for training; links of one photo are duplicates, which a leaf-disjoint split would not part."""
    paths = [sample.path for sample in scan(data).samples]
    held = {*paths[::50], *paths[1::50]}
    split = Split(tuple(path for path in paths if path not in held), tuple(paths[::50]), tuple(paths[1::50]))
    write_split(out, split, seed=0, val_fraction=0.02, test_fraction=0.02, fingerprint="")
    return out


def measure(photos: Path, work: Path, count: int, teacher: Path) -> dict[str, Any]:
    data = linked(photos, work / f"photos-{count}", count)
    split = split_of(data, work / f"split-{count}.json")
    row: dict[str, Any] = {"photos": count}
    for name in ("first", "second"):
        own = [
            sys.executable,
            __file__,
            str(data),
            "--student",
            str(split),
            str(teacher),
            str(work / f"{name}-{count}"),
        ]
        environment = {**os.environ, "XDG_CACHE_HOME": str(work / "home"), "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(own, stdout=subprocess.PIPE, text=True, check=True, env=environment)  # noqa: S603
        row[name] = json.loads(done.stdout.splitlines()[-1])
    training = len(read_split(split).train)
    documents = {folder: read_document(folder) for folder in (teacher / "cache").iterdir()}
    (cache,) = [folder for folder, document in documents.items() if document and document[1].photos == training]
    row["cache_bytes"] = (cache / "records.bin").stat().st_size
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--student", nargs=3, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.student:
        print(json.dumps(student(given.photos, *given.student)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        teacher = teacher_of(linked(given.photos, work / "few", 600), work / "teacher")
        for count in given.sizes:
            rows.append(measure(given.photos, work, count, teacher))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    document = {
        "machine": machine(),
        "teacher": TEACHER,
        "student": STUDENT,
        "image_size": IMAGE_SIZE,
        "rows": rows,
    }
    publish(document, given.out)


if __name__ == "__main__":
    main()
