"""The folder of kept photos: `EVENT_ID.jpg` with the sidecar `EVENT_ID.json`, within a limit of bytes.

A photo is written under a hidden name (`.EVENT_ID.jpg`) before its detection is stored. The history stores detection
and kept photo in one transaction. Only then the photo is renamed, and its sidecar is written last. So after a kill at
any moment the history knows what belongs into the folder, and the next start completes it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agridistill.edge.events import Detection, Frame
from agridistill.edge.keep.photo import Reason, look_of, photo_content, sidecar
from agridistill.edge.store import add_to_counter, file_identity
from agridistill.edge.store.history import History, Kept, add_kept
from agridistill.edge.store.outbox import Message, OutboxCounts, Pending
from agridistill.errors import OutboxError
from agridistill.preprocess import read_photo
from agridistill.storage import json_text, replacing, sync_folder, write_text

logger = logging.getLogger(__name__)

PHOTO, SIDECAR = ".jpg", ".json"
_HIDDEN = re.compile(r"\.([0-9a-f]{32})\.jpg")
_VISIBLE = re.compile(r"([0-9a-f]{32})\.(jpg|json)")
_UNFINISHED = re.compile(r"\.\.?[0-9a-f]{32}\.(jpg|json)\..*\.part")
_THUMB_PIXELS = 64  # to compute the look of a photo that an earlier database knew
# Photos that differ in at most so many of 64 bits count as alike. Thinning compares only so many of the oldest.
_ALIKE_BITS, _MOST_COMPARED = 10, 512
# Leaves that no alert needs yet are removed first as soon as they take more than this share of the limit.
_HELD_SHARE = 0.1
_DROPPED, _UPLOADED = "kept_dropped", "kept_uploaded"
# Both begin with `uploaded`, for the index.
_WAITING, _HELD = "uploaded = 0 AND held = 0", "uploaded = 0 AND held = 1"


class PhotoTooLargeError(OutboxError):
    """A photo is larger than the limit for all kept photos."""


class GroupTooLargeError(OutboxError):
    """The photos of a group that is not stored yet leave no room for another one; it fits once they are stored."""


class _Row(NamedTuple):
    event_id: str
    size_bytes: int
    look: int


class KeptPhotos:
    """Photos and sidecars in a folder, and their rows in the history; several threads can use it.

    Opening it completes or removes what a kill left behind. Files of other names are never touched. People may move
    photos out of the folder at any time.

    Args:
        max_bytes: largest size of all photos and sidecars; beyond it, old and alike photos are removed.
        is_away: whether the folder's disk is not mounted; nothing is then kept, removed or forgotten.

    Raises:
        OSError: the folder cannot be created or listed.
        OutboxError: the history cannot be read or written.
    """

    def __init__(
        self,
        history: History,
        folder: Path,
        max_bytes: int,
        *,
        location: bool = False,
        delete_uploaded: bool = False,
        is_away: bool = False,
    ) -> None:
        self.folder = folder
        self._history, self._max_bytes, self._location = history, max_bytes, location
        self._delete_uploaded = delete_uploaded
        # Always taken before the lock of the history.
        self._files = threading.RLock()
        self._staged: dict[str, Kept] = {}  # written, but their detections are not stored yet
        self._unpublished: dict[str, str] = {}  # event id: sidecar; stored, but the files do not have their names yet
        self._identity: tuple[int, int] | None = None
        if is_away:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._identity = file_identity(folder)
        self._recover()
        self.publish()
        with self._files:
            self._make_room(0)

    def stage(
        self, frame: Frame, detection: Detection, reason: Reason, model_sha256: str, *, held: bool
    ) -> Kept | None:
        """Writes the photo of a detection that is about to be stored, under a hidden name, and makes room for it.

        Returns None if the photo is kept already.

        Raises:
            PhotoTooLargeError: the photo is larger than the limit.
            GroupTooLargeError: it fits only after `stored`.
            OSError: the disk is full or the folder is away.
            OutboxError: the history cannot be written.
        """
        event_id = detection.event_id
        if self._names("event_id = ?", event_id):
            return None
        content = photo_content(frame, location=self._location)
        document = json_text(sidecar(detection, reason, model_sha256, content))
        kept = Kept(document, len(content) + len(document.encode()), look_of(frame.pixels), held)
        expected, got = f"photos of at most {self._max_bytes:,} bytes", f"a photo of {kept.size_bytes:,} bytes"
        if kept.size_bytes > self._max_bytes:
            raise PhotoTooLargeError(expected, got, "raise max_megabytes in [keep]")
        if self._staged_bytes + kept.size_bytes > self._max_bytes:
            raise GroupTooLargeError(f"{expected} in a group", got, "store the group first")
        with self._files:
            self._require_folder()
            self._make_room(kept.size_bytes)

            def write() -> None:
                with replacing(self._hidden(event_id)) as temporary:
                    temporary.write_bytes(content)

            self._with_room(kept.size_bytes, write)
            sync_folder(self.folder)
            self._staged[event_id] = kept
        return kept

    def stored(self) -> None:
        """Publishes all staged photos: call it when their detections and rows are stored."""
        with self._files:
            self._unpublished |= {name: kept.document for name, kept in self._staged.items() if not kept.held}
            self._staged.clear()
        self.publish()

    def publish(self) -> None:
        """Gives stored photos their names and writes their sidecars; raises OSError if that must be tried again."""
        with self._files:
            if not self._unpublished:
                return
            self._require_folder()
            for event_id, document in list(self._unpublished.items()):
                if event_id not in self._unpublished:  # removed to make room for the ones before
                    continue
                with contextlib.suppress(FileNotFoundError):
                    self._hidden(event_id).rename(self._photo(event_id))
                self._with_room(len(document.encode()), partial(self._write_sidecar, event_id, document), but=event_id)
                self._unpublished.pop(event_id, None)
            sync_folder(self.folder)

    def release_held(self, classes: Mapping[str, Collection[str]], *, before_s: float) -> None:
        """Publishes the held leaves of alerts, and removes those before `before_s`, in seconds since 1970.

        `classes` are by plot with an open alert the classes that the alert counts. Raises OSError or OutboxError if the
        disk refuses that.
        """
        wanted = [(plot, label) for plot, labels in classes.items() for label in labels]
        with self._files:
            released = dict[str, str]()
            for plot, label in wanted:
                with self._history.reading() as database:
                    query = f"SELECT event_id, document FROM kept WHERE {_HELD} AND plot = ? AND label = ?"  # noqa: S608
                    released |= database.execute(query, (plot, label)).fetchall()
            if released:
                with self._history.writing() as database:
                    database.executemany("UPDATE kept SET held = 0 WHERE event_id = ?", [(name,) for name in released])
                self._unpublished |= released
            self._drop(self._names(f"{_HELD} AND at_s < ?", before_s))
        self.publish()

    def forget_missing(self) -> None:
        """Removes the rows of photos that people have taken out; a program may still copy their sidecars."""
        with self._files:
            self._require_folder()
            names = {entry.name for entry in self.folder.iterdir()}
            gone = [one for one in self._names("true") if not names & {f"{one}{PHOTO}", f".{one}{PHOTO}"}]
            if gone:
                self._delete_rows(gone)

    def content(self, event_id: str) -> bytes | None:
        """Returns a photo; None if it was removed. Raises OSError if it cannot be read now."""
        with self._files:
            self._require_folder()
            for path in (self._photo(event_id), self._hidden(event_id)):
                with contextlib.suppress(FileNotFoundError):
                    return path.read_bytes()
        return None

    def pending(self, after: int = 0, limit: int = 100) -> list[Pending]:
        """Returns up to `limit` photos to upload with a `seq` above `after`: their sidecars as messages, in order."""
        query = f"SELECT seq, document, plot, event_id FROM kept WHERE {_WAITING} AND seq > ? ORDER BY seq LIMIT ?"  # noqa: S608
        with self._history.reading() as database:
            rows = database.execute(query, (after, limit)).fetchall()
        return [
            Pending(seq, Message(document.encode(), plot=plot, event_id=event_id))
            for seq, document, plot, event_id in rows
        ]

    def delivered(self, seqs: Iterable[int]) -> None:
        """Marks photos as uploaded, or removes them with `delete_uploaded`; given by their `Pending.seq`."""
        with self._files:
            names = [name for seq in seqs for name in self._names("seq = ?", seq)]
            if self._delete_uploaded:
                self._drop(names, count=_UPLOADED)
                return
            with self._history.writing() as database:
                done = database.executemany(
                    "UPDATE kept SET uploaded = 1 WHERE event_id = ? AND uploaded = 0", [(name,) for name in names]
                )
                add_to_counter(database, _UPLOADED, done.rowcount)

    def counts(self) -> OutboxCounts:
        """Returns the numbers of photos that wait for the upload, that were uploaded, and that the limit removed."""
        found = self.state()
        waiting, dropped = ({"photo": found[key]} for key in ("waiting", "dropped"))
        return OutboxCounts(waiting, found["waiting_bytes"], found["oldest_s"], found["uploaded"], dropped)

    def state(self) -> dict[str, Any]:
        """Returns numbers for the agent's state."""
        query = "SELECT count(*), coalesce(sum(size_bytes), 0), min(at_s) FROM kept WHERE "
        counter = "SELECT coalesce(sum(value), 0) FROM counters WHERE name = ?"
        with self._history.reading() as database:
            photos, _, _ = database.execute(f"{query} held = 0").fetchone()
            _, size, _ = database.execute(f"{query} true").fetchone()
            waiting, waiting_bytes, oldest_s = database.execute(f"{query} {_WAITING}").fetchone()
            (uploaded,), (dropped,) = (database.execute(counter, (name,)).fetchone() for name in (_UPLOADED, _DROPPED))
        return {
            "photos": photos,
            "bytes": size,
            "waiting": waiting,
            "waiting_bytes": waiting_bytes,
            "oldest_s": 0.0 if oldest_s is None else round(max(0.0, time.time() - oldest_s), 1),
            "uploaded": uploaded,
            "dropped": dropped,
        }

    def _write_sidecar(self, event_id: str, document: str) -> None:
        if self._photo(event_id).exists():
            write_text(self._sidecar(event_id), document)

    def _with_room(self, size_bytes: int, write: Callable[[], None], *, but: str = "") -> None:
        """Writes a file of about `size_bytes`; on a full disk, removes photos other than `but` to make room for it."""
        while True:
            try:
                return write()
            except OSError as error:
                is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                others = [name for name in self._to_drop(size_bytes) if name != but] if is_full else []
                if not self._drop(others, count=_DROPPED):
                    raise

    def _require_folder(self) -> None:
        if self._identity is None:
            raise FileNotFoundError(errno.ENOENT, "its disk is not mounted: mount it, and start the agent again")
        # The empty folder of a disk that was removed must not be filled, nor count as if people had taken the photos.
        if file_identity(self.folder) != self._identity:
            raise FileNotFoundError(errno.ENOENT, "the folder was removed or replaced: start the agent again")

    def _photo(self, event_id: str) -> Path:
        return self.folder / f"{event_id}{PHOTO}"

    def _hidden(self, event_id: str) -> Path:
        return self.folder / f".{event_id}{PHOTO}"

    def _sidecar(self, event_id: str) -> Path:
        return self.folder / f"{event_id}{SIDECAR}"

    @property
    def _staged_bytes(self) -> int:
        return sum(kept.size_bytes for kept in self._staged.values())

    def _names(self, where: str, *values: object) -> list[str]:
        query = f"SELECT event_id FROM kept WHERE {where} ORDER BY at_s, seq"  # noqa: S608 - constants
        with self._history.reading() as database:
            return [name for (name,) in database.execute(query, values)]

    def _sum(self, what: str, where: str = "true") -> int:
        with self._history.reading() as database:
            (value,) = database.execute(f"SELECT coalesce({what}, 0) FROM kept WHERE {where}").fetchone()  # noqa: S608
            return int(value)

    def _make_room(self, needed: int) -> None:
        def excess() -> int:
            return self._sum("sum(size_bytes)") + self._staged_bytes + needed - self._max_bytes

        if excess() > 0:
            self.forget_missing()
        while (missing := excess()) > 0 and self._drop(self._to_drop(missing), count=_DROPPED):
            pass

    def _to_drop(self, needed: int) -> list[str]:
        """Returns photos whose removal frees about `needed` bytes; fewer if there are none left."""
        if self._sum("sum(size_bytes)", _HELD) > _HELD_SHARE * self._max_bytes:
            return self._names(_HELD)[:1]
        where = f"uploaded = {min(1, self._sum('count(*)', 'uploaded = 1'))}"
        half = (self._sum("count(*)", where) + 1) // 2
        query = f"SELECT event_id, size_bytes, look FROM kept WHERE {where} ORDER BY at_s, seq LIMIT ?"  # noqa: S608
        with self._history.reading() as database:
            oldest = database.execute(query, (min(_MOST_COMPARED, half),)).fetchall()
        return thinned([_Row(*row) for row in oldest], needed)

    def _drop(self, event_ids: Sequence[str], *, count: str = "") -> int:
        """Removes photos, and returns their number; adds those that waited for the upload to the counter `count`.

        Photos get their hidden names first: after a kill, the next start publishes them again if their rows are still
        there, and removes them otherwise.
        """
        if not event_ids:
            return 0
        self._require_folder()
        for event_id in event_ids:
            self._unpublished.pop(event_id, None)
            self._sidecar(event_id).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self._photo(event_id).rename(self._hidden(event_id))
        try:
            self._delete_rows(event_ids, count=count)
        except OutboxError:
            # On a full disk the history needs the room of the photos, if they are on the same one.
            if self._identity is None or self._history.path.stat().st_dev != self._identity[0]:
                raise
            self._unlink_hidden(event_ids)
            self._delete_rows(event_ids, count=count)
        self._unlink_hidden(event_ids)
        return len(event_ids)

    def _unlink_hidden(self, event_ids: Sequence[str]) -> None:
        for event_id in event_ids:
            self._hidden(event_id).unlink(missing_ok=True)

    def _delete_rows(self, event_ids: Sequence[str], *, count: str = "") -> None:
        names = [(event_id,) for event_id in event_ids]
        with self._history.writing() as database:
            waited = database.executemany(f"DELETE FROM kept WHERE event_id = ? AND {_WAITING}", names)  # noqa: S608
            if count:
                add_to_counter(database, count, waited.rowcount)
            database.executemany("DELETE FROM kept WHERE event_id = ?", names)

    def _recover(self) -> None:
        """Completes what a kill interrupted, and adds photos that an earlier, lost history knew."""
        names = {entry.name for entry in self.folder.iterdir()}
        with self._history.reading() as database:
            stored = database.execute("SELECT event_id, held, document FROM kept").fetchall()
        rows = {event_id: None if held else document for event_id, held, document in stored}
        for name in names:
            found = _HIDDEN.fullmatch(name)
            if _UNFINISHED.fullmatch(name) or (found and found[1] not in rows):
                (self.folder / name).unlink(missing_ok=True)
        if self._delete_uploaded:  # by an earlier setting they were not
            self._drop(self._names("uploaded = 1"))
        self.forget_missing()
        for event_id, document in rows.items():
            if document is not None and not {f"{event_id}{PHOTO}", f"{event_id}{SIDECAR}"} <= names:
                self._unpublished[event_id] = document
        for name in sorted(names):
            found = _VISIBLE.fullmatch(name)
            if found and found[2] == "json" and found[1] not in rows and f"{found[1]}{PHOTO}" in names:
                self._adopt(found[1])

    def _adopt(self, event_id: str) -> None:
        try:
            text = self._sidecar(event_id).read_text(encoding="utf-8")
            document = json.loads(text)
            at_s = datetime.fromisoformat(document["time"]).timestamp()
            plot, label = str(document["plot"]), str(document["class"])
            look = look_of(np.asarray(read_photo(self._photo(event_id), shorter_side=_THUMB_PIXELS)))
            size = self._photo(event_id).stat().st_size + len(text.encode())
        except Exception:  # whatever people or a broken disk left there
            logger.warning(
                "'%s' in the folder of kept photos is damaged and is left alone", self._sidecar(event_id).name
            )
            return
        with self._history.writing() as database:
            add_kept(database, event_id, at_s, plot, label, Kept(text, size, look))


def thinned(oldest: Sequence[_Row], needed: int) -> list[str]:
    """Returns the photos to remove until `needed` bytes are free; all, if that is not enough.

    `oldest` are the photos to choose from, the oldest first. It is always the older one of the two most alike photos;
    if no two are alike, the oldest.
    """
    looks = np.array([row.look for row in oldest], np.int64).view(np.uint8).reshape(-1, 8)
    signs = 2.0 * np.unpackbits(looks, axis=1).astype(np.float32) - 1
    # The product of two rows of signs is 64 less two for each bit that differs. Only the older of a pair is a choice.
    same = np.where(np.tri(len(oldest), dtype=bool), -np.inf, signs @ signs.T)
    left, chosen = list(range(len(oldest))), list[str]()
    while left and needed > 0:
        older, newer = divmod(int(same.argmax()), len(oldest))
        number = older if same[older, newer] >= 64 - 2 * _ALIKE_BITS else left[0]
        left.remove(number)
        same[number], same[:, number] = -np.inf, -np.inf
        chosen.append(oldest[number].event_id)
        needed -= oldest[number].size_bytes
    return chosen
