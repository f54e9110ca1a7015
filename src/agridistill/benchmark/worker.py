"""Measures one model in a separate process: `start_worker` starts it, `Worker` sends requests, `main` answers them.

Requests and answers are lines of JSON on the pipes of the process. multiprocessing is not used, because its child
process imports the caller's main module, whose libraries would count as memory of the model (docs/decisions/0006).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from agridistill import errors
from agridistill.api import load, model_cost
from agridistill.benchmark.result import EnergyCounter, peak_memory_bytes
from agridistill.errors import AgriDistillError, ModelError
from agridistill.preprocess import Pixels
from agridistill.runtime.backends import TORCH
from agridistill.runtime.engines import checked_logits
from agridistill.runtime.predictor import read_pixels

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """A model and the engine that runs it."""

    model: Path
    engine: str

    def __str__(self) -> str:
        return f"'{self.model}' with {self.engine}"


def worker_command(target: Target, threads: int, photos: Sequence[Path]) -> list[str]:
    """Returns the command line of a process that measures a target; it uses the module search path of this process."""
    job = {"model": str(target.model), "engine": target.engine, "threads": threads, "photos": [str(p) for p in photos]}
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; from agridistill.benchmark.worker import main; main(sys.argv[1])"
    )
    return [sys.executable, "-P", "-c", program, json.dumps(job)]


@contextlib.contextmanager
def start_worker(command: Sequence[str], name: str) -> Iterator[Worker]:
    """Starts the process of a `worker_command`, yields its `Worker`, and kills it at the end of the `with` block."""
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
            yield Worker(process, stderr, name)
        finally:
            process.kill()
            process.communicate()


class Worker:
    """The process of `start_worker`; errors call its model `name`."""

    def __init__(self, process: subprocess.Popen[str], stderr: IO[bytes], name: str) -> None:
        self._process, self._stderr, self._name = process, stderr, name
        self.process_id = process.pid

    def ask(self, question: str, **details: Any) -> dict[str, Any]:
        """Calls the method `question` of `MeasuredModel` with the arguments `details` in the process.

        Raises:
            AgriDistillError: the method raised this error.
            ModelError: the process ended.
        """
        assert self._process.stdin is not None  # noqa: S101 - both are pipes
        assert self._process.stdout is not None  # noqa: S101
        line = ""
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps({"ask": question, **details}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._failure(question)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind, *words = answer["error"]
            error: AgriDistillError = getattr(errors, kind, ModelError)(*words)
            raise error
        return answer

    def _failure(self, question: str) -> ModelError:
        code = self._process.wait()
        self._stderr.seek(0)
        written = self._stderr.read().decode("utf-8", "replace").strip()
        if written:
            logger.info("The process that measures %s wrote: %s", self._name, written)
        if code < 0:
            got = f"a process that was ended by {signal.Signals(-code).name} during '{question}'"
        else:
            got = f"a process that ended with code {code} during '{question}'"
        last_line = f" ({written.splitlines()[-1][:200]})" if written else ""
        remedy = "try this model with `agridistill predict`; it may need more memory than this machine has"
        return ModelError(f"a model that can be measured: {self._name}", got + last_line, remedy)


class MeasuredModel:
    """Measures one model, inside the worker's process; the timed queries use the files `photos` in turn."""

    def __init__(self, model: str, engine: str, threads: int, photos: Sequence[str]) -> None:
        self._model, self._engine, self._threads = Path(model), engine, threads
        self._photos = [Path(photo) for photo in photos]
        self._energy = EnergyCounter()

    def load(self) -> dict[str, Any]:
        """Loads the model and classifies one photo; `load_s` includes the import of the engine."""
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
        checked_logits(self._predictor.backend, pixels[0])
        self._prepared: Iterator[Pixels] = cycle(pixels)
        self._files: Iterator[Path] = cycle(self._photos)
        return {"load_s": load_s}

    def turn(self, queries: int, warm_up: int) -> dict[str, Any]:
        """Times `queries` single photos of each kind (inference, end to end), each kind after `warm_up` untimed ones.

        `latencies_ns` and `energy_j` are of inference (preprocessed photo to logits), `end_to_end_ns` from a file to
        its label. `peak_memory_bytes` is that of this process so far.
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

        Returns the `seconds` of all batches, and the `photos_at_once` that the engine computes.
        """
        pixels = np.concatenate(list(islice(self._prepared, batch_size)))
        self._predictor.backend.logits(pixels)
        start = time.perf_counter()
        for _ in range(batches):
            self._predictor.backend.logits(pixels)
        seconds = time.perf_counter() - start
        at_once = getattr(self._predictor.backend, "photos_at_once", None) or batch_size
        return {"seconds": seconds, "photos_at_once": min(at_once, batch_size)}

    def describe(self) -> dict[str, Any]:
        """Returns `architecture`, `precision`, `image_size`, `weights_file`, `parameters` and `macs` of the model.

        Call it after the last call of `turn`, because counting MACs may increase the peak memory that `turn` reports.
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
    """Answers requests about the model of `job` (the arguments of `MeasuredModel` in JSON) until stdin ends.

    A request is `{"ask": METHOD, ...}`. The answer is what this method of `MeasuredModel` returns, or
    `{"error": [...]}` for an AgriDistillError.
    """
    # Ctrl-C reaches every process of the terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # An engine may print to stdout, so its output goes to stderr and only answers go to stdout.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    model = MeasuredModel(**json.loads(job))
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = getattr(model, question.pop("ask"))(**question)
        except AgriDistillError as error:
            answer = {"error": [type(error).__name__, error.expected, error.got, error.remedy]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
