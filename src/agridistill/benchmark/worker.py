"""Measures one model in a separate process: `start_worker` starts it, `Worker` sends requests, `main` answers them.

Requests and answers are lines of JSON on the pipes of the process. multiprocessing is not used, because its child
process imports the caller's main module, whose libraries would count as memory of the model (docs/decisions/0006).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from agridistill import errors
from agridistill.api import load, model_cost
from agridistill.benchmark.host import EnergyCounter, peak_memory_bytes
from agridistill.errors import AgriDistillError, ModelError
from agridistill.preprocess import Pixels
from agridistill.runtime.backends import TORCH
from agridistill.runtime.engines import checked_logits
from agridistill.runtime.predictor import read_pixels

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A large network loads in less time even from a slow disk.
_PATIENCE_S = 300.0
# Factor for an expected time, which is estimated from one query on a machine that may be busy.
_SLACK = 20


@dataclass(frozen=True)
class Target:
    """A model and the engine that runs it."""

    model: Path
    engine: str

    def __str__(self) -> str:
        return f"'{self.model}' with {self.engine}"


def worker_command(target: Target, threads: int, photos: Sequence[Path]) -> list[str]:
    """Returns the command line of the process that measures a target; it gets the module search path of this process.

    `threads` is the number of threads for one prediction; `photos` are the files to classify.
    """
    job = {"model": str(target.model), "engine": target.engine, "threads": threads, "photos": [str(p) for p in photos]}
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; from agridistill.benchmark.worker import main; main(sys.argv[1])"
    )
    return [sys.executable, "-P", "-c", program, json.dumps(job)]


@contextlib.contextmanager
def start_worker(command: Sequence[str], name: str, *, patience_s: float = _PATIENCE_S) -> Iterator[Worker]:
    """Starts a process that measures a model, and ends it when the context ends.

    Args:
        command: command line of the process, see `worker_command`.
        name: name of the model for errors.
        patience_s: seconds without an answer after which the process is killed, plus 20 times the expected time.
    """
    # The benchmark compares models on the processor, but torch would use a GPU.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(  # noqa: S603 - this very Python
            list(command), stdin=pipe, stdout=pipe, stderr=stderr, encoding="utf-8", env=environment
        ) as process,
    ):
        try:
            yield Worker(process, stderr, name, patience_s)
        finally:
            process.kill()
            process.communicate()


class Worker:
    """Sends requests to a process that `start_worker` started, and receives its answers."""

    def __init__(self, process: subprocess.Popen[str], stderr: IO[bytes], name: str, patience_s: float) -> None:
        self._process, self._stderr, self._name, self._patience_s = process, stderr, name, patience_s
        self._hung = False
        self.process_id = process.pid

    def ask(self, question: str, *, expected_s: float = 0, **details: Any) -> dict[str, Any]:
        """Calls a method of `MeasuredModel` in the process and returns its result.

        Args:
            question: name of the method.
            expected_s: estimated time of the call in seconds.
            details: arguments of the method.

        Raises:
            AgriDistillError: the method raised this error.
            ModelError: the process ended, or was killed because it did not answer in time.
        """
        assert self._process.stdin is not None  # noqa: S101 - both are pipes
        assert self._process.stdout is not None  # noqa: S101
        watchdog = threading.Timer(self._patience_s + _SLACK * expected_s, self._kill_hung)
        # If an interrupt comes before the timer is cancelled, the timer must not keep this process alive.
        watchdog.daemon = True
        line = ""
        try:
            watchdog.start()
            self._process.stdin.write(json.dumps({"ask": question, **details}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            pass
        finally:
            watchdog.cancel()
        if not line.endswith("\n"):
            raise self._failure(question)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind, *words = answer["error"]
            error: AgriDistillError = getattr(errors, kind, ModelError)(*words)
            raise error
        return answer

    def _kill_hung(self) -> None:
        self._hung = True
        self._process.kill()

    def _failure(self, question: str) -> ModelError:
        code = self._process.wait()
        self._stderr.seek(0)
        written = self._stderr.read().decode("utf-8", "replace").strip()
        if written:
            logger.info("The process that measures %s wrote: %s", self._name, written)
        if self._hung:
            got = f"no answer to the request '{question}' for {self._patience_s:.0f} s or more"
        elif code < 0:
            got = f"a process that was ended by {signal.Signals(-code).name} during '{question}'"
        else:
            got = f"a process that ended with code {code} during '{question}'"
        last_line = f" ({written.splitlines()[-1][:200]})" if written else ""
        remedy = "try this model with `agridistill predict`; it may need more memory than this machine has"
        return ModelError(f"a model that can be measured: {self._name}", got + last_line, remedy)


class MeasuredModel:
    """Measures one model, in the worker's process; its queries use the files `photos` in turn."""

    def __init__(self, model: str, engine: str, threads: int, photos: Sequence[str]) -> None:
        self._model, self._engine, self._threads = Path(model), engine, threads
        self._photos = [Path(photo) for photo in photos]
        self._energy = EnergyCounter()

    def load(self) -> dict[str, Any]:
        """Loads the model and classifies one photo.

        Returns:
            `load_s`, the seconds until the model is ready, including the import of the engine; and `first_query_s`,
            the seconds of the first inference.
        """
        start = time.perf_counter()
        if self._engine == TORCH:
            self._predictor = load(self._model)
            import torch

            torch.set_num_threads(self._threads)
        else:
            self._predictor = load(self._model, engine=self._engine, threads=self._threads)
        load_s = time.perf_counter() - start
        preprocessing = self._predictor.manifest.preprocessing
        pixels = [read_pixels(photo, preprocessing)[None] for photo in self._photos]
        start = time.perf_counter()
        checked_logits(self._predictor.backend, pixels[0])
        first_query_s = time.perf_counter() - start
        self._prepared: Iterator[Pixels] = cycle(pixels)
        self._files: Iterator[Path] = cycle(self._photos)
        return {"load_s": load_s, "first_query_s": first_query_s}

    def turn(self, queries: int, warm_up: int) -> dict[str, Any]:
        """Times `queries` single photos of each kind (inference, end to end), each kind after `warm_up` untimed ones.

        Returns:
            `latencies_ns`, the times of inference (preprocessed photo to logits); `energy_j`, the energy of all these;
            `end_to_end_ns`, the times from a file to its label; and `peak_memory_bytes` of this process so far.
        """
        _latencies_ns(self._predictor.backend.logits, self._prepared, warm_up)
        energy = self._energy.read()
        latencies_ns = _latencies_ns(self._predictor.backend.logits, self._prepared, queries)
        energy_j = self._energy.joules_since(energy)
        _latencies_ns(self._predictor.predict, self._files, warm_up)
        end_to_end_ns = _latencies_ns(self._predictor.predict, self._files, queries)
        return {
            "latencies_ns": latencies_ns,
            "energy_j": energy_j,
            "end_to_end_ns": end_to_end_ns,
            "peak_memory_bytes": peak_memory_bytes(),
        }

    def batches(self, batches: int, batch_size: int) -> dict[str, Any]:
        """Times inference on batches of preprocessed photos, after an untimed batch.

        Returns:
            `seconds`, the time of all `batches` batches.
        """
        pixels = np.concatenate(list(islice(self._prepared, batch_size)))
        self._predictor.backend.logits(pixels)
        start = time.perf_counter()
        for _ in range(batches):
            self._predictor.backend.logits(pixels)
        return {"seconds": time.perf_counter() - start}

    def describe(self) -> dict[str, Any]:
        """Returns `architecture`, `precision`, `image_size`, `weights_file`, `parameters` and `macs` of the model.

        Call it after the last turn, because counting MACs may increase the peak memory.
        """
        manifest = self._predictor.manifest
        parameters, macs = model_cost(self._predictor.backend)
        return {
            "architecture": manifest.model,
            "precision": manifest.precision,
            "image_size": manifest.preprocessing.image_size,
            "weights_file": manifest.weights_file,
            "parameters": parameters,
            "macs": macs,
        }


def _latencies_ns(query: Callable[[T], object], inputs: Iterator[T], queries: int) -> list[int]:
    latencies_ns = []
    for each in islice(inputs, queries):
        start = time.perf_counter_ns()
        query(each)
        latencies_ns.append(time.perf_counter_ns() - start)
    return latencies_ns


def main(job: str) -> None:
    """Answers requests about one model: reads them from stdin, writes to stdout, and exits when stdin ends.

    A request is `{"ask": METHOD, ...}`. The answer is what this method of `MeasuredModel` returns, or
    `{"error": [...]}` for an AgriDistillError. `job` is JSON with the arguments of `MeasuredModel`.
    """
    # Ctrl-C reaches every process of the terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # An engine may print to stdout, so its output goes to stderr and only answers go to stdout.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    model = MeasuredModel(**json.loads(job))
    questions: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_questions, args=(questions,), daemon=True).start()
    while True:
        question = questions.get()
        try:
            answer = getattr(model, question.pop("ask"))(**question)
        except AgriDistillError as error:
            answer = {"error": [type(error).__name__, error.expected, error.got, error.remedy]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _read_questions(questions: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        questions.put(json.loads(line))
    # stdin ended: the parent is done, or was killed during a turn.
    os._exit(0)
