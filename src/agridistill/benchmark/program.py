"""The program that measures one model in a process of its own; `api.benchmark` starts it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from agridistill.api import load, model_cost
from agridistill.benchmark.measured import MeasuredModel, serve
from agridistill.runtime.backends import TORCH
from agridistill.runtime.predictor import Predictor


def main(job: str) -> None:
    """Answers questions on stdin about one model, on stdout.

    Args:
        job: JSON with `model`, `engine`, `threads` and `photos`.
    """
    # Ctrl-C reaches every process of the terminal; whoever started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # An engine may print; stdout is for answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = json.loads(job)
    model = MeasuredModel(
        lambda: _loaded(Path(asked["model"]), asked["engine"], asked["threads"]),
        model_cost,
        [Path(photo) for photo in asked["photos"]],
    )
    serve(model, sys.stdin, answers)


def _loaded(model: Path, engine: str, threads: int) -> Predictor:
    if engine != TORCH:
        return load(model, engine=engine, threads=threads)
    predictor = load(model)
    import torch

    torch.set_num_threads(threads)
    return predictor
