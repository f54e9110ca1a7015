"""The outbox: stores every message on the disk before it is sent, until its receiver has acknowledged it."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from agridistill.edge.store import SqliteFile, add_to_counter

Kind = Literal["detection", "alert"]
_SCHEMA_VERSION = 1
# Measured size of a message besides its payload: its id, plot, index entries and page overhead.
_OVERHEAD_BYTES = 160
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, -- AUTOINCREMENT: a number is never used again
    event_id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    plot TEXT NOT NULL,
    created_s REAL NOT NULL,
    payload BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS messages_by_kind ON messages (kind, seq);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO counters
SELECT 'waiting_bytes', coalesce(sum(length(payload) + length(plot) + {_OVERHEAD_BYTES}), 0) FROM messages;
CREATE TRIGGER IF NOT EXISTS message_added AFTER INSERT ON messages BEGIN
    UPDATE counters SET value = value + length(new.payload) + length(new.plot) + {_OVERHEAD_BYTES}
    WHERE name = 'waiting_bytes';
END;
CREATE TRIGGER IF NOT EXISTS message_removed AFTER DELETE ON messages BEGIN
    UPDATE counters SET value = value - length(old.payload) - length(old.plot) - {_OVERHEAD_BYTES}
    WHERE name = 'waiting_bytes';
END;
"""  # noqa: S608 - constants
# Share of the limit that thinning frees in addition; otherwise every further message would thin again.
_SLACK = 0.05


@dataclass(frozen=True)
class Message:
    """A message to deliver: a detection or an alert as JSON."""

    payload: bytes
    kind: Kind = "detection"  # detections are deleted before alerts when the outbox is full
    plot: str = ""  # messages of the same plot arrive in order
    event_id: str = field(default_factory=lambda: uuid.uuid4().hex)  # by which a receiver recognises a duplicate


@dataclass(frozen=True)
class Pending:
    """A message that waits in the outbox, and its number there; later messages have larger numbers."""

    seq: int
    message: Message


@dataclass(frozen=True)
class OutboxLimits:
    """Section [outbox]: size limit of each outbox. Broker, webhook and command have one outbox each."""

    max_megabytes: Annotated[float, Field(ge=0.01)] = 200.0  # size of payloads and their overhead


@dataclass(frozen=True)
class OutboxCounts:
    """Numbers of messages in an outbox: waiting now, and delivered and dropped since it was created."""

    waiting: Mapping[str, int]  # waiting messages by kind
    waiting_bytes: int  # their size
    oldest_s: float  # age of the oldest waiting message in seconds; 0 without one
    delivered: int  # messages that were acknowledged
    dropped: Mapping[str, int]  # by kind: messages that were deleted because the outbox was full


class Outbox(SqliteFile):
    """Messages that wait for delivery, in an SQLite file that several threads can use.

    Neither a kill nor a power cut loses a message that was added. If the disk is full or refuses a write, methods raise
    OutboxError and change nothing. If the file was removed or damaged, they raise StateLostError.
    """

    def __init__(self, path: Path, limits: OutboxLimits | None = None) -> None:
        super().__init__(path, what="outbox", schema=_SCHEMA, version=_SCHEMA_VERSION)
        self._max_bytes = int((limits or OutboxLimits()).max_megabytes * 1e6)

    def add(self, messages: Sequence[Message]) -> None:
        """Stores messages in their order, all or none; leaves out a message if one with its event id already waits.

        If the outbox becomes too large, every second one of the older detections is deleted, repeatedly if necessary.
        Alerts are only deleted if no detections are left.
        """
        rows = [(one.event_id, one.kind, one.plot, time.time(), one.payload) for one in messages]
        with self.writing() as database:
            database.executemany(
                "INSERT INTO messages (event_id, kind, plot, created_s, payload) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (event_id) DO NOTHING",
                rows,
            )
            self._make_room(database)

    def pending(self, after: int = 0, limit: int = 100) -> list[Pending]:
        """Returns up to `limit` messages with a number `seq` above `after`, in the order of their numbers."""
        with self.reading() as database:
            rows = database.execute(
                "SELECT seq, payload, kind, plot, event_id FROM messages WHERE seq > ? ORDER BY seq LIMIT ?",
                (after, limit),
            ).fetchall()
        return [Pending(seq, Message(*message)) for seq, *message in rows]

    def delivered(self, seqs: Iterable[int]) -> None:
        """Deletes messages that the receiver has acknowledged, given by their `seq`, and counts them as delivered."""
        with self.writing() as database:
            done = database.executemany("DELETE FROM messages WHERE seq = ?", [(seq,) for seq in seqs])
            add_to_counter(database, "delivered", done.rowcount)

    def counts(self) -> OutboxCounts:
        """Counts the messages."""
        with self.reading() as database:
            waiting = dict(database.execute("SELECT kind, count(*) FROM messages GROUP BY kind").fetchall())
            oldest = database.execute("SELECT created_s FROM messages ORDER BY seq LIMIT 1").fetchone()
            counters = dict(database.execute("SELECT name, value FROM counters").fetchall())
        return OutboxCounts(
            waiting=waiting,
            waiting_bytes=counters["waiting_bytes"],
            oldest_s=max(0.0, time.time() - oldest[0]) if oldest else 0.0,
            delivered=counters.get("delivered", 0),
            dropped={name.partition(":")[2]: n for name, n in counters.items() if name.startswith("dropped:")},
        )

    def _make_room(self, database: sqlite3.Connection) -> None:
        """Deletes every second detection in the oldest half, repeatedly, until the size is within the limit.

        Alerts are deleted only when no detections are left.
        """
        limit = self._max_bytes
        if _waiting_bytes(database) <= limit:
            return
        (alerts,) = database.execute(
            "SELECT coalesce(sum(length(payload) + length(plot) + ?), 0) FROM messages WHERE kind = 'alert'",
            (_OVERHEAD_BYTES,),
        ).fetchone()
        # Free more than necessary, but at most half of the room that the alerts leave for detections.
        allowed = min(limit, max((1 - _SLACK) * limit, (alerts + limit) / 2))
        while _waiting_bytes(database) > allowed:
            (detections,) = database.execute("SELECT count(*) FROM messages WHERE kind = 'detection'").fetchone()
            # Keep every second one: fewer detections over the whole time are more useful than a missing first half.
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
    (value,) = database.execute("SELECT value FROM counters WHERE name = 'waiting_bytes'").fetchone()
    return int(value)


def _drop(database: sqlite3.Connection, where: str, values: tuple[object, ...]) -> int:
    kinds = database.execute(f"SELECT kind, count(*) FROM messages WHERE {where} GROUP BY kind", values).fetchall()  # noqa: S608 - constants
    for kind, count in kinds:
        add_to_counter(database, f"dropped:{kind}", count)
    return database.execute(f"DELETE FROM messages WHERE {where}", values).rowcount  # noqa: S608 - constants
