"""Installs a newer model after checking its signature, its files and its answers; the worker repeats this regularly."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agridistill.edge.network import Backoff
from agridistill.edge.updates.prepare import (
    KilledCheckError,
    ReleaseSource,
    check_golden,
    fetch_files,
    open_source,
    read_envelope,
)
from agridistill.edge.updates.release import RefusedError, Release, TrustedKeys, UnavailableError, verified_release
from agridistill.edge.updates.slots import UPDATE_LOCK, ModelSlots, Pointer
from agridistill.errors import EdgeError, RunError
from agridistill.storage import only_one

logger = logging.getLogger(__name__)

MAX_KILLED_CHECKS = 3  # repetitions of a golden check that was killed; then the version is refused
# A postponed update is tried again after pauses that double, up to an hour or the interval of the checks.
_FIRST_RETRY_S, _LONGEST_RETRY_S = 60.0, 3600.0
_POLL_S = 0.5

# "current": there is no newer version. "installed": the new model is used next, on trial. "refused": the release must
# not be used. "postponed": it cannot be downloaded now, or the disk refuses; the next check tries again.
UpdateOutcome = Literal["current", "installed", "refused", "postponed"]


@dataclass(frozen=True)
class UpdateResult:
    """The result of one check for a newer model."""

    outcome: UpdateOutcome
    version: int | None = None  # version of the release; None if no valid release was found
    reason: str = ""  # why it is refused or postponed, in one line; else ""
    patient: bool = False  # postponed for a reason that lasts: retry only after the longest pause

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON that is published on the MQTT topic `update/result`."""
        return {"outcome": self.outcome, "version": self.version, "reason": self.reason}


class Updater:
    """Checks for newer models and installs them. Failures are returned as a result, never raised.

    `keys` are those that the device's settings trust; the key changes of installed releases are applied to them.
    `threads` are those of one prediction in the golden check (test of a new model); 0 means one for each core.
    """

    def __init__(
        self,
        slots: ModelSlots,
        keys: TrustedKeys,
        *,
        channel: str = "default",
        ca_file: Path | None = None,
        threads: int = 0,
    ) -> None:
        self.slots, self.keys = slots, keys
        self._channel, self._ca_file, self._threads = channel, ca_file, threads
        # Outages are logged separately for releases that arrive as a message and for the polled source.
        self._logged = {True: ("", ""), False: ("", "")}

    def check(self, source: str | Path | bytes, stop: threading.Event | None = None) -> UpdateResult:
        """Verifies, downloads, tests and installs a release if it is newer; then `ModelSlots.start` returns its model.

        `source` is the URL or path of a `release.json` or its folder, or the content of one that arrived over MQTT. Set
        `stop` to abort the golden check, which postpones the update.
        """
        version = None
        try:
            self.slots.folder.mkdir(parents=True, exist_ok=True)
            with only_one(self.slots.folder / UPDATE_LOCK, "model update"):
                if isinstance(source, bytes):
                    place, envelope = None, source
                else:
                    place = open_source(str(source), self._ca_file)
                    envelope = read_envelope(place)
                pointer = self.slots.pointer()
                keys = self.keys.changed(map(bytes.fromhex, pointer.added_keys), pointer.removed_keys)
                release = verified_release(envelope, keys)
                version = release.version
                is_current = self._is_current(release, pointer, keys)
                if not is_current:
                    self._install(release, envelope, place, stop)
            result = UpdateResult("current" if is_current else "installed", version)
        except (UnavailableError, RunError) as error:
            # Killed checks are repeated late: if the memory is full for some minutes, the version must not be refused.
            result = UpdateResult("postponed", version, str(error), patient=isinstance(error, KilledCheckError))
        except EdgeError as error:
            result = UpdateResult("refused", version, str(error))
        except OSError as error:
            result = UpdateResult("postponed", version, f"the device cannot store or test the update ({error})")
        self._log(result, isinstance(source, bytes))
        return result

    def _install(
        self, release: Release, envelope: bytes, place: ReleaseSource | None, stop: threading.Event | None
    ) -> None:
        if place is None:
            if not release.base_url:
                raise RefusedError(
                    "a base_url, the address of the files, in a release sent by MQTT",
                    "a release without it",
                    "publish it with --base-url",
                )
            place = open_source(release.base_url, self._ca_file)
        staging = self.slots.staging(release, envelope)
        fetch_files(place, release, staging)
        try:
            self._try(release, staging, stop)
        except RefusedError as error:
            # A release that is intact and signed but fails the test would fail at every check.
            self.slots.refuse(release.version, str(error))
            shutil.rmtree(staging, ignore_errors=True)
            raise
        self.slots.switch(release, staging)

    def _try(self, release: Release, staging: Path, stop: threading.Event | None) -> None:
        try:
            check_golden(staging, release, self._threads, stop)
        except KilledCheckError:
            times = self.slots.count_killed_check(release.version)
            if times <= MAX_KILLED_CHECKS:
                raise
            raise RefusedError(
                "a model that runs on this device",
                f"a model whose golden check was killed {times} times",
                "publish a smaller model",
            ) from None

    def _is_current(self, release: Release, pointer: Pointer, keys: TrustedKeys) -> bool:
        """Whether the release is the active version already; raises RefusedError if it must not be installed."""
        version = release.version
        if release.channel != self._channel:
            raise RefusedError(
                f"a release for the channel '{self._channel}'",
                f"a release for the channel '{release.channel}'",
                "check source and channel in the device's [updates]",
            )
        if version == pointer.active:
            running = None
            with contextlib.suppress(OSError, RefusedError):
                running = self.slots.release(version)
            # Only the time of signing and the address of the files may differ.
            same = {"created": release.created, "base_url": release.base_url}
            if running and running.model_copy(update=same) != release:
                raise RefusedError(
                    f"the installed release of version {version}",
                    "another release of the same version",
                    "publish it with a higher --version",
                )
            return True
        if version in pointer.refused:
            raise RefusedError(
                "a version that works on this device",
                f"version {version}, which failed here before ({pointer.refused[version]})",
                "publish a corrected model as a new version",
            )
        # The highest version itself may be installed again, because its files may have been damaged on the disk.
        if version < pointer.highest:
            raise RefusedError(
                f"a version above {pointer.highest}", f"version {version}", "publish it with a higher --version"
            )
        if not keys.changed(map(bytes.fromhex, release.trust.add), release.trust.remove).keys:
            raise RefusedError(
                "a release that leaves at least one trusted key",
                "a release that revokes all keys",
                "publish it with --trust-key",
            )
        return False

    def _log(self, result: UpdateResult, is_message: bool) -> None:
        """Logs the start and the end of an outage or a refusal once each."""
        # The reasons of postponed updates are not compared: the numbers in them differ each time.
        now = (result.outcome, result.reason if result.outcome == "refused" else "") if result.reason else ("", "")
        before, self._logged[is_message] = self._logged[is_message], now
        if now[0] and now != before:
            logger.warning("a model update is %s: %s", result.outcome, result.reason)
        elif not now[0] and before[0]:
            logger.warning("model updates work again")
        if result.outcome == "installed":
            logger.warning("model version %s is installed and is now on trial", result.version)


class _Check:
    """A source to check, and when its next check is due, in monotonic seconds."""

    def __init__(self, source: str | bytes, longest_s: float) -> None:
        self.source, self.due_at = source, time.monotonic()
        self._backoff = Backoff(_FIRST_RETRY_S, longest_s, least=0.8)

    def is_due(self) -> bool:
        return time.monotonic() >= self.due_at

    def postpone(self, *, patient: bool) -> None:
        if patient:
            self._backoff.skip_to_longest()
        self.due_at = time.monotonic() + self._backoff.pause_s()

    def done(self, pause_s: float) -> None:
        self._backoff.reset()
        self.due_at = time.monotonic() + pause_s


class UpdateWorker:
    """Checks a source for newer models regularly, and each release that arrives over MQTT; retries postponed updates.

    An empty `source` checks only releases that arrive over MQTT. `installed` is called after a new model is installed.
    """

    def __init__(self, source: str, every_s: float, updater: Updater, installed: Callable[[], None]) -> None:
        self._source, self._every_s, self._updater, self._installed = source, every_s, updater, installed
        self._longest_s = min(_LONGEST_RETRY_S, every_s)
        self._offered: list[bytes] = []
        self._wake = threading.Event()
        self.last: UpdateResult | None = None

    def offer(self, envelope: bytes) -> None:
        """Gives `run` the content of a `release.json` that arrived over MQTT; it replaces one that still waits."""
        self._offered = [envelope]
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Checks for updates until `stop` is set; runs in its own thread."""
        polled = _Check(self._source, self._longest_s) if self._source else None
        message: _Check | None = None
        while not stop.is_set():
            self._wake.clear()
            if self._offered:
                message = _Check(self._offered.pop(), self._longest_s)
            if message is not None and message.is_due() and self._is_done(message, stop):
                message = None
            if polled is not None and polled.is_due() and self._is_done(polled, stop):
                polled.done(self._every_s)
            checks = [check for check in (message, polled) if check is not None]
            while not (stop.wait(_POLL_S) or self._wake.is_set() or any(check.is_due() for check in checks)):
                pass

    def _is_done(self, check: _Check, stop: threading.Event) -> bool:
        self.last = self._updater.check(check.source, stop)
        if self.last.outcome == "installed":
            self._installed()
        if self.last.outcome == "postponed":
            check.postpone(patient=self.last.patient)
            return False
        return True
