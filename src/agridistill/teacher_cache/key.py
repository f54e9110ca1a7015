"""What a cache depends on: the views that student and teacher see, the teacher, and the versions of everything."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from agridistill.data.folder import Sample
from agridistill.data.loader import PhotoDataset, ViewKey
from agridistill.data.views import VIEWS_VERSION, Augmentation, plain_settings, view_seed
from agridistill.manifest import ModelManifest, Preprocessing
from agridistill.models import OUTPUTS_VERSION

FORMAT_VERSION = 1
# Seed of all views that a teacher sees: students of any seed see the same views and share one cache. Not 0, the usual
# seed of a run: on the very pixels that it learnt from, a teacher is more confident than on any others.
DISTILLATION_VIEWS = 0xA6D1

Key = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Viewing:
    """The views of the training photos, the same pixels for student and teacher."""

    root: Path  # the data folder
    samples: Sequence[Sample]  # training photos, in the order of the split
    fingerprint: str  # of the data folder
    preprocessing: Preprocessing  # the student's
    augmentation: Augmentation
    views: int  # of each photo
    keep_views: bool = False  # keeps the pixels of drawn views; changes none of them
    seed: int = DISTILLATION_VIEWS  # of the views' content

    def key(self, view: int, position: int) -> ViewKey:
        """Names one view of one photo."""
        return ViewKey(position, view, view_seed(self.seed, view, self.samples[position].path))

    def dataset(self) -> PhotoDataset:
        """The photos, addressed by `key`."""
        return PhotoDataset(self.root, self.samples, self.preprocessing, self.augmentation, keep_views=self.keep_views)


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
    return {
        "teacher weights": teacher.weights_sha256,
        "teacher model": teacher.model,
        **{f"teacher {name}": str(value) for name, value in asdict(teacher.preprocessing).items()},
        "teacher precision": str(teacher.lineage.get("precision")),
        "photos": photos.hexdigest(),
        "data.image_size": viewing.preprocessing.image_size,
        "data.resize": viewing.preprocessing.resize,
        **{f"augmentation.{name}": value for name, value in plain_settings(viewing.augmentation).items()},
        "views": f"version {VIEWS_VERSION}, seed {viewing.seed}",
        "outputs": f"version {OUTPUTS_VERSION}, format {FORMAT_VERSION}",
        "objective.attention": kind + (", each head" if per_head else ""),
        "objective.pairs at the teacher's strides": ", ".join(str(stride) for stride in strides),
        **{
            f"version of {name}": metadata.version(name).partition("+")[0]
            for name in ("torch", "timm", "Pillow", "numpy")
        },
    }


def digest_of(key: Key) -> str:
    """A short name for a key, 12 hexadecimal digits."""
    return sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:12]


def differences(stored: Mapping[str, Any], current: Key) -> list[str]:
    """Which parts of two keys differ, in words; digests are cut to their beginning."""
    differing = [part for part in sorted(stored.keys() | current.keys()) if stored.get(part) != current.get(part)]
    texts = [f"{part} {stored.get(part)}, here {current.get(part)}" for part in differing]
    return [re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1…", text) for text in texts]
