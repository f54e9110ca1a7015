"""The model that the agent runs now: from the slots of updates, tried, confirmed, or taken back."""

from __future__ import annotations

import filecmp
import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agridistill.edge.events import Detection, Frame
from agridistill.edge.updates.slots import CONFIRM_FRAMES, ModelSlots
from agridistill.edge.verdict.decider import Decider
from agridistill.edge.words import number_of
from agridistill.errors import AgriDistillError, EdgeError
from agridistill.runtime.backends import shipped_hint
from agridistill.runtime.predictor import Predictor

logger = logging.getLogger(__name__)

# Within one life a model on trial also has to keep the agent alive for so long; an orderly end counts, too.
_CONFIRM_S = 30.0


class CurrentModel:
    """Loads the model of the slots, and follows them when they switch.

    Args:
        slots: of the device.
        load: opens a model.
        create: makes a decider of it; raises where it is unfit here, such as a rule without its class.

    Raises:
        AgriDistillError: not even the first model can be loaded.
    """

    def __init__(
        self, slots: ModelSlots, load: Callable[[Path], Predictor], create: Callable[[Predictor], Decider]
    ) -> None:
        self._slots, self._load, self._create = slots, load, create
        self.refresh()
        if self._active.version and not _are_same(slots.first, self._active.path):
            logger.warning(
                "model version %d from %s runs, not --model %s (delete %s to start over)",
                self._active.version,
                slots.folder,
                slots.first,
                slots.folder,
            )

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
        """Loads the active model of the slots; one that cannot be loaded gives way to the last good one.

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
        """The detection of a frame; a model on trial that fails gives way to the last good one, which decides instead.

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
        # Frames that the quality gate refused do not count: the model did not see them.
        self._answered += detection.label is not None
        has_answered = self._active.frames + self._answered >= CONFIRM_FRAMES
        if not self._confirmed and has_answered and time.monotonic() - self._since >= _CONFIRM_S:
            self._slots.confirm(self._active.version)
            self._confirmed = True
        return detection

    def close(self) -> None:
        """Records an orderly end: a model on trial did not cause it.

        It is not recorded where photos came and the model answered none: a model that makes every photo unusable must
        be taken back.
        """
        if self._active.trial and (self._answered or not self._seen):
            self._slots.ended_well(self._active.version, self._answered)


def _are_same(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def require_model(path: Path) -> Path:
    """Checks that a model's file for devices exists, and returns it.

    Raises:
        EdgeError: it does not exist, or is a run folder.
    """
    if path.is_dir():
        remedy = f"agridistill export {path} --out leaf.onnx"
        raise EdgeError("an exported model (.onnx or .tflite)", f"the folder '{path}'", remedy)
    if not path.exists():
        got, remedy = f"'{path}', which does not exist", f"check --model{shipped_hint(path)}"
        raise EdgeError("an exported model or a shipped one", got, remedy)
    return path


class EarlierModels:
    """Counts the photos of the source that another model decided on before: those answers stand.

    Args:
        decided_by: the model of a photo by its identity: first 12 digits of its sha256, "" where unknown, None for a
            photo without a decision.
        current: the model that runs now.
    """

    def __init__(self, decided_by: Callable[[str], str | None], current: Callable[[], str]) -> None:
        self._decided_by, self._current = decided_by, current
        self._photos = Counter[str]()
        self._before = 0
        self._is_logged = False

    def seen(self, identity: str) -> bool:
        """Whether any model decided on a photo."""
        model = self._decided_by(identity)
        if model and model != self._current():
            self._photos[model] += 1
        return model is not None

    def idle(self) -> None:
        """Called where no photo waits: logs the number, once, when it no longer grows."""
        photos = self._photos.total()
        if photos and photos == self._before and not self._is_logged:
            self._is_logged = True
            logger.warning(
                "%s here decided on by another model before (%s): those answers stand; "
                "to have this model decide on them, name a new folder with --state",
                number_of(photos, "photo"),
                ", ".join(sorted(self._photos)),
            )
        self._before = photos
