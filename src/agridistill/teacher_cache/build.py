"""Gives training the outputs of the teacher: from a cache that is built before the first step, or from the network."""

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
"""A function that every process calls with a value; it returns the values of all processes, in the order of ranks."""


def single_process(own: Any) -> Sequence[Any]:
    """Does the work of a `Gather` in a run of one process: returns a list with the value."""
    return [own]


@contextlib.contextmanager
def sync_errors(gather: Gather, rank: int) -> Iterator[None]:
    """Waits for all processes at the end of its block, and stops every process if one of them failed.

    Args:
        gather: exchanges a value between the processes.
        rank: rank of this process.

    Raises:
        PeerError: another process failed. The failed process with the lowest rank raises its own error instead.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # catch every error: otherwise the other processes would wait for this one forever
        failure = error
    parts: tuple[str, str, str] | None = None
    if isinstance(failure, AgriDistillError):
        parts = failure.expected, failure.got, failure.remedy
    elif failure is not None:
        parts = "no error in any process", f"{type(failure).__name__} in another process", "see that process's output"
    failed = [(number, parts) for number, parts in enumerate(gather(parts)) if parts is not None]
    if failed:
        first, parts = failed[0]
        if failure is not None and first == rank:
            raise failure
        raise PeerError(*parts) from failure


def to_float16(logits: Tensor, maps: Mapping[int, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
    """Rounds the outputs of a teacher to float16, as the cache stores them, and scales each map to a maximum of 1.

    Args:
        logits: `(B, K)`.
        maps: stride -> attention maps `(B, H, W)` or `(B, M, H, W)`.

    Returns:
        Logits and maps of the same shapes, in float16.

    Raises:
        RunError: a value is NaN or infinite, or a logit is too large for float16.
    """
    stored = logits.half()
    # Without the scaling, squared activations exceed the range of float16. No distance depends on the scale of a map.
    stored_maps = {stride: unit_peak(map_).half() for stride, map_ in maps.items()}
    # All checks are read from the GPU in one transfer, because each transfer makes the CPU wait.
    if not torch.stack([torch.isfinite(values).all() for values in (stored, *stored_maps.values())]).all():
        expected = "a teacher with logits within ±65,504 and finite attention maps"
        raise RunError(expected, "larger values, NaN or infinity", "train the teacher again")
    return stored, stored_maps


def load_teacher(teacher: Path, strides: Sequence[int], kind: TeacherKind, *, per_head: bool) -> LiveTeacher:
    """Loads the network of a finished run as a teacher, in the precision in which it was trained.

    Args:
        teacher: the run folder.
        strides: the strides at which maps are needed, in pixels of the input.
        kind: what the maps are: attention from activations, attention from windows, or features.
        per_head: whether there is one attention map for each head.
    """
    network, manifest = load_network(teacher)
    bf16 = manifest.lineage.get("precision") == "bf16"
    return LiveTeacher(network, manifest.preprocessing, strides=strides, kind=kind, per_head=per_head, bf16=bf16)


class UncachedTeacher:
    """Runs the teacher in every step, without a cache, and rounds its outputs to float16 as the cache does.

    So training is identical with and without the cache. Training from random weights amplifies any difference: one in
    the fourth digit of an output changes the loss by 1e-3 after a few steps.
    """

    def __init__(self, live: LiveTeacher) -> None:
        self._live = live
        self.example, self.map_counts, self.to = live.example, live.map_counts, live.to

    def outputs(self, batch: HasPixels) -> tuple[Tensor, dict[int, Tensor]]:
        """Computes the logits `(B, K)` and the maps of each stride for a batch.

        Both are float32 tensors with values that were rounded to float16; errors are those of `to_float16`.
        """
        logits, maps = to_float16(*self._live.outputs(batch))
        return logits.float(), {stride: map_.float() for stride, map_ in maps.items()}


class CachedTeacher:
    """Reads the outputs of the teacher for the views of a batch from a cache; `prepare` builds what is missing.

    Args:
        caches: folder of all caches of the teacher; each cache is a folder in it, named by a digest of its key.
        key: the result of `cache_key`.
        viewing: the photos and views that student and teacher see.
        load: loads the teacher's network; called only if blocks of the cache have to be built.
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
        """Size of the records of all views, in bytes."""
        return self.layout.bytes_for(self.viewing.views)

    def map_counts(self) -> dict[int, int]:
        """Number of attention maps in `outputs`: stride -> number."""
        return {stride: shape[0] if len(shape) == 3 else 1 for stride, shape in self.layout.maps.items()}

    def to(self, device: torch.device) -> None:
        """Sets the device on which `outputs` returns its tensors."""
        self._device = device

    def example(self, count: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Returns zeros in the shapes that `outputs` has for this number of photos."""
        maps = {stride: torch.zeros(count, *shape) for stride, shape in self.layout.maps.items()}
        return torch.zeros(count, self.layout.num_classes), maps

    def outputs(self, batch: Batch) -> tuple[Tensor, dict[int, Tensor]]:
        """Reads the logits `(B, K)` and the maps of each stride for a batch, as float32; the maximum of a map is 1.

        Raises:
            RunError: for a photo of the batch, the cache holds another view or no output.
        """
        if self._cache is None:
            raise RunError("an open teacher cache", "a closed one", "call prepare() before the training")
        photos, views = batch.position.numpy(), batch.view.numpy()
        records = self._cache.read(photos, views)
        # The key cannot guarantee this: compare the seeds, so that student and teacher see the same views.
        wrong = (records["seed"] != batch.seed.numpy()) | ~np.isfinite(records["logits"]).all(axis=1)
        if wrong.any():
            self._cache.forget(photos[wrong], views[wrong])
            path = self.viewing.samples[photos[wrong][0]].path
            raise RunError(
                "the teacher's outputs for every photo of this batch",
                f"none for '{path}' in '{self.folder}', because it could not be read when the cache was built",
                "continue with --resume, which builds this part of the cache again",
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
        """Opens the cache and builds missing blocks; each process builds its share.

        Args:
            device: the device on which the teacher runs and `outputs` returns its tensors.
            workers: number of data-loader processes.
            rank: rank of this process, from 0.
            world: number of processes.
            gather: exchanges values between the processes.
            progress: called with (views done, views to build) of all processes, estimated from this process's share.

        Raises:
            RunError: the disk is full or the folder cannot be written; every process raises an error.
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
            # On network file systems, only files that are opened again show what other machines have written.
            self.close()
        self._cache = self._cache or self._open()
        if not self._cache.built():
            raise RunError(
                "one cache folder that all machines share",
                f"'{self.folder}', in which the outputs computed by other machines are missing",
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
        # Also if this process builds nothing: training needs no teacher in memory.
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
                # Assume that the other processes have done the same part of their shares.
                progress(done * total // share, total)
            cache.write(block, records)

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self._device, non_blocking=True)


def _batches(block: Block) -> list[range]:
    starts = range(block.start, block.stop, _BUILD_BATCH)
    return [range(start, min(start + _BUILD_BATCH, block.stop)) for start in starts]


def _warn_about_nearest(caches: Path, key: Key) -> None:
    """Logs in what the most similar existing cache differs from the requested key; does nothing without a cache."""
    others: dict[Path, list[str]] = {}
    for folder in sorted(caches.iterdir()) if caches.is_dir() else ():
        with contextlib.suppress(RunError):
            document = read_document(folder)
            if document is not None:
                others[folder] = differences(document[0], key)
    if others:
        nearest = min(others, key=lambda folder: len(others[folder]))
        reasons = "; ".join(others[nearest][:3])
        logger.warning("the teacher cache '%s' cannot be used (%s); a new cache is built", nearest, reasons)
