"""Golden photos: the new model answers them on the device, in a process of its own, before it is used.

A model that crashes its engine, hangs or exhausts the memory ends only that process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from agridistill.edge.updates.release import RefusedError, Release, UnavailableError
from agridistill.errors import AgriDistillError

LIMIT_S = 120.0
"""For all golden photos."""
_OTHER, _LATER = "publish another version", "the next check tries it again"
_FINISHED = "a golden check that may end"
_POLL_S = 0.2
# Exit codes after SIGHUP, SIGINT and SIGTERM, which a service manager or a terminal sends.
_ASKED_TO_END = (-1, -2, -15)
_KILLED = -9  # by a service manager, or for lack of memory


class KilledCheckError(UnavailableError):
    """The check was killed, perhaps for lack of memory; then it will be again."""


def check_golden(folder: Path, release: Release, threads: int, stop: threading.Event | None = None) -> None:
    """Lets the model of a verified release answer its golden photos.

    Args:
        folder: holds the release's files.
        release: with the expected labels.
        threads: of one prediction; 0 takes one for each core.
        stop: setting it ends the check.

    Raises:
        RefusedError: other classes than were signed, too few right answers, a crash, or no answer in time.
        KilledCheckError: the process was killed.
        UnavailableError: `stop` was set, or the process was asked to end: nothing is known of the model.
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
    if "error" in answer:
        raise RefusedError("a model that runs on this device", str(answer["error"])[:300], _OTHER)
    if tuple(answer["classes"]) != release.classes:
        raise RefusedError("the classes that were signed", ", ".join(answer["classes"])[:200], _OTHER)
    right = sum(label == golden.label for label, golden in zip(answer["labels"], release.golden, strict=True))
    if right / len(release.golden) < release.minimum_agreement:
        expected = f"{100 * release.minimum_agreement:g} % of the golden photos answered as signed"
        raise RefusedError(expected, f"{right} of {len(release.golden)}", _OTHER)


def _without_answer(code: int, log: bytes) -> UnavailableError | RefusedError:
    if code in _ASKED_TO_END:
        return UnavailableError(_FINISHED, f"one that was ended by signal {-code}", _LATER)
    if code == _KILLED:
        return KilledCheckError(_FINISHED, "one that was killed, perhaps for lack of memory", _LATER)
    last = log.decode("utf-8", "replace").strip().splitlines()[-1:]
    got = f"a process that ended with code {code} ({' '.join(last)[:200]})"
    return RefusedError("a model that runs on this device", got, _OTHER)


def _run(question: dict[str, Any], folder: Path, stop: threading.Event) -> tuple[int, bytes, bytes]:
    """Exit code, stdout and stderr of the process that answers."""
    deadline = time.monotonic() + LIMIT_S
    # A file: a pipe would block on a long question.
    with tempfile.TemporaryFile(dir=folder) as asked:
        asked.write(json.dumps(question).encode())
        asked.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", "agridistill.edge.updates.golden"],
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the agent, which ends the check itself
        )
    with process:
        try:
            while True:
                try:
                    output, log = process.communicate(timeout=_POLL_S)
                    return process.returncode, output, log
                except subprocess.TimeoutExpired:
                    if stop.is_set():
                        raise UnavailableError(_FINISHED, "a stop of the agent", _LATER) from None
                    if time.monotonic() > deadline:
                        raise RefusedError("golden answers in time", f"none in {LIMIT_S:g} s", _OTHER) from None
        finally:
            process.kill()


def main() -> None:
    """Reads one question on stdin, and answers it on stdout."""
    question = json.load(sys.stdin)
    _lower_priority()
    # An engine may write to stdout, which is for the answer only.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)
        json.dump(_answer(question), answer)


def _lower_priority() -> None:
    """Leaves processor and memory to the agent, and ends this process also where the agent was killed."""
    if hasattr(os, "nice"):
        os.nice(10)
    if hasattr(signal, "alarm"):
        signal.alarm(int(LIMIT_S) + 5)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    from agridistill.runtime.backends import open_artefact
    from agridistill.runtime.predictor import Predictor

    try:
        predictor = Predictor(open_artefact(Path(question["model"]), threads=question["threads"]))
        labels = [predictor.predict(Path(photo)).label for photo in question["photos"]]  # one by one, as the agent does
    except AgriDistillError as error:
        return {"error": str(error)}
    return {"classes": list(predictor.manifest.classes), "labels": labels}


if __name__ == "__main__":
    main()
