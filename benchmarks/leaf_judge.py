"""How well the leaf weights follow the EfficientNet-Lite0 on pictures that neither labels nor leaves chose.

    python benchmarks/leaf_judge.py PICTURES OUT.json CHECKPOINT [CHECKPOINT ...]

A checkpoint is the last.ckpt of `leaf_weights.py`. For each: the correlation of the features with the teacher's, both
centred, and the share of tiles of 128 px (at most 600) with the same of the 1,000 ImageNet classes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from leaf_weights import MEAN, NUM_CLASSES, STD, TEACHER
from torch import Tensor, nn

from agridistill.models import create_model
from agridistill.preprocess import read_photo

SIDE, TILES = 128, 600


def tiles(folder: Path) -> Tensor:
    """Tiles of all pictures, three rows of each, at most 600, `(N, 3, 128, 128)` normalised."""
    found = []
    for path in sorted(folder.iterdir()):
        picture = read_photo(path)
        scale = 3 * SIDE / min(picture.size)
        pixels = np.asarray(picture.resize((round(picture.width * scale), round(picture.height * scale))))
        for top in range(0, pixels.shape[0] - SIDE + 1, SIDE):
            for left in range(0, pixels.shape[1] - SIDE + 1, SIDE):
                found.append(pixels[top : top + SIDE, left : left + SIDE])
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:TILES]
    return (torch.from_numpy(np.stack(found))[order].permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


@torch.no_grad()
def features(model: nn.Module, views: Tensor) -> Tensor:
    model.eval()
    return torch.cat([model.forward_head(model.forward_features(part), pre_logits=True) for part in views.split(100)])


def main() -> None:
    pictures, out, *checkpoints = map(Path, sys.argv[1:])
    views = tiles(pictures)
    teacher = create_model(TEACHER, NUM_CLASSES, pretrained=True)
    wanted = features(teacher, views)
    rows = []
    for path in checkpoints:
        tensors = torch.load(path, weights_only=True)["match"]
        student = create_model("mobilenetv3_large_100", NUM_CLASSES)
        student.load_state_dict({k.removeprefix("student."): v for k, v in tensors.items() if k.startswith("student.")})
        found = features(student, views)
        alike = F.cosine_similarity(wanted - wanted.mean(0), found - found.mean(0)).mean().item()
        classes = [m.get_classifier()(x).argmax(1) for m, x in ((teacher, wanted), (student, found))]
        same = (classes[0] == classes[1]).float().mean().item()
        rows.append({"checkpoint": path.parent.name, "correlation": round(alike, 3), "same_answer": round(same, 3)})
    out.write_text(json.dumps({"tiles": len(views), "pictures": len(list(pictures.iterdir())), "weights": rows}) + "\n")


if __name__ == "__main__":
    main()
