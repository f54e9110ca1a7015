"""The measured side of a benchmark: one model in a process of its own, which answers one question after another.

Questions and answers are lines of JSON. The asking side is `worker_process`.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np

from agridistill.benchmark.energy import EnergyCounter
from agridistill.benchmark.memory import peak_memory_bytes
from agridistill.errors import AgriDistillError
from agridistill.preprocess import Pixels
from agridistill.runtime.backends import Backend, checked_logits
from agridistill.runtime.predictor import Predictor
from agridistill.runtime.reading import read_pixels

Cost = Callable[[Backend], tuple[int | None, int | None]]
T = TypeVar("T")


class MeasuredModel:
    """One model under measurement.

    Args:
        load: gives the model, ready to predict.
        cost: gives a loaded model's parameters and MACs.
        photos: files to ask about, in turn.
        energy: read around the inference queries.
    """

    def __init__(
        self, load: Callable[[], Predictor], cost: Cost, photos: Sequence[Path], energy: EnergyCounter | None = None
    ) -> None:
        self._create, self._cost, self._photos = load, cost, photos
        self._energy = energy or EnergyCounter()

    def load(self) -> dict[str, Any]:
        """Loads the model and asks it once.

        Returns:
            `load_s`, until the model is ready, the engine's import included; `first_query_s`.
        """
        start = time.perf_counter()
        self._predictor = self._create()
        load_s = time.perf_counter() - start
        preprocessing = self._predictor.manifest.preprocessing
        pixels = [read_pixels(photo, preprocessing)[None] for photo in self._photos]
        start = time.perf_counter()
        checked_logits(self._predictor.backend, pixels[0])
        first_query_s = time.perf_counter() - start
        self._prepared: Iterator[Pixels] = cycle(pixels)
        self._files: Iterator[Path] = cycle(self._photos)
        return {"load_s": load_s, "first_query_s": first_query_s}

    def inference(self, queries: int, warm_up: int) -> dict[str, Any]:
        """One prepared photo to logits, `queries` times after `warm_up` untimed ones."""
        return self._timed(self._predictor.backend.logits, self._prepared, queries, warm_up)

    def end_to_end(self, queries: int, warm_up: int) -> dict[str, Any]:
        """One file to a label, `queries` times after `warm_up` untimed ones."""
        return self._timed(self._predictor.predict, self._files, queries, warm_up)

    def batches(self, batches: int, batch_size: int) -> dict[str, Any]:
        """Prepared photos in batches, after an untimed one; gives `seconds` for all of them."""
        pixels = np.concatenate(list(islice(self._prepared, batch_size)))
        self._predictor.backend.logits(pixels)
        start = time.perf_counter()
        for _ in range(batches):
            self._predictor.backend.logits(pixels)
        return {"seconds": time.perf_counter() - start}

    def memory(self) -> dict[str, Any]:
        """Peak of this process so far."""
        return {"peak_memory_bytes": peak_memory_bytes()}

    def describe(self) -> dict[str, Any]:
        """What the model is. Counting MACs may take memory: ask for that first."""
        manifest = self._predictor.manifest
        parameters, macs = self._cost(self._predictor.backend)
        return {
            "architecture": manifest.model,
            "precision": manifest.precision,
            "image_size": manifest.preprocessing.image_size,
            "weights_file": manifest.weights_file,
            "parameters": parameters,
            "macs": macs,
        }

    def _timed(self, query: Callable[[T], object], inputs: Iterator[T], queries: int, warm_up: int) -> dict[str, Any]:
        for each in islice(inputs, warm_up):
            query(each)
        energy = self._energy.read()
        latencies_ns = []
        for each in islice(inputs, queries):
            start = time.perf_counter_ns()
            query(each)
            latencies_ns.append(time.perf_counter_ns() - start)
        return {"latencies_ns": latencies_ns, "energy_j": self._energy.joules_since(energy)}


def serve(model: MeasuredModel, questions: TextIO, answers: TextIO) -> None:
    """Answers questions about a model until there are no more.

    A question is `{"ask": NAME, ...}`; the answer a JSON object, or `{"error": {...}}` for a failure that the user
    can cause or cure. When the asking side is gone, the process ends at once, whatever it is doing.
    """
    answering: dict[str, Callable[..., dict[str, Any]]] = {
        "load": model.load,
        "inference": model.inference,
        "end_to_end": model.end_to_end,
        "batches": model.batches,
        "memory": model.memory,
        "describe": model.describe,
    }
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(questions, waiting), daemon=True).start()
    while True:
        question = waiting.get()
        try:
            answer = answering[question.pop("ask")](**question)
        except AgriDistillError as error:
            told = {"expected": error.expected, "got": error.got, "remedy": error.remedy}
            answer = {"error": {"kind": type(error).__name__, **told}}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _listen(questions: TextIO, waiting: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in questions:
        waiting.put(json.loads(line))
    # Nobody asks any more: they are done, or were killed in the middle of a turn.
    os._exit(0)
