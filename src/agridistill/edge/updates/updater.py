"""Updater: looks at a source, and brings a newer model that is signed, whole and right onto the device."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path

from agridistill.edge.updates.fetch import fetch_files
from agridistill.edge.updates.golden import KilledCheckError, check_golden
from agridistill.edge.updates.keys import TrustedKeys
from agridistill.edge.updates.pointer import Pointer
from agridistill.edge.updates.release import RefusedError, Release, verified_release
from agridistill.edge.updates.settings import UpdateResult, UpdateSettings
from agridistill.edge.updates.slots import UPDATE_LOCK, ModelSlots
from agridistill.edge.updates.sources import ReleaseSource, UnavailableError, open_source
from agridistill.errors import EdgeError, RunError
from agridistill.storage import only_one

logger = logging.getLogger(__name__)

MAX_KILLED_CHECKS = 3
"""So often a golden check that was killed is postponed; then the version is refused."""


class Updater:
    """Checks for updates. What a source can do wrong is a result, never an exception.

    Args:
        slots: of this device.
        keys: that the device was given; what releases added and removed comes on top.
        settings: limits and patience.
    """

    def __init__(self, slots: ModelSlots, keys: TrustedKeys, settings: UpdateSettings | None = None) -> None:
        self.slots, self.keys, self.settings = slots, keys, settings or UpdateSettings()
        # Of what comes by itself and of what is looked at, each its own: either may be out while the other is there.
        self._told = {True: ("", ""), False: ("", "")}

    def check(self, source: str | Path | bytes | ReleaseSource, stop: threading.Event | None = None) -> UpdateResult:
        """Looks for a newer release and installs it; `ModelSlots.start` then gives the new model.

        Args:
            source: as for `open_source`.
            stop: of the agent; when it is set, golden photos are left unanswered and the update is postponed.
        """
        by_itself = isinstance(source, bytes)
        try:
            if isinstance(source, str | Path | bytes):
                source = open_source(source, self.settings)
            self.slots.folder.mkdir(parents=True, exist_ok=True)
            with only_one(self.slots.folder / UPDATE_LOCK, "model update"):
                result = self._checked(source, stop)
        except (UnavailableError, RunError) as error:
            result = UpdateResult("postponed", None, str(error))
        except EdgeError as error:
            result = UpdateResult("refused", None, str(error))
        except OSError as error:
            result = UpdateResult("postponed", None, f"the disk or the system refuses ({error})")
        self._tell(result, by_itself)
        return result

    def _checked(self, source: ReleaseSource, stop: threading.Event | None) -> UpdateResult:
        envelope = source.envelope()
        pointer = self.slots.pointer()
        keys = self.keys.changed(map(bytes.fromhex, pointer.added_keys), pointer.removed_keys)
        release = verified_release(envelope, keys)
        try:
            self._require_channel(release)
            if release.version == pointer.active:
                self._require_same(release)
                return UpdateResult("current", release.version)
            self._require_wanted(release, pointer, keys)
            staging = self.slots.staging(release, envelope)
            fetch_files(source, release, staging, self.settings)
            self._try(release, staging, stop)
            self.slots.switch(release, staging)
        except UnavailableError as error:
            # Each kill counts: a memory that was full for a quarter of an hour must not refuse a version for good.
            patient = isinstance(error, KilledCheckError)
            return UpdateResult("postponed", release.version, str(error), patient)
        except RefusedError as error:
            return UpdateResult("refused", release.version, str(error))
        return UpdateResult("installed", release.version)

    def _require_channel(self, release: Release) -> None:
        if release.channel != self.settings.channel:
            expected = f"a release of the channel '{self.settings.channel}'"
            raise RefusedError(expected, f"one of '{release.channel}'", "check the device's source")

    def _require_same(self, release: Release) -> None:
        """Whoever publishes something else under the running version's number must not believe that it runs."""
        running = self.slots.release(release.version)
        # When it was signed, and where its files lie, is no content.
        if running and running.model_copy(update={"created": release.created, "base_url": release.base_url}) != release:
            expected = f"version {release.version} as it runs here"
            raise RefusedError(expected, "another release of that version", "publish with a higher --version")

    def _require_wanted(self, release: Release, pointer: Pointer, keys: TrustedKeys) -> None:
        version = release.version
        if version in pointer.refused:
            raise RefusedError(
                "a version that works here", f"{version} ({pointer.refused[version]})", "publish another"
            )
        # The highest itself is taken again where its files were damaged on the disk.
        if version < pointer.highest:
            raise RefusedError(f"a version above {pointer.highest}", str(version), "publish with a higher --version")
        if not keys.changed(map(bytes.fromhex, release.trust.add), release.trust.remove):
            raise RefusedError(
                "a release that leaves a trusted key", "one that removes all", "add one with --trust-key"
            )

    def _try(self, release: Release, staging: Path, stop: threading.Event | None) -> None:
        try:
            try:
                check_golden(staging, release, self.settings, stop)
            except KilledCheckError:
                times = self.slots.count_killed_check(release.version)
                if times <= MAX_KILLED_CHECKS:
                    raise
                got = f"one whose golden check was killed {times} times"
                raise RefusedError("a model that runs on this device", got, "publish a smaller model") from None
        except RefusedError as error:
            # Whole and signed, and yet it fails: it would fail at every check.
            self.slots.refuse(release.version, str(error))
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def _tell(self, result: UpdateResult, by_itself: bool) -> None:
        """An outage and a refusal are told once, and that it is over, once."""
        # A download that is cut off is told in other numbers each time: it is one outage all the same.
        now = (result.outcome, result.reason if result.outcome == "refused" else "") if result.reason else ("", "")
        before, self._told[by_itself] = self._told[by_itself], now
        if now[0] and now != before:
            logger.warning("a model update is %s: %s", result.outcome, result.reason)
        elif not now[0] and before[0]:
            logger.warning("model updates can be had again")
        if result.outcome == "installed":
            logger.warning("model version %s is installed, on trial", result.version)
