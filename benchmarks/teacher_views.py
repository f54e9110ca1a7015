"""What a teacher sees in its student's views: its accuracy on views of its own image size, and of a smaller one.

    python benchmarks/teacher_views.py TEACHER PHOTOS 128 --out docs/results/teacher-views.json

A student's view is a crop of its own image size, which teachers got enlarged until views were drawn for each of them.
Here the same crops (`render_view` with the same seed) are drawn in both sizes. PHOTOS is a folder of class folders that
the teacher has not learnt from; every fourth photo is used.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from reporting import machine, publish

from agridistill.data.views import Augmentation, render_view, view_seed
from agridistill.models.teacher import load_network, normalise_batch

WHOLE = Augmentation(min_scale=1, max_aspect=1, flip=False, turn=False, brightness=0, contrast=0, saturation=0, cast=0)
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path, help="folder of a finished run")
    parser.add_argument("photos", type=Path)
    parser.add_argument("size", type=int, help="image size of the student, in pixels")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    network, manifest = load_network(given.teacher)
    network.eval()
    own = manifest.preprocessing
    files = sorted(path for path in given.photos.rglob("*") if path.is_file())[::4]
    target = torch.tensor([manifest.classes.index(file.parent.name) for file in files])
    rows: list[dict[str, Any]] = []
    for name, augmentation in (("whole photos", WHOLE), ("views", Augmentation())):
        for size in (own.image_size, given.size):
            drawn = replace(own, image_size=size)
            views = [
                torch.from_numpy(
                    render_view(Image.open(file).convert("RGB"), view_seed(0, 0, file.name), augmentation, drawn)
                )
                for file in files
            ]
            with torch.no_grad():
                logits = torch.cat(
                    [
                        network(
                            normalise_batch(enlarged(torch.stack(views[start : start + BATCH]), own.image_size), own)
                        )
                        for start in range(0, len(views), BATCH)
                    ]
                )
            right = (logits.argmax(1) == target).float().mean()
            of_truth = logits.softmax(1)[torch.arange(len(target)), target].mean()
            rows.append(
                {"pictures": name, "size": size, "accuracy": float(right), "probability_of_truth": float(of_truth)}
            )
            print(rows[-1], flush=True)
    publish({"machine": machine(), "photos": len(files), "teacher_size": own.image_size, "rows": rows}, given.out)


def enlarged(views: torch.Tensor, size: int) -> torch.Tensor:
    """Views `(B, H, W, 3)` uint8 as `(B, 3, size, size)` float32, enlarged as teachers got them."""
    pixels = views.permute(0, 3, 1, 2).float()
    if pixels.shape[-1] == size:
        return pixels
    return torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


if __name__ == "__main__":
    main()
