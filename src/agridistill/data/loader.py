"""Photos -> batches, read as they are needed; the same batches with any number of workers and processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from agridistill.data.cache import KeptViews, SmallCopies
from agridistill.data.folder import Sample
from agridistill.data.views import Augmentation, render_view, view_seed
from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import Pixels, to_pixels

logger = logging.getLogger(__name__)

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
    """Photos of one split, addressed by `ViewKey`.

    Args:
        root: the data folder.
        samples: the photos.
        preprocessing: image size and resize rule.
        augmentation: how far views differ from their photos; None where there are none.
        keep_views: draws each view once and caches its pixels; see `KeptViews`.
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


class PhotoSampler(Sampler[ViewKey]):
    """Every photo once, as it is; each process takes its share."""

    def __init__(self, samples: Sequence[Sample], *, rank: int = 0, world: int = 1) -> None:
        self._positions = range(rank, len(samples), world)

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[ViewKey]:
        return (ViewKey(position, -1, -1) for position in self._positions)


class ViewSampler(Sampler[ViewKey]):
    """Order and views of one epoch, as a function of (seed, epoch) alone.

    Each photo has the views 0 to `views` - 1 and shows them in turn, from a start of its own. In every step all
    processes combined take the photos that a single one would take: their number changes no result.

    An epoch shows each photo once. With `balance` it shows as many photos, but each class equally often: the photos of
    a rare class come several times, in different views, and each of them as often as the others, to one.

    Lightning calls `set_epoch` before each epoch, also after a resume.

    Args:
        samples: the photos.
        seed: of the order, and of each photo's first view.
        view_seed: of the views' content; runs with the same one see the same views.
        views: of each photo, at least 1.
        batch_size: photos a step, over all processes; the rest at the end of an epoch is left out.
        balance: shows each class equally often.
        rank: of this process.
        world: number of processes; divides the batch size.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        seed: int,
        view_seed: int,
        views: int,
        batch_size: int,
        balance: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.samples = samples
        self.seed, self.view_seed, self.views = seed, view_seed, views
        self.rank, self.world = rank, world
        self.epoch = 0
        count = len(samples)
        # Batch norm needs full batches; but few photos are better than none.
        self.total = count - count % batch_size if count >= batch_size else count - count % world
        self._first = np.random.default_rng((seed, _FIRST_VIEWS)).integers(views, size=count)
        labels = np.array([sample.label for sample in samples])
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
            positions = rng.permutation(len(self.samples))[: self.total]
            turns = np.full(self.total, self.epoch)
        for position, turn in zip(positions[self.rank :: self.world], turns[self.rank :: self.world], strict=True):
            view = int(turn + self._first[position]) % self.views
            yield ViewKey(int(position), view, view_seed(self.view_seed, view, self.samples[position].path))

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
        root: the data folder.
        train: training photos, seen through seeded views.
        val: validation photos, as they are.
        preprocessing: image size and resize rule.
        augmentation: how far views differ from their photos.
        batch_size: photos a step, over all processes.
        seed: of the order.
        view_seed: of the views' content; see `ViewSampler`.
        views: of each photo.
        workers: loader processes of each process; 0 reads in the training process.
        keep_views: draws each view once and caches its pixels; see `KeptViews`.
        balance: shows each class equally often; see `ViewSampler`.
    """

    def __init__(
        self,
        root: Path,
        train: Sequence[Sample],
        val: Sequence[Sample],
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        *,
        batch_size: int,
        seed: int,
        view_seed: int,
        views: int,
        workers: int,
        keep_views: bool = False,
        balance: bool = False,
    ) -> None:
        super().__init__()
        self.root, self.train, self.val = root, train, val
        self.preprocessing, self.augmentation = preprocessing, augmentation
        self.batch_size, self.workers = batch_size, workers
        self.seed, self.view_seed, self.views = seed, view_seed, views
        self.keep_views, self.balance = keep_views, balance

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in one epoch."""
        return max(1, len(self.train) // self.batch_size)

    def train_dataloader(self) -> DataLoader[Item | None]:
        """Seeded views in seeded order."""
        rank, world = self._rank_and_world()
        sampler = ViewSampler(
            self.train,
            seed=self.seed,
            view_seed=self.view_seed,
            views=self.views,
            batch_size=self.batch_size,
            balance=self.balance,
            rank=rank,
            world=world,
        )
        if self.trainer is not None:
            # Lightning starts to read ahead before it calls set_epoch; after a resume the epoch is not 0.
            epochs: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(epochs.processed)
        return self._loader(self.train, self.augmentation, sampler, self.workers, keep_workers=True)

    def val_dataloader(self) -> DataLoader[Item | None]:
        """Every validation photo once, as it is."""
        rank, world = self._rank_and_world()
        sampler = PhotoSampler(self.val, rank=rank, world=world)
        # On a GPU an epoch may be shorter than the start of the workers; elsewhere they only take memory.
        keep = torch.cuda.is_available()
        # Starting workers takes seconds in every epoch, reading a few hundred photos here one.
        workers = self.workers if keep or len(self.val) > _FEW_PHOTOS else 0
        return self._loader(self.val, None, sampler, workers, keep_workers=keep)

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(
        self,
        samples: Sequence[Sample],
        augmentation: Augmentation | None,
        sampler: Sampler[ViewKey],
        workers: int,
        *,
        keep_workers: bool,
    ) -> DataLoader[Item | None]:
        return DataLoader(
            PhotoDataset(self.root, samples, self.preprocessing, augmentation, keep_views=self.keep_views),
            batch_size=self.batch_size // self._rank_and_world()[1],
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=_yield_to_training,
            persistent_workers=workers > 0 and keep_workers,
            pin_memory=torch.cuda.is_available(),
        )
