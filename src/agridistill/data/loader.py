"""Photos -> batches, read as they are needed; the same batches with any number of workers and processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from agridistill.data.folder import Sample
from agridistill.data.views import Augmentation, KeptViews, SmallCopies, render_view, view_seed
from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import Pixels, to_pixels

logger = logging.getLogger(__name__)

# Seed of all views that a teacher sees: students of any seed see the same views and share one cache. Not 0, the usual
# seed of a run: on the very pixels that it learnt from, a teacher is more confident than on any others.
DISTILLATION_VIEWS = 0xA6D1
_FEW_PHOTOS = 256
# Keep these draws independent of those of the epochs' orders, and of each other.
_FIRST_VIEWS = 1 << 40
_CLASS_ORDERS = 1 << 41


class Batch(NamedTuple):
    """Photos as the model takes them, before normalisation."""

    pixels: Tensor  # `(B, 3, H, W)` uint8 RGB, channels-last in memory
    target: Tensor  # `(B,)` int64 labels
    position: Tensor  # `(B,)` int64, of each photo in its split
    view: Tensor  # `(B,)` int64, number of each view among its photo's views; -1 for a photo as it is
    seed: Tensor  # `(B,)` int64, of each view; -1 for a photo as it is


class ViewKey(NamedTuple):
    """A photo and one of its views; view and seed are -1 for the photo as it is."""

    position: int
    view: int
    seed: int


Item = tuple[Pixels, int, ViewKey]


class PhotoDataset(Dataset[Item | None]):
    """Photos of one split, addressed by `ViewKey`; `augmentation` is None where all are seen as they are.

    With `keep_views` each view is drawn once and its pixels are cached; see `KeptViews`.
    """

    def __init__(
        self,
        root: Path,
        samples: Sequence[Sample],
        preprocessing: Preprocessing,
        augmentation: Augmentation | None,
        *,
        keep_views: bool = False,
    ) -> None:
        self.samples = samples
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self._photos = SmallCopies(root, preprocessing, augmentation)
        self._kept = KeptViews(root, preprocessing, augmentation) if keep_views and augmentation is not None else None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: ViewKey) -> Item | None:
        """The photo's pixels, or None (and a warning) where it can no longer be read."""
        sample = self.samples[key.position]
        try:
            if self.augmentation is None or key.seed < 0:
                pixels = to_pixels(self._photos.read(sample.path), self.preprocessing)
                return pixels, sample.label, ViewKey(key.position, -1, -1)
            draw = partial(self._draw, sample.path, key.seed, self.augmentation)
            pixels = self._kept.get(sample.path, key.seed, draw) if self._kept is not None else draw()
            return pixels, sample.label, key
        except PhotoError as error:
            # Photos were checked before the run: one that became unreadable must not end a night's training.
            logger.warning("left out: %s", error)
            return None

    def _draw(self, path: str, seed: int, augmentation: Augmentation) -> Pixels:
        return render_view(self._photos.read(path), seed, augmentation, self.preprocessing)


@dataclass(frozen=True)
class Viewing:
    """The views of the training photos, the same pixels for student and teacher."""

    root: Path  # the data folder
    samples: Sequence[Sample]  # training photos, in the order of the split
    fingerprint: str  # of the data folder
    preprocessing: Preprocessing  # the student's
    augmentation: Augmentation
    views: int  # of each photo, at least 1
    keep_views: bool = False  # draws each view once and caches its pixels (`views.KeptViews`); changes none of them
    seed: int = DISTILLATION_VIEWS  # of the views' content

    def key(self, view: int, position: int) -> ViewKey:
        """Names one view of one photo."""
        return ViewKey(position, view, view_seed(self.seed, view, self.samples[position].path))

    def dataset(self) -> PhotoDataset:
        """The photos, addressed by `key`."""
        return PhotoDataset(self.root, self.samples, self.preprocessing, self.augmentation, keep_views=self.keep_views)


class ViewSampler(Sampler[ViewKey]):
    """Order and views of one epoch, as a function of (seed, epoch) alone.

    Each photo has the views 0 to `views` - 1 and shows them in turn, from a start of its own. In every step all
    processes combined take the photos that a single one would take: their number changes no result.

    An epoch shows each photo once. With `balance` it shows as many photos, but each class equally often: the photos of
    a rare class come several times, in different views, and each of them as often as the others, to one.

    Lightning calls `set_epoch` before each epoch, also after a resume.

    Args:
        viewing: the photos and their views.
        seed: of the order, and of each photo's first view.
        batch_size: photos a step, over all processes; the rest at the end of an epoch is left out.
        balance: shows each class equally often.
        rank: of this process.
        world: number of processes; divides the batch size.
    """

    def __init__(
        self, viewing: Viewing, *, seed: int, batch_size: int, balance: bool = False, rank: int = 0, world: int = 1
    ) -> None:
        self.viewing, self.seed = viewing, seed
        self.rank, self.world = rank, world
        self.epoch = 0
        count = len(viewing.samples)
        # Batch norm needs full batches; but few photos are better than none.
        self.total = count - count % batch_size if count >= batch_size else count - count % world
        self._first = np.random.default_rng((seed, _FIRST_VIEWS)).integers(viewing.views, size=count)
        labels = np.array([sample.label for sample in viewing.samples])
        self._classes = [np.flatnonzero(labels == label) for label in np.unique(labels)] if balance else []

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.total // self.world

    def __iter__(self) -> Iterator[ViewKey]:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self._classes:
            positions, turns = self._balanced()
            order = rng.permutation(self.total)
            positions, turns = positions[order], turns[order]
        else:
            positions = rng.permutation(len(self.viewing.samples))[: self.total]
            turns = np.full(self.total, self.epoch)
        for position, turn in zip(positions[self.rank :: self.world], turns[self.rank :: self.world], strict=True):
            yield self.viewing.key(int(turn + self._first[position]) % self.viewing.views, int(position))

    def _balanced(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The photos of a balanced epoch, class by class, and how often each was shown before.

        The draws of a class are counted through all epochs and go through its photos in turn, in a new order each time.
        The remainder of `total` goes to the classes in turn.
        """
        count = len(self._classes)
        each, rest = divmod(self.total, count)
        positions: list[int] = []
        turns: list[int] = []
        for number, members in enumerate(self._classes):
            # The j-th of the remainders, through all epochs, is of class j modulo the number of classes.
            begin, end = (
                each * epochs + max(0, -((number - rest * epochs) // count)) for epochs in (self.epoch, self.epoch + 1)
            )
            for turn in range(begin // len(members), (end - 1) // len(members) + 1):
                order = np.random.default_rng((self.seed, _CLASS_ORDERS, number, turn)).permutation(members)
                start = turn * len(members)
                part = order[max(begin - start, 0) : end - start]
                positions += part.tolist()
                turns += [turn] * len(part)
        return np.array(positions, np.int64), np.array(turns, np.int64)


def whole_photos(count: int, rank: int = 0, world: int = 1) -> list[ViewKey]:
    """One process's share of the keys of that many photos, each once and as it is."""
    return [ViewKey(position, -1, -1) for position in range(rank, count, world)]


def collate(items: Sequence[Item | None]) -> Batch | None:
    """Stacks photos to a batch without those that could not be read; None where none could."""
    read = [item for item in items if item is not None]
    if not read:
        return None
    pixels, labels, keys = zip(*read, strict=True)
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return Batch(stacked, torch.tensor(labels), *(torch.tensor(column) for column in zip(*keys, strict=True)))


def default_workers(accelerator: str, devices: int = 1) -> int:
    """Loader processes of each process: enough to feed a GPU; two where the CPU trains."""
    cores = (os.cpu_count() or 1) // devices
    return max(1, min(12, cores - 2)) if accelerator != "cpu" else max(1, min(2, cores))


def _yield_to_training(worker: int) -> None:
    """Lowers a worker's priority where the CPU trains: interrupting one training thread makes all of them wait."""
    if not torch.cuda.is_available() and hasattr(os, "nice"):
        os.nice(19)


class PhotoDataModule(lightning.LightningDataModule):
    """Train and validation batches of one split.

    Args:
        viewing: training photos and their views.
        val: validation photos, seen as they are.
        batch_size: photos a step, over all processes.
        seed: of the training photos' order.
        workers: loader processes of each process; 0 reads in the training process.
        balance: shows each class equally often; see `ViewSampler`.
    """

    def __init__(
        self,
        viewing: Viewing,
        val: Sequence[Sample],
        *,
        batch_size: int,
        seed: int,
        workers: int,
        balance: bool = False,
    ) -> None:
        super().__init__()
        self.viewing, self.val = viewing, val
        self.batch_size, self.seed, self.workers, self.balance = batch_size, seed, workers, balance

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in one epoch."""
        return max(1, len(self.viewing.samples) // self.batch_size)

    def train_dataloader(self) -> DataLoader[Item | None]:
        """Seeded views in seeded order."""
        rank, world = self._rank_and_world()
        sampler = ViewSampler(
            self.viewing, seed=self.seed, batch_size=self.batch_size, balance=self.balance, rank=rank, world=world
        )
        if self.trainer is not None:
            # Lightning starts to read ahead before it calls set_epoch; after a resume the epoch is not 0.
            epochs: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(epochs.processed)
        return self._loader(self.viewing.dataset(), sampler, self.workers, keep_workers=True)

    def val_dataloader(self) -> DataLoader[Item | None]:
        """Every validation photo once, as it is; each process takes its share."""
        rank, world = self._rank_and_world()
        dataset = PhotoDataset(self.viewing.root, self.val, self.viewing.preprocessing, None)
        # On a GPU an epoch may be shorter than the start of the workers; elsewhere they only take memory.
        keep = torch.cuda.is_available()
        # Starting workers takes seconds in every epoch, reading a few hundred photos here one.
        workers = self.workers if keep or len(self.val) > _FEW_PHOTOS else 0
        return self._loader(dataset, whole_photos(len(self.val), rank, world), workers, keep_workers=keep)

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(
        self, dataset: PhotoDataset, sampler: Any, workers: int, *, keep_workers: bool
    ) -> DataLoader[Item | None]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size // self._rank_and_world()[1],
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=_yield_to_training,
            persistent_workers=workers > 0 and keep_workers,
            pin_memory=torch.cuda.is_available(),
        )
