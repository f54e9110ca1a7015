"""Prepares a release for its installation: downloads its files, and tests its model with the golden photos.

A download continues after a lost connection or a kill; a file is only used if its sha256 is the signed one. The test
(golden check) runs the model in a separate process: if it crashes, hangs or exhausts the memory, the agent goes on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from agridistill.edge.network import public_name, split_url
from agridistill.edge.updates.release import (
    MAX_RELEASE_BYTES,
    RELEASE_NAME,
    RefusedError,
    Release,
    ReleaseFile,
    UnavailableError,
)
from agridistill.errors import EdgeError, PhotoError
from agridistill.storage import sync_folder

SPARE_BYTES = 50_000_000  # on the disk, which an update must leave free
TIMEOUT_S = 30.0  # from the connection to the header of the answer, and for each read of the body
PATIENCE_S = 3600.0  # for all files of a release; the next check continues the download
ATTEMPTS = 4  # tries in a row without a new byte after which the download of a file ends
PAUSE_S = 1.0  # before the second try; it doubles before each further one
GOLDEN_LIMIT_S = 120.0  # for the answers to all golden photos
_POLL_S = 0.2
# Exit codes after SIGHUP, SIGINT and SIGTERM, which a service manager or a terminal sends.
_ASKED_TO_END = (-1, -2, -15)
_KILLED = -9  # killed by a service manager, or for lack of memory
_CHUNK_BYTES = 65_536
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def open_source(address: str, ca_file: Path | None = None) -> ReleaseSource:
    """Returns the source at a URL or path of a `release.json` or its folder; raises EdgeError if it is unusable."""
    return ReleaseServer(address, ca_file) if "://" in address else ReleaseFolder(Path(address))


class ReleaseFolder:
    """A release in a local folder; `path` is the folder, or the `release.json` in it."""

    def __init__(self, path: Path) -> None:
        self._folder = path.parent if path.name == RELEASE_NAME else path
        self.where = f"'{self._folder}'"

    @contextlib.contextmanager
    def opened(self, path: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Yields `start` and a file's content from there on, in pieces; raises UnavailableError if that fails."""
        place = self._folder / path
        try:
            file = place.open("rb")
        except OSError as error:
            raise UnavailableError(
                "a readable file of a release",
                f"'{place}' ({error.strerror or error})",
                "the next check for updates tries again",
            ) from None
        with file:
            file.seek(start)
            yield start, iter(partial(file.read, _CHUNK_BYTES), b"")


class ReleaseServer:
    """A release on an HTTP server; `url` is that of `release.json`, or of its folder with a final "/"."""

    def __init__(self, url: str, ca_file: Path | None) -> None:
        # Imported here, because httpx takes time and memory that an agent without such a source saves.
        from agridistill.edge.http import HttpClient, tls_context

        parts = split_url(url, example="https://host/models/release.json")
        is_plain = url.isascii() and url.isprintable() and " " not in url
        if parts.scheme not in ("http", "https") or parts.password is not None or not is_plain:
            got = "an address with a password" if parts.password is not None else f"'{url.split('?')[0][:100]}'"
            raise EdgeError(
                "a folder, or an http(s) address without a password, for the model updates",
                got,
                "correct source in [updates]",
            )
        self._url = urljoin(url, RELEASE_NAME) if parts.path.endswith("/") else url
        self.where = f"'{public_name(urlsplit(self._url))}'"
        self._client = HttpClient(context=tls_context(ca_file), follow_redirects=True)

    @contextlib.contextmanager
    def opened(self, path: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Requests a file, starting at byte `start`; raises UnavailableError if that fails.

        Yields the byte at which the answer really begins (0 if the server cannot continue at `start`), and the content
        in pieces.
        """
        from agridistill.edge.http import HttpError, http_errors

        url = self._url if path == RELEASE_NAME else urljoin(self._url, path)
        headers = {"Cache-Control": "no-cache"} | ({"Range": f"bytes={start}-"} if start else {})
        try:
            # No limit for the whole body here: it may take long, and the caller limits it.
            with http_errors(), contextlib.closing(self._client.header(url, TIMEOUT_S, headers=headers)) as answer:
                is_part = answer.status_code == 206
                if is_part and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    raise HttpError("another part of the file than requested")
                yield (start if is_part else 0), answer.iter_raw()
        except HttpError as error:
            raise UnavailableError(
                "a file of a release from its server",
                f"an error of '{public_name(urlsplit(url))}' ({error})",
                "the next check for updates tries again",
            ) from None


# Callers must verify the content before they use it.
ReleaseSource = ReleaseFolder | ReleaseServer


def read_envelope(source: ReleaseSource) -> bytes:
    """Downloads `release.json` and returns its content, not verified yet; stops after 1 MB, which is too large.

    Raises:
        UnavailableError: the file cannot be downloaded within an hour.
    """
    content, deadline = b"", time.monotonic() + PATIENCE_S
    try:
        with source.opened(RELEASE_NAME, 0) as (_, pieces):
            for piece in pieces:
                content += piece
                if len(content) > MAX_RELEASE_BYTES:
                    break  # `verified_release` refuses it
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the download is not complete within {PATIENCE_S:g} s")
    except OSError as error:
        raise UnavailableError(
            f"a {RELEASE_NAME} from {source.where}", f"an error ({error})", "the next check for updates tries again"
        ) from None
    return content


def fetch_files(source: ReleaseSource, release: Release, folder: Path) -> None:
    """Downloads the files of a verified release into `folder`; continues what an earlier call left incomplete.

    A file is named `NAME.part` until it is complete.

    Raises:
        RefusedError: the sha256 of a file is not the signed one.
        UnavailableError: the source fails several times in a row, the download takes longer than an hour, or the disk
            is full.
    """
    present = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    needed = max(0, release.size_bytes - present) + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UnavailableError(
            f"{needed:,} free bytes for a model update",
            f"{free:,} free bytes on the disk of '{folder}'",
            "delete other files there",
        )
    deadline = time.monotonic() + PATIENCE_S
    try:
        for file in release.files:
            if not file.is_intact(folder / file.name):
                _fetch(source, f"{release.folder}/{file.name}", file, folder, deadline)
    except OSError as error:
        if error.errno in _DISK_FULL:
            # Delete the partial download, or the agent itself could not write to the disk.
            shutil.rmtree(folder, ignore_errors=True)
        raise UnavailableError(
            "a disk that can store a model update",
            f"'{folder}' ({error.strerror or error})",
            "delete other files there" if error.errno in _DISK_FULL else "check the disk and its permissions",
        ) from None
    sync_folder(folder)


def _fetch(source: ReleaseSource, path: str, file: ReleaseFile, folder: Path, deadline: float) -> None:
    part = folder / f"{file.name}.part"
    # Two tries: the first part may be of another version, or damaged by the transfer.
    for _ in range(2):
        _fill(source, path, part, file.size_bytes, deadline)
        if file.is_intact(part):
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(folder / file.name)
            return
        part.unlink()
    raise RefusedError(
        f"'{file.name}' with the signed sha256 {file.sha256[:12]}…",
        f"different content from {source.where}",
        "publish the release again",
    )


def _fill(source: ReleaseSource, path: str, part: Path, size: int, deadline: float) -> None:
    """Downloads into `part` until it has `size` bytes, or more if the source sends more."""
    part.touch()
    failures, best = 0, part.stat().st_size
    while (begin := part.stat().st_size) < size:
        reason = ""
        try:
            with source.opened(path, begin) as (start, pieces):
                _append(part, pieces, start, size, deadline)
        except UnavailableError as error:
            reason = error.got
        done = part.stat().st_size
        if done >= size:
            return
        failures = failures + 1 if done <= best else 1
        best = max(best, done)
        if failures >= ATTEMPTS or time.monotonic() > deadline:
            raise UnavailableError(
                f"a complete download of '{part.stem}' from {source.where}",
                reason or f"only {done:,} of {size:,} bytes",
                "the next check for updates continues it",
            )
        time.sleep(PAUSE_S * 2 ** (failures - 1))


def _append(part: Path, pieces: Iterator[bytes], start: int, size: int, deadline: float) -> None:
    """Writes pieces to `part` until their end, a read error, the deadline, or more than `size` bytes."""
    done = start
    with part.open("ab" if start else "wb") as file:
        while done <= size and time.monotonic() < deadline:
            try:
                piece = next(pieces, b"")
            except OSError:  # an error of the source; `file.write` raises those of the disk
                return
            if not piece:
                return
            file.write(piece)
            done += len(piece)


class KilledCheckError(UnavailableError):
    """SIGKILL ended the golden check, perhaps because memory ran out; a later try may succeed."""


def check_golden(folder: Path, release: Release, threads: int, stop: threading.Event | None = None) -> None:
    """Tests a new model on its golden photos, in a separate process; returns if it passes, and raises otherwise.

    `folder` holds the files of the release, which is verified. Set `stop` to abort the check.

    Raises:
        RefusedError: the model has other classes than the release, predicts too few labels right, crashes, or takes
            longer than 120 s.
        KilledCheckError: SIGKILL ended the process.
        UnavailableError: `stop` was set, another signal ended the process, or a golden photo cannot be read on this
            device; the model may be good.
        OSError: the process cannot be started.
    """
    question = {
        "model": str(folder / release.model),
        "photos": [str(folder / golden.photo) for golden in release.golden],
        "threads": threads,
    }
    code, output, log = _run(question, folder, stop or threading.Event())
    try:
        answer = json.loads(output)
    except ValueError:
        raise _without_answer(code, log) from None
    if "unreadable" in answer:
        # The photo is intact, and its publisher could read it.
        raise UnavailableError(
            "golden photos that this device can read",
            answer["unreadable"],
            "correct this on the device, or publish a new version with other golden photos",
        )
    if tuple(answer["classes"]) != release.classes:
        raise RefusedError(
            "a model with the classes that its release names",
            f"a model with other classes ({', '.join(answer['classes'])[:200]})",
            "publish a corrected model as a new version",
        )
    right = sum(label == golden.label for label, golden in zip(answer["labels"], release.golden, strict=True))
    if right / len(release.golden) < release.minimum_agreement:
        raise RefusedError(
            f"a model that answers at least {100 * release.minimum_agreement:g} % of its golden photos right",
            f"{right} of {len(release.golden)} right answers",
            "publish a corrected model as a new version",
        )


def _without_answer(code: int, log: bytes) -> UnavailableError | RefusedError:
    finished, later = "a golden check (test of the new model) that runs to its end", "the next check tries again"
    if code in _ASKED_TO_END:
        return UnavailableError(finished, f"a check that signal {-code} ended", later)
    if code == _KILLED:
        return KilledCheckError(finished, "a check that was killed, perhaps for lack of memory", later)
    last = log.decode("utf-8", "replace").strip().splitlines()[-1:]
    got = f"a model that fails with exit code {code} ({' '.join(last)[:400]})"
    return RefusedError("a model that runs on this device", got, "publish a corrected model as a new version")


def _run(question: dict[str, Any], folder: Path, stop: threading.Event) -> tuple[int, bytes, bytes]:
    """Runs the process that answers a question; returns its exit code, stdout and stderr."""
    deadline = time.monotonic() + GOLDEN_LIMIT_S
    # The question goes through a file, because a long one could block a pipe.
    with tempfile.TemporaryFile(dir=folder) as asked:
        asked.write(json.dumps(question).encode())
        asked.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", "agridistill.edge.updates.prepare"],
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C only reaches the agent, which then ends the check
        )
    with process:
        try:
            while True:
                try:
                    output, log = process.communicate(timeout=_POLL_S)
                    return process.returncode, output, log
                except subprocess.TimeoutExpired:
                    if stop.is_set():
                        raise UnavailableError(
                            "a golden check (test of the new model) that runs to its end",
                            "a check that ends because the agent stops",
                            "the next check for updates tries again",
                        ) from None
                    if time.monotonic() > deadline:
                        raise RefusedError(
                            f"a model that answers all golden photos within {GOLDEN_LIMIT_S:g} s",
                            "a model that is slower",
                            "publish a corrected model as a new version",
                        ) from None
        finally:
            process.kill()


def main() -> None:
    """Entry point of the separate process: reads a question (model, photos, threads) from stdin, answers on stdout."""
    question = json.load(sys.stdin)
    _lower_priority()
    from agridistill.runtime.backends import open_artefact
    from agridistill.runtime.predictor import Predictor

    # An inference engine may write to stdout: send that to stderr, because stdout is only for the answer.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)
        predictor = Predictor(open_artefact(Path(question["model"]), threads=question["threads"]))
        # One photo at a time, as in the agent.
        try:
            labels = [predictor.predict(Path(photo)).label for photo in question["photos"]]
            json.dump({"classes": predictor.manifest.classes, "labels": labels}, answer)
        except PhotoError as error:
            json.dump({"unreadable": error.got}, answer)


def _lower_priority() -> None:
    """Gives the agent priority for processor and memory, and ends this process after 125 s even without the agent."""
    if hasattr(os, "nice"):
        os.nice(10)
    if hasattr(signal, "alarm"):
        signal.alarm(int(GOLDEN_LIMIT_S) + 5)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


if __name__ == "__main__":
    main()
