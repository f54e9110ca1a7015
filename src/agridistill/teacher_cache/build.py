"""Gives training the outputs of the teacher: from a cache that is built before the first step, or from the network."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from agridistill.data.loader import Batch, Viewing, ViewKey, collate
from agridistill.errors import AgriDistillError, PeerError, RunError
from agridistill.losses.maps import unit_peak
from agridistill.models import LiveTeacher, TeacherKind, load_network
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
"""A function that exchanges values: every process calls it with its value and gets those of all, in rank order."""


def gather_all(own: Any) -> Sequence[Any]:
    """Exchanges an object between the processes of torch.distributed; without it, returns a list with only `own`."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return gathered


@contextlib.contextmanager
def sync_errors(gather: Gather, rank: int) -> Iterator[None]:
    """A context manager that waits at its end for all processes, and raises an error in each if one has failed.

    Args:
        gather: exchanges values between the processes.
        rank: rank of this process, from 0.

    Raises:
        PeerError: another process has failed. The failed process with the lowest rank raises its own error instead.
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
    """Converts a teacher's outputs to float16, as the cache stores them, with each map scaled to a maximum of 1.

    Args:
        logits: `(B, K)`, float32.
        maps: attention maps `(B, H, W)` or `(B, M, H, W)` by stride, float32.

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
        raise RunError(
            "a teacher with logits within ±65,504 and finite attention maps",
            "larger logits, NaN or infinity",
            "train the teacher again with a lower --lr",
        )
    return stored, stored_maps


def load_teacher(teacher: Path, strides: Sequence[int], kind: TeacherKind, *, per_head: bool) -> LiveTeacher:
    """Loads the network of a finished run as a teacher, which computes in the precision of its training.

    Args:
        teacher: the run folder.
        strides: strides of the stages whose maps are needed, in input pixels; may be empty.
        kind: "activation" or "window" for attention maps, "features" for feature maps; see `LiveTeacher`.
        per_head: for "window", whether each attention head gives its own map.
    """
    network, manifest = load_network(teacher)
    bf16 = manifest.lineage.get("precision") == "bf16"
    return LiveTeacher(network, manifest.preprocessing, strides=strides, kind=kind, per_head=per_head, bf16=bf16)


class UncachedTeacher:
    """Runs the teacher's network in every step, and rounds its outputs to float16 as the cache does.

    Because of the rounding, training is identical with and without the cache. Without it, a difference in the fourth
    digit of an output would change the loss by 1e-3 after a few steps.
    """

    def __init__(self, live: LiveTeacher) -> None:
        self._live = live
        self.example, self.map_counts, self.to = live.example, live.map_counts, live.to

    def outputs(self, batch: Batch) -> tuple[Tensor, dict[int, Tensor]]:
        """Computes the logits `(B, K)` and the attention maps by stride for a batch.

        The tensors are float32, with values rounded to float16. Raises the errors of `to_float16`.
        """
        logits, maps = to_float16(*self._live.outputs(batch.pixels))
        return logits.float(), {stride: map_.float() for stride, map_ in maps.items()}


class CachedTeacher:
    """Reads the teacher's outputs for the views (augmented photos) of a batch from a cache on the disk.

    Call `prepare` first: it computes the outputs that the cache does not have yet.

    Args:
        caches: folder with all caches of the teacher; each cache is a folder in it, named by a digest of its key.
        key: the result of `cache_key`.
        viewing: the training photos and their views.
        load: loads the teacher's network; called only if outputs are missing.
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
        """Size of the teacher's outputs for all views of all photos, in bytes."""
        return self.layout.bytes_for(self.viewing.views)

    def map_counts(self) -> dict[int, int]:
        """Returns how many attention maps `outputs` gives for each photo, by stride: 1, or M for `(B, M, H, W)`."""
        return {stride: shape[0] if len(shape) == 3 else 1 for stride, shape in self.layout.maps.items()}

    def to(self, device: torch.device) -> None:
        """Sets the device of the tensors that `outputs` returns."""
        self._device = device

    def example(self, count: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Returns zeros in the shapes that `outputs` would return for `count` photos."""
        maps = {stride: torch.zeros(count, *shape) for stride, shape in self.layout.maps.items()}
        return torch.zeros(count, self.layout.num_classes), maps

    def outputs(self, batch: Batch) -> tuple[Tensor, dict[int, Tensor]]:
        """Reads the logits `(B, K)` and the attention maps by stride for a batch, as float32; each map's maximum is 1.

        Raises:
            RunError: the cache has no outputs for a photo of the batch, or those of another view.
        """
        if self._cache is None:
            raise RunError("an open teacher cache", "a closed teacher cache", "call prepare() before the training")
        photos, views = batch.position.numpy(), batch.view.numpy()
        records = self._cache.read(photos, views)
        # The key cannot guarantee this: compare the seeds, so that student and teacher see the same views.
        wrong = (records["seed"] != batch.seed.numpy()) | ~np.isfinite(records["logits"]).all(axis=1)
        if wrong.any():
            self._cache.forget(photos[wrong], views[wrong])
            path = self.viewing.samples[photos[wrong][0]].path
            raise RunError(
                "the teacher's outputs for every photo of this batch",
                f"none for '{path}' in '{self.folder}', because this photo could not be read when the cache was built",
                "continue with --resume, which computes these outputs again",
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
        gather: Gather = gather_all,
        progress: ProgressCallback = silent,
    ) -> None:
        """Opens the cache and computes the outputs that it does not have; each process computes a share of them.

        Args:
            device: the device on which the teacher runs, and of the tensors that `outputs` returns.
            workers: number of data-loader processes.
            rank: rank of this process, from 0.
            world: number of processes.
            gather: exchanges values between the processes; tests replace it.
            progress: called with (views done, views to compute), estimated for all processes from this one's share.

        Raises:
            RunError: the disk is full, the folder cannot be written, or the machines do not share it.
            PeerError: another process failed.
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
                "a cache folder that all machines share",
                f"'{self.folder}', which lacks the outputs that the other machines have computed",
                "pass a folder on a shared disk as --cache-dir",
            )

    def close(self) -> None:
        """Closes the cache's files; before the next `outputs`, call `prepare` again."""
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
                    logits, maps = to_float16(*teacher.outputs(batch.pixels.to(self._device)))
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
        logger.warning("a new teacher cache is built, because the cache '%s' differs: %s", nearest, reasons)
