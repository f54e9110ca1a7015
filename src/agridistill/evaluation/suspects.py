"""Finds training photos whose label is probably wrong, by confident learning on out-of-fold probabilities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from agridistill.data.folder import PhotoFolder, Sample
from agridistill.data.labels import FOLDERS, Layout, read_layout
from agridistill.data.leaf_ids import read_samples
from agridistill.data.views import DerivedCache
from agridistill.errors import DataError, PhotoError
from agridistill.manifest import Preprocessing
from agridistill.models.factory import create_model, pretrained_normalisation
from agridistill.models.teacher import normalise_batch
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.runtime.predictor import read_batches
from agridistill.runtime.verdict import Prediction

_NETWORK, _IMAGE_SIZE, _BATCH = "efficientnet_lite0_even", 224, 16
_FOLDS = 5
# Inverse strength of the L2 penalty on standardised features, as for the first classifier of a training.
_C = 0.01
# A threshold is reached also by a probability that is less by rounding alone.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Suspects:
    """The doubtful photos of a labelled folder."""

    folder: PhotoFolder  # the folder with its labels
    predictions: dict[str, Prediction]  # doubtful photo -> prediction without it, the most doubtful first
    photos: int  # number of photos that were checked


def find_suspects(data: Path, *, layout: Layout = FOLDERS, progress: ProgressCallback = silent) -> Suspects:
    """Finds the photos whose label a model that did not learn from them doubts.

    The model is a logistic regression on features of EfficientNet-Lite0 with ImageNet weights. Five times, it learns
    from four fifths of the leaves and predicts the others. Raises a DataError if the folder cannot be used, or a class
    has a single leaf.
    """
    folder = read_layout(data, layout)
    begin(progress, "reading photos")
    samples, _, _ = read_samples(folder, progress=progress)
    begin(progress, "computing features")
    features, samples = _features(data, samples, progress)
    begin(progress, "predicting photos that were left out")
    labels = np.array([sample.label for sample in samples])
    groups = np.array([sample.leaf_id for sample in samples])
    probabilities = out_of_fold(features, labels, groups, folder.classes)
    rows = label_issues(labels, probabilities)
    found = {samples[row].path: _prediction(folder.classes, probabilities[row]) for row in rows}
    return Suspects(folder, found, len(samples))


def label_issues(labels: NDArray[np.int_], probabilities: NDArray[np.float64]) -> list[int]:
    """Finds rows whose label is probably wrong: another class is confident, as in confident learning.

    A class is confident for a row if its probability reaches the mean of this class's probability over the rows that
    have it as label. Of several confident classes the most probable one counts. The labels are `(N,)` class indices,
    the out-of-fold probabilities `(N, K)`. Returns the rows, the one whose label is least probable first.

    Source: Northcutt et al. 2021, Confident Learning, equation 2; `find_label_issues` of cleanlab with
    filter_by="confident_learning" and return_indices_ranked_by="self_confidence".
    """
    classes = range(probabilities.shape[1])
    # No probability reaches the threshold of a class without rows.
    means = [probabilities[labels == k, k].mean() if (labels == k).any() else 2.0 for k in classes]
    confident = probabilities >= np.maximum(means, 2 * _ROUNDING) - _ROUNDING
    guess = np.where(confident, probabilities, -1).argmax(axis=1)
    likeliest = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(confident.any(axis=1) & (guess != labels) & (likeliest != labels))
    return list(wrong[np.argsort(probabilities[wrong, labels[wrong]], kind="stable")].tolist())


def out_of_fold(
    features: NDArray[np.float32], labels: NDArray[np.int_], groups: NDArray[np.str_], classes: Sequence[str]
) -> NDArray[np.float64]:
    """Predicts each row with a logistic regression that has learnt from other groups.

    The features are `(N, C)`, the class indices and groups `(N,)`; rows of one group are never in different folds.
    Returns probabilities `(N, K)` of the K `classes`. Raises a DataError if a class has a single group.
    """
    of_class: dict[int, set[str]] = defaultdict(set)
    for label, group in zip(labels.tolist(), groups.tolist(), strict=True):
        of_class[label].add(group)
    fewest = min(of_class, key=lambda label: len(of_class[label]))
    if len(of_class[fewest]) < 2:
        raise DataError("photos of two leaves of each class", f"one leaf of '{classes[fewest]}'", "add photos")
    folds = StratifiedGroupKFold(min(_FOLDS, len(of_class[fewest])), shuffle=True, random_state=0)
    found = np.zeros((len(labels), len(classes)))
    for learnt, predicted in folds.split(features, labels, groups):
        mean, deviation = features[learnt].mean(axis=0), features[learnt].std(axis=0) + 1e-3
        model: Any = LogisticRegression(C=_C, max_iter=1000)
        model.fit((features[learnt] - mean) / deviation, labels[learnt])
        rows = model.predict_proba((features[predicted] - mean) / deviation)
        found[np.ix_(predicted, model.classes_)] = rows
    return found


def _features(
    data: Path, samples: Sequence[Sample], progress: ProgressCallback
) -> tuple[NDArray[np.float32], tuple[Sample, ...]]:
    mean, std = pretrained_normalisation(_NETWORK)
    preprocessing = Preprocessing(_IMAGE_SIZE, "crop", mean, std)
    cache = DerivedCache("features", data, f"suspects {_NETWORK} {preprocessing}")
    places = {sample.path: cache.path_for(sample.path) for sample in samples}
    rows = {path: row for path, place in places.items() if (row := cache.read(place)) is not None}
    missing = [path for path in places if path not in rows]
    if missing:
        network: Any = create_model(_NETWORK, 1, pretrained=True).eval()
        sources = (data / path for path in missing)
        done = len(rows)
        for start, batch in enumerate(read_batches(sources, preprocessing, batch_size=_BATCH)):
            paths = missing[start * _BATCH :][: len(batch)]
            good = [
                (path, read) for path, (_, read) in zip(paths, batch, strict=True) if not isinstance(read, PhotoError)
            ]
            if good:
                pixels = torch.from_numpy(np.stack([read for _, read in good])).permute(0, 3, 1, 2)
                with torch.inference_mode():
                    maps = network.forward_features(normalise_batch(pixels, preprocessing))
                    pooled = network.forward_head(maps, pre_logits=True).half().numpy()
                for (path, _), row in zip(good, pooled, strict=True):
                    rows[path] = row.tobytes()
                    cache.write(places[path], rows[path])
            done += len(batch)
            progress(done, len(places))
    kept = tuple(sample for sample in samples if sample.path in rows)
    return np.stack([np.frombuffer(rows[sample.path], np.float16) for sample in kept]).astype(np.float32), kept


def _prediction(classes: Sequence[str], probabilities: NDArray[np.float64]) -> Prediction:
    best = np.argsort(-probabilities, kind="stable")[:3]
    top = tuple((classes[index], float(probabilities[index])) for index in best)
    return Prediction(*top[0], top, abstained=False, probabilities=tuple(probabilities.tolist()))
