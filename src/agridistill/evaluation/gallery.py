"""Where student and teacher look: attention maps of several models over the same photos."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from agridistill.data.folder import Sample
from agridistill.data.labels import FOLDERS, Layout
from agridistill.errors import ModelError
from agridistill.evaluation.evidence import FORMAT_VERSION, as_data_uri, square
from agridistill.evaluation.held_out import SplitChoice, choose_photos
from agridistill.losses.attention import unit_peak
from agridistill.manifest import MANIFEST_NAME, read_manifest
from agridistill.models import LiveTeacher, load_network
from agridistill.preprocess import softmax
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.runtime.reading import read_pixels
from agridistill.storage import write_json

logger = logging.getLogger(__name__)

STRIDE = 16
_MAX_PHOTOS = 12


class _Batch(NamedTuple):
    pixels: torch.Tensor


def write_gallery(
    runs: Mapping[str, Path],
    data: Path,
    file: Path,
    *,
    layout: Layout = FOLDERS,
    split: SplitChoice = "test",
    split_file: Path | None = None,
    class_names: Mapping[str, str] | None = None,
    progress: ProgressCallback = silent,
) -> None:
    """Writes attention maps of several runs; without a stage of stride 16 it logs a warning and removes `file`.

    Args:
        runs: run folders by name, at least one; all of one data folder.
        data: the photos.
        file: to write.
        layout: how the labels are found.
        split: of the photos.
        split_file: of the user.
        class_names: as for `choose_photos`.
        progress: called while photos are read.
    """
    manifests = {name: read_manifest(run / MANIFEST_NAME) for name, run in runs.items()}
    first = next(iter(runs))
    photos = choose_photos(
        manifests[first],
        data,
        layout=layout,
        split=split,
        split_file=split_file,
        own_split=runs[first] / "splits.json",
        class_names=class_names,
        progress=progress,
    )
    begin(progress, "drawing attention maps")
    try:
        entries = gallery(runs, photos.samples, photos.root, photos.classes)
    except ModelError as error:
        logger.warning("no gallery of attention maps: %s", error)
        file.unlink(missing_ok=True)
        return
    weights = {name: manifest.weights_sha256 for name, manifest in manifests.items()}
    write_json(file, {"format_version": FORMAT_VERSION, "weights_sha256": weights, "photos": entries})


def gallery(
    runs: Mapping[str, Path], samples: Sequence[Sample], root: Path, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Attention maps of several models: the channel mean of squared activations at stride 16.

    Args:
        runs: run folders by name.
        samples: labelled photos; up to 12 are used, one of each class in turn.
        root: the folder that their paths are relative to.
        classes: names of the labels.

    Returns:
        For each photo its thumbnail, truth, and each model's map (rows of values, the largest 1), answer and
        probability.

    Raises:
        ModelError: a model has no stage of stride 16.
        PhotoError: a photo cannot be read.
    """
    chosen = _of_every_class(samples, _MAX_PHOTOS)
    entries: list[dict[str, Any]] = [
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
        model = LiveTeacher(network, manifest.preprocessing, strides=(STRIDE,))
        photos = np.stack([read_pixels(root / sample.path, manifest.preprocessing) for sample in chosen])
        logits, maps = model.outputs(_Batch(torch.from_numpy(photos).permute(0, 3, 1, 2)))
        probabilities = softmax(logits.numpy(), manifest.temperature)
        for entry, row, map_ in zip(entries, probabilities, unit_peak(maps[STRIDE]), strict=True):
            answer = int(row.argmax())
            entry["models"].append(
                {
                    "name": name,
                    "predicted": classes[answer],
                    "probability": float(row[answer]),
                    "map": [[round(value, 3) for value in line] for line in map_.tolist()],
                }
            )
    return entries


def _of_every_class(samples: Sequence[Sample], count: int) -> list[Sample]:
    """One photo of each class in turn, each of another leaf."""
    by_class: dict[int, dict[str, Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, {}).setdefault(sample.leaf_id, sample)
    queues = [list(by_class[label].values()) for label in sorted(by_class)]
    rounds = itertools.zip_longest(*queues)
    return [sample for one in rounds for sample in one if sample is not None][:count]
