"""Which weights a run saves: those of its best epoch, with `ema` their moving average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from agridistill.manifest import sha256_of
from agridistill.models import save_weights
from agridistill.training.module import DistillationModule


class AveragedWeights(Callback):
    """Keeps an exponential moving average (EMA) of the network's weights and buffers, and validates with the average.

    In the list of callbacks it must come after `BestWeights`, so that `BestWeights` saves the average.

    Step n sets average = d * average + (1 - d) * weights with d = min(decay, (1 + n) / (10 + n)), as TensorFlow's
    `ExponentialMovingAverage` does.

    Args:
        decay: largest d, 0 to 1.
    """

    def __init__(self, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.average: dict[str, Tensor] = {}
        self._is_swapped = False

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Starts the average with the network's weights, or on a resume with the average of the checkpoint."""
        own = _network(module).state_dict()
        self.average = {name: self.average.get(name, value).to(value.device).clone() for name, value in own.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the average towards the network's weights after each optimizer step."""
        if trainer.global_step == self.steps:
            return  # no photo of the batch was readable
        self.steps = trainer.global_step
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in _network(module).state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Replaces the network's weights by the average for the validation."""
        self._swap(module)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Restores the network's own weights after the validation."""
        self._swap(module)

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Restores the network's own weights if an error interrupts the validation."""
        if self._is_swapped:
            self._swap(module)

    @torch.no_grad()
    def _swap(self, module: lightning.LightningModule) -> None:
        for name, value in _network(module).state_dict().items():
            held = value.clone()
            value.copy_(self.average[name])
            self.average[name] = held
        self._is_swapped = not self._is_swapped

    def state_dict(self) -> dict[str, Any]:
        """Returns the average by tensor name ("average") and its number of steps ("steps") for the checkpoint."""
        return {"average": self.average, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the average from a checkpoint."""
        self.average, self.steps = state_dict["average"], state_dict["steps"]


class BestWeights(Callback):
    """Saves the network's weights of the best epoch.

    This is the epoch with the highest validation accuracy; among equals, the one with the lowest negative
    log-likelihood. With fewer than 200 validation photos it is the last epoch, because so few photos would select an
    early epoch by chance.

    Args:
        path: the weights file to write.
        photos: number of photos in the validation split.
    """

    FEW_PHOTOS = 200

    def __init__(self, path: Path, photos: int) -> None:
        self.path, self.photos = path, photos
        self.best: tuple[float, float] | None = None
        self.epoch = -1
        self._sha256: str | None = None

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Saves the network's weights if this epoch is the best so far."""
        if not trainer.is_global_zero or not isinstance(module, DistillationModule):
            return
        metrics = trainer.callback_metrics
        score = (float(metrics["val/accuracy"]), -float(metrics["val/nll"]))
        if self.photos < self.FEW_PHOTOS:
            score = (float(trainer.current_epoch), 0.0)
        if self.best is None or score > self.best:
            self.best, self.epoch = score, trainer.current_epoch
            save_weights(module.model, self.path)
            self._sha256 = sha256_of(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Returns the best epoch's score ("best"), its number from 0 ("epoch") and its weights file's "sha256"."""
        return {"best": list(self.best) if self.best else None, "epoch": self.epoch, "sha256": self._sha256}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state of a checkpoint, without the best score if the weights file has another sha256.

        The sha256 differs if a run was killed after it saved an epoch's weights and before it wrote the checkpoint. The
        resumed run repeats this epoch and saves its weights again.
        """
        best, self.epoch, self._sha256 = state_dict["best"], state_dict["epoch"], state_dict["sha256"]
        unchanged = self.path.exists() and sha256_of(self.path) == self._sha256
        self.best = (best[0], best[1]) if best and unchanged else None


def _network(module: lightning.LightningModule) -> nn.Module:
    if not isinstance(module, DistillationModule):
        raise TypeError(f"a DistillationModule; got {type(module).__name__}")
    return module.model
