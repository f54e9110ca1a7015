"""The files of a release, each continued after a cut or a kill, and believed only by its sha256."""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import time
from pathlib import Path

from agridistill.edge.updates.pointer import sync_folder
from agridistill.edge.updates.release import RefusedError, Release, ReleaseFile
from agridistill.edge.updates.settings import UpdateSettings
from agridistill.edge.updates.sources import Reader, ReleaseSource, UnavailableError, read_some
from agridistill.manifest import sha256_of

_CHUNK_BYTES = 65_536
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LATER = "the next check goes on"


def fetch_files(source: ReleaseSource, release: Release, folder: Path, settings: UpdateSettings) -> None:
    """Brings all files of a release into a folder; what is there already is not fetched again.

    Args:
        source: of the release.
        release: that was verified.
        folder: gets the files; `NAME.part` is one under way.
        settings: limits and patience.

    Raises:
        RefusedError: a file is too large, or not the one that was signed.
        UnavailableError: cut off again and again, or no room on the disk.
    """
    for file in release.files:
        if file.size_bytes > settings.max_file_bytes:
            got = f"'{file.name}' with {file.size_bytes:,}"
            raise RefusedError(f"files of at most {settings.max_file_bytes:,} bytes", got, "publish a smaller model")
    _check_room(release, folder, settings)
    deadline = time.monotonic() + settings.patience_s
    try:
        for file in release.files:
            _fetch(source, release, file, folder, settings, deadline)
    except OSError as error:
        if error.errno in _FULL:
            # What came so far would keep the agent itself from writing.
            shutil.rmtree(folder, ignore_errors=True)
        raise UnavailableError("room for an update", f"'{folder}' ({error.strerror or error})", "free some") from None
    sync_folder(folder)


def is_whole(path: Path, file: ReleaseFile) -> bool:
    """Whether the file at a path is the one that was signed."""
    try:
        return path.stat().st_size == file.size_bytes and sha256_of(path) == file.sha256
    except OSError:
        return False


def _check_room(release: Release, folder: Path, settings: UpdateSettings) -> None:
    there = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    needed = max(0, release.size_bytes - there) + settings.spare_bytes
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UnavailableError(f"{needed:,} free bytes for an update", f"{free:,} at '{folder}'", "free some")


def _fetch(
    source: ReleaseSource,
    release: Release,
    file: ReleaseFile,
    folder: Path,
    settings: UpdateSettings,
    deadline: float,
) -> None:
    target, part = folder / file.name, folder / f"{file.name}.part"
    if is_whole(target, file):
        return
    target.unlink(missing_ok=True)
    # Twice: the first part may be of another version, or have been damaged on its way.
    for _ in range(2):
        _download(source, release, file, part, settings, deadline)
        if is_whole(part, file):
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(target)
            return
        part.unlink(missing_ok=True)
    raise RefusedError(
        f"'{file.name}' with sha256 {file.sha256[:12]}…", f"another content from {source.where}", "publish it again"
    )


def _download(
    source: ReleaseSource,
    release: Release,
    file: ReleaseFile,
    part: Path,
    settings: UpdateSettings,
    deadline: float,
) -> None:
    """Brings the part to the file's size, or beyond it where the source gives more."""
    failures, best = 0, _size(part)
    while not part.exists() or _size(part) < file.size_bytes:
        try:
            with source.opened(release, file.name, _size(part)) as (start, stream):
                _append(stream, part, start, file.size_bytes, deadline)
            reason = f"{_size(part):,} of {file.size_bytes:,} bytes"
        except UnavailableError as error:
            reason = error.got
        if part.exists() and _size(part) >= file.size_bytes:
            return
        failures = failures + 1 if _size(part) <= best else 1
        best = max(best, _size(part))
        if failures >= settings.attempts or time.monotonic() > deadline:
            raise UnavailableError(f"the whole of '{file.name}' from {source.where}", reason, _LATER)
        time.sleep(settings.pause_s * 2 ** (failures - 1))


def _append(stream: Reader, part: Path, start: int, size: int, deadline: float) -> None:
    """Writes what comes until the end, a cut, the deadline, or the first bytes too many."""
    done = start
    with part.open("ab" if start else "wb") as file:
        while done <= size and time.monotonic() < deadline:
            try:
                chunk = read_some(stream, _CHUNK_BYTES)
            except (OSError, http.client.HTTPException):
                return
            if not chunk:
                return
            file.write(chunk)
            done += len(chunk)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
