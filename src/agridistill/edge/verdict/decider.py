"""From a frame to a detection: the quality gate, the model, and its verdict."""

from __future__ import annotations

import hashlib
import io
import uuid
from dataclasses import dataclass

from PIL import Image

from agridistill.edge.events import Detection, Frame, Verdict
from agridistill.edge.words import sendable
from agridistill.manifest import ModelManifest
from agridistill.preprocess import to_pixels
from agridistill.runtime.predictor import Predictor
from agridistill.runtime.verdict import Prediction, QualitySettings, quality_problem

_THUMBNAIL_PIXELS, _THUMBNAIL_QUALITY = 240, 80


@dataclass(frozen=True)
class Origin:
    """What all detections of an agent share: names of device and source, without secrets."""

    device: str
    source: str


class Decider:
    """Decides on frames with one model, behind the quality gate."""

    def __init__(self, predictor: Predictor, quality: QualitySettings, origin: Origin) -> None:
        self._predictor, self._quality, self._origin = predictor, quality, origin

    @property
    def manifest(self) -> ModelManifest:
        """Of the model."""
        return self._predictor.manifest

    @property
    def model_id(self) -> str:
        """First 12 digits of the model file's sha256, as in its detections."""
        return self.manifest.weights_sha256[:12]

    def decide(self, frame: Frame) -> Detection:
        """The detection of a frame; raises ModelError where the model's output is unusable."""
        pixels = to_pixels(Image.fromarray(frame.pixels), self.manifest.preprocessing)
        problem = quality_problem(pixels, self._quality)
        if problem:
            return self._detection(frame, "unusable", problem, None)
        # It has passed the gate, by the agent's own limits.
        prediction = self._predictor.predict(pixels, quality=None)
        return self._detection(frame, prediction.verdict, prediction.reason, prediction)

    def _detection(self, frame: Frame, verdict: Verdict, reason: str, prediction: Prediction | None) -> Detection:
        probabilities = prediction.probabilities if prediction else ()
        classes = self.manifest.classes
        return Detection(
            event_id=event_id(self._origin.device, frame),
            at_s=frame.at_s,
            device=self._origin.device,
            source=self._origin.source,
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
    """The same for the same photo: a photo that is decided on again after a kill is a recognised duplicate."""
    if not frame.identity:
        return uuid.uuid4().hex
    return hashlib.sha256(f"{device}\0{frame.identity}".encode()).hexdigest()[:32]


def thumbnail(frame: Frame) -> bytes:
    """A JPEG of at most 240 px, for the page; without the photo's metadata."""
    image = Image.fromarray(frame.pixels)
    image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    held = io.BytesIO()
    image.save(held, "JPEG", quality=_THUMBNAIL_QUALITY)
    return held.getvalue()
