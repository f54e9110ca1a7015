"""Predictor: photos in, labels with probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agridistill.arguments import described, require_whole
from agridistill.errors import ConfigError, PhotoError
from agridistill.manifest import ModelManifest
from agridistill.preprocess import Pixels, enough_pixels, softmax, to_pixels
from agridistill.runtime.allocator import return_freed_memory
from agridistill.runtime.backends import Backend, checked_logits
from agridistill.runtime.explanation import (
    Explanation,
    ExplanationMethod,
    attention_map,
    occlusion_map,
    seen_part,
)
from agridistill.runtime.familiarity import Familiarity
from agridistill.runtime.quality import QualitySettings, quality_problem
from agridistill.runtime.reading import PhotoSource, read_batches, read_pixels, read_source
from agridistill.runtime.verdict import UNFAMILIAR, Verdict, unsure_reason, verdict_of, verdict_words

# Some milliseconds of a processor, every few seconds of a stream.
_PHOTOS_BETWEEN_CLEARINGS = 500
_QUALITY = QualitySettings()


@dataclass(frozen=True)
class Prediction:
    """What the model says about one photo.

    Attributes:
        label: the most probable class.
        probability: of that class, 0 to 1, calibrated by the manifest's temperature.
        top: the most probable classes with their probabilities, best first.
        abstained: the probability is below the manifest's threshold: the label is a guess, not an answer.
        strangeness: how far the photo is from the training photos: above 1 it is unlike them, and the label means
            nothing. None where the manifest does not tell what they look like.
        probabilities: of all classes, in the manifest's order.
        problem: what the quality gate found wrong with the photo, such as "too dark"; "" where nothing is.
        threshold: of the manifest.
    """

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    abstained: bool
    strangeness: float | None = None
    probabilities: tuple[float, ...] = ()
    problem: str = ""
    threshold: float = 0.0

    @property
    def unfamiliar(self) -> bool:
        """Whether the photo is unlike those that the model learnt from."""
        return self.strangeness is not None and self.strangeness > 1

    @property
    def verdict(self) -> Verdict:
        """How far the label may be believed: "answer", "unsure", "unfamiliar" or "unusable"."""
        return verdict_of(self.problem, unfamiliar=self.unfamiliar, abstained=self.abstained)

    @property
    def reason(self) -> str:
        """In words, why it is no answer; "" for an answer."""
        doubts = {"unusable": self.problem, "unfamiliar": UNFAMILIAR}
        if self.verdict == "unsure":
            return unsure_reason(self.probability, self.threshold)
        return doubts.get(self.verdict, "")

    @property
    def words(self) -> str:
        """The verdict as people read it: "Late blight 93 %", "unsure (Late blight 41 %)", "unusable: too dark"."""
        return verdict_words(self.verdict, self.reason, self.top)


@dataclass(frozen=True)
class PhotoResult:
    """One photo of many: its prediction, or why there is none.

    Attributes:
        name: the path as it was given, or the photo's place ("photo 1") where there is no path.
        prediction: None where the photo could not be read.
        error: one line; None where the photo could be read.
    """

    name: str
    prediction: Prediction | None
    error: str | None


class Predictor:
    """Predicts photos with any backend.

    Args:
        backend: the model, ready to run.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        known = backend.manifest.familiarity
        self._familiarity = Familiarity.from_json(known) if known else None

    @property
    def manifest(self) -> ModelManifest:
        """The model's contract."""
        return self.backend.manifest

    def predict(self, source: PhotoSource, *, top: int = 1, quality: QualitySettings | None = _QUALITY) -> Prediction:
        """Predicts one photo.

        Args:
            source: a path as `str` or `Path`, a file's bytes, an RGB array `(H, W, 3)` uint8, or a Pillow image.
            top: how many of the most probable classes to name, at least 1.
            quality: limits of the quality gate; None asks for none.

        Raises:
            PhotoError: the photo cannot be read, or is none of these types.
            ConfigError: `top` is no whole number of at least 1.
            ModelError: the model's output is unusable.
        """
        require_whole("top", top, at_least=1)
        pixels = read_pixels(source, self.manifest.preprocessing)
        return self._predictions(pixels[None], top, quality)[0]

    def predict_many(
        self,
        sources: Iterable[PhotoSource],
        *,
        top: int = 1,
        batch_size: int = 8,
        quality: QualitySettings | None = _QUALITY,
    ) -> Iterator[PhotoResult]:
        """Predicts photos as a stream, in their order; an unreadable photo gives an error in its place.

        Memory is bounded by `batch_size`, whatever the number of photos; a GPU may gain from more at once, a processor
        does not.

        Args:
            sources: photos as for `predict`, of any types side by side; any iterable, also an endless one.
            top: as for `predict`.
            batch_size: photos that the model gets at once, at least 1.
            quality: as for `predict`.

        Raises:
            ConfigError: at the call: `sources` is one photo or no iterable, or a number is out of range.
            ModelError: the model's output is unusable.
        """
        require_whole("top", top, at_least=1)
        require_whole("batch_size", batch_size, at_least=1)
        one_photo = isinstance(sources, str | bytes | Path | Image.Image) or getattr(sources, "ndim", 1) in (2, 3)
        if one_photo or not isinstance(sources, Iterable):
            remedy = "put it into a list, or call predict" if one_photo else "pass a list"
            raise ConfigError("a list of photos for 'sources'", described(sources), remedy)
        return self._answers(sources, top, batch_size, quality)

    def explain(self, source: PhotoSource) -> Explanation:
        """Finds out where the model looked on a photo: a map, and a picture of it.

        The network of a run folder gives its attention map. For an exported file, parts of the photo are covered in
        turn: about 100 predictions.

        Args:
            source: as for `predict`.

        Raises:
            PhotoError: the photo cannot be read.
            ModelError: the model's output is unusable.
        """
        preprocessing = self.manifest.preprocessing
        photo = read_source(source, shorter_side=enough_pixels(preprocessing))
        pixels = to_pixels(photo, preprocessing)
        prediction = self._predictions(pixels[None], 1, _QUALITY)[0]
        method: ExplanationMethod = "attention"
        found = attention_map(self.backend, pixels)
        if found is None:
            method = "occlusion"
            found = occlusion_map(self.backend, pixels, self.manifest.classes.index(prediction.label))
        path = Path(source) if isinstance(source, str | Path) else None
        return Explanation(prediction, found, method, photo, seen_part(photo.size, preprocessing), path)

    def _answers(
        self, sources: Iterable[PhotoSource], top: int, batch_size: int, quality: QualitySettings | None
    ) -> Iterator[PhotoResult]:
        number = cleared = 0
        for batch in read_batches(sources, self.manifest.preprocessing, batch_size=batch_size):
            if number - cleared >= _PHOTOS_BETWEEN_CLEARINGS:
                return_freed_memory()
                cleared = number
            readable = [pixels for _, pixels in batch if not isinstance(pixels, PhotoError)]
            predictions = iter(self._predictions(np.stack(readable), top, quality) if readable else [])
            for source, pixels in batch:
                number += 1
                name = str(source) if isinstance(source, Path | str) else f"photo {number}"
                if isinstance(pixels, PhotoError):
                    yield PhotoResult(name, None, str(pixels))
                else:
                    yield PhotoResult(name, next(predictions), None)

    def _predictions(self, pixels: Pixels, top: int, quality: QualitySettings | None) -> list[Prediction]:
        probabilities = softmax(checked_logits(self.backend, pixels), self.manifest.temperature)
        return [
            self._prediction(row, photo, top, quality_problem(photo, quality) if quality else "")
            for row, photo in zip(probabilities, pixels, strict=True)
        ]

    def _prediction(self, probabilities: NDArray[np.float64], pixels: Pixels, top: int, problem: str) -> Prediction:
        best = np.argsort(-probabilities, kind="stable")[:top]
        ranked = tuple((self.manifest.classes[index], float(probabilities[index])) for index in best)
        label, probability = ranked[0]
        return Prediction(
            label,
            probability,
            ranked,
            # A threshold of 1 answers nothing, not even what is rounded to certainty.
            abstained=probability < self.manifest.threshold or self.manifest.threshold >= 1,
            strangeness=self._familiarity.strangeness(pixels) if self._familiarity else None,
            probabilities=tuple(probabilities.tolist()),
            problem=problem,
            threshold=self.manifest.threshold,
        )
