"""Golden photos: the new model answers them on the device, in a process of its own, before it is used.

A model that crashes its engine, hangs or eats the memory takes only that process with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from agridistill.edge.updates.release import RefusedError, Release
from agridistill.edge.updates.settings import UpdateSettings
from agridistill.errors import AgriDistillError

_OTHER = "publish another version"


def check_golden(folder: Path, release: Release, settings: UpdateSettings) -> None:
    """Lets a release's model answer its golden photos.

    Args:
        folder: holds the release's files.
        release: that was verified.
        settings: engine, threads and time limit.

    Raises:
        RefusedError: other classes than were signed, too few right answers, a crash, or no answer in time.
        OSError: the process cannot be started.
    """
    question = {
        "model": str(folder / release.model),
        "photos": [str(folder / golden.photo) for golden in release.golden],
        "engine": settings.engine,
        "threads": settings.threads,
        "limit_s": settings.golden_limit_s,
    }
    answer = _asked(question, settings.golden_limit_s)
    if "error" in answer:
        raise RefusedError("a model that runs on this device", str(answer["error"])[:300], _OTHER)
    if tuple(answer["classes"]) != release.classes:
        raise RefusedError("the classes that were signed", ", ".join(answer["classes"])[:200], _OTHER)
    right = sum(label == golden.label for label, golden in zip(answer["labels"], release.golden, strict=True))
    if right / len(release.golden) < release.minimum_agreement:
        expected = f"{100 * release.minimum_agreement:g} % of the golden photos answered as signed"
        raise RefusedError(expected, f"{right} of {len(release.golden)}", _OTHER)


def _asked(question: dict[str, Any], limit_s: float) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "agridistill.edge.updates.golden"],
            input=json.dumps(question).encode(),
            capture_output=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RefusedError("golden answers in time", f"none in {limit_s:g} s", _OTHER) from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        got = f"a process that ended with code {done.returncode} ({' '.join(last)[:200]})"
        raise RefusedError("a model that runs on this device", got, _OTHER) from None
    return answer


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
    from agridistill.runtime.artefacts import open_artefact
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
