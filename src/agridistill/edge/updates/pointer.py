"""The pointer: one small file that says which model a device runs. Replacing it is the switch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agridistill.storage import write_json

POINTER_NAME, COPY_NAME = "current.json", "current.copy.json"
_FORMAT_VERSION = 1
_MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class Pointer:
    """Which model runs, and what must not be forgotten.

    Attributes:
        active: version to run; 0 is the model that the device was started with.
        good: version to return to.
        trial: the active version has not shown yet that it works.
        starts: of the active version while on trial that did not end in an orderly way.
        frames: that the active version answered while on trial, in lives that ended in an orderly way.
        highest: version ever accepted; older ones are refused.
        refused: versions that failed here -> why.
        killed_checks: versions whose golden check was killed -> how often.
        added_keys: public keys that releases added, in hex.
        removed_keys: ids of keys that releases removed.
    """

    active: int = 0
    good: int = 0
    trial: bool = False
    starts: int = 0
    frames: int = 0
    highest: int = 0
    refused: Mapping[int, str] = field(default_factory=dict)
    killed_checks: Mapping[int, int] = field(default_factory=dict)
    added_keys: tuple[str, ...] = ()
    removed_keys: tuple[str, ...] = ()


def read_pointer(folder: Path) -> Pointer | None:
    """The pointer, or its copy where it is damaged; None where neither can be believed."""
    for name in (POINTER_NAME, COPY_NAME):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            with (folder / name).open("rb") as file:
                document = json.loads(file.read(_MAX_BYTES))
            if document.pop("sha256") == _digest(document):
                return _pointer(document)
    return None


def pointer_is_there(folder: Path) -> bool:
    """Whether a pointer was ever written, readable or not."""
    return any((folder / name).exists() for name in (POINTER_NAME, COPY_NAME))


def write_pointer(folder: Path, pointer: Pointer) -> None:
    """Replaces the pointer: after a kill or a power cut it is the old one or the new one.

    Raises:
        OSError: the disk refuses; the old pointer holds.
    """
    document = {"format_version": _FORMAT_VERSION, **asdict(pointer)}
    document["refused"] = {str(version): why for version, why in sorted(pointer.refused.items())}
    document["killed_checks"] = {str(version): times for version, times in sorted(pointer.killed_checks.items())}
    document = json.loads(json.dumps(document))
    document["sha256"] = _digest(document)
    write_json(folder / POINTER_NAME, document)
    sync_folder(folder)
    # Only against damage of the first; the switch is done, so a full disk here must not undo the caller's belief in it.
    with contextlib.suppress(OSError):
        write_json(folder / COPY_NAME, document)
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _pointer(document: dict[str, Any]) -> Pointer:
    if document.pop("format_version") != _FORMAT_VERSION:
        raise ValueError("another format")
    document["refused"] = {int(version): str(why) for version, why in document["refused"].items()}
    document["killed_checks"] = {int(version): times for version, times in document.get("killed_checks", {}).items()}
    document["added_keys"] = tuple(document["added_keys"])
    document["removed_keys"] = tuple(document["removed_keys"])
    return Pointer(**document)


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
