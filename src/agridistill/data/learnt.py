"""The photos that a model has learnt from: a file beside the model, by which `evaluate` recognises them.

These are the photos of training and validation (which chose its epoch and threshold), those of the run that it began
from, and its teacher's.

The file has five bytes for each photo, of a hash of its perceptual hash: nothing of the photo can be seen, and copies
are recognised as well: under other names, flipped, turned, and about nine in ten of the resized and recompressed ones.
9,000 photos take 45 kB.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agridistill.manifest import ModelManifest
from agridistill.storage import replacing

logger = logging.getLogger(__name__)

RUN_NAME, SUFFIX = "learnt.bin", ".learnt"

_MAGIC = b"agridistill learnt photos 1\n"
# With 9,000 learnt photos, one of 15 million new ones, under eight turns, is taken for one of them by chance.
_ENTRY_BYTES = 5


@dataclass(frozen=True)
class LearntPhotos:
    """Photos that a model has learnt from."""

    entries: frozenset[bytes]  # five bytes for each look of a photo

    def count(self, photos: Iterable[Iterable[int]]) -> int:
        """How many of these photos are among them.

        Args:
            photos: the 64-bit perceptual hashes of each under all turns (`data.inspection.turned_phashes_of`).
        """
        return sum(any(_entry(phash) in self.entries for phash in phashes) for phashes in photos)


def learnt_path(model: Path) -> Path:
    """`RUN/learnt.bin` of a run folder, `NAME.learnt` beside an artefact."""
    return model / RUN_NAME if model.is_dir() else model.with_suffix(SUFFIX)


def write_learnt(
    path: Path, data_fingerprint: str, phashes: Iterable[int], inherited: Iterable[LearntPhotos] = ()
) -> None:
    """Writes the file, whole or not at all.

    Args:
        path: to write.
        data_fingerprint: of the data, as in the model's lineage: it ties the file to the model.
        phashes: 64-bit perceptual hashes of the photos.
        inherited: photos of the models that this one learnt from.
    """
    entries = sorted({_entry(phash) for phash in phashes}.union(*(each.entries for each in inherited)))
    with replacing(path) as temporary:
        temporary.write_bytes(_head(data_fingerprint) + b"".join(entries))


def read_learnt(path: Path, manifest: ModelManifest) -> LearntPhotos | None:
    """Reads the file of a model; None without one, and (with a warning) where it is damaged or of another model."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    head = _head(str(manifest.lineage.get("data_fingerprint")))
    entries = content[len(head) :]
    if not content.startswith(head) or len(entries) % _ENTRY_BYTES:
        logger.warning(
            "'%s' is damaged or of another model: photos that the model has learnt from are not recognised", path
        )
        return None
    return LearntPhotos(frozenset(entries[at : at + _ENTRY_BYTES] for at in range(0, len(entries), _ENTRY_BYTES)))


def _head(data_fingerprint: str) -> bytes:
    # Hashed again: a manifest may hold any text.
    return _MAGIC + hashlib.sha256(data_fingerprint.encode("utf-8", "surrogateescape")).digest()


def _entry(phash: int) -> bytes:
    return hashlib.blake2b(phash.to_bytes(8, "big"), digest_size=_ENTRY_BYTES).digest()
