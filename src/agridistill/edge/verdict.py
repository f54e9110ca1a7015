"""Turns a frame into a detection: the quality check, the model's verdict, and the choice of the model."""

from __future__ import annotations

import filecmp
import hashlib
import io
import logging
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from agridistill.edge.events import Detection, Frame, Verdict, sendable
from agridistill.edge.updates.slots import CONFIRM_FRAMES, ModelSlots
from agridistill.errors import AgriDistillError, EdgeError
from agridistill.manifest import ModelManifest
from agridistill.preprocess import to_pixels
from agridistill.runtime.backends import shipped_hint
from agridistill.runtime.predictor import Predictor
from agridistill.runtime.verdict import Prediction, QualitySettings, quality_problem

logger = logging.getLogger(__name__)

_THUMBNAIL_PIXELS, _THUMBNAIL_QUALITY = 240, 80
# A model on trial is confirmed only after it has run for this time; a clean end of the agent counts as well.
_CONFIRM_S = 30.0


class Decider:
    """Classifies frames with one model. A frame of poor quality is "unusable", and the model is not run on it.

    Each detection contains the names `device` and `source`; that of the source is without passwords.
    """

    def __init__(self, predictor: Predictor, quality: QualitySettings, *, device: str, source: str) -> None:
        self._predictor, self._quality, self._device, self._source = predictor, quality, device, source

    @property
    def manifest(self) -> ModelManifest:
        """The manifest of the model."""
        return self._predictor.manifest

    @property
    def model_id(self) -> str:
        """The model's id in detections: the first 12 hexadecimal digits of its file's sha256."""
        return self.manifest.weights_sha256[:12]

    def decide(self, frame: Frame) -> Detection:
        """Classifies one frame and returns its detection; raises ModelError if the model's output is not usable."""
        preprocessing, pixels = self.manifest.preprocessing, frame.pixels
        side = preprocessing.image_size
        if pixels.shape[:2] != (side, side):
            pixels = to_pixels(Image.fromarray(pixels), preprocessing)
        problem = quality_problem(pixels, self._quality)
        if problem:
            return self._detection(frame, "unusable", problem, None)
        # The frame has already passed the quality check above.
        prediction = self._predictor.predict_pixels(pixels, quality=None)
        return self._detection(frame, prediction.verdict, prediction.reason, prediction)

    def _detection(self, frame: Frame, verdict: Verdict, reason: str, prediction: Prediction | None) -> Detection:
        probabilities = prediction.probabilities if prediction else ()
        classes = self.manifest.classes
        return Detection(
            event_id=event_id(self._device, frame),
            at_s=frame.at_s,
            device=self._device,
            source=self._source,
            photo=sendable(frame.name),
            plot=sendable(frame.plot),
            model=self.model_id,
            verdict=verdict,
            reason=reason,
            label=prediction.label if prediction else None,
            probability=round(prediction.probability, 4) if prediction else None,
            probabilities={name: round(value, 4) for name, value in zip(classes, probabilities, strict=False)},
            taken_s=frame.taken_s,
        )


def event_id(device: str, frame: Frame) -> str:
    """Returns the id of a frame's detection: 32 hexadecimal digits, random for a live frame.

    For a file it is a hash of device and file. After a crash the agent may send a detection again: receivers recognise
    the duplicate by this id.
    """
    if not frame.identity:
        return uuid.uuid4().hex
    return hashlib.sha256(f"{device}\0{frame.identity}".encode()).hexdigest()[:32]


def thumbnail(frame: Frame) -> bytes:
    """Returns a frame as a small JPEG for the page: at most 240 pixels a side, without metadata."""
    image = Image.fromarray(frame.pixels)
    image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    held = io.BytesIO()
    image.save(held, "JPEG", quality=_THUMBNAIL_QUALITY)
    return held.getvalue()


class CurrentModel:
    """The model in use. If a model from an update fails, the last good model is loaded again.

    An updated model is on trial until it has classified 20 frames and has run for 30 s. `create` loads a model file;
    it raises AgriDistillError if the model cannot be used with these settings (a rule names a class that it lacks).
    """

    def __init__(self, slots: ModelSlots, create: Callable[[Path], Decider]) -> None:
        self._slots, self._create = slots, create
        self.refresh()
        version = self._active.version
        if version and not filecmp.cmp(slots.first, self._active.path, shallow=False):
            logger.warning(
                "an update, model version %d in %s, is used instead of --model %s; to use --model, delete %s",
                version,
                slots.folder,
                slots.first,
                slots.folder,
            )

    @property
    def info(self) -> dict[str, Any]:
        """The entry `model` of the agent's state: name, version, sha256 and path of the model."""
        manifest = self.decider.manifest
        return {
            "name": manifest.model,
            "version": self._active.version,
            "sha256": manifest.weights_sha256,
            "path": str(self._active.path),
        }

    def refresh(self) -> None:
        """Loads the active model, or else the last good one; raises AgriDistillError if `--model` fails as well."""
        active = self._slots.start()
        while True:
            try:
                self.decider = self._create(active.path)
                break
            except AgriDistillError as error:
                if active.version == 0:
                    raise
                # If the first model fails as well, the settings or this installation are wrong, not the version.
                self._create(self._slots.first)
                logger.error("model version %d cannot be used: %s", active.version, error)
                active = self._slots.give_up(active.version, str(error))
        self._active = active
        self._seen = self._answered = 0
        self._since = time.monotonic()
        self._confirmed = active.version == 0

    def decide(self, frame: Frame) -> Detection:
        """Classifies one frame. If a model on trial fails, the last good model is loaded and classifies the frame.

        Raises:
            AgriDistillError: a model that is not on trial fails.
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
        # Unusable frames do not count: the model was not run on them.
        self._answered += detection.label is not None
        has_answered = self._active.frames + self._answered >= CONFIRM_FRAMES
        if not self._confirmed and has_answered and time.monotonic() - self._since >= _CONFIRM_S:
            self._slots.confirm(self._active.version)
            self._confirmed = True
        return detection

    def __enter__(self) -> CurrentModel:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Records that the agent ended cleanly or by an AgriDistillError, which says nothing against a model on trial.

        It is not recorded if photos came but the model ran on none of them: a model that makes every photo unusable
        must not be kept.
        """
        is_orderly = error is None or isinstance(error, AgriDistillError)
        if is_orderly and self._active.trial and (self._answered or not self._seen):
            self._slots.ended_well(self._active.version, self._answered)


def require_model(path: Path) -> Path:
    """Returns the path of an exported model's file; raises EdgeError if there is none."""
    if path.is_dir():
        remedy = f"run agridistill export {path} --out leaf.onnx and use leaf.onnx"
        raise EdgeError("an exported model (.onnx or .tflite)", f"the folder '{path}'", remedy)
    if not path.exists():
        got, remedy = f"'{path}', which does not exist", f"check --model{shipped_hint(path)}"
        raise EdgeError("the file of an exported model, or the name of a shipped model", got, remedy)
    return path
