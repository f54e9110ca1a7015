"""What the page of a review shows and does, without HTTP."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agridistill.errors import DataError
from agridistill.preprocess import read_photo
from agridistill.review.record import LABEL, SPECIAL, UNDO, Action, Choice, Judgements, ReviewLog, now
from agridistill.runtime.predictor import Predictor
from agridistill.runtime.verdict import Prediction, percent_words, plain_label

if TYPE_CHECKING:
    from agridistill.review.ranking import Order  # needs scipy

_LISTED = 6
# Enough for the largest zoom on most screens; smaller photos keep their size.
_SHORTER_SIDE, _QUALITY = 1200, 88
_OVERLAY_PX = 900
_SIDECAR_BYTES = 65_536


@dataclass
class Review:
    """One reviewer's review of a folder; its methods may be called from several threads."""

    root: Path
    order: Order
    classes: Sequence[str]  # to choose from
    log: ReviewLog
    reviewer: str
    explainer: Predictor | None = None  # the model that shows where it looked
    given: Mapping[str, str] = field(default_factory=dict)  # photo -> its present label

    def __post_init__(self) -> None:
        self._lock, self._explaining = threading.Lock(), threading.Lock()
        self._judgements = Judgements(self.log.read())
        self._mine = self._judgements.of(self.reviewer)
        self._path_of = {_id(photo): photo for photo in self.order.photos}

    def state(self) -> dict[str, Any]:
        """Returns what does not change: reviewer, folder, classes, and whether a model can be explained."""
        return {
            "reviewer": self.reviewer,
            "classes": [{"label": label, "words": plain_label(label)} for label in self.classes],
            "special": list(SPECIAL),
            "explains": self.explainer is not None,
            "folder": self.root.resolve().name,
        }

    def queue(self, held: Collection[str] = ()) -> dict[str, Any]:
        """Returns the next photos, without those that the page holds already (their ids), and how far the review is."""
        photos = self.order.photos
        with self._lock:
            waiting = [photo for photo in photos if photo not in self._mine]
        listed = [photo for photo in waiting if _id(photo) not in held][:_LISTED]
        stage, done, total = self.order.work
        return {
            "photos": [self._described(photo) for photo in listed],
            "left": len(waiting),
            "total": len(photos),
            "work": {"stage": stage, "done": done, "total": total},
        }

    def choose(self, photo_id: str, verdict: str, label: str) -> None:
        """Records a choice. The same choice again is not recorded twice, so that a request can be repeated.

        An unknown photo, verdict or class is a DataError; an OSError says that the choice cannot be written.
        """
        photo = self._path(photo_id)
        known = label in self.classes if verdict == LABEL else verdict in SPECIAL and not label
        if not known:
            raise DataError("a known verdict, and one of the classes", f"'{verdict}', '{label}'", "reload the page")
        with self._lock:
            if self._mine.get(photo) != Choice(verdict, label):
                self._record(Action(now(), self.reviewer, verdict, label, photo))

    def undo(self, photo_id: str | None = None) -> dict[str, Any] | None:
        """Takes back the reviewer's last choice and returns its photo; None if there is nothing to take back.

        With `photo_id`, a last choice on another photo is kept, so that a request can be repeated. Raises an OSError if
        the action cannot be written.
        """
        with self._lock:
            # Only choices on photos that the page shows: others would be lost unseen.
            shown = [
                action.photo for action in self._judgements.valid(self.reviewer) if _id(action.photo) in self._path_of
            ]
            if not shown or (photo_id is not None and _id(shown[-1]) != photo_id):
                return None
            self._record(Action(now(), self.reviewer, UNDO, "", shown[-1]))
        return self._described(shown[-1])

    def _record(self, action: Action) -> None:
        self.log.append([action])
        self._judgements.add(action)
        self._mine = self._judgements.of(self.reviewer)

    def jpeg(self, photo_id: str) -> bytes:
        """Returns a photo for the page, upright and without its metadata; a DataError if it cannot be read."""
        image = read_photo(self.root / self._path(photo_id), shorter_side=_SHORTER_SIDE)
        factor = min(image.size) // _SHORTER_SIDE
        return _jpeg(image.reduce(factor) if factor > 1 else image)

    def explanation(self, photo_id: str) -> tuple[bytes, str] | None:
        """Returns a picture of where the model looked, and what its colours mean; None without a model."""
        photo = self._path(photo_id)
        if self.explainer is None:
            return None
        with self._explaining:
            found = self.explainer.explain(self.root / photo)
        return _jpeg(found.overlay(_OVERLAY_PX)), found.caption.removeprefix("Right: ")

    def _path(self, photo_id: str) -> str:
        photo = self._path_of.get(photo_id)
        if photo is None:
            raise DataError("a photo of this review", f"'{photo_id}'", "reload the page")
        return photo

    def _described(self, photo: str) -> dict[str, Any]:
        found = self.order.prediction(photo)
        teacher, given = self.order.teacher_label(photo), self.given.get(photo)
        return {
            "id": _id(photo),
            "name": photo,
            "guess": _guess(found) if found is not None else None,
            "teacher": plain_label(teacher) if teacher is not None else None,
            "given": plain_label(given) if given is not None else None,
            "kept": _sidecar(self.root / photo),
        }


def _id(photo: str) -> str:
    # Not the position: a page that stays open over a restart must not label another photo.
    return hashlib.blake2b(photo.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _guess(found: Prediction) -> dict[str, Any]:
    notes = {"unusable": found.problem, "unfamiliar": "unlike the training photos", "unsure": "unsure", "answer": ""}
    top = [
        {"label": label, "words": plain_label(label), "probability": probability, "percent": percent_words(probability)}
        for label, probability in found.top
    ]
    return {"top": top, "note": notes[found.verdict]}


def _sidecar(photo: Path) -> dict[str, str]:
    """Returns plot, time and reason from the file that the agent writes beside a photo that it keeps; {} without it."""
    try:
        with photo.with_suffix(".json").open("rb") as file:
            document = json.loads(file.read(_SIDECAR_BYTES))
        return {key: str(document[key]) for key in ("plot", "time", "reason") if document.get(key)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _jpeg(image: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=_QUALITY)
    return content.getvalue()
