"""Callbacks before the first step: they compare processes, build the teacher's cache and fit the classifier."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from typing import Any

import lightning
import numpy as np
import torch
import torch.distributed
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader

from agridistill.data.loader import Viewing, ViewKey, collate
from agridistill.data.views import DerivedCache, plain_settings
from agridistill.errors import ConfigError, RunError
from agridistill.models import normalise_batch
from agridistill.progress import ProgressCallback, hidden_displays, silent, stderr_console
from agridistill.teacher_cache import CachedTeacher

# More views hardly improve a linear classifier.
MAX_VIEWS = 2000
VIEWS_OF_A_PHOTO = 4
_BATCH = 16
# Inverse strength of the L2 penalty on standardised features; it is strong because features outnumber photos.
_C = 0.01


class SameEverywhere(Callback):
    """Stops a distributed run if its processes have different photos or settings.

    `document` holds the values to compare, by the name that the error shows, such as "photos".
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Compares the document of this process with that of rank 0.

        Raises:
            RunError: a value differs.
        """
        for name, value in trainer.strategy.broadcast(self.document).items():
            if value != self.document[name]:
                got = f"different {name} in the processes 0 and {trainer.global_rank}"
                raise RunError(f"the same {name} in every process", got, f"give all machines the same {name}")


class BuildCache(Callback):
    """Computes the missing entries of the teacher's cache before the first step; each process computes a share."""

    def __init__(self, teacher: CachedTeacher, workers: int) -> None:
        self.teacher, self.workers = teacher, workers

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Builds the cache; rank 0 shows the progress."""
        with self._progress() if trainer.is_global_zero else nullcontext(silent) as progress:
            self.teacher.prepare(
                module.device,
                workers=self.workers,
                rank=trainer.global_rank,
                world=trainer.world_size,
                gather=gather_all,
                progress=progress,
            )

    @contextmanager
    def _progress(self) -> Iterator[ProgressCallback]:
        """Shows a first line, then a bar with the time left, or without a terminal a line after each tenth."""
        console = stderr_console()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        begin, first, next_tenth = 0.0, -1, 1
        with hidden_displays(then="preparing"), bar:
            task = bar.add_task("teacher cache", total=None, visible=False)

            def show(done: int, total: int) -> None:
                nonlocal begin, first, next_tenth
                bar.update(task, completed=done, total=total, visible=True)
                if first < 0:
                    # The first batch includes the start of teacher and loaders, so the estimate does not count it.
                    begin, first = time.perf_counter(), done
                    size = f"{self.teacher.size_bytes / 1e6:.1f} MB in {self.teacher.folder}"
                    console.print(f"teacher cache  {total:,} views are computed once: {size}")
                elif not console.is_terminal and 10 * done // total >= next_tenth:
                    next_tenth = 10 * done // total + 1
                    left_s = (time.perf_counter() - begin) / (done - first) * (total - done)
                    console.print(f"teacher cache  {done:,} of {total:,} views  about {left_s / 60:.1f} min left")

            yield show


def gather_all(own: Any) -> Sequence[Any]:
    """Exchanges an object between processes: returns the `own` of each process, in the order of ranks.

    Without torch.distributed it returns a list with this process's object.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return gathered


class FitHead(Callback):
    """Fits the network's classifier to features of the frozen backbone before the first step (`head_first = true`).

    It uses up to 4 views (augmented versions) of each photo. Their features are stored in the user's cache folder, so
    that later runs with the same backbone, photos and augmentation do not compute them again.

    Args:
        viewing: the training photos and their views.
        workers: number of data-loader processes.
        balance: gives each class the same weight, whatever its number of photos.
    """

    def __init__(self, viewing: Viewing, *, workers: int, balance: bool = False) -> None:
        self.viewing, self.workers, self.balance = viewing, workers, balance

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Fits the classifier in rank 0 and sends its weights to the other ranks."""
        model: Any = module.model
        head = classifier_of(model)
        if trainer.is_global_zero:
            # Switch the mode through the module, which keeps frozen batch norm in inference mode.
            training = module.training
            module.eval()
            with stderr_console().status("fitting the classifier to the frozen backbone's features"):
                fit_classifier(head, *self._features(model.to(module.device)), balance=self.balance)
            module.train(training)
        if trainer.world_size > 1:
            # Lightning has synchronised the weights before this hook; from here on, processes share only gradients.
            head.load_state_dict(trainer.strategy.broadcast(head.state_dict()))

    @torch.no_grad()
    def _features(self, model: nn.Module) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns features `(N, C)` of the readable views, and their labels `(N,)`; `model` is in inference mode."""
        viewing, device = self.viewing, next(model.parameters()).device
        cache = DerivedCache("features", viewing.root, self._identity(model))
        keys = self._keys()
        places = {key: cache.path_for(viewing.samples[key.position].path, str(key.seed)) for key in keys}
        rows = {key: row for key, place in places.items() if (row := cache.read(place)) is not None}
        missing: Any = [key for key in keys if key not in rows]
        for batch in DataLoader(
            viewing.dataset(), batch_size=_BATCH, sampler=missing, num_workers=self.workers, collate_fn=collate
        ):
            if batch is None:
                continue
            found = _pooled(model, normalise_batch(batch.pixels.to(device), viewing.preprocessing))
            views = torch.stack([batch.position, batch.view, batch.seed], dim=1).tolist()
            for view, row in zip(views, found.half().cpu().numpy(), strict=True):
                key = ViewKey(*view)
                rows[key] = row.tobytes()
                cache.write(places[key], rows[key])
        readable = [key for key in keys if key in rows]
        labels = np.array([viewing.samples[key.position].label for key in readable], np.int64)
        return np.stack([np.frombuffer(rows[key], np.float16).astype(np.float32) for key in readable]), labels

    def _keys(self) -> list[ViewKey]:
        """Chooses the views: equally many of each photo; if there are many photos, of a share of each class."""
        photos = self.viewing.samples
        views = max(1, min(VIEWS_OF_A_PHOTO, MAX_VIEWS // len(photos)))
        share = min(1.0, MAX_VIEWS / (views * len(photos)))
        by_class: dict[int, list[int]] = defaultdict(list)
        for position, sample in enumerate(photos):
            by_class[sample.label].append(position)
        rng = np.random.default_rng(self.viewing.seed)
        chosen = [rng.permutation(places)[: max(1, round(share * len(places)))] for places in by_class.values()]
        positions = sorted(np.concatenate(chosen).tolist())
        return [self.viewing.key(view, position) for position in positions for view in range(views)]

    def _identity(self, model: nn.Module) -> str:
        """Returns a text that identifies everything that the features depend on, except the photo."""
        head = classifier_of(model)
        prefix = next(f"{name}." for name, module in model.named_modules() if module is head)
        digest = sha256()
        for name, value in sorted(model.state_dict().items()):
            if not name.startswith(prefix):
                digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        augmentation = sorted(plain_settings(self.viewing.augmentation).items())
        return f"{digest.hexdigest()} {self.viewing.preprocessing} {augmentation}"


def classifier_of(model: nn.Module) -> nn.Linear:
    """Returns the linear classifier of a timm network.

    Raises:
        ConfigError: the classifier is not a linear layer.
    """
    own: Any = getattr(model, "get_classifier", lambda: None)
    head = own()
    if not isinstance(head, nn.Linear):
        expected = "a network with a linear classifier, because head_first = true"
        raise ConfigError(expected, type(model).__name__, "set head_first = false")
    return head


@torch.no_grad()
def fit_classifier(
    head: nn.Linear, features: NDArray[np.float32], target: NDArray[np.int64], *, balance: bool = False
) -> None:
    """Sets the weights of a classifier by multinomial logistic regression with scikit-learn.

    Args:
        head: the classifier, from C features to K classes.
        features: `(N, C)`, features of N views of photos.
        target: `(N,)` class indices; every class occurs at least once.
        balance: gives each class the same weight, whatever its number of rows.
    """
    mean, deviation = features.mean(0), features.std(0) + 1e-3
    model: Any = LogisticRegression(C=_C, max_iter=1000, class_weight="balanced" if balance else None).fit(
        (features - mean) / deviation, target
    )
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:
        # For two classes scikit-learn returns the weights of the difference of their logits.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / deviation
    head.weight.copy_(torch.from_numpy(weight))
    head.bias.copy_(torch.from_numpy(bias - weight @ mean))


def _pooled(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    pooled: torch.Tensor = model.forward_head(model.forward_features(pixels), pre_logits=True)
    return pooled
