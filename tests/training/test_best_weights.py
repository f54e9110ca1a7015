"""Which weights are saved: those of the best epoch, and with `ema` their moving average."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import TINY_STUDENT
from tests.training.small_runs import DATA, FIT, rows

from agridistill.models import create_model
from agridistill.training.callbacks import AveragedWeights, BestWeights
from agridistill.training.module import DistillationModule
from agridistill.training.run import train
from agridistill.training.settings import TrainConfig


def module_of(network: torch.nn.Module) -> DistillationModule:
    module = DistillationModule.__new__(DistillationModule)
    torch.nn.Module.__init__(module)
    module.model = network
    return module


def test_the_weights_of_a_killed_epoch_give_way_to_those_of_its_repetition(tmp_path: Path) -> None:
    network = create_model(TINY_STUDENT, 3)
    best = BestWeights(tmp_path / "model.safetensors", 1000)
    trainer = SimpleNamespace(is_global_zero=True, current_epoch=1, callback_metrics={})
    trainer.callback_metrics = {"val/accuracy": 0.8, "val/nll": 0.5}
    module = module_of(network)
    best.on_validation_end(trainer, module)  # type: ignore[arg-type]
    stored = best.state_dict()
    again = BestWeights(best.path, 1000)
    again.load_state_dict(stored)
    assert again.best == (0.8, -0.5)
    best.path.write_bytes(b"of epoch 2, which was killed before its checkpoint")
    again.load_state_dict(stored)
    # Whatever epoch 2 reaches now, its weights replace those that nobody remembers.
    assert again.best is None


@pytest.mark.parametrize(("photos", "kept"), [(200, 0), (199, 1)])
def test_few_validation_photos_choose_no_epoch(tmp_path: Path, photos: int, kept: int) -> None:
    best = BestWeights(tmp_path / "model.safetensors", photos)
    module = module_of(create_model(TINY_STUDENT, 3))
    for epoch, accuracy in enumerate((1.0, 0.96)):
        metrics = {"val/accuracy": accuracy, "val/nll": 0.2}
        trainer = SimpleNamespace(is_global_zero=True, current_epoch=epoch, callback_metrics=metrics)
        best.on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert best.epoch == kept


def test_the_average_is_that_of_its_definition() -> None:
    network = torch.nn.BatchNorm1d(1)  # a weight, a bias, two float buffers and a whole number
    module, average = module_of(network), AveragedWeights(0.9)
    values, expected = [5.0, 1.0, -2.0, 7.0] * 30, 5.0
    network.weight.data.fill_(values[0])
    average.on_train_start(SimpleNamespace(), module)  # type: ignore[arg-type]
    for step, value in enumerate(values, start=1):
        network.weight.data.fill_(value)
        network.num_batches_tracked.fill_(step)
        trainer: Any = SimpleNamespace(global_step=step)
        average.on_train_batch_end(trainer, module, None, None, 0)
        # A step without any readable photo changes nothing.
        average.on_train_batch_end(trainer, module, None, None, 0)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.average["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert average.average["num_batches_tracked"] == len(values)


def test_the_average_is_validated_and_saved_and_the_weights_are_trained_on(leaves: Path, tmp_path: Path) -> None:
    fit = replace(FIT, epochs=2, lr=0.01)
    train(leaves, tmp_path / "plain", TrainConfig(DATA, train=fit))
    train(leaves, tmp_path / "averaged", TrainConfig(DATA, train=replace(fit, ema=0.9)))
    plain, averaged = rows(tmp_path / "plain"), rows(tmp_path / "averaged")
    # The average does not touch the training.
    assert [row["train/total"] for row in plain] == [row["train/total"] for row in averaged]
    assert [row["val/nll"] for row in plain] != [row["val/nll"] for row in averaged]
    saved = load_file(tmp_path / "averaged" / "model.safetensors")
    checkpoint = torch.load(tmp_path / "averaged" / "last.ckpt", weights_only=True)
    average = checkpoint["callbacks"]["AveragedWeights"]["average"]
    assert all(torch.equal(saved[name], average[name]) for name in saved)


def test_a_stopped_run_goes_on_with_its_average(leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(DATA, train=replace(FIT, epochs=2, ema=0.9))
    train(leaves, tmp_path / "whole", config)
    validations: list[int] = []

    def interrupted(self: AveragedWeights, trainer: Any, module: Any) -> None:
        self._swap(module)
        validations.append(1)
        if len(validations) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AveragedWeights, "on_validation_start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(leaves, tmp_path / "stopped", config)
    train(leaves, tmp_path / "stopped", config, resume=True)
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
