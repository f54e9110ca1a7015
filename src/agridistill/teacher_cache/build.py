"""The teacher during training: from its cache, which is built before the first step, or as the live network."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from agridistill.data.loader import Batch, Viewing, ViewKey, collate
from agridistill.errors import AgriDistillError, PeerError, RunError
from agridistill.losses.attention import unit_peak
from agridistill.models import HasPixels, LiveTeacher, TeacherKind, load_network
from agridistill.progress import ProgressCallback, silent
from agridistill.teacher_cache.store import (
    Block,
    CacheLayout,
    Key,
    TeacherCache,
    building,
    differences,
    digest_of,
    map_field,
    read_document,
)

logger = logging.getLogger(__name__)

_BUILD_BATCH = 64

Gather = Callable[[Any], Sequence[Any]]
"""Gives every process the values that each of them passed, in the order of their ranks."""


def single_process(own: Any) -> Sequence[Any]:
    """The `Gather` of a single process."""
    return [own]


@contextlib.contextmanager
def sync_errors(gather: Gather, rank: int) -> Iterator[None]:
    """Waits for all processes at its end; an error in any of them stops every one.

    Raises:
        PeerError: another process failed. The first process that failed raises its own error.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # of any kind: the other processes must not wait for this one
        failure = error
    parts: tuple[str, str, str] | None = None
    if isinstance(failure, AgriDistillError):
        parts = failure.expected, failure.got, failure.remedy
    elif failure is not None:
        parts = "no failure in any process", f"{type(failure).__name__} in one of them", "see its own output"
    failed = [(number, parts) for number, parts in enumerate(gather(parts)) if parts is not None]
    if failed:
        first, parts = failed[0]
        if failure is not None and first == rank:
            raise failure
        raise PeerError(*parts) from failure


def to_float16(logits: Tensor, maps: Mapping[int, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits `(B, K)` and maps `(B, H, W)` or `(B, M, H, W)` as the cache stores them, with a largest map value of 1.

    Raises:
        RunError: NaN, infinity, or logits that float16 cannot hold.
    """
    stored = logits.half()
    # Squared activations exceed float16's range; no distance depends on a map's scale.
    stored_maps = {stride: unit_peak(map_).half() for stride, map_ in maps.items()}
    # One transfer: each makes the processor wait for a GPU.
    if not torch.stack([torch.isfinite(values).all() for values in (stored, *stored_maps.values())]).all():
        expected = "a teacher with logits within ±65,504 and finite attention maps"
        raise RunError(expected, "larger ones, NaN or infinity", "train the teacher again")
    return stored, stored_maps


def load_teacher(teacher: Path, strides: Sequence[int], kind: TeacherKind, *, per_head: bool) -> LiveTeacher:
    """The network of a finished run, in the precision that it was trained in."""
    network, manifest = load_network(teacher)
    bf16 = manifest.lineage.get("precision") == "bf16"
    return LiveTeacher(network, manifest.preprocessing, strides=strides, kind=kind, per_head=per_head, bf16=bf16)


class UncachedTeacher:
    """The live network, rounded to float16 as the cache is, so that both give identical training.

    Training from random weights amplifies any difference: one in the fourth digit changes the loss by 1e-3 after a few
    steps.
    """

    def __init__(self, live: LiveTeacher) -> None:
        self._live = live
        self.example, self.map_counts, self.to = live.example, live.map_counts, live.to

    def outputs(self, batch: HasPixels) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits `(B, K)` and the maps of each stride, float32 with float16 values; errors as `to_float16`."""
        logits, maps = to_float16(*self._live.outputs(batch))
        return logits.float(), {stride: map_.float() for stride, map_ in maps.items()}


class CachedTeacher:
    """Gives each batch the outputs that were stored for its views when the cache was built.

    Args:
        caches: folder of the teacher's caches, each in a folder named by its key.
        key: see `cache_key`.
        viewing: the pixels that student and teacher see.
        load: loads the live teacher; called only where blocks have to be built.
    """

    def __init__(self, caches: Path, key: Key, viewing: Viewing, load: Callable[[], LiveTeacher]) -> None:
        self.folder = caches / digest_of(key)
        self.key, self.viewing, self._load = key, viewing, load
        self._live: LiveTeacher | None = None
        self._cache: TeacherCache | None = None
        self._device = torch.device("cpu")
        stored = read_document(self.folder)
        if stored is not None:
            self.layout = stored[1]
            return
        _warn_about_nearest(caches, key)
        self._live = load()
        logits, maps = self._live.example(1)
        shapes = {stride: tuple(map_.shape[1:]) for stride, map_ in maps.items()}
        self.layout = CacheLayout(len(viewing.samples), logits.shape[1], shapes)

    @property
    def size_bytes(self) -> int:
        """Size of the records of all views."""
        return self.layout.bytes_for(self.viewing.views)

    def map_counts(self) -> dict[int, int]:
        """Number of maps of `outputs` at each stride."""
        return {stride: shape[0] if len(shape) == 3 else 1 for stride, shape in self.layout.maps.items()}

    def to(self, device: torch.device) -> None:
        """Chooses the device of the outputs."""
        self._device = device

    def example(self, count: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Zeros in the shapes of `outputs` for this number of photos."""
        maps = {stride: torch.zeros(count, *shape) for stride, shape in self.layout.maps.items()}
        return torch.zeros(count, self.layout.num_classes), maps

    def outputs(self, batch: Batch) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits `(B, K)` and the maps of each stride, float32; a map's largest value is 1.

        Raises:
            RunError: the cache holds another view, or none, of a photo.
        """
        if self._cache is None:
            raise RunError("a teacher cache that was prepared", "none", "call prepare() before the training")
        photos, views = batch.position.numpy(), batch.view.numpy()
        records = self._cache.read(photos, views)
        # The one check that no key can replace: these are the views that the student sees.
        wrong = (records["seed"] != batch.seed.numpy()) | ~np.isfinite(records["logits"]).all(axis=1)
        if wrong.any():
            self._cache.forget(photos[wrong], views[wrong])
            path = self.viewing.samples[photos[wrong][0]].path
            raise RunError(
                "every view of this batch in the teacher cache",
                f"none of '{path}', which could not be read when it was built, in '{self.folder}'",
                "continue with --resume: its block is built again",
            )
        maps = {stride: self._tensor(records[map_field(stride)]) for stride in self.layout.maps}
        return self._tensor(records["logits"]), maps

    def prepare(
        self,
        device: torch.device,
        *,
        workers: int,
        rank: int = 0,
        world: int = 1,
        gather: Gather = single_process,
        progress: ProgressCallback = silent,
    ) -> None:
        """Opens the cache and builds missing blocks; each of `world` processes builds its share.

        `progress` gets (views done, views to build) of all processes, estimated from this one's share.

        Raises:
            RunError: no room on the disk, or a folder that cannot be written; raised in every process.
        """
        self._device = device
        with contextlib.ExitStack() as held:
            # Rank 0 may have to wait for another run; the other ranks wait for rank 0.
            with sync_errors(gather, rank):
                if rank == 0:
                    held.enter_context(building(self.folder))
                    self._cache = self._open()
            with sync_errors(gather, rank):
                cache = self._cache = self._cache or self._open()
                own = cache.missing(rank, world)
            total = sum(gather(sum(block.stop - block.start for block in own)))
            with sync_errors(gather, rank):
                self._build_share(cache, own, total, workers, progress)
        if world > 1:
            # Network file systems show what other machines wrote to files that are opened afterwards.
            self.close()
        self._cache = self._cache or self._open()
        if not self._cache.built():
            raise RunError(
                "one cache folder that all machines share",
                f"'{self.folder}', which lacks the blocks of other machines",
                "choose a shared folder with --cache-dir",
            )

    def close(self) -> None:
        """Closes the cache's files."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def _open(self) -> TeacherCache:
        return TeacherCache(self.folder, self.key, self.layout, self.viewing.views)

    def _build_share(
        self, cache: TeacherCache, own: Sequence[Block], total: int, workers: int, progress: ProgressCallback
    ) -> None:
        # Also where this process builds nothing: the teacher need not stay in memory.
        live, self._live = self._live, None
        if not own:
            if total:
                progress(0, total)
            return
        teacher, viewing = live or self._load(), self.viewing
        teacher.to(self._device)
        batches: Iterable[list[ViewKey]] = (
            [viewing.key(block.view, photo) for photo in part] for block in own for part in _batches(block)
        )
        loader = iter(DataLoader(viewing.dataset(), batch_sampler=batches, num_workers=workers, collate_fn=collate))
        done, share = 0, sum(block.stop - block.start for block in own)
        for block in own:
            records = self.layout.blank_records(block.stop - block.start)
            for part in _batches(block):
                batch = next(loader)
                if batch is not None:
                    rows = batch.position.numpy() - block.start
                    logits, maps = to_float16(*teacher.outputs(batch._replace(pixels=batch.pixels.to(self._device))))
                    records["seed"][rows], records["logits"][rows] = batch.seed.numpy(), logits.cpu().numpy()
                    for stride, map_ in maps.items():
                        records[map_field(stride)][rows] = map_.cpu().numpy()
                done += len(part)
                # The other processes are about as far.
                progress(done * total // share, total)
            cache.write(block, records)

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self._device, non_blocking=True)


def _batches(block: Block) -> list[range]:
    starts = range(block.start, block.stop, _BUILD_BATCH)
    return [range(start, min(start + _BUILD_BATCH, block.stop)) for start in starts]


def _warn_about_nearest(caches: Path, key: Key) -> None:
    """Reports what the most similar cache differs in, where there is none of this key."""
    others: dict[Path, list[str]] = {}
    for folder in sorted(caches.iterdir()) if caches.is_dir() else ():
        with contextlib.suppress(RunError):
            document = read_document(folder)
            if document is not None:
                others[folder] = differences(document[0], key)
    if others:
        nearest = min(others, key=lambda folder: len(others[folder]))
        reasons = "; ".join(others[nearest][:3])
        logger.warning("the teacher cache '%s' cannot be used: %s; building another one beside it", nearest, reasons)
