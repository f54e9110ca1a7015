"""What colour profiles cost a model that leaves them out, and what it costs to read them.

    PYTHONPATH=. python benchmarks/colour_profiles.py PHOTOS docs/results/colour-profiles.json --model tomato

So many photos of each class are taken, evenly over their names. Each is encoded into Display P3, Adobe RGB and ProPhoto
RGB (as the same colours, in PNG, with the profile in the file). A model then names each of them twice: with the
profile, and with the same pixels without one, which is how they were read before.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from reporting import machine, publish
from tests.icc import SPACES, encode, rgb_profile

import agridistill
from agridistill.data.folder import Sample, scan
from agridistill.preprocess import read_photo

LARGE = (4000, 3000)


def chosen(photos: Path, count: int) -> list[Sample]:
    """So many photos of each class, evenly over their names."""
    folder = scan(photos)
    taken: list[Sample] = []
    for label in range(len(folder.classes)):
        of_class = [sample for sample in folder.samples if sample.label == label]
        taken += [of_class[round(place)] for place in np.linspace(0, len(of_class) - 1, count)]
    return taken


def stored(pixels: np.ndarray, profile: bytes | None, kind: str = "PNG", **options: Any) -> bytes:
    """A file's bytes."""
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, kind, icc_profile=profile, **options)
    return held.getvalue()


def accuracy(predictor: agridistill.Predictor, files: list[bytes], truth: list[str]) -> tuple[float, list[str]]:
    """Share of right top classes, and the names given."""
    names = [result.prediction.label for result in predictor.predict_many(files) if result.prediction]
    return float(np.mean([name == true for name, true in zip(names, truth, strict=True)])), names


def reading_ms(pixels: np.ndarray, profile: bytes | None, shorter_side: int | None) -> float:
    """Processor time of reading one JPEG, the least of nine."""
    file = stored(pixels, profile, "JPEG", quality=90)
    times = []
    for _ in range(9):
        start = time.process_time()
        read_photo(file, shorter_side=shorter_side)
        times.append(time.process_time() - start)
    return round(1000 * min(times), 2)


def main() -> None:
    """Measures and publishes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="tomato")
    parser.add_argument("--count", type=int, default=40, help="photos of each class")
    given = parser.parse_args()
    samples = chosen(given.photos, given.count)
    classes = scan(given.photos).classes
    truth = [classes[sample.label] for sample in samples]
    originals = [np.asarray(read_photo(given.photos / sample.path)) for sample in samples]
    predictor = agridistill.load(given.model)
    as_srgb, names = accuracy(predictor, [stored(pixels, None) for pixels in originals], truth)
    spaces = {}
    for space in SPACES:
        encoded = [encode(pixels / 255, space) for pixels in originals]
        left_out, wrong = accuracy(predictor, [stored(pixels, None) for pixels in encoded], truth)
        profile = rgb_profile(space)
        converted, right = accuracy(predictor, [stored(pixels, profile) for pixels in encoded], truth)
        spaces[space] = {
            "accuracy_profile_left_out": left_out,
            "accuracy_converted": converted,
            "answers_changed_left_out": sum(a != b for a, b in zip(names, wrong, strict=True)),
            "answers_changed_converted": sum(a != b for a, b in zip(names, right, strict=True)),
        }
    large = np.asarray(Image.fromarray(originals[0]).resize(LARGE, Image.Resampling.BICUBIC))
    cost = {
        f"{name}, {profile or 'no profile'}": reading_ms(pixels, rgb_profile(profile) if profile else None, side)
        for name, pixels, side in (
            ("224 x 224", originals[0], 448),
            ("12 megapixels for prediction", large, 448),
            ("12 megapixels whole", large, None),
        )
        for profile in (None, "srgb", "display-p3")
    }
    document = {
        "model": given.model,
        "photos": len(samples),
        "photos_of_each_class": given.count,
        "accuracy_srgb": as_srgb,
        "spaces": spaces,
        "reading_processor_ms": cost,
        "machine": machine(),
    }
    publish(document, given.out)


if __name__ == "__main__":
    main()
