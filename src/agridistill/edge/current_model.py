"""The model that the agent runs now: from the slots of updates, tried, confirmed, or taken back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agridistill.edge.deciding import Decider
from agridistill.edge.events import Detection, Frame
from agridistill.edge.updates.slots import ModelSlots
from agridistill.errors import AgriDistillError, EdgeError
from agridistill.runtime.predictor import Predictor

logger = logging.getLogger(__name__)

# A model on trial has worked when it has decided on so many frames, and the agent has lived so long with it.
_CONFIRM_FRAMES, _CONFIRM_S = 20, 30.0


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
        self._frames = 0
        self._confirmed = False
        self.refresh()

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
        self._frames, self._since = 0, time.monotonic()
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
        if not self._confirmed:
            self._frames += 1
            if self._frames >= _CONFIRM_FRAMES and time.monotonic() - self._since >= _CONFIRM_S:
                self._slots.confirm()
                self._confirmed = True
        return detection


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
        raise EdgeError("an exported model", f"'{path}', which does not exist", "check --model")
    return path
