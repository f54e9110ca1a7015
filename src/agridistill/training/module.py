"""The one LightningModule: a network, the objective, and a teacher where the method has one."""

from __future__ import annotations

import math
from typing import Any, Protocol

import lightning
import numpy as np
import torch
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from agridistill.data.loader import Batch
from agridistill.distillation.objective import DistillationObjective
from agridistill.errors import RunError
from agridistill.manifest import Preprocessing
from agridistill.models.attention import StageTap
from agridistill.models.normalisation import normalise_batch
from agridistill.models.teacher import LiveTeacher


class TeacherSource(Protocol):
    """Where the teacher's knowledge of a batch comes from: the live network or its cache."""

    def outputs(self, batch: Batch) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits `(B, K)`, and for each stride the attention map `(B, H, W)` or maps `(B, M, H, W)`."""
        ...

    def example(self, count: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Outputs of the right shapes for so many photos, whatever they say."""
        ...

    def map_counts(self) -> dict[int, int]:
        """How many maps `outputs` gives at each stride."""
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
        hints: whose features are learnt in a first stage; None where there is none.
        strides: feature maps that the objective aligns.
        preprocessing: of the network's input.
        num_classes: K.
        total_steps: of the whole run, at least 1. Asked of nobody: Lightning would start the loaders to count them,
            before a resume has told it the epoch.
        lr: peak learning rate.
        weight_decay: of weight matrices.
        layer_decay: factor of the learning rate from each layer of `model` to the one before it, up to 1.
        freeze_norm: keeps the statistics of the batch norm in `model` as they are.
        warmup: share of the steps in which the learning rate rises.
        seed: of dropout and drop-path, together with the step.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: DistillationObjective,
        *,
        teacher: TeacherSource | None,
        hints: LiveTeacher | None = None,
        strides: tuple[int, ...],
        preprocessing: Preprocessing,
        num_classes: int,
        total_steps: int,
        lr: float,
        weight_decay: float,
        layer_decay: float = 1.0,
        freeze_norm: bool = False,
        warmup: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self.objective = objective
        self.preprocessing = preprocessing
        self.total_steps = total_steps
        self.lr, self.weight_decay, self.warmup, self.seed = lr, weight_decay, warmup, seed
        self.layer_decay, self.freeze_norm = layer_decay, freeze_norm
        self._teacher, self._hints = teacher, hints
        # Of this epoch. Lightning's own metrics keep the last value of a term that is no longer computed.
        self.terms: set[str] = set()
        self._tap = StageTap(self.model, strides) if strides else None
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_nll = MeanMetric()

    def train(self, mode: bool = True) -> DistillationModule:
        """Switches between training and inference; frozen batch norm stays in inference."""
        super().train(mode)
        if mode and self.freeze_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def on_fit_start(self) -> None:
        """Brings the teacher to the device of this process."""
        for teacher in (self._teacher, self._hints):
            if teacher is not None:
                teacher.to(self.device)

    def transfer_batch_to_device(self, batch: Batch | None, device: torch.device, dataloader_idx: int) -> Batch | None:
        """Moves pixels and labels; which views they are is asked on the processor, which must not wait for a GPU."""
        if batch is None:
            return None
        return batch._replace(
            pixels=batch.pixels.to(device, non_blocking=True), target=batch.target.to(device, non_blocking=True)
        )

    def on_train_epoch_start(self) -> None:
        """Forgets which terms the last epoch had."""
        self.terms = set()

    def on_train_batch_start(self, batch: Batch | None, batch_idx: int) -> None:
        """Seeds dropout by step, so that a resumed run draws what the uninterrupted run drew.

        By step and not by epoch: loaders draw from the same generator whenever they start their workers.

        Where the features have been learnt, another training begins: the optimiser forgets. What had no gradient until
        now, the head above all, would otherwise take steps several times the learning rate, because AdamW's mean of the
        squares is 0 there and counts as settled.
        """
        before = (self.global_step - 1) / self.total_steps
        if self.objective.in_first_stage(before) and not self.objective.in_first_stage(self.progress):
            self.trainer.optimizers[0].state.clear()
        state = np.random.SeedSequence((self.seed, self.global_step, self.global_rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))

    def training_step(self, batch: Batch | None, batch_idx: int) -> Tensor | None:
        """One step; logs every term of the objective. A batch whose photos have all gone bad is passed over.

        Raises:
            RunError: the loss is no longer finite.
        """
        distributed = self.trainer.world_size > 1
        if batch is None:
            if distributed:
                # The other processes wait for this one's gradients.
                raise RunError("readable photos in every step", "none", "check the storage and go on with --resume")
            return None
        terms = self.loss_terms(batch, self.progress)
        if not torch.isfinite(terms["total"]):
            names = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
            raise RunError(
                "a finite loss", f"{names} in epoch {self.current_epoch + 1}", "start a new run with a lower --lr"
            )
        self.terms.update(terms)
        for name, value in terms.items():
            self.log(
                f"train/{name}",
                value.detach(),
                # Several processes would have to agree on every value of every step.
                on_step=not distributed,
                on_epoch=True,
                batch_size=len(batch.target),
                sync_dist=distributed,
            )
        return terms["total"]

    def loss_terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The named terms of the objective on one batch, "total" among them; progress is 0 to 1."""
        said = self._teacher.outputs(batch) if self._teacher is not None else (None, None)
        shown = None
        if self.objective.in_first_stage(progress):
            shown = self._hints.outputs(batch)[1] if self._hints is not None else None
        else:
            self._hints = None  # whose features nobody asks for any more
        return self._terms(batch.pixels, batch.target, said, shown, progress)

    @torch.no_grad()
    def try_out(self) -> None:
        """Computes the loss of two empty photos: what cannot work must show before anything is written.

        Raises:
            AgriDistillError: stages, classes, weights and method do not fit together.
        """
        training = self.training
        size = self.preprocessing.image_size
        pixels = torch.zeros(2, 3, size, size, dtype=torch.uint8)
        said = self._teacher.example(2) if self._teacher is not None else (None, None)
        shown = self._hints.example(2)[1] if self._hints is not None else None
        self.eval()._terms(pixels, torch.zeros(2, dtype=torch.int64), said, shown, progress=0.0)
        self.train(training)

    def _terms(
        self,
        pixels: Tensor,
        target: Tensor,
        said: tuple[Tensor, dict[int, Tensor]] | tuple[None, None],
        shown: dict[int, Tensor] | None,
        progress: float,
    ) -> dict[str, Tensor]:
        logits = self.model(normalise_batch(pixels, self.preprocessing))
        features = self._tap.features() if self._tap is not None else {}
        teacher_logits, teacher_maps = said
        terms: dict[str, Tensor] = self.objective(
            logits,
            features,
            target,
            teacher_logits=teacher_logits,
            teacher_maps=teacher_maps,
            teacher_features=shown,
            progress=progress,
        )
        return terms

    @property
    def progress(self) -> float:
        """Share of all training steps that are done, 0 to 1."""
        return min(1.0, self.global_step / self.total_steps)

    def validation_step(self, batch: Batch | None, batch_idx: int) -> None:
        """Accumulates accuracy and negative log-likelihood."""
        if batch is None:
            return
        logits = self.model(normalise_batch(batch.pixels, self.preprocessing)).float()
        if self._tap is not None:
            self._tap.features()  # taken, so that the next training step cannot see stale ones
        self.val_accuracy.update(logits, batch.target)
        self.val_nll.update(nn.functional.cross_entropy(logits, batch.target, reduction="none"))

    def on_validation_epoch_end(self) -> None:
        """Logs both, in every process: one whose photos have all gone bad must take part in the sum, too.

        Raises:
            RunError: no validation photo can be read.
        """
        if self.trainer.world_size == 1 and self.val_nll.update_count == 0:
            raise RunError("readable validation photos", "none", "check the storage and go on with --resume")
        self.log("val/accuracy", self.val_accuracy)
        self.log("val/nll", self.val_nll)

    def configure_optimizers(self) -> Any:
        """AdamW, linear warm-up and cosine decay; biases, norms and other vectors are not decayed."""
        optimizer = torch.optim.AdamW(self._parameter_groups(), lr=self.lr)
        total = self.total_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step / total, self.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        if self.layer_decay < 1:
            # BEiT's layer-wise learning rates (Bao et al. 2021, arXiv 2106.08254), by timm.
            layers = param_groups_layer_decay(self.model, self.weight_decay, layer_decay=self.layer_decay)
            groups = [{**group, "lr": self.lr * group["lr_scale"]} for group in layers]
            rest = list(self.objective.parameters())
        else:
            groups, rest = [], list(self.parameters())
        matrices = [parameter for parameter in rest if parameter.requires_grad and parameter.ndim > 1]
        vectors = [parameter for parameter in rest if parameter.requires_grad and parameter.ndim <= 1]
        groups.append({"params": matrices, "weight_decay": self.weight_decay})
        groups.append({"params": vectors, "weight_decay": 0.0})
        return [group for group in groups if group["params"]]
