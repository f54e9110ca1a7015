"""Slots: the models of a device, each in a folder of its own, and the pointer that says which one runs."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from agridistill.edge.updates.pointer import Pointer, pointer_is_there, read_pointer, sync_folder, write_pointer
from agridistill.edge.updates.pointer_changes import check_killed, confirmed, ended_well, refusing, switched
from agridistill.edge.updates.release import RELEASE_NAME, RefusedError, Release, stored_release
from agridistill.edge.updates.stored import ActiveModel, slot_damage, sync_content
from agridistill.errors import EdgeError, RunError
from agridistill.storage import only_one

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

MAX_TRIAL_STARTS = 3
"""A new model that was started so often without a `confirm` or an orderly end is taken back."""
CONFIRM_FRAMES = 20
"""A new model that answered so many frames, over lives that ended in an orderly way, has worked."""
UPDATE_LOCK = "update.lock"
_POINTER_LOCK = "current.lock"
_SLOT = re.compile(r"v([1-9][0-9]{0,15})")
_STAGING = re.compile(r"v([1-9][0-9]{0,15})\.part")
_threads = threading.Lock()


class ModelSlots:
    """The models of one device. May be used from several threads and processes.

    Args:
        folder: `STATE/models`; made when the first update comes.
        first: the model that the device was started with: the last resort, never removed.
    """

    def __init__(self, folder: Path, first: Path) -> None:
        self.folder, self.first = folder, first

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
        """Says that a model has worked for a while; slots that are not needed any more are removed.

        A disk that refuses is logged; the model stays on trial then.

        Args:
            version: that has worked, which an update may have replaced meanwhile; None stands for the active one.
        """
        try:
            pointer = self.pointer()
            worked = pointer.active if version is None else version
            if pointer.trial and pointer.active == worked:
                pointer = self._change(lambda found: confirmed(found, worked))
                logger.warning("model version %d is confirmed", worked)
                for version in self._versions():
                    if version not in (pointer.active, pointer.good):
                        shutil.rmtree(self.slot(version), ignore_errors=True)
        except OSError as error:
            logger.warning("a model on trial cannot be confirmed: %s", error)

    def ended_well(self, version: int, answered: int) -> None:
        """Says that the agent ended in an orderly way: where the model is on trial, this start does not count.

        Answers are counted over all such lives; 20 confirm the model. A disk that refuses is logged; the start counts
        then.

        Args:
            version: that ran, which an update may have replaced meanwhile.
            answered: frames that it answered in this life.
        """
        try:
            pointer = self._change(lambda found: ended_well(found, version, answered))
        except OSError as error:
            logger.warning("the orderly end of a model on trial cannot be written down: %s", error)
            return
        if pointer.frames >= CONFIRM_FRAMES:
            self.confirm(version)

    def give_up(self, version: int, why: str) -> ActiveModel:
        """Refuses a version that cannot be loaded or does not work, and gives the one to run instead.

        Args:
            version: that was running.
            why: one line, for the log and for whoever asks later.

        Raises:
            EdgeError: it is the first model: there is nothing to return to.
        """
        if version == 0:
            raise EdgeError("a first model that works", f"'{self.first}' ({why})", "start with another --model")

        def given_up(pointer: Pointer) -> Pointer:
            pointer = refusing(pointer, version, why)
            return self._returned(pointer, why) if pointer.active == version else pointer

        try:
            self._change(given_up)
        except OSError as error:
            logger.warning("model version %d fails (%s), which cannot be written down: %s", version, why, error)
            return ActiveModel(self.first, 0)
        return self.start()

    def pointer(self) -> Pointer:
        """What is known now; made anew from the slots where the file is damaged."""
        return read_pointer(self.folder) or self._rebuilt()

    def slot(self, version: int) -> Path:
        """Folder of a version."""
        return self.folder / f"v{version}"

    def release(self, version: int) -> Release | None:
        """What was signed of a stored version; None where that cannot be read."""
        with contextlib.suppress(OSError, RefusedError):
            return stored_release((self.slot(version) / RELEASE_NAME).read_bytes())
        return None

    def staging(self, release: Release, envelope: bytes) -> Path:
        """Folder in which a release comes together; what an earlier try brought is still in it.

        Raises:
            OSError: the disk refuses.
        """
        # From here on a missing pointer is a lost one, and never just the first update that was killed.
        self._change(lambda pointer: pointer)
        folder = self.folder / f"v{release.version}.part"
        for path in self.folder.iterdir():
            if _STAGING.fullmatch(path.name) and path != folder:
                shutil.rmtree(path, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {name for file in release.files for name in (file.name, f"{file.name}.part")}
        for path in folder.iterdir():
            if path.name not in wanted:
                path.unlink()
        # Not by a temporary name: it counts only when the folder is renamed, after it was synchronised.
        with (folder / RELEASE_NAME).open("wb") as file_out:
            file_out.write(envelope)
        return folder

    def switch(self, release: Release, staging: Path) -> None:
        """Makes a release that was fetched and tried the active one, on trial, and its keys count.

        Raises:
            OSError: the disk refuses; the old model stays.
        """
        sync_content(staging)
        slot = self.slot(release.version)
        if slot.exists():
            shutil.rmtree(slot)
        staging.rename(slot)
        sync_folder(self.folder)
        self._change(lambda pointer: switched(pointer, release))

    def refuse(self, version: int, why: str) -> None:
        """Writes down that a version failed here: it is not tried again.

        Raises:
            OSError: the disk refuses.
        """
        self._change(lambda pointer: refusing(pointer, version, why))

    def count_killed_check(self, version: int) -> int:
        """Writes down that the golden check of a version was killed; gives how often that was.

        Raises:
            OSError: the disk refuses.
        """
        return self._change(lambda pointer: check_killed(pointer, version)).killed_checks[version]

    def sweep(self) -> None:
        """Removes what killed updates left; a folder that may still become a model is kept, to be gone on with."""
        with contextlib.suppress(OSError, RunError), only_one(self.folder / UPDATE_LOCK, "model update"):
            pointer = self.pointer()
            for path in list(self.folder.iterdir()):
                staged, slot = _STAGING.fullmatch(path.name), _SLOT.fullmatch(path.name)
                version = int((staged or slot or [0, 0])[1])
                useless = version in pointer.refused or (staged and version < pointer.highest)
                if version and useless and version != pointer.active:
                    shutil.rmtree(path, ignore_errors=True)
                elif slot and version > pointer.highest:
                    # All was there but the switch.
                    staging = path.with_name(f"{path.name}.part")
                    shutil.rmtree(staging, ignore_errors=True)
                    path.rename(staging)
            with self._locked():
                for path in self.folder.glob(".current*.part"):
                    path.unlink(missing_ok=True)

    def _damage(self, version: int) -> str | None:
        return slot_damage(self.slot(version), version) if version else None

    def _started(self, pointer: Pointer) -> Pointer:
        if pointer.trial and pointer.starts >= MAX_TRIAL_STARTS:
            why = f"it was started {pointer.starts} times without being confirmed"
            pointer = self._returned(refusing(pointer, pointer.active, why), why)
        if damage := self._damage(pointer.active):
            # Not refused: the same version may be fetched again.
            pointer = self._returned(pointer, damage)
        return replace(pointer, starts=pointer.starts + 1) if pointer.trial else pointer

    def _returned(self, pointer: Pointer, why: str) -> Pointer:
        """The last good version becomes the active one, or the next older one whose files are whole."""
        older = [version for version in reversed(self._versions()) if version <= pointer.highest]
        for version in (pointer.good, *older, 0):
            if version == pointer.active or version in pointer.refused or self._damage(version):
                continue
            logger.warning("model version %d gives way to version %d: %s", pointer.active, version, why)
            good = next((less for less in older if less < version and less not in pointer.refused), 0)
            return replace(pointer, active=version, good=good, trial=False, starts=0, frames=0)
        raise AssertionError("version 0 is always whole")

    def _unwritten(self, error: Exception) -> ActiveModel:
        """The model where starts cannot be counted: one on trial is not run then, for nobody would take it back."""
        pointer = self.pointer()
        wanted = pointer.good if pointer.trial else pointer.active
        for version in (wanted, pointer.good):
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
        slot = self.slot(pointer.active)
        release = stored_release((slot / RELEASE_NAME).read_bytes())
        return ActiveModel(slot / release.model, pointer.active, pointer.trial, pointer.frames)

    def _versions(self) -> list[int]:
        with contextlib.suppress(OSError):
            found = (_SLOT.fullmatch(path.name) for path in self.folder.iterdir())
            return sorted(int(match[1]) for match in found if match)
        return []

    def _rebuilt(self) -> Pointer:
        """Without a pointer: the newest version whose files are whole, on trial, for nobody knows how it did."""
        whole = [version for version in self._versions() if not self._damage(version)]
        newest, before = (*reversed(whole), 0, 0)[:2]
        return Pointer(active=newest, good=before, trial=newest > 0, highest=newest)

    def _change(self, change: Callable[[Pointer], Pointer]) -> Pointer:
        with self._locked():
            before = read_pointer(self.folder)
            if before is None and (pointer_is_there(self.folder) or self._versions()):
                logger.error("what is known of the models in '%s' is lost: read from them, keys as given", self.folder)
            after = change(before or self._rebuilt())
            if after != before:
                write_pointer(self.folder, after)
            return after

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer of the pointer at a time; it is held for moments only."""
        with _threads, (self.folder / _POINTER_LOCK).open("ab") as file:
            if fcntl is not None:
                # File systems without locks let everybody in.
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX)
            yield
