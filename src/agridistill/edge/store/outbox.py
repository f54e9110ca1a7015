"""Outbox: every message is on the disk before it is sent, and stays there until the receiver has acknowledged it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from agridistill.edge.store.messages import Message, OutboxCounts, OutboxLimits, Pending
from agridistill.edge.store.sqlite_file import SqliteFile, add_to_counter

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
# A device without a clock of its own wakes up in 1970 until the network tells it better.
_CLOCK_IS_SET_S = 1_704_067_200.0  # 2024
# A step of the clock; what a network's time corrects bit by bit is less.
_STEP_S = 60.0
# Thinning takes so much more than it has to, or every further message would have to thin again.
_SLACK = 0.05


class Outbox:
    """Messages in a SQLite file, in the order in which they were committed. May be used from several threads.

    A commit is on the disk when `add` returns (write-ahead log, full synchronisation): neither a kill nor a power cut
    takes it back. A file that is damaged all the same is set aside and told, never deleted.

    Args:
        path: of the file; its folder is made.
        limits: how much may wait.

    Raises:
        OutboxError: the file cannot be opened, or is of a newer version.
    """

    def __init__(self, path: Path, limits: OutboxLimits | None = None) -> None:
        self.path, self.limits = path, limits or OutboxLimits()
        self._file = SqliteFile(path, what="outbox", schema=_SCHEMA, version=_SCHEMA_VERSION)
        self._mutex, self._generation = threading.RLock(), self._file.generation
        self._bytes = self._measured_bytes()
        self._last_seq, self._counts_on = 0, self._generation
        self._read_clocks = self._clocks_to_be = _clocks()

    def add(self, messages: Sequence[Message]) -> list[int]:
        """Commits messages, all or none; over the limits detections go first, a new one, too, where alerts fill them.

        Args:
            messages: in their order; one whose event id is there already is not added again.

        Returns:
            Their places in the order of all messages.

        Raises:
            OutboxError: the disk is full or refuses; nothing was added then.
        """
        with self._writing() as database:
            self._count_on(database)
            now = self._follow_the_clock(database)
            seqs = []
            for message in messages:
                row = (message.event_id, message.kind, message.plot, now, message.payload)
                cursor = database.execute(
                    "INSERT INTO messages (event_id, kind, plot, created_s, payload) VALUES (?, ?, ?, ?, ?) "
                    "ON CONFLICT (event_id) DO NOTHING",
                    row,
                )
                if cursor.rowcount:
                    self._bytes += _size(message)
                    add_to_counter(database, "accepted", 1)
                found = database.execute("SELECT seq FROM messages WHERE event_id = ?", (message.event_id,)).fetchone()
                seqs.append(int(found[0]))
            self._make_room(database)
        with self._mutex:
            self._last_seq, self._counts_on = max(self._last_seq, *seqs, 0), self._file.generation
        return seqs

    def pending(self, after: int = 0, limit: int = 100) -> list[Pending]:
        """The next messages in their order.

        Args:
            after: place of the last one that is not wanted any more.
            limit: of their number.
        """
        with self._file.reading() as database:
            rows = database.execute(
                "SELECT seq, event_id, kind, plot, created_s, payload FROM messages WHERE seq > ? ORDER BY seq LIMIT ?",
                (after, limit),
            ).fetchall()
        with self._mutex:
            self._last_seq = max(self._last_seq, *(row[0] for row in rows), 0)
        return [
            Pending(seq, Message(payload, kind, plot, event_id), at) for seq, event_id, kind, plot, at, payload in rows
        ]

    def delivered(self, seqs: Iterable[int]) -> None:
        """Deletes messages that the receiver has acknowledged. What has been dropped meanwhile is passed over.

        Raises:
            OutboxError: the disk refuses; the messages will be sent again, with the same event ids.
        """
        with self._writing() as database:
            done = 0
            for seq in seqs:
                done += self._delete(database, "seq = ?", (seq,))
            add_to_counter(database, "delivered", done)

    def expire(self) -> int:
        """Drops what is older than the limit; gives how many.

        A clock that is set makes nothing older: what was committed since the device started moves with it. What an
        earlier start committed before its clock was set stays.
        """
        with self._writing() as database:
            now = self._follow_the_clock(database)
            if not self.limits.max_age_s:
                return 0
            return self._drop(database, "created_s BETWEEN ? AND ?", (_CLOCK_IS_SET_S, now - self.limits.max_age_s))

    def counts(self) -> OutboxCounts:
        """What waits and what became of the rest."""
        with self._file.reading() as database:
            waiting = dict(database.execute("SELECT kind, count(*) FROM messages GROUP BY kind").fetchall())
            oldest = database.execute("SELECT created_s FROM messages ORDER BY seq LIMIT 1").fetchone()
            counters = dict(database.execute("SELECT name, value FROM counters").fetchall())
        dropped = {name.partition(":")[2]: value for name, value in counters.items() if name.startswith("dropped:")}
        return OutboxCounts(
            waiting=waiting,
            waiting_bytes=self._bytes,
            oldest_s=max(0.0, time.time() - oldest[0]) if oldest else 0.0,
            accepted=counters.get("accepted", 0),
            delivered=counters.get("delivered", 0),
            dropped=dropped,
        )

    def close(self) -> None:
        """Closes the file; what waits stays."""
        self._file.close()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._mutex:
            before = self._bytes
            try:
                with self._file.writing() as database:
                    yield database
                # Not before: what is rolled back has to be moved again.
                self._read_clocks = self._clocks_to_be
            except BaseException:
                self._clocks_to_be = self._read_clocks
                # A file that was found damaged is a new and empty one now.
                self._bytes = before if self._file.generation == self._generation else 0
                self._generation = self._file.generation
                raise

    def _count_on(self, database: sqlite3.Connection) -> None:
        """A new file goes on with the old one's places: an acknowledgement on its way must not mean another message."""
        if self._counts_on != self._file.generation:
            database.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('messages', ?)", (self._last_seq,))

    def _follow_the_clock(self, database: sqlite3.Connection) -> float:
        """Moves times with a clock that was set while the agent ran; gives the present one.

        A device without a battery for its clock starts with the time of its last end, and days later, when the network
        is back, its clock jumps. What it has seen meanwhile is not days older than before.
        """
        (time_before, ran_before), (now, ran) = self._read_clocks, _clocks()
        step = (now - time_before) - (ran - ran_before)
        if abs(step) > _STEP_S:
            started = now - step - ran
            database.execute("UPDATE messages SET created_s = created_s + ? WHERE created_s >= ?", (step, started))
        self._clocks_to_be = now, ran
        return now

    def _measured_bytes(self) -> int:
        with self._file.reading() as database:
            return self._size_where(database, "true")

    def _make_room(self, database: sqlite3.Connection) -> None:
        """Thins: of the oldest half of the detections every second one goes, until there is room; alerts go last."""
        limit = self.limits.max_bytes
        if self._bytes <= limit:
            return
        alerts = self._size_where(database, "kind = 'alert'")
        # More than there must be, but no more than half of what the alerts leave to the detections.
        allowed = min(limit, max((1 - _SLACK) * limit, (alerts + limit) / 2))
        while self._bytes > allowed:
            (detections,) = database.execute("SELECT count(*) FROM messages WHERE kind = 'detection'").fetchone()
            # Of the old, a record that is half as dense says more than one that begins half as late.
            taken = self._drop(
                database,
                "seq IN (SELECT seq FROM (SELECT seq, row_number() OVER (ORDER BY seq) AS place FROM messages "
                "WHERE kind = 'detection' ORDER BY seq LIMIT ?) WHERE place % 2 = 1)",
                (max(2, detections // 2),),
            )
            if not taken:
                break
        while self._bytes > limit and self._drop(database, "seq = (SELECT min(seq) FROM messages)", ()):
            pass

    def _drop(self, database: sqlite3.Connection, where: str, values: tuple[object, ...]) -> int:
        kinds = database.execute(f"SELECT kind, count(*) FROM messages WHERE {where} GROUP BY kind", values).fetchall()  # noqa: S608 - our own words
        taken = self._delete(database, where, values)
        for kind, count in kinds:
            add_to_counter(database, f"dropped:{kind}", count)
        return taken

    def _delete(self, database: sqlite3.Connection, where: str, values: tuple[object, ...]) -> int:
        self._bytes -= self._size_where(database, where, values)
        return database.execute(f"DELETE FROM messages WHERE {where}", values).rowcount  # noqa: S608 - our own words

    @staticmethod
    def _size_where(database: sqlite3.Connection, where: str, values: tuple[object, ...] = ()) -> int:
        (size,) = database.execute(
            f"SELECT coalesce(sum(length(payload) + length(plot) + ?), 0) FROM messages WHERE {where}",  # noqa: S608 - our own words
            (_OVERHEAD_BYTES, *values),
        ).fetchone()
        return int(size)


def _size(message: Message) -> int:
    return len(message.payload) + len(message.plot) + _OVERHEAD_BYTES


def _clocks() -> tuple[float, float]:
    """The device's time, seconds since 1970, and how long the device has been running, seconds."""
    # Linux counts the time asleep by another clock.
    asleep = getattr(time, "CLOCK_BOOTTIME", None)
    return time.time(), time.monotonic() if asleep is None else time.clock_gettime(asleep)
