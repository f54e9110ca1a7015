"""Makes batches from photos, which are read when needed; any number of workers and processes gives the same batches."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from agridistill.data.folder import UNLABELLED, Sample
from agridistill.data.views import Augmentation, KeptViews, SmallCopies, render_view, view_seed
from agridistill.errors import PhotoError
from agridistill.host import usable_cores
from agridistill.manifest import Preprocessing
from agridistill.preprocess import Pixels, to_pixels

logger = logging.getLogger(__name__)

# Seed of all views in distillation: students with different seeds see the same views and share one teacher cache. It is
# not 0, the usual seed of a run: a teacher is more confident on the exact pixels that it was trained on.
DISTILLATION_VIEWS = 0xA6D1
_FEW_PHOTOS = 256
# These constants make the random draws independent of each other and of the orders of the epochs.
_FIRST_VIEWS = 1 << 40
_CLASS_ORDERS = 1 << 41


class Batch(NamedTuple):
    """A batch of B photos, before normalisation."""

    pixels: Tensor  # `(B, 3, H, W)` uint8 RGB, channels-last in memory
    target: Tensor  # `(B,)` int64 labels; `UNLABELLED` for a photo without a label
    position: Tensor  # `(B,)` int64, number of each photo in its split
    view: Tensor  # `(B,)` int64, number of each view among the views of its photo; -1 for an unchanged photo
    seed: Tensor  # `(B,)` int64, seed of each view; -1 for an unchanged photo
    teacher_pixels: Tensor | None = None  # the same views in the teacher's image size; None if it is the student's


class ViewKey(NamedTuple):
    """Identifies one view (augmented copy) of a photo, or the unchanged photo, for which view and seed are -1."""

    position: int  # number of the photo in its split
    view: int  # number of the view, from 0
    seed: int  # seed of the view


Item = tuple[Pixels, int, ViewKey]


class PhotoDataset(Dataset[Item | None]):
    """A map-style data set of photos; its index is a `ViewKey`, its items are (pixels, label, key).

    Without `augmentation`, every photo is unchanged. `keep_views` draws each view only once and caches its pixels on
    the disk; see `KeptViews`. `unlabelled_root` is the folder of the samples without a label, if there are any.
    """

    def __init__(
        self,
        root: Path,
        samples: Sequence[Sample],
        preprocessing: Preprocessing,
        augmentation: Augmentation | None,
        *,
        keep_views: bool = False,
        unlabelled_root: Path | None = None,
    ) -> None:
        self.samples = samples
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        roots = [root] if unlabelled_root is None else [root, unlabelled_root]
        self._photos = [SmallCopies(each, preprocessing, augmentation) for each in roots]
        keeps = keep_views and augmentation is not None
        self._kept = [KeptViews(each, preprocessing, augmentation) for each in roots] if keeps and augmentation else []

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: ViewKey) -> Item | None:
        """Returns the pixels, label and key of a view; None (with a warning) if the photo can no longer be read."""
        sample = self.samples[key.position]
        folder = 1 if sample.label == UNLABELLED else 0
        try:
            if self.augmentation is None or key.seed < 0:
                pixels = to_pixels(self._photos[folder].read(sample.path), self.preprocessing)
                return pixels, sample.label, ViewKey(key.position, -1, -1)
            draw = partial(self._draw, folder, sample.path, key.seed, self.augmentation)
            pixels = self._kept[folder].get(sample.path, key.seed, draw) if self._kept else draw()
            return pixels, sample.label, key
        except PhotoError as error:
            # All photos were checked before the run. If one has become unreadable, a long training must not fail.
            logger.warning("a photo has become unreadable and is left out of its batch: %s", error)
            return None

    def _draw(self, folder: int, path: str, seed: int, augmentation: Augmentation) -> Pixels:
        return render_view(self._photos[folder].read(path), seed, augmentation, self.preprocessing)


class TwoSizes(Dataset[tuple[Item | None, Item | None]]):
    """A map-style data set of each view in two image sizes, for student and teacher; see `collate_two_sizes`."""

    def __init__(self, student: PhotoDataset, teacher: PhotoDataset) -> None:
        self.student, self.teacher = student, teacher

    def __len__(self) -> int:
        return len(self.student)

    def __getitem__(self, key: ViewKey) -> tuple[Item | None, Item | None]:
        """Returns the items of both data sets; both None if the photo can no longer be read."""
        student = self.student[key]
        teacher = self.teacher[key] if student is not None else None
        return (student, teacher) if teacher is not None else (None, None)


@dataclass(frozen=True)
class Viewing:
    """The training photos and the settings of their views, so that student and teacher get the same views.

    In two image sizes a view shows the same crop, place and colours. Noise and JPEG compression are those of its size.
    """

    root: Path  # the data folder
    samples: Sequence[Sample]
    """The photos of an epoch: `repeats` times the training photos in the order of the split, then those without labels.

    A position is an index into this sequence.
    """
    fingerprint: str  # identifies the photos (`inspection.fingerprint`)
    preprocessing: Preprocessing  # that of the student
    augmentation: Augmentation
    views: int  # number of views of each photo, at least 1
    keep_views: bool = False  # draws each view once and caches its pixels (`views.KeptViews`); the pixels are the same
    seed: int = DISTILLATION_VIEWS  # seed of all views
    unlabelled_root: Path | None = None  # folder of the photos without labels; None if there are none
    repeats: int = 1  # how often `samples` contains each photo with a label, each time with other views
    teacher_size: int | None = None  # each view is also drawn in this image size, for a teacher that runs in every step

    @cached_property
    def labelled(self) -> int:
        """Number of entries of `samples` with a label."""
        return sum(sample.label != UNLABELLED for sample in self.samples)

    def key(self, view: int, position: int) -> ViewKey:
        """Returns the key of a view (number from 0) of the photo with this index in `samples`."""
        number = view
        if self.repeats > 1 and position < self.labelled:
            number = view * self.repeats + position // (self.labelled // self.repeats)
        return ViewKey(position, view, view_seed(self.seed, number, self.samples[position].path))

    def dataset(self) -> PhotoDataset:
        """Returns a data set of these photos; its index is the result of `key`."""
        return PhotoDataset(
            self.root,
            self.samples,
            self.preprocessing,
            self.augmentation,
            keep_views=self.keep_views,
            unlabelled_root=self.unlabelled_root,
        )

    def in_size(self, image_size: int) -> Viewing:
        """Returns a copy whose views have another image size, and are not cached if it differs."""
        same = image_size == self.preprocessing.image_size
        return replace(
            self,
            preprocessing=replace(self.preprocessing, image_size=image_size),
            keep_views=self.keep_views and same,
            teacher_size=None,
        )

    def with_labels(self) -> Viewing:
        """Returns a copy with only the photos that have labels, each once."""
        return replace(self, samples=self.samples[: self.labelled // self.repeats], unlabelled_root=None, repeats=1)


class ViewSampler(Sampler[ViewKey]):
    """Yields the keys of the views of one epoch in random order, which depends only on the seed and the epoch.

    An epoch uses each photo once, in its next view. A photo's first view is random; after the last view comes view 0.
    With `balance`, an epoch has the same number of items, but each class equally often: a photo of a rare class is used
    several times, in different views. Within a class, the numbers of uses of two photos differ by at most one.

    Photos without labels are spread evenly, so that each batch has nearly the same number of them; `balance` concerns
    only the others.

    The photos of a training step are divided between the processes, so that their number does not change the result:
    `batch_size`, the photos in a step over all of them, must be a multiple of `world`. An incomplete last batch is
    dropped. Lightning calls `set_epoch` before each epoch, also after a resume.
    """

    def __init__(
        self, viewing: Viewing, *, seed: int, batch_size: int, balance: bool = False, rank: int = 0, world: int = 1
    ) -> None:
        self.viewing, self.seed = viewing, seed
        self.rank, self.world = rank, world
        self.epoch = 0
        count = len(viewing.samples)
        # Batch norm needs full batches. If there are fewer photos than a batch, they are used anyway.
        self.total = count - count % batch_size if count >= batch_size else count - count % world
        self._first = np.random.default_rng((seed, _FIRST_VIEWS)).integers(viewing.views, size=count)
        self._labelled = viewing.labelled if viewing.labelled < count else self.total
        labels = np.array([sample.label for sample in viewing.samples[: viewing.labelled]])
        self._classes = [np.flatnonzero(labels == label) for label in np.unique(labels)] if balance else []

    def set_epoch(self, epoch: int) -> None:
        """Sets the number of the epoch (from 0) that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.total // self.world

    def __iter__(self) -> Iterator[ViewKey]:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self._classes:
            positions, turns = self._balanced()
            order = rng.permutation(self._labelled)
            positions, turns = positions[order], turns[order]
        else:
            positions = rng.permutation(self.viewing.labelled)[: self._labelled]
            turns = np.full(self._labelled, self.epoch)
        others = len(self.viewing.samples) - self.viewing.labelled
        if others:
            positions = np.concatenate([positions, self._labelled + rng.permutation(others)])
            turns = np.concatenate([turns, np.full(others, self.epoch)])
            places = [(np.arange(number) + rng.random(number)) / number for number in (self._labelled, others)]
            order = np.argsort(np.concatenate(places))[: self.total]
            positions, turns = positions[order], turns[order]
        for position, turn in zip(positions[self.rank :: self.world], turns[self.rank :: self.world], strict=True):
            yield self.viewing.key(int(turn + self._first[position]) % self.viewing.views, int(position))

    def _balanced(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the photos of a balanced epoch, class by class, and how often each was used before.

        The uses of a class are counted over all epochs. They go through all its photos, then start again in a new
        order. If their number cannot be divided by that of the classes, the classes get the remainder in turn.
        """
        count = len(self._classes)
        each, rest = divmod(self._labelled, count)
        positions: list[int] = []
        turns: list[int] = []
        for number, members in enumerate(self._classes):
            # Counted over all epochs, the j-th remaining photo belongs to class j modulo the number of classes.
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
    """Returns the keys of the unchanged photos for one process: every `world`-th of `count` photos, from `rank` on."""
    return [ViewKey(position, -1, -1) for position in range(rank, count, world)]


def collate(items: Sequence[Item | None]) -> Batch | None:
    """Stacks items of `PhotoDataset` into a batch, without unreadable photos (None); None if no photo is left."""
    read = [item for item in items if item is not None]
    if not read:
        return None
    pixels, labels, keys = zip(*read, strict=True)
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return Batch(stacked, torch.tensor(labels), *(torch.tensor(column) for column in zip(*keys, strict=True)))


def collate_two_sizes(items: Sequence[tuple[Item | None, Item | None]]) -> Batch | None:
    """Stacks items of `TwoSizes` into a batch with `teacher_pixels`; None if no photo can be read."""
    student, teacher = (collate(each) for each in zip(*items, strict=True))
    return student._replace(teacher_pixels=teacher.pixels) if student is not None and teacher is not None else None


def default_workers(accelerator: str, devices: int = 1) -> int:
    """Returns the number of loader processes for each of `devices` processes: 1 to 12 for a GPU, 1 or 2 for "cpu"."""
    cores = usable_cores() // devices
    return max(1, min(12, cores - 2)) if accelerator != "cpu" else max(1, min(2, cores))


def _yield_to_training(worker: int) -> None:
    """Lowers the priority of a loader process if the CPU trains.

    Otherwise it would interrupt a training thread, and all other training threads would wait for that one.
    """
    if not torch.cuda.is_available() and hasattr(os, "nice"):
        os.nice(19)


class PhotoDataModule(lightning.LightningDataModule):
    """Provides the batches for training and validation to Lightning's `Trainer`.

    The validation photos are not augmented. `batch_size` counts the photos in a training step over all processes,
    `workers` the loader processes for each of them; 0 reads in the training process.
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
        """Number of training steps in one epoch, at least 1."""
        return max(1, len(self.viewing.samples) // self.batch_size)

    def train_dataloader(self) -> DataLoader[Any]:
        """Returns the loader of the training photos, as views in the order of `ViewSampler`."""
        rank, world = self._rank_and_world()
        sampler = ViewSampler(
            self.viewing, seed=self.seed, batch_size=self.batch_size, balance=self.balance, rank=rank, world=world
        )
        if self.trainer is not None:
            # Lightning starts to load photos before it calls set_epoch; after a resume the epoch is not 0.
            epochs: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(epochs.processed)
        dataset: Dataset[Any] = self.viewing.dataset()
        if self.viewing.teacher_size is not None:
            dataset = TwoSizes(self.viewing.dataset(), self.viewing.in_size(self.viewing.teacher_size).dataset())
        return self._loader(dataset, sampler, self.workers, keep_workers=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Returns the loader of the unchanged validation photos; with several processes, of this process's share."""
        rank, world = self._rank_and_world()
        dataset = PhotoDataset(self.viewing.root, self.val, self.viewing.preprocessing, None)
        # With a GPU, an epoch may take less time than starting the workers: keep them. Otherwise save their memory.
        keep = torch.cuda.is_available()
        # Starting workers takes seconds in every epoch; reading a few hundred photos in this process takes one second.
        workers = self.workers if keep or len(self.val) > _FEW_PHOTOS else 0
        return self._loader(dataset, whole_photos(len(self.val), rank, world), workers, keep_workers=keep)

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, dataset: Dataset[Any], sampler: Any, workers: int, *, keep_workers: bool) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size // self._rank_and_world()[1],
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate_two_sizes if isinstance(dataset, TwoSizes) else collate,
            worker_init_fn=_yield_to_training,
            persistent_workers=workers > 0 and keep_workers,
            pin_memory=torch.cuda.is_available(),
        )
