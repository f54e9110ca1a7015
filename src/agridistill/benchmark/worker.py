"""The asking side of a benchmark: starts a worker, asks it, and leaves none behind."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from agridistill import errors
from agridistill.errors import AgriDistillError, ModelError

logger = logging.getLogger(__name__)

# Longer than a large network takes to load from a slow disk.
PATIENCE_S = 300.0
# Of an estimate made from one query, on a machine that may be busy.
_SLACK = 20
_GOODBYE_S = 5.0


class Worker(Protocol):
    """Whoever answers questions about one model."""

    def ask(self, question: str, *, expected_s: float = 0, **details: Any) -> dict[str, Any]:
        """One answer of `latency_worker.MeasuredModel`.

        Args:
            question: the method's name.
            expected_s: a guess at how long the answer takes.
            details: the method's arguments.
        """
        ...


class WorkerProcess:
    """A worker in a process of its own; a context manager, at whose end the process has ended.

    Args:
        command: starts the worker.
        name: of the model that it measures, for errors.
        patience_s: a worker that is silent for so long, and much longer than expected, hangs.
    """

    def __init__(self, command: Sequence[str], name: str, *, patience_s: float = PATIENCE_S) -> None:
        self._name, self._patience_s, self._hung = name, patience_s, False
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this very Python
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                encoding="utf-8",
                # A device comparison is one of processors: torch would take a GPU that it sees.
                env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            )
        except OSError:
            self._stderr.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        # The worker ends when nobody can ask any more.
        _close(self._process.stdin)
        try:
            self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _close(self._process.stdout)
        self._stderr.close()

    @property
    def process_id(self) -> int:
        """The system's number of the process."""
        return self._process.pid

    def ask(self, question: str, *, expected_s: float = 0, **details: Any) -> dict[str, Any]:
        """One answer.

        Raises:
            AgriDistillError: what the worker raised.
            ModelError: it ended or hangs; it is killed then.
        """
        assert self._process.stdin is not None  # noqa: S101 - both are pipes
        assert self._process.stdout is not None  # noqa: S101
        watch = threading.Timer(self._patience_s + _SLACK * expected_s, self._end_silence)
        # An interrupt may come before it can be cancelled; it must not keep this process from ending.
        watch.daemon = True
        try:
            watch.start()
            self._process.stdin.write(json.dumps({"ask": question, **details}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        finally:
            watch.cancel()
        if not line.endswith("\n"):
            raise self._failure(question)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _told_error(**answer["error"])
        return answer

    def _end_silence(self) -> None:
        self._hung = True
        self._process.kill()

    def _failure(self, question: str) -> ModelError:
        code = self._process.wait()
        last = self._last_words()
        if self._hung:
            ended = f"no answer to '{question}' for {self._patience_s:.0f} s or more"
        elif code < 0:
            ended = f"a process that was ended by {signal.Signals(-code).name} during '{question}'"
        else:
            ended = f"a process that ended with code {code} during '{question}'"
        return ModelError(
            f"a model that can be measured: {self._name}",
            ended + (f" ({last})" if last else ""),
            "try `agridistill predict` with it; it may need more memory than there is",
        )

    def _last_words(self) -> str:
        self._stderr.seek(0)
        written = self._stderr.read().decode("utf-8", "replace").strip()
        if written:
            logger.info("the worker of %s wrote: %s", self._name, written)
        return written.splitlines()[-1][:200] if written else ""


def _told_error(kind: str, expected: str, got: str, remedy: str) -> AgriDistillError:
    raised = getattr(errors, kind, ModelError)
    error: AgriDistillError = raised(expected, got, remedy)
    return error


def _close(stream: Any) -> None:
    # What a dead worker has not read cannot be flushed.
    try:
        stream.close()
    except OSError:
        return
