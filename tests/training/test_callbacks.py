"""The classifier that is fitted to a frozen backbone's features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from agridistill.data.loader import Viewing
from agridistill.data.prepare import prepare_data
from agridistill.data.views import Augmentation
from agridistill.errors import ConfigError
from agridistill.manifest import Preprocessing
from agridistill.training import callbacks
from agridistill.training.callbacks import FitHead, classifier_of, fit_classifier
from agridistill.training.run import train
from agridistill.training.settings import DataSettings, FitSettings, TrainConfig


@pytest.mark.parametrize("classes", [2, 3])
def test_the_classifier_has_the_least_penalised_cross_entropy_of_all(classes: int) -> None:
    # Independent reference: gradient descent on the same convex objective.
    rng = np.random.default_rng(0)
    target = rng.integers(classes, size=60)
    features = (rng.normal(size=(60, 5)) + 2 * np.eye(classes, 5)[target]).astype(np.float32)
    head = nn.Linear(5, classes)
    fit_classifier(head, features, target)

    scaled = torch.tensor((features - features.mean(0)) / (features.std(0) + 1e-3))
    reference = nn.Linear(5, classes)
    optimizer = torch.optim.LBFGS(reference.parameters(), max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-12)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(reference(scaled), torch.tensor(target), reduction="sum")
        # scikit-learn penalises two classes by the difference of their weights: half of both rows' squares.
        penalty = reference.weight.square().sum() / (2 * callbacks._C)
        total = loss + (penalty * 2 if classes == 2 else penalty)
        total.backward()
        return total

    optimizer.step(closure)
    found = head(torch.tensor(features)).softmax(1)
    torch.testing.assert_close(found, reference(scaled).softmax(1), atol=2e-3, rtol=0)


def test_balance_counts_a_rare_class_as_a_common_one() -> None:
    # Reference: each row of the rare class ten times, and scikit-learn's own mean and deviation left as they are.
    rng = np.random.default_rng(1)
    target = np.repeat([0, 1], [100, 10])
    features = (rng.normal(size=(110, 3)) + 0.8 * np.eye(2, 3)[target]).astype(np.float32)
    found = {}
    for balance in (False, True):
        head = nn.Linear(3, 2)
        fit_classifier(head, features, target, balance=balance)
        found[balance] = head(torch.tensor(features)).argmax(1).numpy()
    recall = {
        name: [float((preds[target == label] == label).mean()) for label in (0, 1)] for name, preds in found.items()
    }
    assert recall[False][1] < 0.4
    assert abs(recall[True][0] - recall[True][1]) < 0.25


def test_a_network_without_a_linear_classifier_is_refused() -> None:
    with pytest.raises(ConfigError, match="linear classifier"):
        classifier_of(nn.Conv2d(3, 3, 1))


def test_features_are_computed_once_and_give_the_same_classifier(
    leaves: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prepared = prepare_data(leaves)
    preprocessing = Preprocessing(32)
    callback = FitHead(Viewing(leaves, prepared.train, "", preprocessing, Augmentation(), views=4), workers=0)
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", num_classes=len(prepared.classes)).eval()
    first = callback._features(model)

    def refuse(*_: object) -> None:
        raise AssertionError("the backbone runs again")

    monkeypatch.setattr(callbacks, "_pooled", refuse)
    second = callback._features(model)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert len(first[1]) == callbacks.VIEWS_OF_A_PHOTO * len(prepared.train)
    # Other weights have other features.
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(AssertionError, match="runs again"):
        callback._features(model)


def test_frozen_batch_norm_stays_frozen_while_head_and_network_are_trained(leaves: Path, tmp_path: Path) -> None:
    fit = FitSettings(
        model="mobilenetv3_small_050",
        epochs=1,
        batch_size=16,
        pretrained=False,
        workers=0,
        precision="fp32",
        head_first=True,
        freeze_norm=True,
        layer_decay=0.9,
    )
    train(leaves, tmp_path / "run", TrainConfig(data=DataSettings(image_size=32), train=fit))
    weights = load_file(tmp_path / "run" / "model.safetensors")
    means = [value for name, value in weights.items() if name.endswith("running_mean")]
    # As batch norm begins: no batch has changed it.
    assert means
    assert all(not value.any() for value in means)


def test_many_photos_give_a_bounded_number_of_views_of_every_class(
    leaves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_data(leaves)
    monkeypatch.setattr(callbacks, "MAX_VIEWS", 24)
    callback = FitHead(Viewing(leaves, prepared.train, "", Preprocessing(32), Augmentation(), views=4), workers=0)
    keys = callback._keys()
    assert abs(len(keys) - 24) <= len(prepared.classes)
    assert {prepared.train[key.position].label for key in keys} == set(range(len(prepared.classes)))
