"""The models of a device, each in a folder of its own, and the pointer: one small file that names the one that runs.

Replacing the pointer is the switch: after a kill or a power cut it is the old one or the new one.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from agridistill.edge.updates.release import (
    MAX_RELEASE_BYTES,
    RELEASE_NAME,
    RefusedError,
    Release,
    key_id,
    stored_release,
)
from agridistill.errors import EdgeError, RunError
from agridistill.storage import only_one, replacing, sync_folder, write_json

logger = logging.getLogger(__name__)

MAX_TRIAL_STARTS = 3  # without a `confirm` or an orderly end; then a new model is taken back
CONFIRM_FRAMES = 20  # answered over lives that ended in an orderly way; then a new model works
UPDATE_LOCK = "update.lock"
POINTER_NAME = "current.json"
_FOLDER = re.compile(r"v([1-9][0-9]{0,15})(\.part)?")


@dataclass(frozen=True)
class Pointer:
    """Which model runs, and what must not be forgotten."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    format_version: Literal[1] = 1
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


_POINTER = TypeAdapter(Pointer)


@dataclass(frozen=True)
class ActiveModel:
    """The model to run."""

    path: Path  # of the artefact
    version: int  # 0 for the first model
    trial: bool = False
    frames: int = 0  # that it answered in earlier lives on trial


class ModelSlots:
    """The models of one device. May be used from several threads of one process.

    `staging`, `switch`, `refuse` and `count_killed_check` raise OSError where the disk refuses; the old model stays.

    Args:
        folder: `STATE/models`; created when the first update comes.
        first: the model that the device was started with: the last resort, never removed.
    """

    def __init__(self, folder: Path, first: Path) -> None:
        self.folder, self.first = folder, first
        self._mutex = threading.Lock()

    def start(self) -> ActiveModel:
        """The model to run now; counts the start where it is on trial. Never fails: the last resort is the first model.

        A model on trial that was started three times without a `confirm` or an orderly end, or one whose files are
        damaged, gives way to the last good one.
        """
        try:
            if not self.folder.is_dir():
                return ActiveModel(self.first, 0)
            self._sweep()
            try:
                pointer = self._change(self._started)
            except OSError as error:
                pointer = self.pointer()
                # Without a count of its starts it could not be taken back.
                if pointer.trial or self._damage(pointer.active):
                    pointer = self._returned(pointer, f"its start cannot be counted ({error})")
            return self._model(pointer)
        except (OSError, EdgeError) as error:
            logger.error("the model of --model runs: %s", error)
            return ActiveModel(self.first, 0)

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
            self._change(lambda now: replace(now, trial=False, starts=0, frames=0) if now.active == worked else now)
            logger.warning("model version %d is confirmed", worked)
            self._sweep()
        except (OSError, EdgeError) as error:
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
        except (OSError, EdgeError) as error:
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
        except (OSError, EdgeError) as error:
            logger.warning("model version %d fails (%s), which cannot be written down: %s", version, why, error)
            return ActiveModel(self.first, 0)
        return self.start()

    def pointer(self) -> Pointer:
        """What is known of the models.

        Raises:
            EdgeError: its file is damaged, or of another version.
        """
        path = self.folder / POINTER_NAME
        try:
            return _POINTER.validate_json(path.read_bytes(), strict=True)
        except FileNotFoundError:
            return Pointer()
        except ValidationError:
            remedy = f"delete '{self.folder}' to start over with the model of --model"
            got = f"'{path}', which is damaged or of another version"
            raise EdgeError("a record of this device's models", got, remedy) from None

    def slot(self, version: int) -> Path:
        """Folder of a version."""
        return self.folder / f"v{version}"

    def release(self, version: int) -> Release:
        """The signed release of a stored version; raises OSError or RefusedError where it cannot be read."""
        with (self.slot(version) / RELEASE_NAME).open("rb") as file:
            return stored_release(file.read(MAX_RELEASE_BYTES + 1))

    def staging(self, release: Release, envelope: bytes) -> Path:
        """Folder in which a release is assembled; it still holds what an earlier try fetched."""
        folder = self.folder / f"v{release.version}.part"
        for path in self.folder.glob("v*.part"):
            if path != folder:
                shutil.rmtree(path, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        expected = {name for file in release.files for name in (file.name, f"{file.name}.part")}
        for path in folder.iterdir():
            if path.name not in expected:
                path.unlink()
        with replacing(folder / RELEASE_NAME) as temporary:
            temporary.write_bytes(envelope)
        return folder

    def switch(self, release: Release, staging: Path) -> None:
        """Makes a release that was fetched and tried the active one, on trial, and its keys count."""
        sync_folder(staging)
        slot = self.slot(release.version)
        shutil.rmtree(slot, ignore_errors=True)
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

    def _sweep(self) -> None:
        """Removes models and downloads that are no longer needed, and what killed updates left."""
        with contextlib.suppress(OSError, RunError), only_one(self.folder / UPDATE_LOCK, "model update"):
            pointer = self.pointer()
            for path in list(self.folder.iterdir()):
                if path.name.startswith(f".{POINTER_NAME}."):
                    path.unlink()
                elif found := _FOLDER.fullmatch(path.name):
                    version, is_download = int(found[1]), found[2]
                    can_continue = version >= pointer.highest and version not in pointer.refused
                    is_needed = can_continue if is_download else version in (pointer.active, pointer.good)
                    if not is_needed:
                        shutil.rmtree(path, ignore_errors=True)

    def _damage(self, version: int) -> str:
        """What is wrong with the stored files of a version, in words; "" where they are as they were signed."""
        if version == 0:
            return ""
        try:
            release = self.release(version)
        except (OSError, RefusedError) as error:
            return f"its {RELEASE_NAME} cannot be read ({error})"
        if release.version != version:
            return f"its {RELEASE_NAME} is of version {release.version}"
        # Golden photos are no longer needed: a damaged one is no reason to leave a model that works.
        needed = [file for file in release.files if file.name in (release.model, release.manifest)]
        bad = [file.name for file in needed if not file.is_intact(self.slot(version) / file.name)]
        return f"'{bad[0]}' is damaged" if bad else ""

    def _started(self, pointer: Pointer) -> Pointer:
        if pointer.trial and pointer.starts >= MAX_TRIAL_STARTS:
            why = f"it was started {pointer.starts} times without being confirmed"
            pointer = self._returned(pointer.refusing(pointer.active, why), why)
        if damage := self._damage(pointer.active):
            # Not refused: the same version may be fetched again.
            pointer = self._returned(pointer, damage)
        return replace(pointer, starts=pointer.starts + 1) if pointer.trial else pointer

    def _returned(self, pointer: Pointer, why: str) -> Pointer:
        """The last good version becomes the active one, or the first model where its files are damaged."""
        active = 0 if self._damage(pointer.good) else pointer.good
        logger.warning("model version %d gives way to version %d: %s", pointer.active, active, why)
        return replace(pointer, active=active, good=0, trial=False, starts=0, frames=0)

    def _model(self, pointer: Pointer) -> ActiveModel:
        if pointer.active == 0:
            return ActiveModel(self.first, 0)
        path = self.slot(pointer.active) / self.release(pointer.active).model
        return ActiveModel(path, pointer.active, pointer.trial, pointer.frames)

    def _change(self, change: Callable[[Pointer], Pointer]) -> Pointer:
        """Replaces the pointer; raises OSError where the disk refuses, and the old one holds."""
        with self._mutex:
            before = self.pointer()
            after = change(before)
            if after != before:
                write_json(self.folder / POINTER_NAME, asdict(after))
                sync_folder(self.folder)
            return after
