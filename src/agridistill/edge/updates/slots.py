"""The models of a device, each in its own folder, and the pointer: a small file that names the active model.

A switch replaces the pointer file in one step: after a kill or a power cut it is either the old or the new one.
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

MAX_TRIAL_STARTS = 3  # after this number of starts without `confirm` or a clean end, the last good model is used again
CONFIRM_FRAMES = 20  # a model on trial is confirmed after this number of frames in runs that ended cleanly
UPDATE_LOCK = "update.lock"
POINTER_NAME = "current.json"
_FOLDER = re.compile(r"v([1-9][0-9]{0,15})(\.part)?")


@dataclass(frozen=True)
class Pointer:
    """Content of the pointer file `current.json`: which model version the device uses, and the state of its updates.

    Version 0 is the model of `--model`. A newly installed version is on trial until `ModelSlots.confirm` is called.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    format_version: Literal[1] = 1
    active: int = 0  # version to use
    good: int = 0  # version to return to if the active one fails
    trial: bool = False  # the active version is not confirmed yet
    starts: int = 0  # starts with the active version on trial, without those that ended cleanly
    frames: int = 0  # frames that the active version on trial answered, in runs that ended cleanly
    highest: int = 0  # highest version that was ever installed; lower ones are refused
    refused: Mapping[int, str] = field(default_factory=dict)  # {version that failed here: why}
    killed_checks: Mapping[int, int] = field(default_factory=dict)  # {version: how often its golden check was killed}
    added_keys: tuple[str, ...] = ()  # public keys that releases added, in hex
    removed_keys: tuple[str, ...] = ()  # ids of keys that releases removed

    def switched(self, release: Release) -> Pointer:
        """Returns the pointer with the release's version active and on trial, and with its changes of keys."""
        added, removed = release.trust.add, release.trust.remove
        added_ids = {key_id(bytes.fromhex(key)) for key in added}
        kept_removed = [name for name in self.removed_keys if name not in added_ids]
        kept_added = [key for key in self.added_keys if key_id(bytes.fromhex(key)) not in removed]
        return replace(
            self,
            active=release.version,
            # An active version that is itself on trial is not good enough to return to.
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
        """Returns the pointer with `version` recorded as refused, and the reason; older versions are refused anyway."""
        refused = {**self.refused, version: why[:300]}
        return replace(self, refused={number: text for number, text in refused.items() if number >= self.highest})


_POINTER = TypeAdapter(Pointer)


@dataclass(frozen=True)
class ActiveModel:
    """The model that the agent must load now."""

    path: Path  # the exported model file
    version: int  # 0 for the model of `--model`
    trial: bool = False  # the version is not confirmed yet
    frames: int = 0  # frames that it answered on trial in earlier runs


class ModelSlots:
    """Stores the models of one device, and selects the one to use. Several threads of one process may use it.

    If the disk cannot be written, `staging`, `switch`, `refuse` and `count_killed_check` raise OSError, and the active
    model stays the same.

    `folder` is created by the first update. `first` is the model of `--model` (version 0), which is used if no other
    model works; it is never removed.
    """

    def __init__(self, folder: Path, first: Path) -> None:
        self.folder, self.first = folder, first
        self._mutex = threading.Lock()

    def start(self) -> ActiveModel:
        """Returns the model to load now; if it is on trial, counts this start.

        Returns to the last good model if the files of the active one are damaged, or if it was started three times on
        trial without `confirm` or a clean end. Never raises: the last resort is the model of `--model`.
        """
        try:
            if not self.folder.is_dir():
                return ActiveModel(self.first, 0)
            self._sweep()
            try:
                pointer = self._change(self._started)
            except OSError as error:
                pointer = self.pointer()
                # Without counted starts a model on trial that crashes would be started forever.
                if pointer.trial or self._damage(pointer.active):
                    pointer = self._returned(pointer, f"starts of version {pointer.active} cannot be counted ({error})")
            return self._model(pointer)
        except (OSError, EdgeError) as error:
            logger.error("the model of --model is used, because model updates cannot be read: %s", error)
            return ActiveModel(self.first, 0)

    def confirm(self, version: int | None = None) -> None:
        """Ends the trial of a version (None: of the active one), because it works; deletes models no longer needed.

        Does nothing if another version is active by now. If the disk cannot be written, logs that, and the trial goes
        on.
        """
        try:
            pointer = self.pointer()
            worked = pointer.active if version is None else version
            if not pointer.trial or pointer.active != worked:
                return
            self._change(lambda now: replace(now, trial=False, starts=0, frames=0) if now.active == worked else now)
            logger.warning("model version %d works, so its trial is over", worked)
            self._sweep()
        except (OSError, EdgeError) as error:
            logger.warning("the new model works, but it stays on trial, because the disk cannot be written: %s", error)

    def ended_well(self, version: int, answered: int) -> None:
        """Records that the agent ended cleanly after a run in which `version` answered `answered` frames.

        The start of this run no longer counts as a failed one, and the version is confirmed once it has answered 20
        frames in such runs. If the disk cannot be written, logs that, and the start still counts.
        """

        def ended(now: Pointer) -> Pointer:
            if not now.trial or now.active != version:
                return now
            return replace(now, starts=max(0, now.starts - 1), frames=now.frames + answered)

        try:
            pointer = self._change(ended)
        except (OSError, EdgeError) as error:
            logger.warning(
                "the clean end of the agent cannot be stored, so it counts as a crash of model version %d: %s",
                version,
                error,
            )
            return
        if pointer.frames >= CONFIRM_FRAMES:
            self.confirm(version)

    def give_up(self, version: int, why: str) -> ActiveModel:
        """Refuses a version from now on, and returns the model to load instead; raises EdgeError for version 0."""
        if version == 0:
            raise EdgeError("a --model that works", f"'{self.first}' ({why})", "start with another --model")

        def given_up(now: Pointer) -> Pointer:
            now = now.refusing(version, why)
            return self._returned(now, why) if now.active == version else now

        try:
            self._change(given_up)
        except (OSError, EdgeError) as error:
            logger.warning(
                "model version %d fails (%s), but it will be tried again, because that cannot be stored: %s",
                version,
                why,
                error,
            )
            return ActiveModel(self.first, 0)
        return self.start()

    def pointer(self) -> Pointer:
        """Reads `current.json` (without it, version 0); raises EdgeError if it is damaged or of another format."""
        path = self.folder / POINTER_NAME
        try:
            return _POINTER.validate_json(path.read_bytes(), strict=True)
        except FileNotFoundError:
            return Pointer()
        except ValidationError:
            raise EdgeError(
                "a readable state of this device's model updates",
                f"'{path}', which is damaged or of another version",
                f"delete '{self.folder}' to use the model of --model",
            ) from None

    def slot(self, version: int) -> Path:
        """Returns the folder of an installed version, `FOLDER/vVERSION`."""
        return self.folder / f"v{version}"

    def release(self, version: int) -> Release:
        """Reads the `release.json` of an installed version; raises OSError or RefusedError if it cannot be read."""
        with (self.slot(version) / RELEASE_NAME).open("rb") as file:
            return stored_release(file.read(MAX_RELEASE_BYTES + 1))

    def staging(self, release: Release, envelope: bytes) -> Path:
        """Creates the folder into which a release is downloaded, with its `release.json`, whose content is `envelope`.

        Keeps its files of an earlier try, so that the download continues, and deletes the downloads of other versions.
        """
        folder = self.folder / f"v{release.version}.part"
        for path in self.folder.glob("v*.part"):
            if path != folder:
                shutil.rmtree(path, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / RELEASE_NAME) as temporary:
            temporary.write_bytes(envelope)
        return folder

    def switch(self, release: Release, staging: Path) -> None:
        """Makes a release that was downloaded into `staging` and tested the active one, on trial; also changes keys."""
        sync_folder(staging)
        slot = self.slot(release.version)
        shutil.rmtree(slot, ignore_errors=True)
        staging.rename(slot)
        sync_folder(self.folder)
        self._change(lambda pointer: pointer.switched(release))

    def refuse(self, version: int, why: str) -> None:
        """Records that a version failed on this device, and why; it is not installed again."""
        self._change(lambda pointer: pointer.refusing(version, why))

    def count_killed_check(self, version: int) -> int:
        """Adds one to the number of golden checks of a version that were killed, and returns the number."""

        def counted(now: Pointer) -> Pointer:
            times = {number: count for number, count in now.killed_checks.items() if number >= now.highest}
            return replace(now, killed_checks={**times, version: times.get(version, 0) + 1})

        return self._change(counted).killed_checks[version]

    def _sweep(self) -> None:
        """Removes models and downloads that are no longer needed, and temporary files of killed updates."""
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
        """Returns what is wrong with the stored files of a version; "" if they are as signed."""
        if version == 0:
            return ""
        try:
            release = self.release(version)
        except (OSError, RefusedError) as error:
            return f"the {RELEASE_NAME} of version {version} cannot be read ({error})"
        # Golden photos are not checked: they are no longer needed.
        needed = [file for file in release.files if file.name in (release.model, release.manifest)]
        bad = [file.name for file in needed if not file.is_intact(self.slot(version) / file.name)]
        return f"'{bad[0]}' of version {version} is damaged" if bad else ""

    def _started(self, pointer: Pointer) -> Pointer:
        if pointer.trial and pointer.starts >= MAX_TRIAL_STARTS:
            why = f"version {pointer.active} was started {pointer.starts} times without being confirmed"
            pointer = self._returned(pointer.refusing(pointer.active, why), why)
        if damage := self._damage(pointer.active):
            # The version is not refused, because it may be downloaded again.
            pointer = self._returned(pointer, damage)
        return replace(pointer, starts=pointer.starts + 1) if pointer.trial else pointer

    def _returned(self, pointer: Pointer, why: str) -> Pointer:
        """Returns the pointer with the last good version active, or version 0 if that one's files are damaged."""
        active = 0 if self._damage(pointer.good) else pointer.good
        logger.warning("model version %d is used again instead of version %d: %s", active, pointer.active, why)
        return replace(pointer, active=active, good=0, trial=False, starts=0, frames=0)

    def _model(self, pointer: Pointer) -> ActiveModel:
        if pointer.active == 0:
            return ActiveModel(self.first, 0)
        path = self.slot(pointer.active) / self.release(pointer.active).model
        return ActiveModel(path, pointer.active, pointer.trial, pointer.frames)

    def _change(self, change: Callable[[Pointer], Pointer]) -> Pointer:
        """Replaces the pointer file; if the disk refuses, raises OSError, and the old pointer stays."""
        with self._mutex:
            before = self.pointer()
            after = change(before)
            if after != before:
                write_json(self.folder / POINTER_NAME, asdict(after))
                sync_folder(self.folder)
            return after
