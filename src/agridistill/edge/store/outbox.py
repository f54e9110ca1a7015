"""Outbox: every message is on the disk before it is sent, and stays there until its receiver has acknowledged it."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agridistill.edge.store.sqlite_file import SqliteFile, add_to_counter
from agridistill.errors import OutboxError

Kind = Literal["detection", "alert"]
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again, also after the newest row is gone
    event_id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    plot TEXT NOT NULL,
    created_s REAL NOT NULL,
    payload BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS messages_by_kind ON messages (kind, seq);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
"""
# Of a message beside its payload: its id, plot, index entries and page overhead, measured.
_OVERHEAD_BYTES = 160
# Thinning takes more than it has to, or every further message would thin again.
_SLACK = 0.05
_WAITING_BYTES = "waiting_bytes"


@dataclass(frozen=True)
class Message:
    """Something to be delivered."""

    payload: bytes
    kind: Kind = "detection"  # alerts outlive detections where room is short
    plot: str = ""  # messages of one plot arrive in their order
    event_id: str = field(default_factory=lambda: uuid.uuid4().hex)  # by which a receiver recognises a duplicate


@dataclass(frozen=True)
class Pending:
    """A message on the disk: its place in the order of all messages, and when it was committed (seconds since 1970)."""

    seq: int
    message: Message
    created_s: float


@dataclass(frozen=True)
class OutboxLimits:
    """[outbox]: how much may wait for a broker; a webhook and a command have an outbox of the same limits each."""

    max_megabytes: float = 200.0  # of payloads and their overhead

    def __post_init__(self) -> None:
        if not 0.01 <= self.max_megabytes < float("inf"):
            raise OutboxError("outbox.max_megabytes of at least 0.01", f"{self.max_megabytes:g}", "correct it")

    @property
    def max_bytes(self) -> int:
        """The limit in bytes."""
        return int(self.max_megabytes * 1e6)


@dataclass(frozen=True)
class OutboxCounts:
    """What waits, and what happened to the rest since the outbox was created."""

    waiting: Mapping[str, int]  # messages by kind
    waiting_bytes: int
    oldest_s: float  # age; 0 without any
    accepted: int  # messages that were committed
    delivered: int  # messages that were acknowledged
    dropped: Mapping[str, int]  # messages by kind that were deleted for lack of room


class Outbox:
    """Messages in a SQLite file, in the order in which they were committed. May be used from several threads.

    Neither a kill nor a power cut takes back a commit. Methods raise OutboxError where the disk is full or refuses, and
    change nothing then; those that write raise StateRemovedError where the file was removed.

    Args:
        path: of the file; its folder is created. Its name without suffix is that of the receiver.
        limits: how much may wait.

    Raises:
        OutboxError: the file cannot be opened, or is of a newer version.
    """

    def __init__(self, path: Path, limits: OutboxLimits | None = None) -> None:
        self.path, self.name, self.limits = path, path.stem, limits or OutboxLimits()
        self._last_seq = 0
        self._file = SqliteFile(
            path, what="outbox", schema=_SCHEMA, version=_SCHEMA_VERSION, created=self._continue_numbers
        )
        with self._file.writing() as database:
            # An earlier AgriDistill does not keep this counter.
            database.execute("DELETE FROM counters WHERE name = ?", (_WAITING_BYTES,))
            add_to_counter(database, _WAITING_BYTES, _size_where(database, "true"))

    def add(self, messages: Sequence[Message]) -> list[int]:
        """Commits messages, all or none; over the limits detections go first, also a new one where alerts fill them.

        Args:
            messages: in their order; one whose event id is known already is not added again.

        Returns:
            Their places in the order of all messages.
        """
        seqs = []
        with self._file.writing() as database:
            for message in messages:
                row = (message.event_id, message.kind, message.plot, time.time(), message.payload)
                cursor = database.execute(
                    "INSERT INTO messages (event_id, kind, plot, created_s, payload) VALUES (?, ?, ?, ?, ?) "
                    "ON CONFLICT (event_id) DO NOTHING",
                    row,
                )
                if cursor.rowcount:
                    size = len(message.payload) + len(message.plot) + _OVERHEAD_BYTES
                    add_to_counter(database, _WAITING_BYTES, size)
                    add_to_counter(database, "accepted", 1)
                found = database.execute("SELECT seq FROM messages WHERE event_id = ?", (message.event_id,)).fetchone()
                seqs.append(int(found[0]))
            self._make_room(database)
        self._last_seq = max(self._last_seq, *seqs, 0)
        return seqs

    def pending(self, after: int = 0, limit: int = 100) -> list[Pending]:
        """The next messages behind the place `after`, in their order."""
        with self._file.reading() as database:
            rows = database.execute(
                "SELECT seq, event_id, kind, plot, created_s, payload FROM messages WHERE seq > ? ORDER BY seq LIMIT ?",
                (after, limit),
            ).fetchall()
        self._last_seq = max(self._last_seq, *(row[0] for row in rows), 0)
        return [
            Pending(seq, Message(payload, kind, plot, event_id), at) for seq, event_id, kind, plot, at, payload in rows
        ]

    def delivered(self, seqs: Iterable[int]) -> None:
        """Deletes messages that the receiver has acknowledged; places that are gone already are ignored."""
        with self._file.writing() as database:
            done = sum(_delete(database, "seq = ?", (seq,)) for seq in seqs)
            add_to_counter(database, "delivered", done)

    def counts(self) -> OutboxCounts:
        """What waits, and what happened to the rest."""
        with self._file.reading() as database:
            waiting = dict(database.execute("SELECT kind, count(*) FROM messages GROUP BY kind").fetchall())
            oldest = database.execute("SELECT created_s FROM messages ORDER BY seq LIMIT 1").fetchone()
            counters = dict(database.execute("SELECT name, value FROM counters").fetchall())
        return OutboxCounts(
            waiting=waiting,
            waiting_bytes=counters.get(_WAITING_BYTES, 0),
            oldest_s=max(0.0, time.time() - oldest[0]) if oldest else 0.0,
            accepted=counters.get("accepted", 0),
            delivered=counters.get("delivered", 0),
            dropped={name.partition(":")[2]: n for name, n in counters.items() if name.startswith("dropped:")},
        )

    def close(self) -> None:
        """Closes the file; what waits stays."""
        self._file.close()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _continue_numbers(self, database: sqlite3.Connection) -> None:
        """A new file continues the places: a late acknowledgement must not delete another message."""
        database.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('messages', ?)", (self._last_seq,))

    def _make_room(self, database: sqlite3.Connection) -> None:
        """Deletes every second one of the oldest half of the detections until there is room; alerts go last."""
        limit = self.limits.max_bytes
        if _waiting_bytes(database) <= limit:
            return
        alerts = _size_where(database, "kind = 'alert'")
        # More than necessary, but at most half of what the alerts leave to the detections.
        allowed = min(limit, max((1 - _SLACK) * limit, (alerts + limit) / 2))
        while _waiting_bytes(database) > allowed:
            (detections,) = database.execute("SELECT count(*) FROM messages WHERE kind = 'detection'").fetchone()
            # A record that is half as dense says more than one that starts half as late.
            taken = _drop(
                database,
                "seq IN (SELECT seq FROM (SELECT seq, row_number() OVER (ORDER BY seq) AS place FROM messages "
                "WHERE kind = 'detection' ORDER BY seq LIMIT ?) WHERE place % 2 = 1)",
                (max(2, detections // 2),),
            )
            if not taken:
                break
        while _waiting_bytes(database) > limit and _drop(database, "seq = (SELECT min(seq) FROM messages)", ()):
            pass


def _waiting_bytes(database: sqlite3.Connection) -> int:
    row = database.execute("SELECT value FROM counters WHERE name = ?", (_WAITING_BYTES,)).fetchone()
    return int(row[0]) if row else 0


def _drop(database: sqlite3.Connection, where: str, values: tuple[object, ...]) -> int:
    kinds = database.execute(f"SELECT kind, count(*) FROM messages WHERE {where} GROUP BY kind", values).fetchall()  # noqa: S608 - constants
    taken = _delete(database, where, values)
    for kind, count in kinds:
        add_to_counter(database, f"dropped:{kind}", count)
    return taken


def _delete(database: sqlite3.Connection, where: str, values: tuple[object, ...]) -> int:
    add_to_counter(database, _WAITING_BYTES, -_size_where(database, where, values))
    return database.execute(f"DELETE FROM messages WHERE {where}", values).rowcount  # noqa: S608 - constants


def _size_where(database: sqlite3.Connection, where: str, values: tuple[object, ...] = ()) -> int:
    (size,) = database.execute(
        f"SELECT coalesce(sum(length(payload) + length(plot) + ?), 0) FROM messages WHERE {where}",  # noqa: S608 - constants
        (_OVERHEAD_BYTES, *values),
    ).fetchone()
    return int(size)
