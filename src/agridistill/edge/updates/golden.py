"""The golden check: tests a new model on the device with the release's golden photos before it is used.

The model runs in a separate process: if it crashes, hangs or exhausts the memory, the agent goes on.
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
"""Time limit for all golden photos, in seconds."""
_OTHER, _LATER = "publish a corrected model as a new version", "the next check for updates repeats it"
_FINISHED = "a golden check (test of the new model) that runs to its end"
_POLL_S = 0.2
# Exit codes after SIGHUP, SIGINT and SIGTERM, which a service manager or a terminal sends.
_ASKED_TO_END = (-1, -2, -15)
_KILLED = -9  # killed by a service manager, or for lack of memory


class KilledCheckError(UnavailableError):
    """SIGKILL ended the golden check, perhaps because memory ran out; a later try may succeed."""


def check_golden(folder: Path, release: Release, threads: int, stop: threading.Event | None = None) -> None:
    """Tests a new model on its golden photos, in a separate process; returns if it passes, and raises otherwise.

    Args:
        folder: folder with the release's files.
        release: the verified release, with the names of the golden photos and their expected labels.
        threads: threads of one prediction; 0 means one for each core.
        stop: set this event to abort the check.

    Raises:
        RefusedError: the model has other classes than the release, predicts too few labels right, crashes, or takes
            longer than 120 s.
        KilledCheckError: SIGKILL ended the process.
        UnavailableError: `stop` was set, or another signal ended the process; the model may be good.
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
        got = f"a model with other classes ({', '.join(answer['classes'])[:200]})"
        raise RefusedError("a model with the classes in its release", got, _OTHER)
    right = sum(label == golden.label for label, golden in zip(answer["labels"], release.golden, strict=True))
    if right / len(release.golden) < release.minimum_agreement:
        expected = f"a model that answers at least {100 * release.minimum_agreement:g} % of its golden photos right"
        raise RefusedError(expected, f"{right} of {len(release.golden)} right answers", _OTHER)


def _without_answer(code: int, log: bytes) -> UnavailableError | RefusedError:
    if code in _ASKED_TO_END:
        return UnavailableError(_FINISHED, f"a check that signal {-code} ended", _LATER)
    if code == _KILLED:
        return KilledCheckError(_FINISHED, "a check that was killed, perhaps for lack of memory", _LATER)
    last = log.decode("utf-8", "replace").strip().splitlines()[-1:]
    got = f"a process that ended with code {code} ({' '.join(last)[:200]})"
    return RefusedError("a model that runs on this device", got, _OTHER)


def _run(question: dict[str, Any], folder: Path, stop: threading.Event) -> tuple[int, bytes, bytes]:
    """Runs the process that answers a question; returns its exit code, stdout and stderr."""
    deadline = time.monotonic() + LIMIT_S
    # The question goes through a file, because a long one could block a pipe.
    with tempfile.TemporaryFile(dir=folder) as asked:
        asked.write(json.dumps(question).encode())
        asked.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", "agridistill.edge.updates.golden"],
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
                        raise UnavailableError(_FINISHED, "a check that ends because the agent stops", _LATER) from None
                    if time.monotonic() > deadline:
                        expected = f"answers to all golden photos within {LIMIT_S:g} s"
                        raise RefusedError(expected, "a model that still runs", _OTHER) from None
        finally:
            process.kill()


def main() -> None:
    """Entry point of the separate process: reads a question (model, photos, threads) from stdin, answers on stdout."""
    question = json.load(sys.stdin)
    _lower_priority()
    # An inference engine may write to stdout: send that to stderr, because stdout is only for the answer.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)
        json.dump(_answer(question), answer)


def _lower_priority() -> None:
    """Gives the agent priority for processor and memory, and ends this process after 125 s even without the agent."""
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
        # One photo at a time, as in the agent.
        labels = [predictor.predict(Path(photo)).label for photo in question["photos"]]
    except AgriDistillError as error:
        return {"error": str(error)}
    return {"classes": list(predictor.manifest.classes), "labels": labels}


if __name__ == "__main__":
    main()
