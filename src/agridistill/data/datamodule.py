"""Photos -> batches: read as they are needed, the same in any number of workers and processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from agridistill.data.samples import Sample
from agridistill.data.views import Augmentation, render_view, view_seed
from agridistill.errors import PhotoError
from agridistill.manifest import Preprocessing
from agridistill.preprocess import Pixels, read_photo, to_pixels

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Photos as the model takes them, before normalisation.

    Attributes:
        pixels: `(B, 3, H, W)` uint8 RGB, channels-last in memory.
        target: `(B,)` int64 labels.
        position: `(B,)` int64, of each photo in its split.
        seed: `(B,)` int64, of each view; -1 for a photo as it is.
    """

    pixels: Tensor
    target: Tensor
    position: Tensor
    seed: Tensor


Item = tuple[Pixels, int, int, int]


class PhotoDataset(Dataset[Item | None]):
    """Photos of one split, addressed by (index, view seed)."""

    def __init__(
        self, root: Path, samples: Sequence[Sample], preprocessing: Preprocessing, augmentation: Augmentation | None
    ) -> None:
        self.root = root
        self.samples = samples
        self.preprocessing = preprocessing
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item | None:
        """The photo's pixels, or None (and a warning) where it can no longer be read."""
        index, seed = key
        sample = self.samples[index]
        try:
            image = read_photo(self.root / sample.path)
        except PhotoError as error:
            # Photos were checked before the run: this one went bad since, and must not end a night's training.
            logger.warning("left out: %s", error)
            return None
        if self.augmentation is None or seed < 0:
            return to_pixels(image, self.preprocessing), sample.label, index, -1
        return render_view(image, seed, self.augmentation, self.preprocessing), sample.label, index, seed


class ViewSampler(Sampler[tuple[int, int]]):
    """Order and view seeds of one epoch, as a function of (seed, epoch) alone; each process takes its share.

    Lightning calls `set_epoch` before each epoch, also after a resume.
    """

    def __init__(self, samples: Sequence[Sample], *, seed: int, training: bool, rank: int = 0, world: int = 1) -> None:
        self.samples = samples
        self.seed = seed
        self.training = training
        self.rank = rank
        self.world = world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(range(self.rank, len(self.samples), self.world))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if not self.training:
            yield from ((index, -1) for index in range(self.rank, len(self.samples), self.world))
            return
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.samples))
        for index in order[self.rank :: self.world]:
            yield int(index), view_seed(self.seed, self.epoch, self.samples[index].path)


def collate(items: Sequence[Item | None]) -> Batch | None:
    """Stacks photos to a batch; photos that could not be read are left out. None where all of them were."""
    read = [item for item in items if item is not None]
    if not read:
        return None
    pixels, labels, indices, seeds = zip(*read, strict=True)
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return Batch(stacked, torch.tensor(labels), torch.tensor(indices), torch.tensor(seeds))


def default_workers(accelerator: str) -> int:
    """Loader processes: enough to feed a GPU; beside training on the processor, two."""
    cores = os.cpu_count() or 1
    return max(1, min(12, cores - 2)) if accelerator != "cpu" else min(2, cores)


class PhotoDataModule(lightning.LightningDataModule):
    """Train and validation batches of one split.

    Args:
        root: the data folder.
        train: training photos, seen through seeded views.
        val: validation photos, as they are.
        preprocessing: image size and resize rule.
        augmentation: how far views differ from their photos.
        batch_size: of each process.
        seed: of order and views.
        workers: loader processes; 0 reads in the training process.
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
        workers: int,
    ) -> None:
        super().__init__()
        self.root, self.train, self.val = root, train, val
        self.preprocessing, self.augmentation = preprocessing, augmentation
        self.batch_size, self.seed, self.workers = batch_size, seed, workers

    @property
    def steps_per_epoch(self) -> int:
        """Training batches of one process in one epoch."""
        return max(1, len(self.train) // self.batch_size)

    def train_dataloader(self) -> DataLoader[Item | None]:
        """Seeded views in seeded order; the last, smaller batch is left out (batch norm needs full ones)."""
        return self._loader(self.train, self.augmentation, training=True)

    def val_dataloader(self) -> DataLoader[Item | None]:
        """Every validation photo once, as it is."""
        return self._loader(self.val, None, training=False)

    def _loader(
        self, samples: Sequence[Sample], augmentation: Augmentation | None, *, training: bool
    ) -> DataLoader[Item | None]:
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        sampler = ViewSampler(samples, seed=self.seed, training=training, rank=rank, world=world)
        if trainer is not None and training:
            # Lightning starts reading ahead before it tells the sampler the epoch: after a resume that is not epoch 0.
            epochs: Any = trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(epochs.processed)
        return DataLoader(
            PhotoDataset(self.root, samples, self.preprocessing, augmentation),
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate,
            drop_last=training and len(sampler) >= self.batch_size,
            persistent_workers=self.workers > 0 and training,
            pin_memory=torch.cuda.is_available(),
        )
