"""The agent's databases: `outbox` (messages to deliver) and `history` (detections and alerts), each a `SqliteFile`."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from agridistill.errors import EdgeError, OutboxError

logger = logging.getLogger(__name__)


class StateLostError(EdgeError):
    """A database file was removed, replaced or damaged while the agent was running; the agent must be restarted."""


class SqliteFile:
    """An SQLite database file that several threads can use.

    At the end of a `writing` block its changes are on the disk and survive a power cut. A file that is found damaged
    when it is opened is renamed, and a new one is created.

    Args:
        what: name of the database for error messages, such as "outbox".
        schema: SQL statements that create the tables if they are missing.
        read_only: opens an existing file for reading only, while the agent may write to it.

    Raises:
        OutboxError: the file cannot be opened, or is of another version.
    """

    def __init__(self, path: Path, *, what: str, schema: str, version: int, read_only: bool = False) -> None:
        self.path, self._what, self._read_only = path, what, read_only
        self._lock = threading.Lock()
        if read_only and not path.is_file():
            remedy = "start the agent, or name its state folder with --state"
            raise OutboxError(f"the {what} of an agent", f"no file '{path}'", remedy)
        try:
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._set_aside_if_damaged()
            self._database = self._open(schema, version)
        except sqlite3.Error as error:
            raise self._failure(error) from None
        self._identity = file_identity(path)

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Yields the database in a transaction that is committed to the disk at the end of the `with` block.

        If the block or the disk fails, the transaction is rolled back. Raises OutboxError if the disk is full or
        refuses the write, StateLostError if the file was removed, replaced or damaged.
        """
        with self.reading() as database:
            if not self._read_only and file_identity(self.path) != self._identity:
                raise self._lost("removed or replaced")
            try:
                database.execute("BEGIN IMMEDIATE")
                yield database
                database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yields the database for queries; raises OutboxError if it cannot be read, StateLostError if it is damaged."""
        with self._lock:
            try:
                yield self._database
            except sqlite3.Error as error:
                raise self._failure(error) from None

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _connect(self) -> sqlite3.Connection:
        address = f"{self.path.absolute().as_uri()}?mode={'ro' if self._read_only else 'rwc'}"
        return sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False, timeout=30)

    def _open(self, schema: str, version: int) -> sqlite3.Connection:
        database = self._connect()
        try:
            (found,) = database.execute("PRAGMA user_version").fetchone()
            if found not in (0, version):
                got, remedy = f"schema version {found} in '{self.path}'", "name another folder with --state"
                raise OutboxError(f"an {self._what} of schema version {version}", got, remedy)
            if not self._read_only:
                database.execute("PRAGMA journal_mode = WAL")
                # Without FULL, WAL only syncs at checkpoints: a power cut would undo committed transactions.
                database.execute("PRAGMA synchronous = FULL")
                database.executescript(f"{schema} PRAGMA user_version = {version};")
        except BaseException:
            database.close()
            raise
        return database

    def _set_aside_if_damaged(self) -> None:
        try:
            with contextlib.closing(self._connect()) as database:
                (sound,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if sound == "ok":
                return
        except sqlite3.OperationalError:
            raise  # the file is locked or not accessible, but not damaged
        except sqlite3.DatabaseError:
            pass
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}")
        line = "the %s '%s' is damaged: it is renamed to '%s', and a new one is created"
        logger.error(line, self._what, self.path, aside)
        for suffix in ("", "-wal", "-shm"):
            part = Path(f"{self.path}{suffix}")
            if part.exists():
                part.rename(f"{aside}{suffix}")

    def _failure(self, error: sqlite3.Error) -> OutboxError | StateLostError:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) and not self._read_only:
            return self._lost(f"damaged ({error})")
        remedy = "free some room on the disk" if name == "SQLITE_FULL" else "check the disk"
        return OutboxError(f"an {self._what} that can be written and read", f"'{self.path}' ({error})", remedy)

    def _lost(self, what: str) -> StateLostError:
        remedy = "start the agent again, and do not change its state folder while it runs"
        return StateLostError(f"the {self._what} as the agent left it", f"'{self.path}', which was {what}", remedy)


def file_identity(path: Path) -> tuple[int, int] | None:
    """Returns device and inode of a file or folder, which differ once another one has its place; None if it is away."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def add_to_counter(database: sqlite3.Connection, name: str, count: int) -> None:
    """Adds `count` to the row `name` of the table `counters`; call it inside a transaction."""
    if count:
        database.execute(
            "INSERT INTO counters (name, value) VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (name, count),
        )
