"""The models of a device, each in a folder of its own, and the pointer: one small file that names the one that runs.

Replacing the pointer is the switch: after a kill or a power cut it is the old one or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from agridistill.edge.updates.fetch import damage_of, read_stored
from agridistill.edge.updates.release import RELEASE_NAME, RefusedError, Release, key_id
from agridistill.errors import EdgeError, RunError
from agridistill.storage import only_one, sync_folder, write_json

logger = logging.getLogger(__name__)

MAX_TRIAL_STARTS = 3  # without a `confirm` or an orderly end; then a new model is taken back
CONFIRM_FRAMES = 20  # answered over lives that ended in an orderly way; then a new model works
UPDATE_LOCK = "update.lock"
POINTER_NAME, COPY_NAME = "current.json", "current.copy.json"
_POINTER_LOCK = "current.lock"
_SLOT = re.compile(r"v([1-9][0-9]{0,15})")
_STAGING = re.compile(r"v([1-9][0-9]{0,15})\.part")
_FORMAT_VERSION = 1
_MAX_POINTER_BYTES = 1_000_000


@dataclass(frozen=True)
class Pointer:
    """Which model runs, and what must not be forgotten."""

    active: int = 0  # version to run; 0 is the model that the device was started with
    good: int = 0  # version to return to
    trial: bool = False  # the active version is not confirmed yet
    starts: int = 0  # of the active version on trial that did not end in an orderly way
    frames: int = 0  # that the active version on trial answered, in lives that ended in an orderly way
    highest: int = 0  # version ever accepted; older ones are refused
    refused: Mapping[int, str] = field(default_factory=dict)  # versions that failed here -> why
    killed_checks: Mapping[int, int] = field(default_factory=dict)  # versions whose golden check was killed -> times
    added_keys: tuple[str, ...] = ()  # public keys that releases added, in hex
    removed_keys: tuple[str, ...] = ()  # ids of keys that releases removed

    def switched(self, release: Release) -> Pointer:
        """A release becomes the active version, on trial, and its keys count."""
        added, removed = release.trust.add, release.trust.remove
        added_ids = {key_id(bytes.fromhex(key)) for key in added}
        kept_removed = [name for name in self.removed_keys if name not in added_ids]
        kept_added = [key for key in self.added_keys if key_id(bytes.fromhex(key)) not in removed]
        return replace(
            self,
            active=release.version,
            # A version on trial is not confirmed as one to return to.
            good=self.good if self.trial else self.active,
            trial=True,
            starts=0,
            frames=0,
            highest=max(self.highest, release.version),
            killed_checks={},
            added_keys=tuple(dict.fromkeys((*kept_added, *added))),
            removed_keys=tuple(dict.fromkeys((*kept_removed, *removed))),
        )

    def refusing(self, version: int, why: str) -> Pointer:
        """A version failed here. Versions below the highest are refused anyway."""
        refused = {**self.refused, version: why[:300]}
        return replace(self, refused={number: text for number, text in refused.items() if number >= self.highest})


def read_pointer(folder: Path) -> Pointer | None:
    """The pointer, or its copy where it is damaged; None where both are."""
    for name in (POINTER_NAME, COPY_NAME):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            with (folder / name).open("rb") as file:
                document = json.loads(file.read(_MAX_POINTER_BYTES))
            if document.pop("sha256") != _digest(document) or document.pop("format_version") != _FORMAT_VERSION:
                continue
            for name in ("refused", "killed_checks"):  # earlier versions write no killed_checks
                document[name] = {int(version): value for version, value in document.get(name, {}).items()}
            for name in ("added_keys", "removed_keys"):
                document[name] = tuple(document[name])
            return Pointer(**document)
    return None


def write_pointer(folder: Path, pointer: Pointer) -> None:
    """Replaces the pointer; raises OSError where the disk refuses, and the old pointer holds."""
    document = json.loads(json.dumps({"format_version": _FORMAT_VERSION, **asdict(pointer)}))
    document["sha256"] = _digest(document)
    write_json(folder / POINTER_NAME, document)
    sync_folder(folder)
    # The copy only protects against damage. The switch is done: a full disk here must not make the caller undo it.
    with contextlib.suppress(OSError):
        write_json(folder / COPY_NAME, document)
        sync_folder(folder)


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ActiveModel:
    """The model to run."""

    path: Path  # of the artefact
    version: int  # 0 for the first model
    trial: bool = False
    frames: int = 0  # that it answered in earlier lives on trial


class ModelSlots:
    """The models of one device. May be used from several threads and processes.

    `staging`, `switch`, `refuse` and `count_killed_check` raise OSError where the disk refuses; the old model stays.

    Args:
        folder: `STATE/models`; created when the first update comes.
        first: the model that the device was started with: the last resort, never removed.
    """

    def __init__(self, folder: Path, first: Path) -> None:
        self.folder, self.first = folder, first
        self._mutex = threading.Lock()  # for file systems without locks

    def start(self) -> ActiveModel:
        """The model to run now; counts the start where it is on trial. Never fails: the last resort is the first model.

        A model on trial that was started three times without a `confirm` or an orderly end, or one whose files are
        damaged, gives way to the last good one.
        """
        try:
            if not self.folder.is_dir():
                return ActiveModel(self.first, 0)
            self.sweep()
            return self._model(self._change(self._started))
        except (OSError, RefusedError) as error:
            return self._unwritten(error)

    def confirm(self, version: int | None = None) -> None:
        """Records that a version works, None for the active one; slots that are no longer needed are removed.

        Nothing changes where an update has replaced it meanwhile. If the disk refuses, that is logged and the model
        stays on trial.
        """
        try:
            pointer = self.pointer()
            worked = pointer.active if version is None else version
            if not pointer.trial or pointer.active != worked:
                return
            pointer = self._change(
                lambda now: replace(now, trial=False, starts=0, frames=0) if now.active == worked else now
            )
            logger.warning("model version %d is confirmed", worked)
            for old in self._versions():
                if old not in (pointer.active, pointer.good):
                    shutil.rmtree(self.slot(old), ignore_errors=True)
        except OSError as error:
            logger.warning("a model on trial cannot be confirmed: %s", error)

    def ended_well(self, version: int, answered: int) -> None:
        """Records an orderly end of the agent: the start of `version` does not count, its `answered` frames do.

        20 frames over all such lives confirm a model. If the disk refuses, that is logged and the start counts.
        """

        def ended(now: Pointer) -> Pointer:
            if not now.trial or now.active != version:
                return now
            return replace(now, starts=max(0, now.starts - 1), frames=now.frames + answered)

        try:
            pointer = self._change(ended)
        except OSError as error:
            logger.warning("the orderly end of a model on trial cannot be written down: %s", error)
            return
        if pointer.frames >= CONFIRM_FRAMES:
            self.confirm(version)

    def give_up(self, version: int, why: str) -> ActiveModel:
        """Refuses a version that does not work, and returns the one to run instead; EdgeError for the first model."""
        if version == 0:
            raise EdgeError("a first model that works", f"'{self.first}' ({why})", "start with another --model")

        def given_up(now: Pointer) -> Pointer:
            now = now.refusing(version, why)
            return self._returned(now, why) if now.active == version else now

        try:
            self._change(given_up)
        except OSError as error:
            logger.warning("model version %d fails (%s), which cannot be written down: %s", version, why, error)
            return ActiveModel(self.first, 0)
        return self.start()

    def pointer(self) -> Pointer:
        """The current pointer; rebuilt from the slots where the file is damaged."""
        return read_pointer(self.folder) or self._rebuilt()

    def slot(self, version: int) -> Path:
        """Folder of a version."""
        return self.folder / f"v{version}"

    def release(self, version: int) -> Release | None:
        """The signed release of a stored version; None where it cannot be read."""
        with contextlib.suppress(OSError, RefusedError):
            return read_stored(self.slot(version))
        return None

    def staging(self, release: Release, envelope: bytes) -> Path:
        """Folder in which a release is assembled; it still holds what an earlier try fetched."""
        # From here on a missing pointer is a lost one, and not a first update that was killed.
        self._change(lambda pointer: pointer)
        folder = self.folder / f"v{release.version}.part"
        for path in self.folder.iterdir():
            if _STAGING.fullmatch(path.name) and path != folder:
                shutil.rmtree(path, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        expected = {name for file in release.files for name in (file.name, f"{file.name}.part")}
        for path in folder.iterdir():
            if path.name not in expected:
                path.unlink()
        # Without a temporary name: it counts only when the folder is renamed, after it was synchronised.
        (folder / RELEASE_NAME).write_bytes(envelope)
        return folder

    def switch(self, release: Release, staging: Path) -> None:
        """Makes a release that was fetched and tried the active one, on trial, and its keys count."""
        for path in staging.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(staging)
        slot = self.slot(release.version)
        if slot.exists():
            shutil.rmtree(slot)
        staging.rename(slot)
        sync_folder(self.folder)
        self._change(lambda pointer: pointer.switched(release))

    def refuse(self, version: int, why: str) -> None:
        """Records that a version failed here: it is not tried again."""
        self._change(lambda pointer: pointer.refusing(version, why))

    def count_killed_check(self, version: int) -> int:
        """Records that the golden check of a version was killed; returns how often that happened."""

        def counted(now: Pointer) -> Pointer:
            times = {number: count for number, count in now.killed_checks.items() if number >= now.highest}
            return replace(now, killed_checks={**times, version: times.get(version, 0) + 1})

        return self._change(counted).killed_checks[version]

    def sweep(self) -> None:
        """Removes the leftovers of killed updates, but not a folder whose download can be continued."""
        with contextlib.suppress(OSError, RunError), only_one(self.folder / UPDATE_LOCK, "model update"):
            pointer = self.pointer()
            for path in list(self.folder.iterdir()):
                staged, slot = _STAGING.fullmatch(path.name), _SLOT.fullmatch(path.name)
                version = int((staged or slot or [0, 0])[1])
                useless = version in pointer.refused or (staged and version < pointer.highest)
                if version and useless and version != pointer.active:
                    shutil.rmtree(path, ignore_errors=True)
                elif slot and version > pointer.highest:
                    # Complete, but for the switch.
                    staging = path.with_name(f"{path.name}.part")
                    shutil.rmtree(staging, ignore_errors=True)
                    path.rename(staging)
            with only_one(self.folder / _POINTER_LOCK, "pointer", wait=True):
                for path in self.folder.glob(".current*.part"):
                    path.unlink(missing_ok=True)

    def _damage(self, version: int) -> str | None:
        return damage_of(self.slot(version), version) if version else None

    def _started(self, pointer: Pointer) -> Pointer:
        if pointer.trial and pointer.starts >= MAX_TRIAL_STARTS:
            why = f"it was started {pointer.starts} times without being confirmed"
            pointer = self._returned(pointer.refusing(pointer.active, why), why)
        if damage := self._damage(pointer.active):
            # Not refused: the same version may be fetched again.
            pointer = self._returned(pointer, damage)
        return replace(pointer, starts=pointer.starts + 1) if pointer.trial else pointer

    def _returned(self, pointer: Pointer, why: str) -> Pointer:
        """The last good version becomes the active one, or the next older one whose files are intact."""
        older = [version for version in reversed(self._versions()) if version <= pointer.highest]
        barred = {pointer.active, *pointer.refused}
        active = next(
            version for version in (pointer.good, *older, 0) if version not in barred and not self._damage(version)
        )
        logger.warning("model version %d gives way to version %d: %s", pointer.active, active, why)
        good = next((less for less in older if less < active and less not in pointer.refused), 0)
        return replace(pointer, active=active, good=good, trial=False, starts=0, frames=0)

    def _unwritten(self, error: Exception) -> ActiveModel:
        """The model where starts cannot be counted: one on trial does not run then, as it could not be taken back."""
        pointer = self.pointer()
        for version in (pointer.good if pointer.trial else pointer.active, pointer.good):
            if not self._damage(version):
                with contextlib.suppress(OSError, RefusedError):
                    logger.warning(
                        "what is known of the models cannot be written (%s): version %d runs", error, version
                    )
                    return self._model(replace(pointer, active=version, trial=False))
        return ActiveModel(self.first, 0)

    def _model(self, pointer: Pointer) -> ActiveModel:
        if pointer.active == 0:
            return ActiveModel(self.first, 0)
        path = self.slot(pointer.active) / read_stored(self.slot(pointer.active)).model
        return ActiveModel(path, pointer.active, pointer.trial, pointer.frames)

    def _versions(self) -> list[int]:
        with contextlib.suppress(OSError):
            found = (_SLOT.fullmatch(path.name) for path in self.folder.iterdir())
            return sorted(int(match[1]) for match in found if match)
        return []

    def _rebuilt(self) -> Pointer:
        """Without a pointer: the newest version whose files are intact, on trial again."""
        intact = [version for version in self._versions() if not self._damage(version)]
        newest, before = (*reversed(intact), 0, 0)[:2]
        return Pointer(active=newest, good=before, trial=newest > 0, highest=newest)

    def _change(self, change: Callable[[Pointer], Pointer]) -> Pointer:
        with self._mutex, only_one(self.folder / _POINTER_LOCK, "pointer", wait=True):
            before = read_pointer(self.folder)
            was_written = any((self.folder / name).exists() for name in (POINTER_NAME, COPY_NAME))
            if before is None and (was_written or self._versions()):
                logger.error("what is known of the models in '%s' is lost: read from them, keys as given", self.folder)
            after = change(before or self._rebuilt())
            if after != before:
                write_pointer(self.folder, after)
            return after
