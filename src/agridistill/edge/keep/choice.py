"""Which photos are kept: the settings, and the keeper that the agent calls for each detection."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from agridistill.edge.alerts import Plots
from agridistill.edge.events import Detection, Frame
from agridistill.edge.keep.photo import Reason
from agridistill.edge.keep.store import GroupTooLargeError, KeptPhotos, PhotoTooLargeError
from agridistill.edge.network import usable_url
from agridistill.edge.store.history import Decision
from agridistill.errors import ConfigError, OutboxError

logger = logging.getLogger(__name__)

NAME = "{name}"
"""Stands in `upload` for the name of a file."""
_TIDY_EVERY_S = 30.0


@dataclass(frozen=True)
class KeepSettings:
    """Section [keep] of watch.toml: which photos are kept for people, how many, and where they are uploaded to.

    Raises:
        ConfigError: `upload` is no http(s) address or contains a password, or a secret does not fit the other settings.
    """

    folder: Path | None = None  # where they lie; None: `kept` in the state folder
    unsure: bool = True  # keep photos that the model is unsure of
    unfamiliar: bool = True  # keep photos unlike the training photos
    alert: bool = True  # keep the leaves that open alerts counted, and further ones while they are open
    one_in: Annotated[int, Field(ge=0)] = 100  # keep one in so many of the other answers; 0 for none
    max_megabytes: Annotated[float, Field(gt=0)] = 500.0  # size of all photos and sidecars, in millions of bytes
    location: bool = False  # keep the original files with all metadata, among them the location
    # A folder (WebDAV, nginx) or an address with {name} in it; "" uploads nothing.
    upload: str = field(default="", repr=False)
    user: str = ""  # for Basic authentication
    password_file: Path | None = None  # password of `user`; None uses AGRIDISTILL_KEEP_PASSWORD
    token_file: Path | None = None  # file with a bearer token; None uses AGRIDISTILL_KEEP_TOKEN
    ca_file: Path | None = None  # certificate authorities to trust for https; None trusts the system's
    after_upload: Literal["keep", "delete"] = "keep"  # what to do with a photo once the server has it

    def __post_init__(self) -> None:
        if self.upload and not _is_usable(self.upload):
            raise ConfigError(
                "upload in [keep]: a folder's address such as https://host/photos/, or one with {name} for the file's "
                "name",
                "another address (hidden, because it may contain a password)",
                "correct it, and put user and password into user and password_file",
            )
        if self.user and self.token_file is not None:
            raise ConfigError(
                "either user or token_file in [keep]", "both", "remove one of them; a user has a password_file"
            )
        if self.password_file is not None and not self.user:
            raise ConfigError("user in [keep], because password_file is set", "no user", "add it")


def _is_usable(upload: str) -> bool:
    parts = usable_url(upload, "http", "https")
    if parts is None or "@" in parts.netloc or parts.fragment:
        return False
    return not parts.query or NAME in parts.path + parts.query


class Keeper:
    """Decides which photos are kept, and keeps them.

    If the disk of the kept photos refuses writes, detections and alerts go on. A folder's photo is then not marked as
    decided on and not deleted, so that the next start of the agent decides on it again and keeps it.
    """

    def __init__(self, photos: KeptPhotos, settings: KeepSettings) -> None:
        self.photos, self._settings = photos, settings
        self._missed = 0
        self._has_staged = False
        self._trouble: str | None = None
        self._due = 0.0

    def keep(self, frame: Frame, decision: Decision, plots: Plots, model_sha256: str) -> Decision:
        """Returns the decision to store, with its kept photo, which is written now, if it is one to keep.

        Raises GroupTooLargeError if the decisions before must be stored first.
        """
        detection = decision.detection
        reason = self._reason(detection, plots)
        if reason is None:
            return decision
        try:
            kept = self.photos.stage(frame, detection, reason, model_sha256, held=reason == "alert")
        except GroupTooLargeError:
            raise
        except PhotoTooLargeError as error:
            self._missed += 1
            logger.warning("a photo is not kept: %s", error)
            return decision
        except (OSError, OutboxError) as error:
            self._missed += 1
            self._failed(error)
            return decision._replace(identity="")
        self._has_staged = True
        return decision._replace(kept=kept)

    def stored(self) -> None:
        """Called when the decisions that `keep` returned are stored."""
        try:
            self.photos.stored()
        except (OSError, OutboxError) as error:
            self._failed(error)
            return
        if self._trouble is not None and self._has_staged:
            logger.warning("photos can be kept again")
            self._trouble = None
        self._has_staged = False

    def follow(self, plots: Plots, *, now: bool = False) -> None:
        """Keeps the leaves of open alerts, and every 30 s tidies up; does nothing in between unless `now` is True."""
        clock_s, alerts = time.monotonic(), plots.alerts
        is_due = clock_s >= self._due
        try:
            if is_due:
                self._due = clock_s + _TIDY_EVERY_S
                self.photos.forget_missing()
            if is_due or now:
                earliest_s = time.time() - alerts.longest_window_s
                self.photos.release_held(alerts.open_classes, before_s=earliest_s)
        except (OSError, OutboxError) as error:
            self._failed(error)

    def state(self) -> dict[str, Any] | None:
        """Returns the entry `kept` of the agent's state; None if the history cannot be read."""
        try:
            found = self.photos.state()
        except OutboxError:
            return None
        return found | {"upload": bool(self._settings.upload), "missed": self._missed, "trouble": self._trouble}

    def _reason(self, detection: Detection, plots: Plots) -> Reason | None:
        settings, verdict = self._settings, detection.verdict
        if verdict == "unsure" and settings.unsure:
            return "unsure"
        if verdict == "unfamiliar" and settings.unfamiliar:
            return "unfamiliar"
        # The event id decides: a photo that is decided on again after a kill is chosen again.
        if verdict == "answer" and settings.one_in and int(detection.event_id[:8], 16) % settings.one_in == 0:
            return "sample"
        if settings.alert and verdict in ("answer", "unsure") and plots.alerts.counts(detection.plot, detection.label):
            return "alert"
        return None

    def _failed(self, error: OSError | OutboxError) -> None:
        reason = str((isinstance(error, OSError) and error.strerror) or error)
        if self._trouble is None:
            logger.error("photos cannot be kept in '%s' (%s): detections and alerts go on", self.photos.folder, reason)
        self._trouble = f"photos cannot be kept: {reason}"
