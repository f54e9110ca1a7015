"""One stored model: its folder holds what was signed, or it is not run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agridistill.edge.updates.fetch import is_whole
from agridistill.edge.updates.pointer import sync_folder
from agridistill.edge.updates.release import MAX_RELEASE_BYTES, RELEASE_NAME, RefusedError, stored_release


@dataclass(frozen=True)
class ActiveModel:
    """The model to run.

    Attributes:
        path: of the artefact.
        version: of its release; 0 is the model that the device was started with.
        trial: it has not been confirmed yet.
        frames: that it answered in earlier lives, while on trial.
    """

    path: Path
    version: int
    trial: bool = False
    frames: int = 0


def slot_damage(slot: Path, version: int) -> str | None:
    """What is wrong with a version's files, in one line; None where they are as they were signed.

    Args:
        slot: its folder.
        version: that it should hold.
    """
    try:
        with (slot / RELEASE_NAME).open("rb") as file:
            release = stored_release(file.read(MAX_RELEASE_BYTES + 1))
    except (OSError, RefusedError) as error:
        return f"its {RELEASE_NAME} cannot be read ({error})"
    if release.version != version:
        return f"its {RELEASE_NAME} is of version {release.version}"
    # Golden photos have done their work: a damaged one is no reason to leave a model that works.
    needed = (release.model, release.manifest)
    bad = [file.name for file in release.files if file.name in needed and not is_whole(slot / file.name, file)]
    return f"'{bad[0]}' is damaged" if bad else None


def sync_content(folder: Path) -> None:
    """Brings a folder and its files to the disk.

    Raises:
        OSError: the disk refuses.
    """
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
