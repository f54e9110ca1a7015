"""Callbacks of a run: build the teacher's cache and fit the classifier first; average and save the weights later."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader

from agridistill.data.loader import Viewing, ViewKey, collate
from agridistill.data.views import DerivedCache, plain_settings
from agridistill.errors import ConfigError, DataError, RunError
from agridistill.manifest import sha256_of
from agridistill.models import normalise_batch, save_weights
from agridistill.progress import ProgressCallback, hidden_displays, silent, stderr_console
from agridistill.teacher_cache import CachedTeacher

# More views hardly improve a linear classifier.
MAX_VIEWS = 2000
VIEWS_OF_A_PHOTO = 4
_BATCH = 16
# Inverse strength of the L2 penalty on standardised features; it is strong because features outnumber photos.
_C = 0.01


class SameEverywhere(Callback):
    """Stops a distributed run if its processes have different photos or settings; `document` holds them by name."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        for name, value in trainer.strategy.broadcast(self.document).items():
            if value != self.document[name]:
                got = f"different {name} in the processes 0 and {trainer.global_rank}"
                raise RunError(f"the same {name} in every process", got, f"give all machines the same {name}")


class RequireUnlabelled(Callback):
    """Stops a run if the folder of its photos without labels is gone, such as a stick that was taken out.

    A photo that becomes unreadable is left out of its batch; without all of them the run would end as if it had learnt
    from them. Stopped before the epoch's checkpoint, it repeats the epoch when it continues.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        try:
            gone = next(self.root.iterdir(), None) is None
        except OSError:
            gone = True
        if gone:
            got = f"'{self.root}', which is away"
            raise DataError("the folder of photos without labels", got, "bring it back and use --resume")


class BuildCache(Callback):
    """Computes the missing entries of the teacher's cache before the first step; each process computes a share."""

    def __init__(self, teacher: CachedTeacher, workers: int) -> None:
        self.teacher, self.workers = teacher, workers

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        rank, world = trainer.global_rank, trainer.world_size
        with self._progress() if trainer.is_global_zero else contextlib.nullcontext(silent) as progress:
            self.teacher.prepare(module.device, workers=self.workers, rank=rank, world=world, progress=progress)

    @contextlib.contextmanager
    def _progress(self) -> Iterator[ProgressCallback]:
        """Shows a first line, then a bar with the time left, or, without a terminal, one line for each tenth."""
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


class FitHead(Callback):
    """Fits the network's classifier to features of the frozen backbone before the first step (`head_first = true`).

    It uses up to 4 views (augmented versions) of each photo, whose features are stored in the user's cache folder for
    later runs. `balance` gives each class the same weight, whatever its number of photos.
    """

    def __init__(self, viewing: Viewing, *, workers: int, balance: bool = False) -> None:
        self.viewing, self.workers, self.balance = viewing, workers, balance

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        head = classifier_of(module.model)
        if trainer.is_global_zero:
            # Switch the mode through the module, which keeps frozen batch norm in inference mode.
            training = module.training
            module.eval()
            with stderr_console().status("fitting the classifier to the frozen backbone's features"):
                fit_classifier(head, *self._features(module.model.to(module.device)), balance=self.balance)
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
        """Chooses the same number of views of each photo; if there are many photos, only of a share of each class."""
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
    """Returns the linear classifier of a timm network; any other classifier is a ConfigError."""
    head: Any = getattr(model, "get_classifier", lambda: None)()
    if not isinstance(head, nn.Linear):
        expected = "a network with a linear classifier, because head_first = true"
        raise ConfigError(expected, type(model).__name__, "set head_first = false")
    return head


@torch.no_grad()
def fit_classifier(
    head: nn.Linear, features: NDArray[np.float32], target: NDArray[np.int64], *, balance: bool = False
) -> None:
    """Fits a classifier to features `(N, C)` and class indices `(N,)` by multinomial logistic regression.

    Every class occurs at least once. `balance` gives each class the same weight.
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


def _pooled(model: Any, pixels: Tensor) -> Tensor:
    pooled: Tensor = model.forward_head(model.forward_features(pixels), pre_logits=True)
    return pooled


class AveragedWeights(Callback):
    """Keeps an exponential moving average (EMA) of the network's weights and buffers, and validates with the average.

    In the list of callbacks it must come after `BestWeights`, so that `BestWeights` saves the average.

    Step n sets average = d * average + (1 - d) * weights with d = min(decay, (1 + n) / (10 + n)), as TensorFlow's
    `ExponentialMovingAverage` does.
    """

    def __init__(self, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.average: dict[str, Tensor] = {}
        self._is_swapped = False

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        own = module.model.state_dict()
        self.average = {name: self.average.get(name, value).to(value.device).clone() for name, value in own.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.steps:
            return  # no photo of the batch was readable
        self.steps = trainer.global_step
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in module.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._swap(module)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._swap(module)

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        if self._is_swapped:
            self._swap(module)

    @torch.no_grad()
    def _swap(self, module: Any) -> None:
        for name, value in module.model.state_dict().items():
            held = value.clone()
            value.copy_(self.average[name])
            self.average[name] = held
        self._is_swapped = not self._is_swapped

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self.steps = state_dict["average"], state_dict["steps"]


class BestWeights(Callback):
    """Saves the network's weights of the best epoch.

    This is the epoch with the highest validation accuracy; among equals, the one with the lowest negative
    log-likelihood. With fewer than 200 validation photos it is the last epoch, because so few photos would select an
    early epoch by chance.
    """

    FEW_PHOTOS = 200

    def __init__(self, path: Path, photos: int) -> None:
        self.path, self.photos = path, photos
        self.best: tuple[float, float] | None = None
        self.epoch = -1
        self._sha256: str | None = None

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if not trainer.is_global_zero:
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
        return {"best": list(self.best) if self.best else None, "epoch": self.epoch, "sha256": self._sha256}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a checkpoint's state, without the best score if the weights file has another sha256.

        It differs if a run was killed between saving an epoch's weights and writing the checkpoint. The resumed run
        repeats this epoch and saves its weights again.
        """
        best, self.epoch, self._sha256 = state_dict["best"], state_dict["epoch"], state_dict["sha256"]
        unchanged = self.path.exists() and sha256_of(self.path) == self._sha256
        self.best = (best[0], best[1]) if best and unchanged else None
