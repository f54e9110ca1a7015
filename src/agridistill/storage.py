"""Files appear whole or not at all: a temporary name in the same folder, then a rename."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from agridistill.errors import RunError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Gives a temporary path to write to; renames it to `path` on success, removes it on any failure.

    Args:
        durable: waits until the disk has it; not needed where a checksum finds what a power cut has left half-written.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'

    Raises:
        IsADirectoryError: the path ends in no file name (`.`, `..`, `/`).
        OSError: the disk refuses.
    """
    if path.name in ("", ".."):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        if durable:
            # Without this a power cut may leave the new name on empty content.
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder to fill; renames it to `path` on success, removes it on any failure.

    Raises:
        OSError: the disk refuses, or there is a folder that holds something.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """A hidden name in the same folder that no other process takes, on whichever host; it ends in `.part`."""
    # Hosts that share the folder may give two processes one number, and runs seed their random numbers alike.
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")


_held_locks: set[IO[bytes]] = set()


def _let_go_of_locks() -> None:
    for file in _held_locks:
        file.close()
    _held_locks.clear()


# A forked loader process inherits the open file, and would hold the lock for the seconds that it outlives a kill of us.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_of_locks)


@contextlib.contextmanager
def only_one(lock: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock while the body runs; it goes with the process, however that ends.

    Args:
        lock: a file, made where it is not there. File systems without locks give it to every process.
        what: is being done, for the error.
        wait: until another process or thread releases it.

    Raises:
        RunError: another process holds it.
    """
    with lock.open("ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"one process for the {what}", "another one at work there", "wait for it") from None
            except OSError:
                pass
        _held_locks.add(file)
        try:
            yield
        finally:
            _held_locks.discard(file)


def user_cache() -> Path:
    """Folder for what only saves time: `XDG_CACHE_HOME`, else `~/.cache`. Whatever lies there may be deleted."""
    # Not Path.home(): it raises for a user without a home.
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "agridistill"  # noqa: PTH111


def require_writable(path: Path, option: str = "--out", *, folder: bool = False) -> None:
    """Checks that a file or a folder can be written before anything is computed for it; writes nothing.

    Args:
        path: neither it nor its parents need to exist.
        option: that named it, for the error.
        folder: a folder is to be made, not a file.

    Raises:
        RunError: of the other kind, below a file, or at a place that may not be written.
    """
    if path.exists() and path.is_dir() is not folder:
        kinds = ("a folder", "the file") if folder else ("a file", "the folder")
        raise RunError(f"{kinds[0]} for {option}", f"{kinds[1]} '{path}'", f"choose another {option}")
    whole = path.resolve()
    # A file that is there is replaced by a rename, for which its folder counts.
    place = next(parent for parent in ((whole,) if folder else ()) + tuple(whole.parents) if parent.exists())
    if not place.is_dir():
        raise RunError(f"a folder to write '{path.name}' in", f"the file '{place}'", f"choose another {option}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise RunError(
            f"a place for {option} that may be written", f"'{place}', which may not", f"choose another {option}"
        )


def require_result_file(path: Path, option: str = "--out", *, keys: Sequence[str] = (), header: str = "") -> None:
    """Checks that a result can be written: a file that is there already must be an earlier result of the same kind.

    Args:
        option: that named the file, for the error.
        keys: that every JSON result of this kind has; empty for results that are not JSON.
        header: the text that a result begins with where it is not JSON.

    Raises:
        RunError: as `require_writable`, or a file that holds something else.
    """
    require_writable(path, option)
    if path.exists() and path.stat().st_size and not _is_result(path, keys, header):
        raise RunError(
            f"a new file or an earlier result for {option}",
            f"'{path}', which is another file",
            f"choose another {option}",
        )


def _is_result(path: Path, keys: Sequence[str], header: str) -> bool:
    with path.open("rb") as file:
        start = file.read(max(1, len(header.encode())))
        if not keys:
            return start == header.encode()
        if start != b"{":
            return False  # a model may be too large to be read in vain
        try:
            document = json.loads(start + file.read())
        except (ValueError, RecursionError):
            return False
    return isinstance(document, dict) and set(keys) <= set(document)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Any) -> None:
    """Writes JSON, whole or not at all. NaN and infinity are refused: they are not JSON."""
    write_text(path, json_text(document))


def json_text(document: Any) -> str:
    """JSON that any UTF-8 file or stream can take, with a line end. NaN and infinity are a `ValueError`."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # A file name that is no UTF-8 comes as lone surrogates, which only JSON's escapes can carry.
        text = json.dumps(document, indent=2, allow_nan=False)
    return text + "\n"
