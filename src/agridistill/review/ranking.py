"""Orders photos by what a judgement on them is worth, in the background; photos that look alike come once."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agridistill.data.folder import UNLABELLED, PhotoFolder, Sample
from agridistill.data.inspection import groups_of_copies, identical_groups, inspect_photos, phashes_of
from agridistill.data.likeness import merge_groups, near_groups
from agridistill.errors import AgriDistillError, PhotoError
from agridistill.preprocess import softmax
from agridistill.progress import ProgressCallback
from agridistill.runtime.predictor import Computed, Predictor, compute_photos
from agridistill.runtime.verdict import Prediction, figures

logger = logging.getLogger(__name__)

# A photo that fails the quality gate is rarely worth a label.
_UNUSABLE = 2.0
# The distance to every photo that comes before is computed; for more photos this takes too long.
_MOST_SPREAD = 5000
_BATCH = 8


class Order:
    """The photos to judge, the most worthwhile first, and what is known about each; here in a fixed order.

    Attributes:
        work: the work that goes on in the background inside a `with` block: its name, and how many photos are done of
            how many. The name is "" at the end.
    """

    def __init__(self, predictions: Mapping[str, Prediction]) -> None:
        self._predictions = dict(predictions)
        self.work = ("", 0, 0)

    def __enter__(self) -> Order:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def photos(self) -> Sequence[str]:
        """All photos in their present order, without those that cannot be read or look like another one."""
        return list(self._predictions)

    def prediction(self, photo: str) -> Prediction | None:
        """Returns the model's prediction for a photo; None without a model, or if the photo cannot be read."""
        return self._predictions.get(photo)

    def teacher_label(self, photo: str) -> str | None:
        """Returns the teacher's class for a photo, if it is already known."""
        return None


class Ranking(Order):
    """Orders photos by worth, in a thread that works inside a `with` block; without a model, by path.

    The worth of a photo is a sum of its uncertainty (1 minus the margin between the two most probable classes), its
    unlikeness to the photos that the model learnt from, and the disagreement with the teacher (the total variation
    distance of their probabilities), each 0 to 1. At the end the distance to the photos that are judged already, or
    come before in the order, is added.
    """

    def __init__(
        self,
        root: Path,
        photos: Sequence[str],
        predictor: Predictor | None = None,
        teacher: Predictor | None = None,
        judged: Collection[str] = (),
    ) -> None:
        super().__init__({})
        self._root, self._predictor, self._teacher, self._judged = root, predictor, teacher, set(judged)
        self._photos = list(photos)
        self.work = ("starting", 0, len(self._photos))
        self._figures: dict[str, NDArray[np.float64]] = {}  # light, colour and texture of each photo, `(54,)`
        self._worths: dict[str, float] = {}
        self._taught: dict[str, NDArray[np.float64]] = {}
        self._left_out: set[str] = set()
        self._order: list[str] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ranking", daemon=True)

    def __enter__(self) -> Ranking:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def photos(self) -> Sequence[str]:
        """See `Order`; while the work is going on, photos that are not yet computed come last."""
        order = self._order
        if order is None:
            order = sorted(self._photos, key=lambda photo: -self._worth(photo))
        return [photo for photo in order if photo not in self._left_out]

    def prediction(self, photo: str) -> Prediction | None:
        """See `Order`; a photo that is not yet computed is computed now."""
        found = self._predictions.get(photo)
        if found is None and self._predictor is not None:
            with contextlib.suppress(PhotoError):
                found = self._predictor.predict(self._root / photo, top=3)
        return found

    def teacher_label(self, photo: str) -> str | None:
        """See `Order`."""
        taught = self._taught.get(photo)
        return self._teacher.manifest.classes[int(taught.argmax())] if self._teacher and taught is not None else None

    def _run(self) -> None:
        try:
            if self._predictor is not None:
                self._look(self._predictor)
            self._leave_out_copies()
            if self._teacher is not None:
                self._ask(self._teacher)
            self._order = self._spread()
        except _Stopped:
            return
        except (AgriDistillError, OSError) as error:
            # The page goes on with the order that it has.
            logger.warning("the photos are not ordered further: %s", error)
        self.work = ("", 0, 0)

    def _progress(self, stage: str) -> ProgressCallback:
        def update(done: int, total: int) -> None:
            if self._stop.is_set():
                raise _Stopped
            self.work = (stage, done, total)

        update(0, len(self._photos))
        return update

    def _look(self, model: Predictor) -> None:
        for photo, computed in _each(model, self._root, self._photos, self._progress("the model looks at the photos")):
            if isinstance(computed, PhotoError):
                self._left_out.add(photo)
            else:
                self._figures[photo] = figures(computed.pixels)
                self._predictions[photo] = found = model.judged(computed, top=3)
                self._worths[photo] = _worth_of(found)

    def _ask(self, teacher: Predictor) -> None:
        photos = [photo for photo in self._photos if photo not in self._left_out]
        for photo, computed in _each(teacher, self._root, photos, self._progress("the teacher looks at the photos")):
            if not isinstance(computed, PhotoError):
                self._taught[photo] = taught = softmax(computed.logits, teacher.manifest.temperature)
                if photo in self._predictions:
                    own = np.array(self._predictions[photo].probabilities)
                    self._worths[photo] += 0.5 * float(np.abs(taught - own).sum())

    def _leave_out_copies(self) -> None:
        samples = tuple(Sample(photo, UNLABELLED, photo) for photo in self._photos)
        records = inspect_photos(
            PhotoFolder(self._root, (), samples),
            remember=True,
            progress=self._progress("photos that look alike are searched"),
        )
        unusable = [(photo, record.error) for photo, record in records.items() if record.error is not None]
        if unusable:
            line = "photos that cannot be read are left out: %d, the first '%s' (%s)"
            logger.warning(line, len(unusable), *unusable[0])
        self._left_out |= {photo for photo, _ in unusable}
        groups = [
            *identical_groups(samples, records),
            *groups_of_copies(samples, records),
            *near_groups(phashes_of(samples, records)),
        ]
        for group in merge_groups(self._photos, groups):
            # A judged photo stays, so that it counts and can be undone.
            kept = [photo for photo in group if photo in self._judged] or [max(group, key=self._worth)]
            self._left_out |= set(group) - set(kept)

    def _worth(self, photo: str) -> float:
        return self._worths.get(photo, -2 * _UNUSABLE)

    def _spread(self) -> list[str]:
        """Orders greedily by worth plus the distance to the photos before; its unit is the spread of all photos."""
        photos = sorted(self._photos, key=lambda photo: -self._worth(photo))
        first = [photo for photo in photos if photo in self._figures][:_MOST_SPREAD]
        if len(first) < 2:
            return photos
        points = np.stack([self._figures[photo] for photo in first])
        points = (points - points.mean(axis=0)) / np.maximum(points.std(axis=0), 1e-6) / np.sqrt(points.shape[1])
        worth = np.array([self._worth(photo) for photo in first])
        nearest = np.ones(len(first))
        order: list[int] = []
        waiting = np.array([photo not in self._judged for photo in first])
        for at in np.flatnonzero(~waiting).tolist():
            nearest = np.minimum(nearest, np.linalg.norm(points - points[at], axis=1))
            order.append(at)
        while waiting.any():
            at = int(np.where(waiting, worth + nearest, -np.inf).argmax())
            nearest = np.minimum(nearest, np.linalg.norm(points - points[at], axis=1))
            waiting[at] = False
            order.append(at)
            if len(order) % 100 == 0 and self._stop.is_set():
                raise _Stopped
        chosen = {*first}
        return [first[at] for at in order] + [photo for photo in photos if photo not in chosen]


class _Stopped(Exception):  # noqa: N818 - no error
    """The page ends."""


def _worth_of(found: Prediction) -> float:
    """Returns uncertainty plus unlikeness to the training photos; less than 0 for a photo of poor quality."""
    first, second = (*sorted(found.probabilities, reverse=True), 0.0)[:2]
    return 1 - (first - second) + min(found.ood_score or 0.0, 2.0) / 2 - (_UNUSABLE if found.problem else 0.0)


def _each(
    model: Predictor, root: Path, photos: Sequence[str], progress: ProgressCallback
) -> Iterator[tuple[str, Computed | PhotoError]]:
    # An iterator and no list: a file's engine then computes with copies, and other threads can use the first one.
    computed = compute_photos(model.backend, (root / photo for photo in photos), batch_size=_BATCH)
    for done, (photo, (_, found)) in enumerate(zip(photos, computed, strict=True), start=1):
        yield photo, found
        progress(done, len(photos))
