"""One SQLite file that no kill or power cut takes a commit from: what outbox and history have in common."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from agridistill.errors import OutboxError

logger = logging.getLogger(__name__)


class SqliteFile:
    """A database of one file. May be used from several threads.

    A commit is on the disk when `writing` ends (write-ahead log, full synchronisation). A file that is damaged all the
    same is set aside and told, never deleted; one that somebody removes or replaces while it is open is told and begun
    anew.

    Args:
        path: of the file; its folder is made.
        what: is kept there, for messages: "outbox".
        schema: statements that make what is not there yet.
        version: of the schema; files of a newer one are refused.
        added: columns that older files lack, as (table, column, definition); both versions can read the file.
        read_only: for another process that only looks; nothing is made then.

    Raises:
        OutboxError: the file cannot be opened, or is of a newer version.
    """

    def __init__(
        self,
        path: Path,
        *,
        what: str,
        schema: str,
        version: int,
        added: Sequence[tuple[str, str, str]] = (),
        read_only: bool = False,
    ) -> None:
        self.path = path
        self._added = added
        self._what, self._schema, self._version = what, schema, version
        self._lock = threading.Lock()
        self._read_only = read_only
        self._identity: tuple[int, int] | None = None
        self.generation = 0
        """Grows where a damaged or removed file gave way to a new one."""
        if read_only:
            self._database = self._opened_to_read()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = self._opened_or_new()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, on the disk at its end; none of it is there where the body or the disk fails.

        Raises:
            OutboxError: the disk is full or refuses, or the file was not there any more; the next try meets a new one.
        """
        with self._lock:
            self._begin_anew_where_removed()
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    self._begin_anew_where_damaged(error)
                    raise self._failure(error) from None
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The database, for queries.

        Raises:
            OutboxError: it cannot be read.
        """
        with self._lock:
            self._follow_where_replaced()
            try:
                yield self._database
            except sqlite3.Error as error:
                self._begin_anew_where_damaged(error)
                raise self._failure(error) from None

    def close(self) -> None:
        """Closes the file; what it holds stays."""
        with self._lock:
            self._database.close()

    def _failure(self, error: sqlite3.Error) -> OutboxError:
        full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
        remedy = "free some room on the disk" if full else "check the disk"
        return OutboxError(f"an {self._what} that can be written and read", f"'{self.path}' ({error})", remedy)

    def _opened_or_new(self) -> sqlite3.Connection:
        try:
            return self._opened()
        except sqlite3.DatabaseError as error:
            # Locked or without rights: not damaged. An OperationalError is a DatabaseError, too.
            if isinstance(error, sqlite3.OperationalError):
                raise self._failure(error) from None
        self._set_aside()
        try:
            return self._opened()
        except sqlite3.Error as error:
            raise self._failure(error) from None

    def _begin_anew_where_damaged(self, error: sqlite3.Error) -> None:
        """A file that turns out to be damaged while it is open; the next try meets a new one."""
        name = getattr(error, "sqlite_errorname", "")
        if self._read_only or not name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return
        self._database.close()
        self._database = self._opened_anew()
        self.generation += 1

    def _begin_anew_where_removed(self) -> None:
        """What is committed to a file without a name is lost with the process."""
        if self._read_only or _identity(self.path) == self._identity:
            return
        self._database.close()
        logger.error("the %s '%s' was removed or replaced while it was open: a new one is begun", self._what, self.path)
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = self._opened()
        except (OSError, sqlite3.Error):
            self._database = _nowhere()
        self.generation += 1
        raise OutboxError(
            f"the {self._what} where it was",
            f"'{self.path}', which was removed or replaced",
            "leave the state folder alone while the agent runs",
        )

    def _follow_where_replaced(self) -> None:
        """Whoever only looks follows to the file that the agent has begun anew; the old one is shown until then."""
        if not self._read_only or _identity(self.path) in (None, self._identity):
            return
        database = self._opened_to_read()
        self._database.close()
        self._database = database

    def _opened_anew(self) -> sqlite3.Connection:
        try:
            self._set_aside()
            return self._opened()
        except (OSError, sqlite3.Error):
            # Not even that. Without tables every further call fails, and is told.
            return _nowhere()

    def _set_aside(self) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}")
        logger.error("the %s '%s' is damaged: set aside as '%s', a new one is begun", self._what, self.path, aside)
        for suffix in ("", "-wal", "-shm"):
            part = Path(f"{self.path}{suffix}")
            if part.exists():
                part.rename(f"{aside}{suffix}")

    def _opened(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=30)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            # WAL alone syncs at checkpoints only: a power cut would take back what was committed.
            database.execute("PRAGMA synchronous = FULL")
            (sound,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if sound != "ok":
                raise sqlite3.DatabaseError(sound)
            self._refuse_newer(database)
            database.executescript(self._schema)
            for table, column, definition in self._added:
                if column not in {row[1] for row in database.execute(f"PRAGMA table_info({table})")}:
                    database.execute(f"ALTER TABLE {table} ADD COLUMN {column} {definition}")
            database.execute(f"PRAGMA user_version = {self._version}")
            self._identity = _identity(self.path)
        except BaseException:
            database.close()
            raise
        return database

    def _opened_to_read(self) -> sqlite3.Connection:
        if not self.path.is_file():
            raise OutboxError(
                f"an {self._what}", f"no file '{self.path}'", "start the agent, or name its state folder with --state"
            )
        database: sqlite3.Connection | None = None
        try:
            database = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=ro",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=30,
            )
            self._refuse_newer(database)
            self._identity = _identity(self.path)
        except BaseException as error:
            if database is not None:
                database.close()
            if isinstance(error, sqlite3.Error):
                raise self._failure(error) from None
            raise
        return database

    def _refuse_newer(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > self._version:
            raise OutboxError(
                f"an {self._what} of version {self._version} or older",
                f"version {version} in '{self.path}'",
                "update AgriDistill on this device",
            )


def _nowhere() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def add_to_counter(database: sqlite3.Connection, name: str, count: int) -> None:
    """Counts in the table `counters (name, value)`, within a transaction."""
    if count:
        database.execute(
            "INSERT INTO counters (name, value) VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (name, count),
        )
