"""The first stage of fine-tuning: a classifier on features of the frozen backbone, which are computed once and kept."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader

from agridistill.data.cache import DerivedCache
from agridistill.data.folder import Sample
from agridistill.data.loader import Batch, PhotoDataset, ViewKey, collate
from agridistill.data.views import Augmentation, plain_settings, view_seed
from agridistill.errors import ConfigError
from agridistill.manifest import Preprocessing
from agridistill.models.normalisation import normalise_batch
from agridistill.training.module import DistillationModule

logger = logging.getLogger(__name__)

# A linear classifier learns little from more: the later epochs see all photos anyway.
MOST_VIEWS = 2000
VIEWS_OF_A_PHOTO = 4
_BATCH = 16
# Inverse strength of the L2 penalty on standardised features: there are far more of them than photos.
_C = 0.01


class FitHead(Callback):
    """Fits the network's classifier to kept features of its frozen backbone, before the first step.

    Args:
        root: the data folder.
        photos: that are learnt from.
        preprocessing: of the network's input.
        augmentation: of the views.
        seed: of the views.
        workers: loader processes.
        balance: gives each class the same weight.
    """

    def __init__(
        self,
        root: Path,
        photos: Sequence[Sample],
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        *,
        seed: int,
        workers: int,
        balance: bool = False,
        console: Console | None = None,
    ) -> None:
        self.balance = balance
        self.root, self.photos, self.preprocessing, self.augmentation = root, photos, preprocessing, augmentation
        self.seed, self.workers = seed, workers
        self.console = console or Console(stderr=True, highlight=False)

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Fits, in the first process; the others take its weights."""
        if not isinstance(module, DistillationModule):
            return
        head = classifier_of(module.model)
        if trainer.is_global_zero:
            self._fit(module, head)
        if trainer.world_size > 1:
            # Lightning has wrapped the network before this hook: from here on processes share gradients alone.
            head.load_state_dict(trainer.strategy.broadcast(head.state_dict()))

    def _fit(self, module: DistillationModule, head: nn.Linear) -> None:
        # Back through the module, which keeps frozen batch norm in inference.
        training = module.training
        module.eval()
        with self.console.status("fitting the classifier to the frozen backbone's features"):
            features, target = self._features(module.model, module.device)
            fit_classifier(head, features, target, balance=self.balance)
        module.train(training)

    @torch.no_grad()
    def _features(self, model: nn.Module, device: torch.device) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features `(N, C)` of a few views of each photo by a network in inference, and their labels `(N,)`."""
        kept = DerivedCache("features", self.root, self._way(model))
        keys = self._keys()
        rows: dict[ViewKey, NDArray[np.float32]] = {}
        for key in keys:
            content = kept.read(kept.path_for(self.photos[key.position].path, str(key.seed)))
            if content is not None:
                rows[key] = np.frombuffer(content, np.float16).astype(np.float32)
        missing = [key for key in keys if key not in rows]
        model.to(device)
        dataset = PhotoDataset(self.root, self.photos, self.preprocessing, self.augmentation)
        for batch in _loader(dataset, missing, self.workers):
            if batch is None:
                continue
            pixels = normalise_batch(batch.pixels.to(device), self.preprocessing)
            found = _pooled(model, pixels).float().cpu().numpy().astype(np.float16)
            for row, position, view, seed in zip(
                found, batch.position.tolist(), batch.view.tolist(), batch.seed.tolist(), strict=True
            ):
                rows[ViewKey(position, view, seed)] = row.astype(np.float32)
                kept.write(kept.path_for(self.photos[position].path, str(seed)), row.tobytes())
        read = [key for key in keys if key in rows]
        labels = np.array([self.photos[key.position].label for key in read], np.int64)
        return np.stack([rows[key] for key in read]), labels

    def _keys(self) -> list[ViewKey]:
        """Which views: of all photos alike, and where there are many, of some photos of each class."""
        views = max(1, min(VIEWS_OF_A_PHOTO, MOST_VIEWS // len(self.photos)))
        by_class: dict[int, list[int]] = defaultdict(list)
        for position, sample in enumerate(self.photos):
            by_class[sample.label].append(position)
        share = min(1.0, MOST_VIEWS / (views * len(self.photos)))
        rng = np.random.default_rng(self.seed)
        chosen = [
            int(position)
            for positions in by_class.values()
            for position in rng.permutation(positions)[: max(1, round(share * len(positions)))]
        ]
        return [
            ViewKey(position, view, view_seed(self.seed, view, self.photos[position].path))
            for position in sorted(chosen)
            for view in range(views)
        ]

    def _way(self, model: nn.Module) -> str:
        digest = sha256()
        for name, value in sorted(model.state_dict().items()):
            if not name.startswith(_classifier_prefix(model)):
                digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return f"{digest.hexdigest()} {self.preprocessing} {sorted(plain_settings(self.augmentation).items())}"


def classifier_of(model: nn.Module) -> nn.Linear:
    """The linear classifier of a network of timm's.

    Raises:
        ConfigError: the network has none.
    """
    own: Any = getattr(model, "get_classifier", None)
    head = own() if own is not None else None
    if not isinstance(head, nn.Linear):
        raise ConfigError("a network with a linear classifier for head_first", type(model).__name__, "leave it away")
    return head


@torch.no_grad()
def fit_classifier(
    head: nn.Linear, features: NDArray[np.float32], target: NDArray[np.int64], *, balance: bool = False
) -> None:
    """Sets a classifier to the multinomial logistic regression of its input, by scikit-learn.

    Args:
        head: of C features and K classes.
        features: `(N, C)`.
        target: `(N,)` class indices; every class at least once.
        balance: gives each class the same weight, however many rows it has.
    """
    mean, deviation = features.mean(0), features.std(0) + 1e-3
    model: Any = LogisticRegression(C=_C, max_iter=1000, class_weight="balanced" if balance else None).fit(
        (features - mean) / deviation, target
    )
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:
        # Of two classes scikit-learn gives the difference of their logits.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / deviation
    head.weight.copy_(torch.from_numpy(weight))
    head.bias.copy_(torch.from_numpy(bias - weight @ mean))


def _pooled(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    pooled: torch.Tensor = model.forward_head(model.forward_features(pixels), pre_logits=True)
    return pooled


def _classifier_prefix(model: nn.Module) -> str:
    head = classifier_of(model)
    return next(f"{name}." for name, module in model.named_modules() if module is head)


def _loader(dataset: PhotoDataset, keys: Sequence[ViewKey], workers: int) -> DataLoader[Batch | None]:
    return DataLoader(dataset, batch_size=_BATCH, sampler=keys, num_workers=workers, collate_fn=collate)  # type: ignore[arg-type]
