"""The history: detections and alerts that are stored on the device, with or without a broker."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from agridistill.edge.events import Alert, AlertState, Detection, Verdict
from agridistill.edge.store import SqliteFile, add_to_counter

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS detections (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    at_s REAL NOT NULL,
    plot TEXT NOT NULL,
    verdict TEXT NOT NULL,
    document TEXT NOT NULL,
    thumbnail BLOB,
    source TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS detections_by_plot ON detections (plot, seq);
CREATE TABLE IF NOT EXISTS alerts (
    alert_id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    updated_s REAL NOT NULL,
    told_s REAL NOT NULL,
    document TEXT NOT NULL,
    source TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS alerts_by_change ON alerts (state, updated_s);
-- Photos of a folder that were classified; they stay when their detections are deleted.
CREATE TABLE IF NOT EXISTS photos (
    seq INTEGER PRIMARY KEY,
    identity TEXT NOT NULL UNIQUE,
    begun INTEGER,
    model TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
-- Photos that `edge.keep` keeps, stored with their detections; `held` are leaves that an alert may need.
CREATE TABLE IF NOT EXISTS kept (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    at_s REAL NOT NULL,
    plot TEXT NOT NULL,
    label TEXT,
    held INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    look INTEGER NOT NULL,
    document TEXT NOT NULL,
    uploaded INTEGER NOT NULL DEFAULT 0
) STRICT;
-- So that neither sums nor searches read the documents.
CREATE INDEX IF NOT EXISTS kept_waiting ON kept (uploaded, held);
CREATE INDEX IF NOT EXISTS kept_by_age ON kept (uploaded, at_s, held, size_bytes);
"""
# Old entries are deleted only once in this number of detections: each delete costs time.
_TRIM_EVERY = 200
_OWN, _OTHERS = "source = ?", "source <> ?"
_MARK = (
    "INSERT INTO photos (identity, model) VALUES (?, ?) "
    "ON CONFLICT (identity) DO UPDATE SET begun = NULL, model = excluded.model"
)


@dataclass(frozen=True)
class HistoryLimits:
    """Section [history]: how many entries of each kind are stored. Older ones are deleted, but never open alerts."""

    detections: Annotated[int, Field(ge=1)] = 50_000
    thumbnails: Annotated[int, Field(ge=0)] = 500  # small pictures of the newest detections
    alerts: Annotated[int, Field(ge=0)] = 5_000  # resolved alerts
    photos: Annotated[int, Field(ge=1)] = 1_000_000  # photos that are remembered, so that none is classified twice


class Kept(NamedTuple):
    """What the history stores about a kept photo; `edge.keep.KeptPhotos` has its files."""

    document: str  # the sidecar, as JSON
    size_bytes: int  # of the photo and its sidecar
    look: int  # see `edge.keep.photo.look_of`
    held: bool = False  # kept only if an alert opens that counts this leaf


class Decision(NamedTuple):
    """A detection to store, and its photo."""

    detection: Detection
    thumbnail: bytes | None = None  # small JPEG
    identity: str = ""  # `Frame.identity`, with which `decided_by` finds it; "" for a camera's frame
    kept: Kept | None = None  # its photo, if that is kept


class History(SqliteFile):
    """Detections and alerts in an SQLite file, which several processes can read while the agent writes.

    If the disk is full or refuses a write, methods raise OutboxError and change nothing. If the file was removed or
    damaged, they raise StateLostError.

    `source` is the id of the watched source (see `source_identity`), stored with new detections and alerts.
    """

    def __init__(
        self, path: Path, limits: HistoryLimits | None = None, source: str = "", *, read_only: bool = False
    ) -> None:
        super().__init__(path, what="event history", schema=_SCHEMA, version=_VERSION, read_only=read_only)
        self.limits, self._source = limits or HistoryLimits(), source
        self._until_trim = 0

    def add(self, detection: Detection, *, thumbnail: bytes | None = None, identity: str = "") -> None:
        """Stores a detection, see `add_all` and `Decision`."""
        self.add_all([Decision(detection, thumbnail, identity)])

    def kept_photos(self) -> int:
        """Returns the number of photos that the folder of kept photos should hold."""
        with self.reading() as database:
            return int(database.execute("SELECT count(*) FROM kept").fetchone()[0])

    def add_all(self, decisions: Sequence[Decision]) -> set[str]:
        """Stores detections, all or none, and returns the event ids of those that were not stored before."""
        new = set[str]()
        with self.writing() as database:
            for found, thumbnail, identity, kept in decisions:
                document = json.dumps(found.to_json(), ensure_ascii=False)
                cursor = database.execute(
                    "INSERT INTO detections (event_id, at_s, plot, verdict, document, thumbnail, source) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING",
                    (found.event_id, found.at_s, found.plot, found.verdict, document, thumbnail, self._source),
                )
                add_to_counter(database, f"verdict:{found.verdict}", cursor.rowcount)
                if cursor.rowcount:
                    new.add(found.event_id)
                if identity:
                    database.execute(_MARK, (identity, found.model))
                if kept is not None:
                    add_kept(database, found.event_id, found.at_s, found.plot, found.label, kept)
            if self._until_trim <= 0:
                self._trim(database)
                self._until_trim = _TRIM_EVERY
        self._until_trim -= len(decisions)
        return new

    def decided_by(self, identity: str) -> str | None:
        """Returns the id of the model that has classified a photo: the first 12 digits of the model's sha256.

        Returns "" if `mark` has marked the photo as unreadable, and None if no model has classified it.
        """
        rows = self._rows("SELECT model FROM photos WHERE identity = ? AND begun IS NULL", identity)
        return str(rows[0][0]) if rows else None

    def mark(self, identity: str) -> None:
        """Marks a photo as unreadable, after a restart too: `decided_by` returns "" for it."""
        with self.writing() as database:
            database.execute(_MARK, (identity, ""))

    def begin(self, identity: str) -> int:
        """Records that reading a photo begins; returns how many earlier attempts ended in a crash."""
        with self.writing() as database:
            row = database.execute("SELECT begun FROM photos WHERE identity = ?", (identity,)).fetchone()
            database.execute(
                "INSERT INTO photos (identity, begun) VALUES (?, 1) "
                "ON CONFLICT (identity) DO UPDATE SET begun = begun + 1",
                (identity,),
            )
        return int(row[0] or 0) if row else 0

    def end(self, identity: str) -> None:
        """Records that reading a photo ended without a crash of the agent."""
        with self.writing() as database:
            database.execute("DELETE FROM photos WHERE identity = ? AND begun IS NOT NULL", (identity,))

    def recent(self, limit: int = 50, *, since_s: float | None = None, own: bool = False) -> list[Detection]:
        """Returns the newest detections, the newest first.

        `since_s` is the earliest time of arrival, in seconds since 1970; `own` leaves out those of other sources.
        """
        where, values = _conditions({"at_s >= ?": since_s, _OWN: self._source if own else None})
        query = f"SELECT document FROM detections WHERE {where} ORDER BY seq DESC LIMIT ?"  # noqa: S608 - constants
        return [Detection.from_json(json.loads(document)) for (document,) in self._rows(query, *values, limit)]

    def last_leaves(self, verdicts: Collection[Verdict]) -> dict[str, tuple[float, float]]:
        """Returns by plot when its last frame arrived, and the time of its newest frame, in seconds since 1970.

        A frame's time is its EXIF time if rules use that, else its arrival. Only frames of the watched source with one
        of `verdicts` count.
        """
        newest = "max(coalesce(json_extract(document, '$.taken_s'), at_s))"
        of_source = f"verdict IN ({', '.join('?' * len(verdicts))}) AND {_OWN}"
        by_plot = f"SELECT plot, max(seq) AS last, {newest} AS newest_s FROM detections WHERE {of_source} GROUP BY plot"  # noqa: S608
        query = f"SELECT plot, (SELECT at_s FROM detections WHERE seq = last), newest_s FROM ({by_plot})"  # noqa: S608
        return {plot: (came_s, newest_s) for plot, came_s, newest_s in self._rows(query, *verdicts, self._source)}

    def thumbnail(self, event_id: str) -> bytes | None:
        """Returns the small JPEG of a detection."""
        rows = self._rows("SELECT thumbnail FROM detections WHERE event_id = ?", event_id)
        return rows[0][0] if rows else None

    def put_alerts(self, alerts: Iterable[tuple[Alert, float]]) -> None:
        """Stores alerts, each with the time of its last notification in seconds since 1970 (0 for none).

        All or none; an alert replaces the stored one with the same `alert_id`.
        """
        with self.writing() as database:
            for alert, notified_s in alerts:
                document = json.dumps(alert.to_json(), ensure_ascii=False)
                database.execute(
                    "INSERT INTO alerts (alert_id, state, updated_s, told_s, document, source) "
                    "VALUES (?, ?, ?, ?, ?, ?) "
                    "ON CONFLICT (alert_id) DO UPDATE SET state = excluded.state, updated_s = excluded.updated_s, "
                    "told_s = excluded.told_s, document = excluded.document",
                    (alert.alert_id, alert.state, alert.updated_s, notified_s, document, self._source),
                )
            database.execute(
                "DELETE FROM alerts WHERE state = 'resolved' AND alert_id NOT IN "
                "(SELECT alert_id FROM alerts WHERE state = 'resolved' ORDER BY updated_s DESC LIMIT ?)",
                (self.limits.alerts,),
            )

    def alerts(self, *, state: AlertState | None = None, limit: int = 50) -> list[Alert]:
        """Returns up to `limit` alerts in the given state (None: in any), the last changed first."""
        return [alert for alert, _ in self.alerts_told(state=state, limit=limit)]

    def alerts_told(
        self, *, state: AlertState | None = None, limit: int = 50, own: bool | None = None
    ) -> list[tuple[Alert, float]]:
        """Returns alerts, each with the time of its last notification in seconds since 1970 (0 for none).

        The last changed come first. `own`: True for alerts of the source that is watched now, False for those of other
        sources, None for all.
        """
        of_source = {_OWN: self._source if own else None, _OTHERS: self._source if own is False else None}
        where, values = _conditions({"state = ?": state, **of_source})
        query = f"SELECT document, told_s FROM alerts WHERE {where} ORDER BY updated_s DESC LIMIT ?"  # noqa: S608 - constants
        rows = self._rows(query, *values, limit)
        return [(Alert.from_json(json.loads(document)), told_s) for document, told_s in rows]

    def verdict_counts(self) -> dict[str, int]:
        """Returns how many detections had each verdict, including detections that were deleted since."""
        rows = self._rows("SELECT name, value FROM counters WHERE name LIKE 'verdict:%'")
        return {name.partition(":")[2]: value for name, value in rows}

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self.reading() as database:
            return database.execute(query, values).fetchall()

    def _trim(self, database: Any) -> None:
        (newest,) = database.execute("SELECT coalesce(max(seq), 0) FROM detections").fetchone()
        database.execute("DELETE FROM detections WHERE seq <= ?", (newest - self.limits.detections,))
        (last,) = database.execute("SELECT coalesce(max(seq), 0) FROM photos").fetchone()
        database.execute("DELETE FROM photos WHERE seq <= ?", (last - self.limits.photos,))
        database.execute(
            "UPDATE detections SET thumbnail = NULL WHERE seq <= ? AND thumbnail IS NOT NULL",
            (newest - self.limits.thumbnails,),
        )


def add_kept(database: Any, event_id: str, at_s: float, plot: str, label: str | None, kept: Kept) -> None:
    """Adds the row of a kept photo, unless it is there; call it inside a transaction."""
    database.execute(
        "INSERT INTO kept (event_id, at_s, plot, label, document, size_bytes, look, held) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING",
        (event_id, at_s, plot, label, *kept),
    )


def _conditions(wanted: Mapping[str, object | None]) -> tuple[str, list[object]]:
    """Returns an SQL condition that joins those with a value (not None), and the list of these values."""
    used = {condition: value for condition, value in wanted.items() if value is not None}
    return " AND ".join(used) or "true", list(used.values())
