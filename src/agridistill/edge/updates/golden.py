"""Golden photos: the new model answers them on the device, in a process of its own, before it is used.

A model that crashes its engine, hangs or eats the memory takes only that process with it.
"""

from __future__ import annotations

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

from agridistill.edge.updates.release import RefusedError, Release
from agridistill.edge.updates.settings import UpdateSettings
from agridistill.edge.updates.sources import UnavailableError
from agridistill.errors import AgriDistillError

_OTHER, _LATER = "publish another version", "the next check asks it again"
# How often it is looked whether the agent stops.
_LOOK_S = 0.2
# Exit codes of a process that was asked to end, as a service manager or a terminal does: SIGHUP, SIGINT, SIGTERM.
_ASKED_TO_END = (-1, -2, -15)
# SIGKILL: by somebody in a hurry, or for want of memory.
_KILLED = -9


class KilledCheckError(UnavailableError):
    """The check was killed: perhaps for want of memory, and then it will be again."""


def check_golden(folder: Path, release: Release, settings: UpdateSettings, stop: threading.Event | None = None) -> None:
    """Lets a release's model answer its golden photos.

    Args:
        folder: holds the release's files.
        release: that was verified.
        settings: engine, threads and time limit.
        stop: ends the check when it is set.

    Raises:
        RefusedError: other classes than were signed, too few right answers, a crash, or no answer in time.
        KilledCheckError: the process was killed.
        UnavailableError: `stop` was set, or the process was asked to end: nothing is known of the model.
        OSError: the process cannot be started.
    """
    question = {
        "model": str(folder / release.model),
        "photos": [str(folder / golden.photo) for golden in release.golden],
        "engine": settings.engine,
        "threads": settings.threads,
        "limit_s": settings.golden_limit_s,
    }
    answer = _asked(question, folder, settings.golden_limit_s, stop or threading.Event())
    if "error" in answer:
        raise RefusedError("a model that runs on this device", str(answer["error"])[:300], _OTHER)
    if tuple(answer["classes"]) != release.classes:
        raise RefusedError("the classes that were signed", ", ".join(answer["classes"])[:200], _OTHER)
    right = sum(label == golden.label for label, golden in zip(answer["labels"], release.golden, strict=True))
    if right / len(release.golden) < release.minimum_agreement:
        expected = f"{100 * release.minimum_agreement:g} % of the golden photos answered as signed"
        raise RefusedError(expected, f"{right} of {len(release.golden)}", _OTHER)


def _asked(question: dict[str, Any], folder: Path, limit_s: float, stop: threading.Event) -> dict[str, Any]:
    code, told, log = _ended(question, folder, limit_s, stop)
    try:
        answer: dict[str, Any] = json.loads(told)
    except ValueError:
        expected = "a golden check that may end"
        if code in _ASKED_TO_END:
            raise UnavailableError(expected, f"one that was ended by signal {-code}", _LATER) from None
        if code == _KILLED:
            raise KilledCheckError(expected, "one that was killed, perhaps for want of memory", _LATER) from None
        last = log.decode("utf-8", "replace").strip().splitlines()[-1:]
        got = f"a process that ended with code {code} ({' '.join(last)[:200]})"
        raise RefusedError("a model that runs on this device", got, _OTHER) from None
    return answer


def _ended(question: dict[str, Any], folder: Path, limit_s: float, stop: threading.Event) -> tuple[int, bytes, bytes]:
    """Exit code, stdout and stderr of the process that answers."""
    deadline = time.monotonic() + limit_s
    # A file: a pipe would take a long question only as fast as it is read.
    with tempfile.TemporaryFile(dir=folder) as asked:
        asked.write(json.dumps(question).encode())
        asked.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", "agridistill.edge.updates.golden"],
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A Ctrl-C is for the agent, which ends the check itself.
            start_new_session=True,
        )
    with process:
        try:
            while True:
                try:
                    told, log = process.communicate(timeout=_LOOK_S)
                    return process.returncode, told, log
                except subprocess.TimeoutExpired:
                    if stop.is_set():
                        raise UnavailableError("a golden check that may end", "a stop of the agent", _LATER) from None
                    if time.monotonic() > deadline:
                        raise RefusedError("golden answers in time", f"none in {limit_s:g} s", _OTHER) from None
        finally:
            process.kill()


def main() -> None:
    """Reads one question on stdin, and answers it on stdout."""
    question = json.load(sys.stdin)
    _be_modest(question["limit_s"])
    # An engine may write to stdout; only the answer belongs there.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)
        json.dump(_answered(question), answer)


def _be_modest(limit_s: float) -> None:
    """The agent goes first: for the processor, and when memory runs out; and none of us stays where it was killed."""
    if hasattr(os, "nice"):
        os.nice(10)
    if hasattr(signal, "alarm"):
        signal.alarm(int(limit_s) + 5)
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    except OSError:
        return


def _answered(question: dict[str, Any]) -> dict[str, Any]:
    from agridistill.runtime.backends import open_artefact
    from agridistill.runtime.predictor import Predictor

    try:
        engine, threads = question["engine"], question["threads"]
        predictor = Predictor(open_artefact(Path(question["model"]), engine=engine, threads=threads))
        # One by one, as the agent asks.
        labels = [predictor.predict(Path(photo)).label for photo in question["photos"]]
    except AgriDistillError as error:
        return {"error": str(error)}
    return {"classes": list(predictor.manifest.classes), "labels": labels}


if __name__ == "__main__":
    main()
