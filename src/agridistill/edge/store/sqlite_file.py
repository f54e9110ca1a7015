"""One SQLite file whose commits survive a kill and a power cut."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agridistill.errors import EdgeError, OutboxError

logger = logging.getLogger(__name__)


class StateRemovedError(EdgeError):
    """A file of the state was removed or replaced while the agent runs: commits to it would be lost."""


class SqliteFile:
    """A database of one file. May be used from several threads.

    A commit is on the disk when `writing` ends (write-ahead log, full synchronisation). A damaged file is set aside,
    logged and replaced by a new one, never deleted.

    Args:
        path: of the file; its folder is created.
        what: it holds, for messages: "outbox".
        schema: statements that create what is missing.
        version: of the schema; files of a newer one are refused.
        added: columns that older files lack, as (table, column, definition); both versions can read the file.
        created: called with the new database that replaces a damaged one while the agent runs.
        read_only: for a reader beside the agent; nothing is created then.

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
        created: Callable[[sqlite3.Connection], None] = lambda database: None,
        read_only: bool = False,
    ) -> None:
        self.path, self._what, self._schema, self._version = path, what, schema, version
        self._added, self._created, self._read_only = added, created, read_only
        self._lock = threading.Lock()
        self._identity: tuple[int, int] | None = None
        if read_only:
            self._database = self._open_to_read()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            try:
                self._database = self._open()
            except sqlite3.OperationalError:
                raise  # locked or without rights: not damaged
            except sqlite3.DatabaseError:
                self._set_aside()
                self._database = self._open()
        except sqlite3.Error as error:
            raise self._failure(error) from None

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, on the disk at its end; it is rolled back where the body or the disk fails.

        Raises:
            OutboxError: the disk is full or refuses.
            StateRemovedError: the file was removed or replaced.
        """
        with self._lock:
            if _identity(self.path) != self._identity and not self._read_only:
                raise StateRemovedError(
                    f"the {self._what} where it was",
                    f"'{self.path}', which was removed or replaced",
                    "start the agent again, and leave its state folder alone while it runs",
                )
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    self._replace_damaged(error)
                    raise self._failure(error) from None
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The database, for queries.

        Raises:
            OutboxError: it cannot be read.
        """
        with self._lock:
            # A reader follows to the file that replaced a damaged one.
            if self._read_only and _identity(self.path) not in (None, self._identity):
                before, self._database = self._database, self._open_to_read()
                before.close()
            try:
                yield self._database
            except sqlite3.Error as error:
                self._replace_damaged(error)
                raise self._failure(error) from None

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._database.close()

    def _failure(self, error: sqlite3.Error) -> OutboxError:
        is_full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
        remedy = "free some room on the disk" if is_full else "check the disk"
        return OutboxError(f"an {self._what} that can be written and read", f"'{self.path}' ({error})", remedy)

    def _replace_damaged(self, error: sqlite3.Error) -> None:
        """Sets the open file aside where it is damaged; the next call uses a new one."""
        name = getattr(error, "sqlite_errorname", "")
        if self._read_only or not name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return
        self._database.close()
        try:
            self._set_aside()
            self._database = self._open()
            self._created(self._database)
        except (OSError, sqlite3.Error):
            # Without tables every further call fails, and reports that.
            self._database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)

    def _set_aside(self) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}")
        logger.error("the %s '%s' is damaged: set aside as '%s', a new one is begun", self._what, self.path, aside)
        for suffix in ("", "-wal", "-shm"):
            part = Path(f"{self.path}{suffix}")
            if part.exists():
                part.rename(f"{aside}{suffix}")

    def _open(self) -> sqlite3.Connection:
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

    def _open_to_read(self) -> sqlite3.Connection:
        if not self.path.is_file():
            remedy = "start the agent, or name its state folder with --state"
            raise OutboxError(f"an {self._what}", f"no file '{self.path}'", remedy)
        address = f"{self.path.absolute().as_uri()}?mode=ro"
        database: sqlite3.Connection | None = None
        try:
            database = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False, timeout=30)
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
            expected = f"an {self._what} of version {self._version} or older"
            raise OutboxError(expected, f"version {version} in '{self.path}'", "update AgriDistill on this device")


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
