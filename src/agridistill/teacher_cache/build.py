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
from agridistill.models import LiveTeacher, TeacherKind, TeacherOutputs, load_network
from agridistill.progress import ProgressCallback, silent
from agridistill.teacher_cache.features import (
    FIT_PHOTOS,
    Codes,
    decode,
    fit_projections,
    kept_channels,
    read_projections,
    write_projections,
)
from agridistill.teacher_cache.store import (
    PROJECTION,
    Block,
    CacheLayout,
    Key,
    TeacherCache,
    building,
    differences,
    digest_of,
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

    The failed process with the lowest rank raises its own error, the others a PeerError.
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

    The shapes stay: logits `(B, K)` and attention maps `(B, H, W)` or `(B, M, H, W)` by stride. Raises a RunError if a
    value is NaN or infinite, or a logit is too large for float16.
    """
    stored = logits.half()
    # Without the scaling, squared activations exceed the range of float16. No distance depends on the scale of a map.
    stored_maps = {stride: unit_peak(map_).half() for stride, map_ in maps.items()}
    # All checks are read from the GPU in one transfer, because each transfer makes the CPU wait.
    if not torch.stack([torch.isfinite(values).all() for values in (stored, *stored_maps.values())]).all():
        expected = "a teacher with logits within ±65,504 and finite attention maps"
        raise RunError(expected, "larger logits, NaN or infinity", "train the teacher again with a lower --lr")
    return stored, stored_maps


def load_teacher(
    teacher: Path, strides: Sequence[int], kind: TeacherKind, *, per_head: bool, features: Sequence[int] = ()
) -> LiveTeacher:
    """Loads the network of the finished run `teacher`, which computes in the precision of its training.

    The other arguments are those of `LiveTeacher`.
    """
    network, manifest = load_network(teacher)
    bf16 = manifest.lineage.get("precision") == "bf16"
    return LiveTeacher(
        network, manifest.preprocessing, strides=strides, kind=kind, per_head=per_head, features=features, bf16=bf16
    )


class UncachedTeacher:
    """Runs the teacher's network in every step, and rounds its outputs to float16 as the cache does.

    Because of the rounding, training is identical with and without the cache. Without it, a difference in the fourth
    digit of an output would change the loss by 1e-3 after a few steps. Only methods that compare features differ: this
    class gives all channels of them.
    """

    def __init__(self, live: LiveTeacher) -> None:
        self._live = live
        self.example, self.to = live.example, live.to
        self.map_counts, self.feature_counts = live.map_counts, live.feature_counts

    def outputs(self, batch: Batch) -> TeacherOutputs:
        """Computes the teacher's outputs for a batch, rounded to float16; raises the errors of `to_float16`."""
        live = self._live.outputs(batch.pixels if batch.teacher_pixels is None else batch.teacher_pixels)
        logits, maps = to_float16(live.logits, live.maps)
        return TeacherOutputs(logits.float(), {stride: map_.float() for stride, map_ in maps.items()}, live.features)


class CachedTeacher:
    """Reads the teacher's outputs for the views (augmented photos) of a batch from a cache on the disk.

    Call `prepare` first: it computes the outputs that the cache does not have yet. `caches` is the folder with all
    caches of the teacher; each cache is a folder in it, named by a digest of its key (`cache_key`). `load` loads the
    teacher's network; it is called only if outputs are missing.
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
        logits, maps, features = self._live.example(1)
        shapes = {stride: tuple(map_.shape[1:]) for stride, map_ in maps.items()}
        compressed = {
            stride: (kept_channels(values.shape[1:], len(features)), *values.shape[2:])
            for stride, values in features.items()
        }
        self.layout = CacheLayout(len(viewing.samples), logits.shape[1], shapes, compressed)

    @property
    def size_bytes(self) -> int:
        """Size of the teacher's outputs for all views of all photos, in bytes."""
        return self.layout.bytes_for(self.viewing.views)

    def map_counts(self) -> dict[int, int]:
        """Returns how many attention maps `outputs` gives for each photo, by stride: 1, or M for `(B, M, H, W)`."""
        return {stride: shape[0] if len(shape) == 3 else 1 for stride, shape in self.layout.maps.items()}

    def feature_counts(self) -> dict[int, int]:
        """Returns the number of channels of the compressed features that `outputs` gives, by stride."""
        return {stride: shape[0] for stride, shape in self.layout.features.items()}

    def to(self, device: torch.device) -> None:
        """Sets the device of the tensors that `outputs` returns."""
        self._device = device

    def example(self, count: int) -> TeacherOutputs:
        """Returns zeros in the shapes that `outputs` would return for `count` photos."""
        logits = torch.zeros(count, self.layout.num_classes)
        maps, features = (
            {stride: torch.zeros(count, *shape) for stride, shape in shapes.items()}
            for shapes in (self.layout.maps, self.layout.features)
        )
        return TeacherOutputs(logits, maps, features)

    def outputs(self, batch: Batch) -> TeacherOutputs:
        """Reads the teacher's outputs for a batch; each attention map's maximum is 1, features are compressed ones.

        Raises a RunError if the cache has no outputs for a photo of the batch, or those of another view.
        """
        if self._cache is None:
            raise RunError("an open teacher cache", "a closed teacher cache", "call prepare() before the training")
        # DDP moves every tensor of a batch to the GPU, also those that the module has left on the processor.
        photos, views, seeds = (values.cpu().numpy() for values in (batch.position, batch.view, batch.seed))
        records = self._cache.read(photos, views)
        # The key cannot guarantee this: compare the seeds, so that student and teacher see the same views.
        wrong = (records["seed"] != seeds) | ~np.isfinite(records["logits"]).all(axis=1)
        if wrong.any():
            self._cache.forget(photos[wrong], views[wrong])
            path = self.viewing.samples[photos[wrong][0]].path
            expected = "the teacher's outputs for every photo of this batch"
            got = f"none for '{path}' in '{self.folder}', because this photo could not be read when the cache was built"
            raise RunError(expected, got, "continue with --resume, which computes these outputs again")
        maps = {stride: self._tensor(records[f"map_s{stride}"]) for stride in self.layout.maps}
        features = {
            stride: decode(Codes(*(self._tensor(records[f"{name}_s{stride}"]) for name in ("features", "scale"))))
            for stride in self.layout.features
        }
        return TeacherOutputs(self._tensor(records["logits"]), maps, features)

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

        The teacher runs on `device`, which is also that of the tensors that `outputs` returns. The numbers for
        `progress`, views done and views to compute, are estimated for all processes. Tests replace `gather`.

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
                    self._fit_projections(workers)
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
            expected = "a cache folder that all machines share"
            got = f"'{self.folder}', which lacks the outputs that the other machines have computed"
            raise RunError(expected, got, "pass a folder on a shared disk as --cache-dir")

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
        if not own:
            self._live = None
            if total:
                progress(0, total)
            return
        teacher, viewing = self._teacher(), self.viewing
        self._live = None
        projections = read_projections(self.folder / PROJECTION, self.layout.features) if self.layout.features else {}
        batches = ([viewing.key(block.view, photo) for photo in part] for block in own for part in _batches(block))
        loader = self._loader(teacher, batches, workers)
        done, share = 0, sum(block.stop - block.start for block in own)
        for block in own:
            records = self.layout.blank_records(block.stop - block.start)
            for part in _batches(block):
                batch = next(loader)
                if batch is not None:
                    rows = batch.position.numpy() - block.start
                    outputs = teacher.outputs(batch.pixels.to(self._device))
                    logits, maps = to_float16(outputs.logits, outputs.maps)
                    records["seed"][rows], records["logits"][rows] = batch.seed.numpy(), logits.cpu().numpy()
                    for stride, map_ in maps.items():
                        records[f"map_s{stride}"][rows] = map_.cpu().numpy()
                    for stride, projection in projections.items():
                        codes = projection.encode(outputs.features[stride])
                        records[f"features_s{stride}"][rows] = codes.values.cpu().numpy()
                        records[f"scale_s{stride}"][rows] = codes.scale.cpu().numpy()
                done += len(part)
                # Assume that the other processes have done the same part of their shares.
                progress(done * total // share, total)
            cache.write(block, records)

    def _fit_projections(self, workers: int) -> None:
        """Fits the compression of features to the first view of some photos, unless an earlier build did this."""
        path, viewing = self.folder / PROJECTION, self.viewing
        if not self.layout.features or path.exists():
            return
        photos = np.linspace(0, len(viewing.samples) - 1, min(FIT_PHOTOS, len(viewing.samples)), dtype=np.int64)
        keys = [viewing.key(0, photo) for photo in photos.tolist()]
        batches = [keys[start : start + _BUILD_BATCH] for start in range(0, len(keys), _BUILD_BATCH)]
        teacher = self._live = self._teacher()
        loader = self._loader(teacher, batches, workers)
        outputs = (teacher.outputs(batch.pixels.to(self._device)) for batch in loader if batch is not None)
        checked = (each.features for each in outputs if to_float16(each.logits, each.maps))
        write_projections(path, fit_projections(checked, self.feature_counts()))

    def _teacher(self) -> LiveTeacher:
        teacher = self._live or self._load()
        teacher.to(self._device)
        return teacher

    def _loader(self, teacher: LiveTeacher, batches: Iterable[list[ViewKey]], workers: int) -> Iterator[Batch | None]:
        # A view enlarged to the teacher's image size has lost detail: the teacher would be wrong more often.
        dataset = self.viewing.in_size(teacher.preprocessing.image_size).dataset()
        return iter(DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate))

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self._device, non_blocking=True)


def _batches(block: Block) -> list[range]:
    photos = range(block.start, block.stop)
    return [photos[start : start + _BUILD_BATCH] for start in range(0, len(photos), _BUILD_BATCH)]


def _warn_about_nearest(caches: Path, key: Key) -> None:
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
