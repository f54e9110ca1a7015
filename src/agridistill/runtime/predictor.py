"""Finds and reads photos, and predicts their labels and probabilities with a model."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agridistill.arguments import described, require_whole
from agridistill.errors import ConfigError, DataError, PhotoError
from agridistill.host import usable_cores
from agridistill.manifest import ModelManifest, Preprocessing
from agridistill.photo_files import counts_by_suffix, files_below, how_to_read, is_explanation, is_photo, passed_over
from agridistill.preprocess import (
    LARGE_PIXELS,
    Pixels,
    enough_pixels,
    photo_size,
    read_photo,
    softmax,
    to_pixels,
    upright_rgb,
)
from agridistill.runtime.backends import return_freed_memory
from agridistill.runtime.engines import Backend, checked_logits
from agridistill.runtime.verdict import Familiarity, Prediction, QualitySettings, quality_problem

if TYPE_CHECKING:
    from agridistill.runtime.explanation import Explanation, ExplanationMethod

logger = logging.getLogger(__name__)

PhotoSource = Path | str | bytes | NDArray[Any] | Image.Image
"""A file's path, a file's bytes, an upright RGB photo `(H, W, 3)` uint8, or a Pillow image of any mode."""
ReadPhoto = tuple[PhotoSource, Pixels | PhotoError]
_Result = TypeVar("_Result")

# Each thread holds a whole decoded photo in memory.
_MAX_THREADS = 8
# For this number of photos or fewer, creating copies of an engine would take longer than computing the photos.
_FEW = 2
# Number of photos that each thread reads ahead: photos differ in size, and no thread should wait for another.
_AHEAD = 3


def expand(paths: Iterable[Path]) -> list[Path]:
    """Returns the photos to predict: each file of `paths`, and in place of each folder its photos, sorted by path.

    Subfolders are searched as well. A warning gives the number of files in the folders that are not photos. A path that
    does not exist or cannot be read, and a folder without photos, is a DataError.
    """
    photos: list[Path] = []
    others: list[str] = []
    for path in paths:
        if path.is_dir():
            photos += _photos_below(path, others)
        elif path.exists():
            photos.append(path)
        else:
            raise DataError("photos or folders of photos", f"'{path}', which does not exist", "check the path")
    if others:
        logger.warning("ignored %s", passed_over(sorted(others)))
    return photos


def _photos_below(folder: Path, others: list[str]) -> list[Path]:
    """Returns the photos below a folder, sorted, and adds the paths of other files to `others`."""

    def refuse(error: OSError) -> None:
        raise DataError("a folder that can be read", f"'{error.filename}' ({error.strerror})", "change its permissions")

    files = [folder / f"{inside}{name}" for inside, names in files_below(folder, refuse) for name in names]
    non_photos = [str(file) for file in files if not is_photo(file.name)]
    images = [file for file in files if is_photo(file.name)]
    explanations = {file for file in images if is_explanation(file)}
    if explanations:
        first = min(file.name for file in explanations)
        logger.warning("ignored %d files that --explain wrote to '%s', such as '%s'", len(explanations), folder, first)
    photos = sorted(file for file in images if file not in explanations)
    if not photos:
        held = f" (it contains {counts_by_suffix(non_photos)})" if non_photos else ""
        remedy = how_to_read(non_photos, otherwise="pass another folder, or the photo files")
        raise DataError("a folder with photos", f"'{folder}' without photos{held}", remedy)
    others += non_photos
    return photos


def read_pixels(source: PhotoSource, preprocessing: Preprocessing) -> Pixels:
    """Reads one photo as the model's input, `(S, S, 3)` uint8, RGB; raises the errors of `read_source`."""
    return to_pixels(read_source(source, shorter_side=enough_pixels(preprocessing)), preprocessing)


def read_source(source: object, *, shorter_side: int | None = None) -> Image.Image:
    """Reads one photo, a `PhotoSource`, as an upright 8-bit RGB image.

    `shorter_side` is the number of pixels that the caller needs on the shorter side: large files are decoded at a
    reduced size to save time (see `read_photo`). None reads the full size. Arrays and Pillow images keep their size.

    Raises:
        PhotoError: the photo cannot be read, the array is not `(H, W, 3)` uint8, or `source` has another type.
    """
    if isinstance(source, np.ndarray):
        if source.ndim == 3 and source.shape[2] == 3 and source.dtype == np.uint8 and source.size:
            return Image.fromarray(source)
        got = f"{source.shape} {source.dtype}"
        raise PhotoError("an RGB array of shape (H, W, 3) and dtype uint8", got, _conversion(source))
    if isinstance(source, Image.Image):
        return upright_rgb(source)
    if isinstance(source, bytes | str | Path):
        if source == "":
            raise PhotoError("a photo's path", "an empty string", "pass the path of a file")
        return read_photo(source if isinstance(source, bytes) else Path(source), shorter_side=shorter_side)
    several = isinstance(source, list | tuple | set)
    raise PhotoError(
        "a photo as a path (str or Path), a file's bytes, an RGB array or a Pillow image",
        described(source),
        "pass several photos to predict_many" if several else "pass one of these",
    )


def _conversion(array: NDArray[Any]) -> str:
    """Returns the remedy for an array that is not an RGB photo: the code that converts an array of this shape."""
    if not array.size:
        return "pass an array with pixels"
    if array.ndim == 4:
        return "pass several photos to predict_many, or a single one as photos[0]"
    if array.ndim == 2:
        return "repeat the grey channel: np.stack([photo] * 3, axis=-1)"
    if array.ndim == 3 and array.shape[2] != 3 and array.shape[0] == 3:
        return "move the channels to the end: np.moveaxis(photo, 0, -1)"
    if array.ndim == 3 and array.shape[2] == 4:
        return "leave alpha out: photo[..., :3]"
    if array.ndim == 3 and array.shape[2] == 3 and np.issubdtype(array.dtype, np.floating):
        return "scale to 0..255 and convert: (255 * photo).astype(np.uint8) for values from 0 to 1"
    return "convert it to this shape and dtype"


def read_batches(
    sources: Iterable[PhotoSource], preprocessing: Preprocessing, *, batch_size: int
) -> Iterator[list[ReadPhoto]]:
    """Reads photos and yields lists of up to `batch_size` pairs (source, pixels), in the order of `sources`.

    `pixels` is `(S, S, 3)` uint8, or the PhotoError of a photo that cannot be read. At most two batches are in memory:
    the one in use and the next. Only one photo of more than 25 million pixels is decoded at a time.
    """
    photos = _in_threads(_reader(preprocessing), sources, threads=_threads(), ahead=batch_size)
    while batch := list(itertools.islice(photos, batch_size)):
        yield batch


class Computed(NamedTuple):
    """What a model computed for a photo."""

    pixels: Pixels  # `(S, S, 3)` uint8
    logits: NDArray[np.float32]  # `(K,)` float32


ComputedPhoto = tuple[PhotoSource, Computed | PhotoError]


def compute_photos(backend: Backend, sources: Iterable[PhotoSource], *, batch_size: int) -> Iterator[ComputedPhoto]:
    """Reads photos, computes their logits, and yields pairs (source, result) in the order of `sources`.

    The result is the PhotoError of a photo that cannot be read. A model that returns NaN, infinity or logits of a wrong
    shape is a ModelError.

    The engine of a file works in several threads: each reads a photo and computes its logits with a copy of the engine
    that has a single thread. A run folder's network computes `batch_size` photos at a time while threads read the next.
    """
    copies = getattr(backend, "copies", None)
    if copies is None or (isinstance(sources, Sequence) and len(sources) <= _FEW):
        for batch in read_batches(sources, backend.manifest.preprocessing, batch_size=batch_size):
            readable = [pixels for _, pixels in batch if not isinstance(pixels, PhotoError)]
            rows = iter(checked_logits(backend, np.stack(readable)) if readable else ())
            for source, pixels in batch:
                yield source, pixels if isinstance(pixels, PhotoError) else Computed(pixels, next(rows))
        return
    threads = _threads(getattr(backend, "threads", 0))
    idle: SimpleQueue[Backend] = SimpleQueue()
    for one in copies(threads):
        idle.put(one)
    read = _reader(backend.manifest.preprocessing)

    def compute(source: PhotoSource) -> ComputedPhoto:
        _, pixels = read(source)
        if isinstance(pixels, PhotoError):
            return source, pixels
        engine = idle.get()
        try:
            return source, Computed(pixels, checked_logits(engine, pixels[None])[0])
        finally:
            idle.put(engine)

    yield from _in_threads(compute, sources, threads=threads, ahead=_AHEAD * threads)


def _reader(preprocessing: Preprocessing) -> Callable[[PhotoSource], ReadPhoto]:
    """Returns a function that reads one photo or returns its error, and decodes only one large photo at a time."""
    one_large = threading.Lock()

    def read(source: PhotoSource) -> ReadPhoto:
        try:
            with one_large if _is_large(source) else contextlib.nullcontext():
                return source, read_pixels(source, preprocessing)
        except PhotoError as error:
            return source, error

    return read


def _threads(wanted: int = 0) -> int:
    return min(_MAX_THREADS, wanted or usable_cores())


def _in_threads(
    work: Callable[[PhotoSource], _Result], items: Iterable[PhotoSource], *, threads: int, ahead: int
) -> Iterator[_Result]:
    """Yields `work(item)` for each item in order; the threads work at most `ahead` items ahead of the caller."""
    waiting: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="photo-reader")
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _is_large(source: PhotoSource) -> bool:
    if not isinstance(source, bytes | str | Path):
        return False
    try:
        width, height = photo_size(source if isinstance(source, bytes) else Path(source))
    except PhotoError:
        return False  # reading it raises the error
    return width * height > LARGE_PIXELS


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
        return self.predict_pixels(pixels, top=top, quality=quality)

    def predict_many(
        self,
        sources: Iterable[PhotoSource],
        *,
        top: int = 1,
        batch_size: int = 8,
        quality: QualitySettings | None = _QUALITY,
    ) -> Iterator[PhotoResult]:
        """Predicts photos one after another and yields the results in the same order.

        A photo that cannot be read yields a result with an error. Memory does not depend on the number of photos. An
        exported file computes on all cores, or with as many threads as `load` was given.

        Args:
            sources: iterable of photos as for `predict`; types may be mixed, and it may be endless.
            top: number of most probable classes to return, at least 1.
            batch_size: number of photos that the network of a run folder computes at once, at least 1; more than 8 may
                be faster on a GPU. Exported files compute photos one by one.
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

        `source` is a photo as for `predict`. For a run folder, and for a file exported with attention, the map is the
        network's attention. For other files, parts of the photo are covered with grey in turn, which takes 100 to 150
        predictions.

        Raises:
            PhotoError: the photo cannot be read.
            ModelError: the model returns NaN, infinity or logits of a wrong shape.
        """
        # Pillow's drawing would make the first answer of each command later.
        from agridistill.runtime.explanation import Explanation, attention_map, occlusion_map, seen_part

        preprocessing = self.manifest.preprocessing
        photo = read_source(source, shorter_side=enough_pixels(preprocessing))
        pixels = to_pixels(photo, preprocessing)
        prediction = self.predict_pixels(pixels)
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
        computed = compute_photos(self.backend, sources, batch_size=batch_size)
        for number, (source, found) in enumerate(computed, start=1):
            name = str(source) if isinstance(source, Path | str) else f"photo {number}"
            if isinstance(found, PhotoError):
                yield PhotoResult(name, None, str(found))
            else:
                yield PhotoResult(name, self.judged(found, top=top, quality=quality), None)
            if number % _PHOTOS_BETWEEN_RETURNS == 0:
                return_freed_memory()

    def predict_pixels(self, pixels: Pixels, *, top: int = 1, quality: QualitySettings | None = _QUALITY) -> Prediction:
        """Predicts one photo that is the model's input already, `(S, S, 3)` uint8, as `read_pixels` returns it.

        Raises:
            ModelError: the model returns NaN, infinity or logits of a wrong shape.
        """
        computed = Computed(pixels, checked_logits(self.backend, pixels[None])[0])
        return self.judged(computed, top=top, quality=quality)

    def judged(self, computed: Computed, *, top: int = 1, quality: QualitySettings | None = _QUALITY) -> Prediction:
        """Returns the prediction for a photo whose logits `compute_photos` has computed with this model."""
        pixels, threshold = computed.pixels, self.manifest.threshold
        probabilities = softmax(computed.logits, self.manifest.temperature)
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
