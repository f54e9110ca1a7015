"""The LightningModule of every run: a network, its objective, and the teacher if the method has one."""

from __future__ import annotations

import math
from typing import Any

import lightning
import numpy as np
import torch
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from agridistill.data.loader import Batch
from agridistill.errors import ConfigError, RunError
from agridistill.losses import DistillationObjective, attention_schedule
from agridistill.manifest import Preprocessing
from agridistill.models import StageTap, TeacherOutputs, normalise_batch
from agridistill.teacher_cache import CachedTeacher, UncachedTeacher
from agridistill.training.settings import FitSettings

_GROWN, _GROWTH_PX = 0.6, 32
TeacherSource = CachedTeacher | UncachedTeacher


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Returns the factor by which the peak learning rate is multiplied when a share `progress` of all steps is done.

    It rises linearly from 0.01 to 1 during the share `warmup` of all steps, then falls to 0 along half a cosine.

    Example:
        >>> [round(learning_rate_factor(p, 0.2), 2) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
        [0.01, 0.5, 1.0, 0.5, 0.0]
    """
    # Not from 0, because the first step would have no effect.
    return max(attention_schedule(progress, warmup), 0.01 if progress < warmup else 0.0)


def growing_size(progress: float, start: int, full: int) -> int:
    """Returns the side of the photos in a training step, in pixels, when a share `progress` of all steps is done.

    It grows from `start` (0 means `full`) by 32 px at equal intervals, and reaches `full` after 60 % of the steps.

    Example:
        >>> [growing_size(p, 128, 224) for p in (0.0, 0.2, 0.4, 0.59, 0.6)]
        [128, 160, 192, 192, 224]
    """
    if not 0 < start < full or progress >= _GROWN:
        return full
    return min(full, start + _GROWTH_PX * int(progress / _GROWN * math.ceil((full - start) / _GROWTH_PX)))


class DistillationModule(lightning.LightningModule):
    """The LightningModule that trains a network with a distillation objective.

    The teacher, None if the method learns only from labels, is not a submodule, so that Lightning does not train it,
    save it in checkpoints or wrap it in DDP. `total_steps` is the number of optimizer steps of the whole run.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: DistillationObjective,
        fit: FitSettings,
        *,
        teacher: TeacherSource | None,
        preprocessing: Preprocessing,
        num_classes: int,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self.objective, self.preprocessing, self.total_steps = objective, preprocessing, total_steps
        self.fit, self._teacher = fit, teacher
        # Terms computed in this epoch: Lightning's metrics also keep the last value of terms no longer computed.
        self.terms: set[str] = set()
        self._tap = StageTap(self.model, {pair.student for pair in objective.pairs})
        mixing = ((v2.MixUp, fit.mixup), (v2.CutMix, fit.cutmix))
        self._mixing = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in mixing if alpha]
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_nll = MeanMetric()

    @property
    def progress(self) -> float:
        """Share of all optimizer steps that are done, 0 to 1."""
        # `total_steps` is not Lightning's estimate, which starts the loaders, on a resume before the epoch is set.
        return min(1.0, self.global_step / self.total_steps)

    def train(self, mode: bool = True) -> DistillationModule:
        """Switches to training or inference mode; with `freeze_norm = true`, batch norm stays in inference mode."""
        super().train(mode)
        if mode and self.fit.freeze_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def on_fit_start(self) -> None:
        if self._teacher is not None:
            self._teacher.to(self.device)

    def transfer_batch_to_device(self, batch: Batch | None, device: torch.device, dataloader_idx: int) -> Batch | None:
        """Moves pixels and labels; the numbers of photos and views stay on the CPU, where the teacher's cache is read.

        Raises:
            RunError: in a run of several processes, a training batch has no readable photo (None). Lightning skips such
                a step in one process, while the others would wait for its gradients.
        """
        if batch is None:
            if self.training and self.trainer.world_size > 1:
                raise _unreadable("a readable photo in the batch of every process", "a batch without one")
            return None
        moved = {
            name: values.to(device, non_blocking=True)
            for name, values in batch._asdict().items()
            if name in ("pixels", "target", "teacher_pixels") and values is not None
        }
        return batch._replace(**moved)

    def on_train_epoch_start(self) -> None:
        self.terms = set()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds the random numbers of this step, and resets the optimizer after the first stage.

        The seed depends on the step, so that a resumed run draws the same numbers as an uninterrupted one. A seed for
        each epoch would not be enough, because data loaders draw from the same generator when they start.

        In the first stage some parameters get no gradient, above all the classifier's. AdamW's mean of their squared
        gradients is then 0; without the reset, their first steps would be several times the learning rate.
        """
        before = (self.global_step - 1) / self.total_steps
        if self.objective.in_first_stage(before) and not self.objective.in_first_stage(self.progress):
            self.trainer.optimizers[0].state.clear()
        state = np.random.SeedSequence((self.fit.seed, self.global_step, self.global_rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Computes the loss of one step and logs its terms as "train/NAME"; a RunError if it is NaN or infinite."""
        distributed = self.trainer.world_size > 1
        terms = self.loss_terms(self._mixed(batch), self.progress)
        if not torch.isfinite(terms["total"]):
            values = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
            raise RunError(
                "a finite loss", f"{values} in epoch {self.current_epoch + 1}", "start a new run with a lower --lr"
            )
        self.terms.update(terms)
        for name, value in terms.items():
            self.log(
                f"train/{name}",
                value.detach(),
                on_step=not distributed,  # several processes would have to exchange every value of every step
                on_epoch=True,
                batch_size=len(batch.target),
                sync_dist=distributed,
            )
        return terms["total"]

    def _mixed(self, batch: Batch) -> Batch:
        """Applies mixup or cutmix with the random generator that each step seeds; the labels become `(B, K)`."""
        if not self._mixing:
            return batch
        mix = self._mixing[int(torch.randint(len(self._mixing), ()))]
        pixels, target = mix(batch.pixels.float(), batch.target)
        return batch._replace(pixels=pixels, target=target)

    def loss_terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Returns the loss terms of a batch by name, and their weighted sum "total", as float32 scalars."""
        teacher = self._teacher.outputs(batch) if self._teacher is not None else None
        return self._terms(batch.pixels, batch.target, teacher, progress)

    @torch.no_grad()
    def check_with_example(self) -> None:
        """Computes the loss of two black photos, so that incompatible parts fail before the run writes any file."""
        training = self.training
        size = self.preprocessing.image_size
        pixels = torch.zeros(2, 3, size, size, dtype=torch.uint8)
        teacher = self._teacher.example(2) if self._teacher is not None else None
        try:
            self.eval()._terms(pixels, torch.zeros(2, dtype=torch.int64), teacher, progress=0.0)
        except AssertionError as error:
            if not self.fit.start_size:
                raise
            expected = f"a network that takes photos of {self.fit.start_size} and {size} px, because of start_size"
            got = f"{self.fit.model} ({error})"
            raise ConfigError(expected, got, "set start_size = 0, or choose another --model") from None
        self.train(training)

    def _terms(
        self, pixels: Tensor, target: Tensor, teacher: TeacherOutputs | None, progress: float
    ) -> dict[str, Tensor]:
        size = growing_size(progress, self.fit.start_size, self.preprocessing.image_size)
        if size < pixels.shape[-1]:
            pixels = nn.functional.interpolate(pixels.float(), (size, size), mode="bilinear", antialias=True)
        terms: dict[str, Tensor] = self.objective(
            self.model(normalise_batch(pixels, self.preprocessing)),
            self._tap.features(),
            target,
            teacher_logits=teacher.logits if teacher is not None else None,
            teacher_maps=teacher.maps if teacher is not None else None,
            teacher_features=teacher.features if teacher is not None else None,
            progress=progress,
        )
        return terms

    def validation_step(self, batch: Batch | None, batch_idx: int) -> None:
        if batch is None:
            return
        logits = self.model(normalise_batch(batch.pixels, self.preprocessing)).float()
        self._tap.features()  # clears the features, which the next training step must not use
        self.val_accuracy.update(logits, batch.target)
        self.val_nll.update(nn.functional.cross_entropy(logits, batch.target, reduction="none"))

    def on_validation_epoch_end(self) -> None:
        """Logs "val/accuracy" (0 to 1) and "val/nll" (in nats) in every process, because they are summed over all.

        Raises:
            RunError: no validation photo can be read.
        """
        if self.trainer.world_size == 1 and self.val_nll.update_count == 0:
            raise _unreadable("readable validation photos", "none")
        self.log("val/accuracy", self.val_accuracy)
        self.log("val/nll", self.val_nll)

    def configure_optimizers(self) -> Any:
        """Creates AdamW with its schedule; weight decay applies to weight matrices, not to biases and norms."""
        fit, groups, rest = self.fit, [], list(self.parameters())
        if fit.layer_decay < 1:
            # timm computes BEiT's layer-wise learning rates (Bao et al. 2021, arXiv 2106.08254).
            layers = param_groups_layer_decay(self.model, fit.weight_decay, layer_decay=fit.layer_decay)
            groups = [{**group, "lr": fit.lr * group["lr_scale"]} for group in layers]
            rest = list(self.objective.parameters())
        learned = [parameter for parameter in rest if parameter.requires_grad]
        groups += [
            {"params": [parameter for parameter in learned if parameter.ndim > 1], "weight_decay": fit.weight_decay},
            {"params": [parameter for parameter in learned if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=fit.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step / self.total_steps, self.fit.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _unreadable(expected: str, got: str) -> RunError:
    return RunError(expected, got, "check the disk or network drive of the photos, then continue with --resume")
