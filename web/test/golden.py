"""Writes golden.json: what the Python functions return for drawn pixels, which the page's functions must return too.

Run it after a change of `preprocess`, `runtime.verdict` or `edge.alerts.rules`: `python web/test/golden.py`.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agridistill.colour import coloured
from agridistill.edge.alerts.rules import PlotHealth, ill_classes, is_healthy
from agridistill.manifest import Preprocessing
from agridistill.preprocess import softmax, to_pixels
from agridistill.runtime.verdict import (
    QualitySettings,
    figures,
    fit_familiarity,
    percent_words,
    plain_label,
    quality_problem,
)

Pixels = NDArray[np.uint8]
_CLASSES = ("Tomato___Late_blight", "Tomato___healthy", "Tomato___Leaf_Mold")


def packed(pixels: Pixels) -> dict[str, Any]:
    """Returns pixels as the test reads them: zlib, then base64."""
    height, width, _ = pixels.shape
    data = base64.b64encode(zlib.compress(pixels.tobytes(), 9)).decode()
    return {"width": width, "height": height, "data": data}


def leaf(side: int, seed: int, *, height: int | None = None) -> Pixels:
    """Draws coarse green cells with fine noise: enough detail for each step, and few bytes."""
    random = np.random.default_rng(seed)
    height = height or side
    cells = random.integers(40, 200, (-(-height // 8), -(-side // 8), 3))
    cells[..., 1] = cells[..., 1] // 2 + 120
    drawn = np.kron(cells, np.ones((8, 8, 1), int))[:height, :side]
    drawn[::3, ::2] += random.integers(-20, 21)
    return np.clip(drawn, 0, 255).astype(np.uint8)


def resized() -> list[dict[str, Any]]:
    """Pillow's results: smaller, larger, equal, one-pixel and odd sizes, with the box of "crop" and without."""
    random = np.random.default_rng(1)
    cases = []
    for width, height, size, rule in (
        (64, 48, 24, "crop"),
        (48, 65, 24, "crop"),
        (65, 48, 24, "stretch"),
        (20, 17, 32, "crop"),
        (24, 24, 24, "crop"),
        (1, 1, 8, "crop"),
        (50, 3, 8, "crop"),
        (3, 50, 9, "stretch"),
        # Pillow 13 begins with the columns of the first of these two photos, with the rows of the second.
        (30, 45, 24, "crop"),
        (30, 36, 24, "crop"),
    ):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = to_pixels(Image.fromarray(pixels), Preprocessing(size, rule))
        cases.append({"photo": packed(pixels), "size": size, "rule": rule, "expected": packed(expected)})
    return cases


def boxes() -> list[dict[str, Any]]:
    """Pillow's plain mean, for photos that are scaled down while they are decoded."""
    cases = []
    for width, height, size in ((100, 70, (41, 29)), (40, 150, (16, 60))):
        pixels = leaf(width, 3, height=height)
        small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
        cases.append({"photo": packed(pixels), "expected": packed(small)})
    return cases


def reduced() -> list[dict[str, Any]]:
    """Means of squares of 2, 4 and 8 pixels, with and without cut squares at the edges."""
    cases = []
    for width, height, factor in ((64, 48, 2), (64, 48, 4), (130, 72, 8), (33, 19, 4)):
        pixels = leaf(width, factor, height=height)
        rows = [
            [pixels[y : y + factor, x : x + factor].reshape(-1, 3).mean(axis=0) for x in range(0, width, factor)]
            for y in range(0, height, factor)
        ]
        expected = np.floor(np.array(rows) + 0.5).astype(np.uint8)
        cases.append({"photo": packed(pixels), "factor": factor, "expected": packed(expected)})
    return cases


def jpegs() -> list[dict[str, Any]]:
    """Small JPEGs, one with another JPEG in its EXIF, and the sizes that they are stored in."""
    image, exif = Image.fromarray(leaf(40, 7, height=24)), Image.Exif()
    thumbnail, cases = io.BytesIO(), []
    image.resize((10, 6)).save(thumbnail, "JPEG")
    exif[0x9286] = thumbnail.getvalue()  # a comment of the user
    forms = {"baseline": {}, "progressive": {"progressive": True}, "JPEG in EXIF": {"exif": exif.tobytes()}}
    for name, options in forms.items():
        held = io.BytesIO()
        image.save(held, "JPEG", quality=30, **options)
        file = base64.b64encode(held.getvalue()).decode()
        cases.append({"name": name, "file": file, "size": [image.width, image.height]})
    return cases


def maps() -> list[dict[str, Any]]:
    """Attention maps as an artefact gives them, `(1, H, W)` with largest value 1, and their colours."""
    random = np.random.default_rng(12)
    cases = []
    for height, width in ((7, 7), (4, 6)):
        values = random.random((1, height, width), np.float32) ** 2
        values /= values.max()
        scaled = (values[0] - values.min()) / (values.max() - values.min())
        cases.append(
            {"shape": list(values.shape), "values": values.ravel().tolist(), "colours": packed(coloured(scaled))}
        )
    return cases


def judged() -> dict[str, Any]:
    """Quality words, figures and scores of drawn photos."""
    fine = np.random.default_rng(9).integers(0, 256, (72, 72, 3))
    noisy = np.clip(leaf(72, 4) * 0.8 + fine * 0.2, 0, 255).astype(np.uint8)
    smeared = noisy.copy()
    smeared[40:] = smeared[40]
    ramp = np.linspace(80, 160, 72)
    blurred = np.broadcast_to(np.stack([ramp, ramp + 60, ramp / 2], axis=-1), (72, 72, 3)).astype(np.uint8)
    grey = np.repeat(noisy.mean(axis=-1, keepdims=True), 3, axis=-1).astype(np.uint8)
    photos = {
        "leaf": noisy,
        "large leaf": leaf(224, 5),
        "odd leaf": leaf(161, 6),
        "dark": (noisy * 0.15).astype(np.uint8),
        "bright": np.clip(noisy.astype(int) + 200, 0, 255).astype(np.uint8),
        "grey": grey,
        "blurred": blurred,
        "smeared": smeared,
        "black": np.zeros((24, 24, 3), np.uint8),
    }
    familiarity = fit_familiarity(
        [figures(leaf(72, seed)) for seed in range(100, 180)], [figures(leaf(72, seed)) for seed in range(200, 220)]
    )
    return {
        "familiarity": familiarity.to_json(),
        "photos": {
            name: {
                "photo": packed(pixels),
                "problem": quality_problem(pixels, QualitySettings()),
                "figures": figures(pixels).tolist(),
                "ood_score": type(familiarity).from_json(familiarity.to_json()).ood_score(pixels),
            }
            for name, pixels in photos.items()
        },
    }


def plants() -> list[dict[str, Any]]:
    """Health of plants by the rules of a device."""
    ill = ill_classes(_CLASSES)
    cases = []
    for rows in (
        [[0.9, 0.05, 0.05], [0.8, 0.1, 0.1], [0.7, 0.2, 0.1]],
        [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.02, 0.95, 0.03]],
        [[0.5, 0.45, 0.05], [0.05, 0.9, 0.05], [0.02, 0.95, 0.03], [0.02, 0.95, 0.03]],
        [[0.2, 0.3, 0.5]],
    ):
        shares = dict(zip(_CLASSES, np.mean(rows, axis=0).tolist(), strict=True))
        health = PlotHealth(
            "plant",
            0.0,
            leaves=len(rows),
            ill_share=sum(shares[name] for name in ill),
            ill_label=max(ill, key=shares.__getitem__),
            shares=shares,
        )
        cases.append({"probabilities": rows, "label": health.label, "ill_leaves": health.ill_leaves, "shares": shares})
    return cases


def main() -> None:
    """Writes the file beside this script."""
    labels = ["Tomato___Late_blight", "Tomato/Late_blight", "leaf_mold", "___", "a__b", "Maize ear/ rot_2"]
    names = ["Tomato___healthy", "HealthyLeaf", "normal", "Unhealthy", "not_healthy", "Tomato/normal", "rust"]
    golden = {
        "resized": resized(),
        "boxes": boxes(),
        "reduced": reduced(),
        "jpegs": jpegs(),
        "maps": maps(),
        "judged": judged(),
        "classes": _CLASSES,
        "plants": plants(),
        "labels": {label: plain_label(label) for label in labels},
        "healthy": {name: is_healthy(name) for name in names},
        "percents": {str(p): percent_words(p) for p in (0.001, 0.0049, 0.0051, 0.41, 0.931, 0.994, 0.995, 1.0)},
        "softmax": {
            "logits": [1.5, -2.0, 0.25],
            "temperature": 0.82,
            "expected": softmax(np.array([1.5, -2.0, 0.25]), 0.82).tolist(),
        },
    }
    path = Path(__file__).with_name("golden.json")
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
