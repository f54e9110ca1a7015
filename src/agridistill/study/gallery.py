"""Where student and teacher look: attention over the same photos, beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from agridistill.data.folder import Sample
from agridistill.distillation.attention_losses import unit_peak
from agridistill.evaluation.evidence import as_data_uri, square
from agridistill.manifest import Preprocessing
from agridistill.models.saved import load_network
from agridistill.models.teacher import LiveTeacher
from agridistill.preprocess import softmax
from agridistill.runtime.reading import read_pixels

STRIDE = 16
_PHOTOS = 12


class _Batch(NamedTuple):
    pixels: torch.Tensor


def gallery(
    runs: Mapping[str, Path], samples: Sequence[Sample], root: Path, classes: Sequence[str], *, stride: int = STRIDE
) -> list[dict[str, Any]]:
    """Attention maps of several models over some photos: the channel mean of squared activations at one stride.

    Args:
        runs: run folders by the names that readers know them by.
        samples: labelled photos, of which one of each class and then further ones are shown.
        root: the folder that their paths start from.
        classes: names of the labels.
        stride: input pixels for each position of the maps.

    Returns:
        For each photo its thumbnail, truth, and each model's map (rows of values, the largest 1), answer and
        probability.

    Raises:
        ModelError: a model has no stage of this stride.
        PhotoError: a photo cannot be read.
    """
    chosen = _of_every_class(samples, _PHOTOS)
    shown: list[dict[str, Any]] = [
        {
            "path": sample.path,
            "truth": classes[sample.label],
            "photo": as_data_uri(square(root / sample.path)),
            "models": [],
        }
        for sample in chosen
    ]
    for name, run in runs.items():
        network, manifest = load_network(run)
        looking = LiveTeacher(network, manifest.preprocessing, strides=(stride,))
        pixels = _pixels([root / sample.path for sample in chosen], manifest.preprocessing)
        logits, maps = looking.outputs(_Batch(pixels))
        probabilities = softmax(logits.numpy(), manifest.temperature)
        for photo, row, map_ in zip(shown, probabilities, unit_peak(maps[stride]), strict=True):
            answer = int(row.argmax())
            photo["models"].append(
                {
                    "name": name,
                    "predicted": classes[answer],
                    "probability": float(row[answer]),
                    "map": [[round(value, 3) for value in line] for line in map_.tolist()],
                }
            )
    return shown


def _pixels(paths: Sequence[Path], preprocessing: Preprocessing) -> torch.Tensor:
    photos = np.stack([read_pixels(path, preprocessing) for path in paths])
    return torch.from_numpy(photos).permute(0, 3, 1, 2)


def _of_every_class(samples: Sequence[Sample], count: int) -> list[Sample]:
    """One of each class in turn, each from another leaf while there are any."""
    by_class: dict[int, dict[str, Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, {}).setdefault(sample.leaf_id, sample)
    queues = [list(by_class[label].values()) for label in sorted(by_class)]
    chosen: list[Sample] = []
    while any(queues) and len(chosen) < count:
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen
