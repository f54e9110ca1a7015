"""The teacher that a recipe asks for: alive, or as its cache remembers it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from agridistill.errors import ModelError
from agridistill.manifest import MANIFEST_NAME, read_manifest
from agridistill.models import HasPixels, LiveTeacher, TeacherKind, load_network
from agridistill.training.cached_teacher import CachedTeacher, Viewing, as_kept, cache_key
from agridistill.training.module import TeacherSource
from agridistill.training.settings import ObjectiveSettings
from agridistill.training.terms import weights_of


def teacher_source(teacher: Path, caches: Path | None, viewing: Viewing, settings: ObjectiveSettings) -> TeacherSource:
    """What answers for the teacher during training.

    Args:
        teacher: a finished run.
        caches: folder of the teacher's caches; None asks the live network in every step.
        viewing: which pixels the student sees.
        settings: which attention maps are wanted.
    """
    manifest = read_manifest(teacher / MANIFEST_NAME)
    strides = tuple(sorted({pair.teacher for pair in settings.pairs}))
    per_head = settings.attention == "window" and settings.alignment == "learned"
    attends = weights_of(settings)["w_att"] > 0
    if caches is None:
        return UncachedTeacher(load_teacher(teacher, strides if attends else (), settings.attention, per_head=per_head))

    def load() -> LiveTeacher:
        # Maps for methods without attention too: all methods then share one cache.
        try:
            return load_teacher(teacher, strides, settings.attention, per_head=per_head)
        except ModelError:
            if attends:
                raise
            return load_teacher(teacher, (), settings.attention, per_head=False)

    key = cache_key(viewing, manifest, strides=strides, kind=settings.attention, per_head=per_head)
    return CachedTeacher(caches, key, viewing, load)


def hint_source(teacher: Path, settings: ObjectiveSettings) -> LiveTeacher | None:
    """The live teacher whose features the student learns first; None where the objective has no such stage.

    It is never cached: features of all channels are a hundred times an attention map, and a stage that takes a quarter
    of the steps asks for few views twice.
    """
    if not weights_of(settings)["w_hint"]:
        return None
    strides = tuple(sorted({pair.teacher for pair in settings.pairs}))
    return load_teacher(teacher, strides, "features", per_head=False)


class UncachedTeacher:
    """The live network, which says what its cache would say: float16 and all.

    One definition of a teacher's answer, so that with and without a cache a seed gives one training. Chaos allows
    nothing less: what differs in the fourth digit has left 1e-3 of the loss after a few steps at the usual rate.
    """

    def __init__(self, live: LiveTeacher) -> None:
        self._live = live
        self.example, self.map_counts, self.to = live.example, live.map_counts, live.to

    def outputs(self, batch: HasPixels) -> tuple[Tensor, dict[int, Tensor]]:
        """As the cache's: logits `(B, K)` and the maps of each stride, float32 holding float16 values.

        Raises:
            RunError: NaN, infinity, or logits that float16 cannot hold.
        """
        logits, maps = as_kept(*self._live.outputs(batch))
        return logits.float(), {stride: map_.float() for stride, map_ in maps.items()}


def load_teacher(teacher: Path, strides: tuple[int, ...], kind: TeacherKind, *, per_head: bool) -> LiveTeacher:
    """The network of a finished run, in the precision that it was trained in."""
    network, manifest = load_network(teacher)
    bf16 = manifest.lineage.get("precision") == "bf16"
    return LiveTeacher(network, manifest.preprocessing, strides=strides, kind=kind, per_head=per_head, bf16=bf16)
