"""Writes files so that they appear complete or not at all, and checks paths and locks before work starts.

A file is written under a temporary name in the same folder and then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from agridistill.errors import RunError

if TYPE_CHECKING:
    from PIL import Image

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path to write to; renames this file to `path` on success, removes it on any failure.

    `durable` waits until the data is on the disk. False is faster, but a power cut may leave an incomplete file: use it
    for files whose checksum is verified when they are read.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'

    Raises:
        OSError: the disk is full or cannot be written, or the path does not end in a file name (`.`, `..`, `/`).
    """
    if path.name in ("", ".."):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        if durable:
            # Without this, a power cut may leave an empty file under the final name.
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename is None:  # a write or fsync that fails does not say where
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder to fill; on success it becomes `path`, which is new or an empty folder."""
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
    """Writes a folder's directory entries to the disk, so that renames survive a power cut; ignores errors."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """Returns a hidden path in the same folder that no other process uses, even on another host; it ends in `.part`."""
    # On hosts that share the folder two processes may have the same id, and runs may seed random numbers equally:
    # os.urandom does not depend on a seed.
    return path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.part")


def write_picture(image: Image.Image, path: Path, kind: str, **options: Any) -> None:
    """Writes a picture in a format of Pillow, such as "JPEG"; an OSError says that the disk is full.

    `image.save(path)` does not: it ignores that the system wrote only a part (findings/pillow_save_cuts_at_full_disk).
    """
    content = io.BytesIO()
    image.save(content, kind, **options)
    path.write_bytes(content.getbuffer())


_held_locks: set[IO[bytes]] = set()


def _let_go_of_locks() -> None:
    for file in _held_locks:
        file.close()
    _held_locks.clear()


# A forked data-loader process inherits the open lock file. If the main process is killed, the loader lives for some
# seconds more and would keep the lock for that time: it therefore closes the file when it starts.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_of_locks)


@contextlib.contextmanager
def only_one(lock: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock while the block runs; the system releases it when the process ends, even if it is killed.

    On a file system without locks, nothing is locked. If another process has the lock, `wait` waits for it; otherwise a
    RunError names `what` the lock protects ("teacher cache").
    """
    with lock.open("ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"only one process that uses the {what}", "another process that uses it now", "wait until it ends"
                ) from None
            except OSError:
                pass
        _held_locks.add(file)
        try:
            yield
        finally:
            _held_locks.discard(file)


def user_cache() -> Path:
    """Returns AgriDistill's folder in the user's cache (`XDG_CACHE_HOME` or `~/.cache`); its files may be deleted."""
    # Not Path.home(): it raises for a user without a home.
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "agridistill"  # noqa: PTH111


def require_writable(path: Path, option: str = "--out", *, folder: bool = False) -> None:
    """Raises a RunError if a file or a folder cannot be written, before anything is computed for it; writes nothing.

    That is if it exists but is of the other kind, if a parent is a file, or if a permission is missing. Neither the
    path nor its parents need to exist. `option` is the option that gave the path.
    """
    if path.exists() and path.is_dir() is not folder:
        kinds = ("a folder", "the file") if folder else ("a file", "the folder")
        raise RunError(f"{kinds[0]} for {option}", f"{kinds[1]} '{path}'", f"choose another {option}")
    whole = path.resolve()
    # An existing file is replaced by a rename, which needs write permission for its folder only.
    place = next(parent for parent in ((whole,) if folder else ()) + tuple(whole.parents) if parent.exists())
    if not place.is_dir():
        raise RunError(f"a folder to write '{path.name}' in", f"the file '{place}'", f"choose another {option}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise RunError(
            f"a writable folder for {option}", f"'{place}' without write permission", f"choose another {option}"
        )


def require_result_file(path: Path, option: str = "--out", *, keys: Sequence[str] = (), header: str = "") -> None:
    """Raises a RunError unless a result file can be written and would only replace an earlier result of its kind.

    `keys` are those that every JSON result of this kind has; `header` is the beginning of every other result.
    """
    require_writable(path, option)
    if path.exists() and path.stat().st_size and not _is_result(path, keys, header):
        got = f"'{path}', which is another file"
        raise RunError(f"a new file or an earlier result for {option}", got, f"choose another {option}")


def _is_result(path: Path, keys: Sequence[str], header: str) -> bool:
    with path.open("rb") as file:
        start = file.read(max(1, len(header.encode())))
        if not keys:
            return start == header.encode()
        if start != b"{":
            return False  # not JSON: do not read the rest, which may be a large model
        try:
            document = json.loads(start + file.read())
        except (ValueError, RecursionError):
            return False
    return isinstance(document, dict) and set(keys) <= set(document)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Converts rows to CSV text; None becomes an empty cell."""
    # Not imported at the top: most commands write no CSV.
    import csv
    import io

    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON file, complete or not at all; raises a ValueError for NaN and infinity, which JSON cannot hold."""
    write_text(path, json_text(document))


def json_text(document: Any) -> str:
    """Converts a document to JSON text that is valid Unicode; raises a ValueError for NaN and infinity."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    # Python represents file names that are not UTF-8 by lone surrogates; this writes them as the JSON escapes \\udcXX.
    return text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n"
