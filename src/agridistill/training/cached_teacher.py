"""The teacher as its cache remembers it: what it depends on, how it is built, how a batch finds its records."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from agridistill.data.folder import Sample
from agridistill.data.loader import Batch, PhotoDataset, ViewKey, collate
from agridistill.data.views import VIEWS_VERSION, Augmentation, plain_settings, view_seed
from agridistill.distillation.attention_losses import unit_peak
from agridistill.distillation.cache_layout import Block, CacheLayout, Key, Outputs, differences, digest_of
from agridistill.distillation.teacher_cache import FORMAT_VERSION, TeacherCache, building, read_key, read_layout
from agridistill.errors import RunError
from agridistill.manifest import ModelManifest, Preprocessing
from agridistill.models.teacher import OUTPUTS_VERSION, LiveTeacher
from agridistill.progress import ProgressCallback, silent
from agridistill.training.agreement import Gather, all_or_none, alone

logger = logging.getLogger(__name__)

# Of every view that a teacher is asked about: students of any seed see the same ones, and share one cache. Not 0,
# the usual seed of a run: the teacher learnt from those very pixels, and is surer of them than of any others.
DISTILLATION_VIEWS = 0xA6D1

_BUILD_BATCH = 64
_VERSIONS = ("torch", "timm", "Pillow", "numpy")


@dataclass(frozen=True)
class Viewing:
    """Which pixels student and teacher see.

    Attributes:
        root: the data folder.
        samples: training photos, in the order of the split.
        fingerprint: of the data folder.
        preprocessing: the student's.
        augmentation: how far views differ from their photos.
        views: of each photo.
        keep_views: draws each view once and keeps its pixels, which changes none of them.
    """

    root: Path
    samples: Sequence[Sample]
    fingerprint: str
    preprocessing: Preprocessing
    augmentation: Augmentation
    views: int
    keep_views: bool = False

    def key(self, view: int, position: int) -> ViewKey:
        """Names one view of one photo."""
        return ViewKey(position, view, view_seed(DISTILLATION_VIEWS, view, self.samples[position].path))


def cache_key(
    viewing: Viewing,
    teacher: ModelManifest,
    *,
    strides: Sequence[int],
    kind: Literal["activation", "window"],
    per_head: bool,
) -> Key:
    """Everything that the records depend on; two caches of one key hold the same records."""
    photos = sha256(viewing.fingerprint.encode())
    for sample in viewing.samples:
        photos.update(json.dumps(sample.path).encode())
    seen = {"image_size": viewing.preprocessing.image_size, "resize": viewing.preprocessing.resize}
    return {
        "teacher weights": teacher.weights_sha256,
        "teacher model": teacher.model,
        **{f"teacher {name}": str(value) for name, value in asdict(teacher.preprocessing).items()},
        "teacher precision": str(teacher.lineage.get("precision")),
        "photos": photos.hexdigest(),
        **{f"data.{name}": value for name, value in seen.items()},
        **{f"augmentation.{name}": value for name, value in plain_settings(viewing.augmentation).items()},
        "views": f"version {VIEWS_VERSION}, seed {DISTILLATION_VIEWS}",
        "outputs": f"version {OUTPUTS_VERSION}, format {FORMAT_VERSION}",
        "objective.attention": kind + (", each head" if per_head else ""),
        "objective.pairs at the teacher's strides": ", ".join(str(stride) for stride in strides),
        **{f"version of {name}": metadata.version(name).partition("+")[0] for name in _VERSIONS},
    }


def as_kept(logits: Tensor, maps: Mapping[int, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
    """What a cache keeps of a teacher's answer, in float16.

    Args:
        logits: `(B, K)`.
        maps: by stride, `(B, H, W)` or `(B, M, H, W)`; they come back with a largest value of 1.

    Raises:
        RunError: NaN, infinity, or logits that float16 cannot hold.
    """
    kept = logits.half()
    # Squared activations leave float16's range; no distance depends on a map's scale.
    kept_maps = {stride: unit_peak(map_).half() for stride, map_ in maps.items()}
    # Asked once: each answer makes the processor wait for a GPU.
    finite = torch.stack([torch.isfinite(values).all() for values in (kept, *kept_maps.values())]).tolist()
    if not finite[0]:
        raise RunError("a teacher with logits within ±65,504", "larger ones or NaN", "train the teacher again")
    if not all(finite):
        raise RunError("a teacher with finite attention maps", "NaN or infinity", "train the teacher again")
    return kept, kept_maps


class CachedTeacher:
    """Gives each batch what the teacher said about its views when the cache was built.

    Args:
        caches: folder of the teacher's caches, each in a folder of its key's name.
        key: see `cache_key`.
        viewing: which pixels are seen.
        load: loads the live teacher; called only where something must be built.
    """

    def __init__(self, caches: Path, key: Key, viewing: Viewing, load: Callable[[], LiveTeacher]) -> None:
        self.folder = caches / digest_of(key)
        self.key, self.viewing, self._load = key, viewing, load
        self._live: LiveTeacher | None = None
        _tell_stale(caches, key)
        stored = read_layout(self.folder)
        self.layout = stored if stored is not None else self._measured_layout()
        self._cache: TeacherCache | None = None
        self._device = torch.device("cpu")

    @property
    def size_bytes(self) -> int:
        """Of the records of all views."""
        return self.layout.bytes_for(self.viewing.views)

    def map_counts(self) -> dict[int, int]:
        """How many maps `outputs` gives at each stride."""
        return {stride: shape[0] if len(shape) == 3 else 1 for stride, shape in self.layout.maps.items()}

    def to(self, device: torch.device) -> None:
        """Chooses where `outputs` puts its tensors."""
        self._device = device

    def example(self, count: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Outputs of the right shapes that say nothing."""
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
        said = self._cache.read(photos, views)
        # The one check that no key can replace: these are the views that the student sees.
        wrong = (said.seeds != batch.seed.numpy()) | ~np.isfinite(said.logits).all(axis=1)
        if wrong.any():
            self._cache.forget(photos[wrong], views[wrong])
            path = self.viewing.samples[photos[wrong][0]].path
            raise RunError(
                "every view of this batch in the teacher cache",
                f"none of '{path}', which could not be read when it was built, in '{self.folder}'",
                "go on with --resume: its block is built anew",
            )
        return self._tensor(said.logits), {stride: self._tensor(map_) for stride, map_ in said.maps.items()}

    def prepare(
        self,
        device: torch.device,
        *,
        workers: int,
        rank: int = 0,
        world: int = 1,
        gather: Gather = alone,
        progress: ProgressCallback = silent,
    ) -> None:
        """Opens the cache and builds what it lacks; every process builds its share of the blocks.

        Args:
            device: where the teacher computes.
            workers: loader processes.
            rank: of this process.
            world: number of processes, which see the same folder.
            gather: of all processes, see `agreement`.
            progress: called with (views done, views to do) of all processes, reckoned from this one's share, where
                anything is to do.

        Raises:
            RunError: no room on the disk, or a folder that cannot be written; in every process, whichever met it.
        """
        self._device = device
        with contextlib.ExitStack() as held:
            # The others wait for the first one, which may have to wait for another run.
            with all_or_none(gather, rank):
                if rank == 0:
                    held.enter_context(building(self.folder))
                    self._cache = self._open()
            with all_or_none(gather, rank):
                cache = self._cache = self._cache or self._open()
                own = cache.missing(rank, world)
            counts = gather(sum(block.stop - block.start for block in own))
            with all_or_none(gather, rank):
                self._build_share(cache, own, sum(counts), workers, progress)
        if world > 1:
            # What other machines wrote is seen by those who open the files after them.
            self.close()
        self._cache = self._cache or self._open()
        if not self._cache.built():
            raise RunError(
                "one folder of caches that all machines see",
                f"'{self.folder}', which lacks what other machines built",
                "choose a shared folder with --cache-dir",
            )

    def close(self) -> None:
        """Lets go of the cache's files."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def _open(self) -> TeacherCache:
        return TeacherCache(self.folder, self.key, self.layout, self.viewing.views)

    def _build_share(
        self, cache: TeacherCache, own: Sequence[Block], everywhere: int, workers: int, progress: ProgressCallback
    ) -> None:
        # Whether or not it has something to do here: a teacher that has answered need not stay in memory.
        live, self._live = self._live, None
        if not own:
            if everywhere:
                progress(0, everywhere)
            return
        teacher = live or self._load()
        teacher.to(self._device)
        total, done = sum(block.stop - block.start for block in own), 0
        viewing = self.viewing
        dataset = PhotoDataset(
            viewing.root,
            viewing.samples,
            viewing.preprocessing,
            viewing.augmentation,
            keep_views=viewing.keep_views,
        )
        batches: Iterable[list[ViewKey]] = _BlockBatches(self.viewing, own)
        loader = iter(DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate))
        for block in own:
            outputs = self._empty(block.stop - block.start)
            for start in range(block.start, block.stop, _BUILD_BATCH):
                batch = next(loader)
                if batch is not None:
                    self._ask(teacher, batch, block, outputs)
                done += min(_BUILD_BATCH, block.stop - start)
                # The others are about as far.
                progress(done * everywhere // total, everywhere)
            cache.write(block, outputs)

    def _empty(self, count: int) -> Outputs:
        return Outputs(
            np.zeros(count, np.uint32),
            np.full((count, self.layout.num_classes), np.nan, np.float32),
            {stride: np.zeros((count, *shape), np.float32) for stride, shape in self.layout.maps.items()},
        )

    def _ask(self, teacher: LiveTeacher, batch: Batch, block: Block, outputs: Outputs) -> None:
        logits, maps = as_kept(*teacher.outputs(batch._replace(pixels=batch.pixels.to(self._device))))
        rows = batch.position.numpy() - block.start
        outputs.seeds[rows] = batch.seed.numpy()
        outputs.logits[rows] = logits.cpu().numpy()
        for stride, map_ in maps.items():
            outputs.maps[stride][rows] = map_.cpu().numpy()

    def _measured_layout(self) -> CacheLayout:
        self._live = self._load()
        logits, maps = self._live.example(1)
        shapes = {stride: tuple(map_.shape[1:]) for stride, map_ in maps.items()}
        return CacheLayout(len(self.viewing.samples), logits.shape[1], shapes)

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self._device, non_blocking=True)


class _BlockBatches:
    """The views of some blocks in batches that never cross a block's border."""

    def __init__(self, viewing: Viewing, blocks: Sequence[Block]) -> None:
        self.viewing, self.blocks = viewing, blocks

    def __iter__(self) -> Iterator[list[ViewKey]]:
        for block in self.blocks:
            for start in range(block.start, block.stop, _BUILD_BATCH):
                stop = min(start + _BUILD_BATCH, block.stop)
                yield [self.viewing.key(block.view, position) for position in range(start, stop)]


def _tell_stale(caches: Path, key: Key) -> None:
    """Where no cache of this key is there: says in what the nearest one differs."""
    if (caches / digest_of(key)).exists() or not caches.is_dir():
        return
    stale: dict[Path, list[str]] = {}
    for folder in sorted(caches.iterdir()):
        with contextlib.suppress(RunError):
            theirs = read_key(folder)
            if theirs is not None:
                stale[folder] = differences(theirs, key)
    if stale:
        nearest = min(stale, key=lambda folder: len(stale[folder]))
        reasons = "; ".join(stale[nearest][:3])
        logger.warning("the teacher cache '%s' does not serve: %s; another one is built beside it", nearest, reasons)
