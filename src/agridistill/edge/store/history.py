"""History: what was seen and warned of, on the device itself, also without a broker."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agridistill.edge.events import Alert, AlertState, Detection, Verdict
from agridistill.edge.store.sqlite_file import SqliteFile, add_to_counter
from agridistill.errors import OutboxError

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS detections (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    at_s REAL NOT NULL,
    plot TEXT NOT NULL,
    verdict TEXT NOT NULL,
    label TEXT,
    document TEXT NOT NULL,
    thumbnail BLOB,
    source TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX IF NOT EXISTS detections_by_plot ON detections (plot, seq);
CREATE TABLE IF NOT EXISTS alerts (
    alert_id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    updated_s REAL NOT NULL,
    told_s REAL NOT NULL,
    document TEXT NOT NULL,
    source TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX IF NOT EXISTS alerts_by_change ON alerts (state, updated_s);
-- Photos of a folder that were decided on: their detections may be gone by age, they must not come anew.
CREATE TABLE IF NOT EXISTS photos (
    seq INTEGER PRIMARY KEY,
    identity TEXT NOT NULL UNIQUE,
    begun INTEGER,
    model TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
"""
_ADDED = tuple(
    (table, column, "TEXT NOT NULL DEFAULT ''")
    for table, column in (("detections", "source"), ("alerts", "source"), ("photos", "model"))
)
# Trimming one by one would cost every detection a delete of its own.
_TRIM_EVERY = 200
_MARK = (
    "INSERT INTO photos (identity, model) VALUES (?, ?) "
    "ON CONFLICT (identity) DO UPDATE SET begun = NULL, model = excluded.model"
)


@dataclass(frozen=True)
class HistoryLimits:
    """How much is kept.

    Attributes:
        detections: the newest ones.
        thumbnails: of the newest detections.
        alerts: resolved ones; open ones always stay.
        photos: whose identity is remembered, so that they are not decided on again.
    """

    detections: int = 50_000
    thumbnails: int = 500
    alerts: int = 5_000
    photos: int = 1_000_000

    def __post_init__(self) -> None:
        if min(self.thumbnails, self.alerts) < 0 or min(self.detections, self.photos) < 1:
            raise OutboxError("limits of 1 detection and more", str(self), "correct them")


class History:
    """Detections and alerts in a SQLite file. Several processes may read it while the agent writes.

    Args:
        path: of the file; its folder is made.
        limits: how much is kept.
        source: identity of what is watched now (see `source_identity`): new detections and alerts are kept under it.
            Those of an older AgriDistill, which kept none, count as its own.

    Raises:
        OutboxError: the file cannot be opened, or is of a newer version.
    """

    def __init__(self, path: Path, limits: HistoryLimits | None = None, source: str = "") -> None:
        self.limits = limits or HistoryLimits()
        self._source = source
        self._file = SqliteFile(path, what="event history", schema=_SCHEMA, version=_VERSION, added=_ADDED)
        self._until_trim = 0

    @classmethod
    def reading(cls, path: Path) -> History:
        """The history of an agent in another process.

        Raises:
            OutboxError: it is not there, or cannot be read.
        """
        history = cls.__new__(cls)
        history.limits, history._source = HistoryLimits(), ""
        history._file = SqliteFile(path, what="event history", schema=_SCHEMA, version=_VERSION, read_only=True)
        return history

    def add(self, detection: Detection, *, thumbnail: bytes | None = None, identity: str = "") -> None:
        """Commits a detection; one whose event id is there already stays as it was.

        Args:
            detection: what the agent said.
            thumbnail: a small JPEG.
            identity: of the photo, which will then be known by `knows`; "" for live frames.

        Raises:
            OutboxError: the disk is full or refuses; nothing was added then.
        """
        row = (
            detection.event_id,
            detection.at_s,
            detection.plot,
            detection.verdict,
            detection.label,
            json.dumps(detection.to_json(), ensure_ascii=False),
            thumbnail,
            self._source,
        )
        with self._file.writing() as database:
            cursor = database.execute(
                "INSERT INTO detections (event_id, at_s, plot, verdict, label, document, thumbnail, source) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING",
                row,
            )
            add_to_counter(database, f"verdict:{detection.verdict}", cursor.rowcount)
            if identity:
                database.execute(_MARK, (identity, detection.model))
            if self._until_trim <= 0:
                self._trim(database)
                self._until_trim = _TRIM_EVERY
        self._until_trim -= 1

    def knows(self, identity: str) -> bool:
        """Whether a photo of this identity was decided on."""
        return self.decided_by(identity) is not None

    def decided_by(self, identity: str) -> str | None:
        """The model that decided on a photo: first 12 digits of its sha256, "" where unknown, None where none has."""
        with self._file.reading() as database:
            query = "SELECT model FROM photos WHERE identity = ? AND begun IS NULL"
            row = database.execute(query, (identity,)).fetchone()
        return None if row is None else str(row[0])

    def mark(self, identity: str) -> None:
        """Remembers a photo that cannot be decided on.

        Raises:
            OutboxError: the disk is full or refuses.
        """
        with self._file.writing() as database:
            database.execute(_MARK, (identity, ""))

    def begin(self, identity: str) -> int:
        """Notes that a photo is about to be read; gives how often that was noted before without an `end`.

        Raises:
            OutboxError: the disk is full or refuses.
        """
        with self._file.writing() as database:
            row = database.execute("SELECT begun FROM photos WHERE identity = ?", (identity,)).fetchone()
            database.execute(
                "INSERT INTO photos (identity, begun) VALUES (?, 1) "
                "ON CONFLICT (identity) DO UPDATE SET begun = begun + 1",
                (identity,),
            )
        return int(row[0] or 0) if row else 0

    def end(self, identity: str) -> None:
        """Notes that a photo has been read, and the agent is alive.

        Raises:
            OutboxError: the disk is full or refuses.
        """
        with self._file.writing() as database:
            database.execute("DELETE FROM photos WHERE identity = ? AND begun IS NOT NULL", (identity,))

    def recent(
        self, limit: int = 50, *, plot: str | None = None, since_s: float | None = None, own: bool = False
    ) -> list[Detection]:
        """The newest detections, newest first.

        Args:
            limit: of their number.
            plot: of this one alone.
            since_s: not older than this, seconds since 1970.
            own: of the source that is watched now alone.
        """
        wheres, values = ["1"], list[Any]()
        if plot is not None:
            wheres.append("plot = ?")
            values.append(plot)
        if since_s is not None:
            wheres.append("at_s >= ?")
            values.append(since_s)
        if own:
            wheres.append("source IN ('', ?)")
            values.append(self._source)
        query = f"SELECT document FROM detections WHERE {' AND '.join(wheres)} ORDER BY seq DESC LIMIT ?"  # noqa: S608 - our own words
        with self._file.reading() as database:
            rows = database.execute(query, (*values, limit)).fetchall()
        return [Detection.from_json(json.loads(document)) for (document,) in rows]

    def last_s(self, plot: str, verdicts: Collection[Verdict]) -> float | None:
        """When the last detection of a plot of this source that has one of the verdicts was seen, seconds since 1970.

        Returns:
            None where none is kept.
        """
        query = (
            f"SELECT at_s FROM detections WHERE plot = ? AND verdict IN ({', '.join('?' * len(verdicts))}) "  # noqa: S608 - our own words
            "AND source IN ('', ?) ORDER BY seq DESC LIMIT 1"
        )
        with self._file.reading() as database:
            row = database.execute(query, (plot, *verdicts, self._source)).fetchone()
        return float(row[0]) if row else None

    def newest_leaf_s(self, plot: str, verdicts: Collection[Verdict]) -> float | None:
        """When the newest leaf of a plot of this source was seen, or was taken where its photo counts by its own time.

        Returns:
            Seconds since 1970; None where none is kept.
        """
        query = (
            "SELECT max(coalesce(json_extract(document, '$.taken_s'), at_s)) FROM detections "  # noqa: S608 - our own words
            f"WHERE plot = ? AND verdict IN ({', '.join('?' * len(verdicts))}) AND source IN ('', ?)"
        )
        with self._file.reading() as database:
            (at_s,) = database.execute(query, (plot, *verdicts, self._source)).fetchone()
        return None if at_s is None else float(at_s)

    def plots(self) -> list[str]:
        """Of all detections that are kept."""
        with self._file.reading() as database:
            return [plot for (plot,) in database.execute("SELECT DISTINCT plot FROM detections").fetchall()]

    def thumbnail(self, event_id: str) -> bytes | None:
        """The small JPEG of a detection, where one was kept."""
        with self._file.reading() as database:
            row = database.execute("SELECT thumbnail FROM detections WHERE event_id = ?", (event_id,)).fetchone()
        return row[0] if row else None

    def put_alerts(self, alerts: Sequence[Alert], *, told_s: Sequence[float]) -> None:
        """Commits alerts as they are now, all or none.

        Args:
            alerts: new ones, or changed ones by their ids.
            told_s: of each, when people were last told of it, seconds since 1970; 0 for not yet.

        Raises:
            OutboxError: the disk is full or refuses.
        """
        with self._file.writing() as database:
            for alert, told in zip(alerts, told_s, strict=True):
                document = json.dumps(alert.to_json(), ensure_ascii=False)
                database.execute(
                    "INSERT INTO alerts (alert_id, state, updated_s, told_s, document, source) "
                    "VALUES (?, ?, ?, ?, ?, ?) "
                    "ON CONFLICT (alert_id) DO UPDATE SET state = excluded.state, updated_s = excluded.updated_s, "
                    "told_s = excluded.told_s, document = excluded.document, "
                    "source = CASE alerts.source WHEN '' THEN excluded.source ELSE alerts.source END",
                    (alert.alert_id, alert.state, alert.updated_s, told, document, self._source),
                )
            database.execute(
                "DELETE FROM alerts WHERE state = 'resolved' AND alert_id NOT IN "
                "(SELECT alert_id FROM alerts WHERE state = 'resolved' ORDER BY updated_s DESC LIMIT ?)",
                (self.limits.alerts,),
            )

    def put_alert(self, alert: Alert, *, told_s: float = 0.0) -> None:
        """Commits one alert; see `put_alerts`."""
        self.put_alerts([alert], told_s=[told_s])

    def alerts(self, *, state: AlertState | None = None, limit: int = 50) -> list[Alert]:
        """Alerts, the newest change first."""
        return [alert for alert, _ in self.alerts_told(state=state, limit=limit)]

    def alerts_told(
        self, *, state: AlertState | None = None, limit: int = 50, own: bool | None = None
    ) -> list[tuple[Alert, float]]:
        """Alerts, the newest change first, each with when people were last told of it.

        Args:
            state: in this one alone.
            limit: of their number.
            own: True for those of the source that is watched now, False for those of others, None for all.
        """
        wheres, values = ["1"], list[Any]()
        if state is not None:
            wheres.append("state = ?")
            values.append(state)
        if own is not None:
            wheres.append("source IN ('', ?)" if own else "source NOT IN ('', ?)")
            values.append(self._source)
        query = f"SELECT document, told_s FROM alerts WHERE {' AND '.join(wheres)} ORDER BY updated_s DESC LIMIT ?"  # noqa: S608 - our own words
        with self._file.reading() as database:
            rows = database.execute(query, (*values, limit)).fetchall()
        return [(Alert.from_json(json.loads(document)), told) for document, told in rows]

    def counts_by_label(self, *, since_s: float = 0.0) -> dict[str, int]:
        """How many answers each label got, of the detections that are kept."""
        with self._file.reading() as database:
            rows = database.execute(
                "SELECT label, count(*) FROM detections WHERE verdict = 'answer' AND at_s >= ? GROUP BY label",
                (since_s,),
            ).fetchall()
        return dict(rows)

    def verdict_counts(self) -> dict[str, int]:
        """How many detections of each verdict there have been, also of those that are no longer kept."""
        with self._file.reading() as database:
            rows = database.execute("SELECT name, value FROM counters WHERE name LIKE 'verdict:%'").fetchall()
        return {name.partition(":")[2]: value for name, value in rows}

    def close(self) -> None:
        """Closes the file; what it holds stays."""
        self._file.close()

    def __enter__(self) -> History:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _trim(self, database: Any) -> None:
        (newest,) = database.execute("SELECT coalesce(max(seq), 0) FROM detections").fetchone()
        database.execute("DELETE FROM detections WHERE seq <= ?", (newest - self.limits.detections,))
        (last,) = database.execute("SELECT coalesce(max(seq), 0) FROM photos").fetchone()
        database.execute("DELETE FROM photos WHERE seq <= ?", (last - self.limits.photos,))
        database.execute(
            "UPDATE detections SET thumbnail = NULL WHERE seq <= ? AND thumbnail IS NOT NULL",
            (newest - self.limits.thumbnails,),
        )
