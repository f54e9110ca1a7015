"""The model that the agent runs now: from the slots of updates, tried, confirmed, or taken back."""

from __future__ import annotations

import filecmp
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agridistill.edge.decisions.deciding import Decider
from agridistill.edge.events import Detection, Frame
from agridistill.edge.updates.slots import CONFIRM_FRAMES, ModelSlots
from agridistill.errors import AgriDistillError, EdgeError
from agridistill.runtime.predictor import Predictor
from agridistill.runtime.shipped import shipped_hint

logger = logging.getLogger(__name__)

# Within one life a model on trial has to keep the agent alive for so long, too; an orderly end shows the same.
_CONFIRM_S = 30.0


class CurrentModel:
    """Loads the model of the slots, and follows them when they switch.

    Args:
        slots: of the device.
        load: opens a model.
        create: makes a decider of it, and raises what makes it unfit here (a rule without its class).

    Raises:
        AgriDistillError: not even the first model can be loaded.
    """

    def __init__(
        self, slots: ModelSlots, load: Callable[[Path], Predictor], create: Callable[[Predictor], Decider]
    ) -> None:
        self._slots, self._load, self._create = slots, load, create
        self.refresh()
        self._warn_of_another_first()

    @property
    def info(self) -> dict[str, Any]:
        """Name, version, sha256 and path, for the agent's state."""
        manifest = self.decider.manifest
        return {
            "name": manifest.model,
            "version": self._active.version,
            "sha256": manifest.weights_sha256,
            "path": str(self._active.path),
        }

    def refresh(self) -> None:
        """Loads what the slots name now; what cannot be loaded is given up for the last good one.

        Raises:
            AgriDistillError: not even the first model can be loaded.
        """
        active = self._slots.start()
        while True:
            try:
                decider = self._create(self._load(active.path))
                break
            except AgriDistillError as error:
                if active.version == 0:
                    raise
                logger.error("model version %d cannot be used: %s", active.version, error)
                active = self._slots.give_up(active.version, str(error))
        self._active, self.decider = active, decider
        self._seen = self._answered = 0
        self._since = time.monotonic()
        self._confirmed = active.version == 0

    def decide(self, frame: Frame) -> Detection:
        """What the model says; one on trial that fails gives way to the last good one, which is asked instead.

        Raises:
            AgriDistillError: the first model fails.
        """
        while True:
            try:
                detection = self.decider.decide(frame)
                break
            except AgriDistillError as error:
                if self._active.version == 0 or self._confirmed:
                    raise
                logger.error("model version %d fails: %s", self._active.version, error)
                self._slots.give_up(self._active.version, str(error))
                self.refresh()
        self._seen += 1
        # What the quality gate refused says nothing of the model.
        self._answered += detection.label is not None
        if not self._confirmed and self._has_worked():
            self._slots.confirm(self._active.version)
            self._confirmed = True
        return detection

    def close(self) -> None:
        """Says, once, that the agent ends in an orderly way: a model on trial is not to blame for this end.

        Not where photos came and the model answered none: a model that makes every photo unusable must be taken back.
        """
        if self._active.trial and (self._answered or not self._seen):
            self._slots.ended_well(self._active.version, self._answered)

    def _has_worked(self) -> bool:
        answered = self._active.frames + self._answered
        return answered >= CONFIRM_FRAMES and time.monotonic() - self._since >= _CONFIRM_S

    def _warn_of_another_first(self) -> None:
        first, folder = self._slots.first, self._slots.folder
        if self._active.version and not _is_same(first, self._active.path):
            logger.warning(
                "model version %d from %s runs, not --model %s (delete %s to start over)",
                self._active.version,
                folder,
                first,
                folder,
            )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def require_model(path: Path) -> Path:
    """A model's file for devices.

    Raises:
        EdgeError: it is not there, or a run folder.
    """
    if path.is_dir():
        raise EdgeError(
            "an exported model (.onnx or .tflite)", f"the folder '{path}'", f"agridistill export {path} --out leaf.onnx"
        )
    if not path.exists():
        raise EdgeError(
            "an exported model or a shipped one",
            f"'{path}', which does not exist",
            f"check --model{shipped_hint(path)}",
        )
    return path
