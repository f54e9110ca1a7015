"""Outbox: every message is on the disk before it is sent, and stays there until the receiver has acknowledged it."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from agridistill.edge.messages import Message, OutboxCounts, OutboxLimits, Pending
from agridistill.errors import OutboxError

logger = logging.getLogger(__name__)

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
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = self._opened_or_new()
        self._bytes = self._measured_bytes()

    def add(self, messages: Sequence[Message]) -> list[int]:
        """Commits messages, all or none; makes room first where they would exceed the limits.

        Args:
            messages: in their order; one whose event id is there already is not added again.

        Returns:
            Their places in the order of all messages.

        Raises:
            OutboxError: the disk is full or refuses; nothing was added then.
        """
        now = time.time()
        with self._writing() as database:
            self._make_room(database, sum(_size(message) for message in messages), now)
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
                    _count(database, "accepted", 1)
                found = database.execute("SELECT seq FROM messages WHERE event_id = ?", (message.event_id,)).fetchone()
                seqs.append(int(found[0]))
        return seqs

    def pending(self, after: int = 0, limit: int = 100) -> list[Pending]:
        """The next messages in their order.

        Args:
            after: place of the last one that is not wanted any more.
            limit: of their number.
        """
        with self._reading() as database:
            rows = database.execute(
                "SELECT seq, event_id, kind, plot, created_s, payload FROM messages WHERE seq > ? ORDER BY seq LIMIT ?",
                (after, limit),
            ).fetchall()
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
            _count(database, "delivered", done)

    def expire(self) -> int:
        """Drops what is older than the limit; gives how many.

        A clock that was set back makes nothing older, and what was made before the clock was first set stays.
        """
        if not self.limits.max_age_s:
            return 0
        with self._writing() as database:
            return self._drop(
                database, "created_s BETWEEN ? AND ?", (_CLOCK_IS_SET_S, time.time() - self.limits.max_age_s)
            )

    def counts(self) -> OutboxCounts:
        """What waits and what became of the rest."""
        with self._reading() as database:
            waiting = dict(database.execute("SELECT kind, count(*) FROM messages GROUP BY kind").fetchall())
            (oldest,) = database.execute("SELECT min(created_s) FROM messages").fetchone()
            counters = dict(database.execute("SELECT name, value FROM counters").fetchall())
        dropped = {name.partition(":")[2]: value for name, value in counters.items() if name.startswith("dropped:")}
        return OutboxCounts(
            waiting=waiting,
            waiting_bytes=self._bytes,
            oldest_s=max(0.0, time.time() - oldest) if oldest is not None else 0.0,
            accepted=counters.get("accepted", 0),
            delivered=counters.get("delivered", 0),
            dropped=dropped,
        )

    def close(self) -> None:
        """Closes the file; what waits stays."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, on the disk at its end."""
        with self._lock:
            before = self._bytes
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except BaseException as error:
                self._bytes = before
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise self._failure(error) from None
                raise

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._database
            except sqlite3.Error as error:
                raise self._failure(error) from None

    def _failure(self, error: sqlite3.Error) -> OutboxError:
        full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
        remedy = "free some room on the disk" if full else "check the disk"
        return OutboxError("an outbox that can be written and read", f"'{self.path}' ({error})", remedy)

    def _opened_or_new(self) -> sqlite3.Connection:
        try:
            return self._opened()
        except sqlite3.DatabaseError as error:
            # Locked or without rights: not damaged. An OperationalError is a DatabaseError, too.
            if isinstance(error, sqlite3.OperationalError):
                raise self._failure(error) from None
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}")
        logger.error("the outbox '%s' is damaged: set aside as '%s', a new one is begun", self.path, aside)
        for suffix in ("", "-wal", "-shm"):
            part = Path(f"{self.path}{suffix}")
            if part.exists():
                part.rename(f"{aside}{suffix}")
        try:
            return self._opened()
        except sqlite3.Error as error:
            raise self._failure(error) from None

    def _opened(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=30)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            # WAL alone syncs at checkpoints only: a power cut would take back what was committed.
            database.execute("PRAGMA synchronous = FULL")
            (sound,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if sound != "ok":
                raise sqlite3.DatabaseError(sound)
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version > _SCHEMA_VERSION:
                raise OutboxError(
                    f"an outbox of version {_SCHEMA_VERSION} or older",
                    f"version {version} in '{self.path}'",
                    "update AgriDistill on this device",
                )
            database.executescript(_SCHEMA)
            database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        except BaseException:
            database.close()
            raise
        return database

    def _measured_bytes(self) -> int:
        with self._reading() as database:
            (size,) = database.execute(
                "SELECT coalesce(sum(length(payload) + length(plot) + ?), 0) FROM messages", (_OVERHEAD_BYTES,)
            ).fetchone()
        return int(size)

    def _make_room(self, database: sqlite3.Connection, needed: int, now: float) -> None:
        """Thins: of the oldest half of the detections every second one goes, until there is room; alerts go last."""
        if self._bytes + needed <= self.limits.max_bytes:
            return
        allowed = (1 - _SLACK) * self.limits.max_bytes - needed
        while self._bytes > max(allowed, 0):
            (detections,) = database.execute("SELECT count(*) FROM messages WHERE kind = 'detection'").fetchone()
            if detections > 1:
                # Of the old, a record that is half as dense says more than one that begins half as late.
                taken = self._drop(
                    database,
                    "seq IN (SELECT seq FROM (SELECT seq, row_number() OVER (ORDER BY seq) AS place FROM messages "
                    "WHERE kind = 'detection' ORDER BY seq LIMIT ?) WHERE place % 2 = 1)",
                    (max(2, detections // 2),),
                )
            else:
                taken = self._drop(
                    database, "seq IN (SELECT seq FROM messages ORDER BY kind = 'alert', seq LIMIT 16)", ()
                )
            if not taken:
                return

    def _drop(self, database: sqlite3.Connection, where: str, values: tuple[object, ...]) -> int:
        kinds = database.execute(f"SELECT kind, count(*) FROM messages WHERE {where} GROUP BY kind", values).fetchall()  # noqa: S608 - our own words
        taken = self._delete(database, where, values)
        for kind, count in kinds:
            _count(database, f"dropped:{kind}", count)
        return taken

    def _delete(self, database: sqlite3.Connection, where: str, values: tuple[object, ...]) -> int:
        (size,) = database.execute(
            f"SELECT coalesce(sum(length(payload) + length(plot) + ?), 0) FROM messages WHERE {where}",  # noqa: S608 - our own words
            (_OVERHEAD_BYTES, *values),
        ).fetchone()
        self._bytes -= int(size)
        return database.execute(f"DELETE FROM messages WHERE {where}", values).rowcount  # noqa: S608 - our own words


def _size(message: Message) -> int:
    return len(message.payload) + len(message.plot) + _OVERHEAD_BYTES


def _count(database: sqlite3.Connection, name: str, count: int) -> None:
    if count:
        database.execute(
            "INSERT INTO counters (name, value) VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (name, count),
        )
