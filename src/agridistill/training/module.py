"""The one LightningModule: a network, the objective, and a teacher where the method has one."""

from __future__ import annotations

import math
from typing import Any, Protocol

import lightning
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from agridistill.data.datamodule import Batch
from agridistill.distillation.objective import DistillationObjective
from agridistill.manifest import Preprocessing
from agridistill.models.attention import StageTap
from agridistill.models.normalisation import normalise_batch


class TeacherSource(Protocol):
    """Where the teacher's knowledge of a batch comes from: the live network, or later its cache."""

    def outputs(self, batch: Batch) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits `(B, K)`, and for each stride the attention map `(B, H, W)` or maps `(B, M, H, W)`."""
        ...

    def to(self, device: torch.device) -> None:
        """Moves whatever computes to a device."""
        ...


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Share of the peak learning rate: rises linearly during the warm-up, then falls to 0 as half a cosine.

    Args:
        progress: share of all steps that are done, 0 to 1.
        warmup: share of the steps in which it rises.

    Example:
        >>> [round(learning_rate_factor(p, 0.2), 2) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
        [0.01, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        # Not from 0: the first step would be wasted.
        return max(progress / warmup, 0.01)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


class DistillationModule(lightning.LightningModule):
    """Trains `model` under `objective`.

    The teacher is no submodule: it has no gradients, is not saved in checkpoints, and DDP does not see it.

    Args:
        model: the network to train.
        objective: named loss terms.
        teacher: None where the method learns from labels alone.
        strides: feature maps that the objective aligns.
        preprocessing: of the network's input.
        num_classes: K.
        lr: peak learning rate.
        weight_decay: of weight matrices.
        warmup: share of the steps in which the learning rate rises.
        seed: of dropout and drop-path, together with the epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: DistillationObjective,
        *,
        teacher: TeacherSource | None,
        strides: tuple[int, ...],
        preprocessing: Preprocessing,
        num_classes: int,
        lr: float,
        weight_decay: float,
        warmup: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self.objective = objective
        self.preprocessing = preprocessing
        self.lr, self.weight_decay, self.warmup, self.seed = lr, weight_decay, warmup, seed
        self._teacher = teacher
        self._tap = StageTap(self.model, strides) if strides else None
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_nll = MeanMetric()

    def on_fit_start(self) -> None:
        """Brings the teacher to the device of this process."""
        if self._teacher is not None:
            self._teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Seeds dropout by epoch, so that a resumed run draws what the uninterrupted run drew."""
        torch.manual_seed((self.seed << 24) + (self.current_epoch << 8) + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step; logs every term of the objective."""
        terms = self.loss_terms(batch, self.progress)
        for name, value in terms.items():
            self.log(f"train/{name}", value.detach(), on_step=True, on_epoch=True, batch_size=len(batch.target))
        return terms["total"]

    def loss_terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The named terms of the objective on one batch, "total" among them; progress is 0 to 1."""
        logits = self.model(normalise_batch(batch.pixels, self.preprocessing))
        features = self._tap.features() if self._tap is not None else {}
        teacher_logits, teacher_maps = self._teacher.outputs(batch) if self._teacher is not None else (None, None)
        terms: dict[str, Tensor] = self.objective(
            logits,
            features,
            batch.target,
            teacher_logits=teacher_logits,
            teacher_maps=teacher_maps,
            progress=progress,
        )
        return terms

    @property
    def progress(self) -> float:
        """Share of all training steps that are done, 0 to 1."""
        return min(1.0, self.global_step / max(1, self._total_steps()))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accumulates accuracy and negative log-likelihood."""
        logits = self.model(normalise_batch(batch.pixels, self.preprocessing)).float()
        if self._tap is not None:
            self._tap.features()  # taken, so that the next training step cannot see stale ones
        self.val_accuracy(logits, batch.target)
        self.val_nll(nn.functional.cross_entropy(logits, batch.target, reduction="none"))
        self.log("val/accuracy", self.val_accuracy, batch_size=len(batch.target))
        self.log("val/nll", self.val_nll, batch_size=len(batch.target))

    def configure_optimizers(self) -> Any:
        """AdamW, linear warm-up and cosine decay; biases, norms and other vectors are not decayed."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        decayed = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        total = self._total_steps()
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step / max(1, total), self.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _total_steps(self) -> int:
        return int(self.trainer.estimated_stepping_batches)
