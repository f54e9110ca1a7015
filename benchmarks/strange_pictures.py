"""Does a model know what it does not know? Leaves against other pictures: drawn ones, and photos that libraries ship.

    python benchmarks/strange_pictures.py leaf.onnx PHOTOS --splits RUN/splits.json \\
        --out docs/performance/strange_pictures.json

The leaves are the test split's. Photos of other things come with scikit-learn (2) and scikit-image (16), where these
are installed; each gives 16 crops. Scores: the greatest probability (Hendrycks & Gimpel 2017), energy (Liu et al.
2020), and how far the photo is from the training photos (`agridistill.runtime.verdict`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from sklearn.metrics import roc_auc_score

from agridistill.data.split import read_split
from agridistill.preprocess import read_photo, softmax, to_pixels
from agridistill.runtime.backends import open_artefact
from agridistill.runtime.verdict import Familiarity, QualitySettings, quality_problem
from agridistill.storage import write_json

SIZE, CROPS = 256, 16
LIBRARY_PHOTOS = {
    "sklearn.datasets": ("images", ("china.jpg", "flower.jpg")),
    "skimage": (
        "data",
        (
            "astronaut.png",
            "brick.png",
            "camera.png",
            "chelsea.png",
            "coffee.png",
            "coins.png",
            "grass.png",
            "gravel.png",
            "hubble_deep_field.jpg",
            "ihc.png",
            "moon.png",
            "motorcycle_left.png",
            "page.png",
            "retina.jpg",
            "rocket.jpg",
            "text.png",
        ),
    ),
}


def colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3)
    return int(red), int(green), int(blue)


def noise(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


def gradient(rng: np.random.Generator) -> Image.Image:
    line = np.linspace(colour(rng), colour(rng), SIZE)
    return Image.fromarray(np.repeat(line[:, None], SIZE, 1).astype(np.uint8))


def shapes(kind: str, count: int) -> Callable[[np.random.Generator], Image.Image]:
    def draw(rng: np.random.Generator) -> Image.Image:
        image = Image.new("RGB", (SIZE, SIZE), colour(rng))
        pen = ImageDraw.Draw(image)
        for _ in range(count):
            x, y, width, height = (int(value) for value in (*rng.integers(0, SIZE, 2), *rng.integers(10, 120, 2)))
            if kind == "lines":
                end = tuple(int(value) for value in rng.integers(0, SIZE, 2))
                pen.line((x, y, *end), fill=colour(rng), width=int(rng.integers(1, 8)))
            else:
                draw_one = pen.ellipse if kind == "ellipses" else pen.rectangle
                draw_one((x, y, x + width, y + height), fill=colour(rng))
        return image

    return draw


DRAWN = {
    "noise": noise,
    "gradient": gradient,
    "rectangles": shapes("rectangles", 20),
    "ellipses": shapes("ellipses", 15),
    "lines": shapes("lines", 60),
}


def drawn_pictures(rng: np.random.Generator, each: int = 60) -> dict[str, list[Image.Image]]:
    return {name: [draw(rng) for _ in range(each)] for name, draw in DRAWN.items()}


def library_photos(rng: np.random.Generator) -> dict[str, list[Image.Image]]:
    found: dict[str, list[Image.Image]] = {}
    for module, (folder, names) in LIBRARY_PHOTOS.items():
        try:
            home = Path(str(__import__(module, fromlist=["x"]).__file__)).parent / folder
        except ModuleNotFoundError:
            continue
        for name in names:
            image = Image.open(home / name).convert("RGB")
            crops = []
            for _ in range(CROPS):
                side = int(min(image.size) * rng.uniform(0.4, 1))
                x, y = (int(rng.integers(0, whole - side + 1)) for whole in image.size)
                crops.append(image.crop((x, y, x + side, y + side)).resize((SIZE, SIZE)))
            found[name] = crops
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    backend = open_artefact(given.model, engine="onnxruntime", threads=1)
    manifest = backend.manifest
    known = Familiarity.from_json(manifest.familiarity)
    rng = np.random.default_rng(0)

    def scores(images: list[Image.Image]) -> dict[str, NDArray[np.float64]]:
        pixels = [to_pixels(image, manifest.preprocessing) for image in images]
        logits = np.concatenate([backend.logits(one[None]) for one in pixels]).astype(np.float64)
        top = logits.max(axis=1)
        return {
            "greatest_probability": -softmax(logits, manifest.temperature).max(axis=1),
            "energy": -(top + np.log(np.exp(logits - top[:, None]).sum(axis=1))),
            "strangeness": np.array([known.ood_score(one) for one in pixels]),
            "refused": np.array(
                [bool(quality_problem(one, QualitySettings())) or known.ood_score(one) > 1 for one in pixels], float
            ),
            "poor": np.array([bool(quality_problem(one, QualitySettings())) for one in pixels], float),
        }

    leaves = scores([read_photo(given.data / path) for path in read_split(given.splits).test])
    document: dict[str, object] = {
        "model": manifest.model,
        "weights_sha256": manifest.weights_sha256,
        "leaves": len(leaves["refused"]),
        "leaves_unfamiliar": round(float((leaves["strangeness"] > 1).mean()), 4),
        "leaves_of_poor_quality": round(float(leaves["poor"].mean()), 4),
        "leaves_refused": round(float(leaves["refused"].mean()), 4),
    }
    for kind, pictures in (("drawn", drawn_pictures(rng)), ("library_photos", library_photos(rng))):
        by_name = {name: scores(images) for name, images in pictures.items()}
        together = {key: np.concatenate([found[key] for found in by_name.values()]) for key in leaves}
        truth = np.concatenate([np.zeros(len(leaves["refused"])), np.ones(len(together["refused"]))])
        document[kind] = {
            "pictures": len(together["refused"]),
            "auroc": {
                key: round(float(roc_auc_score(truth, np.concatenate([leaves[key], together[key]]))), 4)
                for key in ("greatest_probability", "energy", "strangeness")
            },
            "unfamiliar": round(float((together["strangeness"] > 1).mean()), 4),
            "refused": round(float(together["refused"].mean()), 4),
            "refused_by_name": {name: round(float(found["refused"].mean()), 2) for name, found in by_name.items()},
        }
    print(json.dumps(document, indent=2))
    if given.out:
        write_json(given.out, document)


if __name__ == "__main__":
    main()
