"""Predicts the labels of photos, with their probabilities."""

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
from agridistill.runtime.backends import Backend, checked_logits, return_freed_memory
from agridistill.runtime.explanation import Explanation, ExplanationMethod, attention_map, occlusion_map, seen_part
from agridistill.runtime.reading import PhotoSource, read_batches, read_pixels, read_source
from agridistill.runtime.verdict import Familiarity, Prediction, QualitySettings, quality_problem

# Returning freed memory to the system takes some milliseconds, so it happens once in this many photos.
_PHOTOS_BETWEEN_RETURNS = 500
_QUALITY = QualitySettings()


@dataclass(frozen=True)
class PhotoResult:
    """What `Predictor.predict_many` yields for one photo: its prediction, or an error if it could not be read."""

    name: str  # the path that the caller passed, or the photo's position ("photo 1") if it has no path
    prediction: Prediction | None  # None if the photo could not be read
    error: str | None  # one line; None if the photo could be read


class Predictor:
    """Predicts the classes of photos with an opened model (`backend`); `agridistill.load` makes one."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        known = backend.manifest.familiarity
        self._familiarity = Familiarity.from_json(known) if known else None

    @property
    def manifest(self) -> ModelManifest:
        """The model's manifest: its classes, preprocessing, temperature and threshold."""
        return self.backend.manifest

    def predict(self, source: PhotoSource, *, top: int = 1, quality: QualitySettings | None = _QUALITY) -> Prediction:
        """Predicts one photo.

        Args:
            source: a path as `str` or `Path`, the bytes of a file, an RGB array `(H, W, 3)` uint8, or a Pillow image.
            top: number of most probable classes to return, at least 1.
            quality: limits of the check for dark, overexposed, blurred or leafless photos; None skips this check.

        Raises:
            PhotoError: the photo cannot be read, or `source` has another type.
            ConfigError: `top` is not a whole number of at least 1.
            ModelError: the model returns NaN, infinity or logits of a wrong shape.
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
        """Predicts photos one after another and yields the results in the same order.

        A photo that cannot be read yields a result with an error. Memory depends on `batch_size` only, not on the
        number of photos.

        Args:
            sources: iterable of photos as for `predict`; types may be mixed, and it may be endless.
            top: number of most probable classes to return, at least 1.
            batch_size: number of photos that the model computes at once, at least 1; more than 8 may be faster on a
                GPU, but not on a CPU.
            quality: as for `predict`.

        Raises:
            ConfigError: before the first photo is read: `sources` is a single photo or not iterable, or a number is
                out of range.
            ModelError: the model returns NaN, infinity or logits of a wrong shape.
        """
        require_whole("top", top, at_least=1)
        require_whole("batch_size", batch_size, at_least=1)
        one_photo = isinstance(sources, str | bytes | Path | Image.Image) or getattr(sources, "ndim", 1) in (2, 3)
        if one_photo or not isinstance(sources, Iterable):
            remedy = "put it into a list, or call predict" if one_photo else "pass a list"
            raise ConfigError("a list of photos for 'sources'", described(sources), remedy)
        return self._results(sources, top, batch_size, quality)

    def explain(self, source: PhotoSource) -> Explanation:
        """Finds where the model looked on a photo, as a map that can be saved as a picture.

        `source` is a photo as for `predict`. For a run folder, the map is the network's attention. For an exported
        file, parts of the photo are covered with grey in turn, which takes 100 to 150 predictions.

        Raises:
            PhotoError: the photo cannot be read.
            ModelError: the model returns NaN, infinity or logits of a wrong shape.
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

    def _results(
        self, sources: Iterable[PhotoSource], top: int, batch_size: int, quality: QualitySettings | None
    ) -> Iterator[PhotoResult]:
        number = returned = 0
        for batch in read_batches(sources, self.manifest.preprocessing, batch_size=batch_size):
            if number - returned >= _PHOTOS_BETWEEN_RETURNS:
                return_freed_memory()
                returned = number
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
        rows = softmax(checked_logits(self.backend, pixels), self.manifest.temperature)
        return [self._prediction(row, photo, top, quality) for row, photo in zip(rows, pixels, strict=True)]

    def _prediction(
        self, probabilities: NDArray[np.float64], pixels: Pixels, top: int, quality: QualitySettings | None
    ) -> Prediction:
        threshold = self.manifest.threshold
        best = np.argsort(-probabilities, kind="stable")[:top]
        ranked = tuple((self.manifest.classes[index], float(probabilities[index])) for index in best)
        label, probability = ranked[0]
        return Prediction(
            label,
            probability,
            ranked,
            # With a threshold of 1 the model never answers, not even if a probability is rounded to 1.
            abstained=probability < threshold or threshold >= 1,
            ood_score=self._familiarity.ood_score(pixels) if self._familiarity else None,
            probabilities=tuple(probabilities.tolist()),
            problem=quality_problem(pixels, quality) if quality else "",
            threshold=threshold,
        )
