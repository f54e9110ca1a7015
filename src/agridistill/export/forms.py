"""Which finished run goes to a device: a student, or the teacher that it learnt from, both as int8 artefacts."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agridistill.errors import ModelError
from agridistill.evaluation.metrics import wilson_interval
from agridistill.export.artefact import export, photos_of
from agridistill.export.parity import GATES
from agridistill.models import load_network
from agridistill.models.int8 import quantised
from agridistill.progress import ProgressCallback, silent
from agridistill.runtime.backends import Backend, checked_logits, open_artefact

_WARM_UP, _TURNS, _QUERIES = 3, 5, 8


@dataclass(frozen=True)
class DeviceForm:
    """One finished run as an int8 artefact, measured on this machine.

    Attributes:
        run: the run folder.
        model: name of its network.
        accuracy: on its validation photos, 0 to 1.
        photos: how many these are.
        latency_ms: median of one photo's inference at a time, on one thread.
        size_bytes: of the artefact.
        misses: what keeps `export` from writing it, in words; empty where nothing does.
    """

    run: Path
    model: str
    accuracy: float
    photos: int
    latency_ms: float
    size_bytes: int
    misses: str = ""

    def to_json(self) -> dict[str, Any]:
        """Every figure."""
        return {**asdict(self), "run": str(self.run)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> DeviceForm:
        """What `to_json` made; other fields are a TypeError."""
        return cls(**{**document, "run": Path(str(document["run"]))})


def device_forms(
    run: Path,
    teacher: Path,
    *,
    data: Path | None = None,
    split_file: Path | None = None,
    progress: ProgressCallback = silent,
) -> tuple[DeviceForm, ...]:
    """A run and its teacher as int8 artefacts, the better one first; empty where one of them has no int8 form.

    `data` and `split_file` are as for `export`.

    Raises:
        AgriDistillError: a run cannot be exported.
    """
    if not (_has_int8(run) and _has_int8(teacher)):
        return ()
    forms, backends = [], []
    layout = photos_of(run)[1] if data is not None else None
    with tempfile.TemporaryDirectory() as folder, _without_warnings():
        for number, each in enumerate((run, teacher)):
            out = Path(folder) / f"form-{number}.onnx"
            result = export(
                each,
                out,
                precision="int8",
                data=data,
                split_file=split_file,
                layout=layout,
                force=True,
                progress=progress,
            )
            backends.append(open_artefact(out, engine="onnxruntime", threads=1))
            parity = result.parity
            misses = "; ".join(GATES["int8"].failures(parity))
            model = backends[-1].manifest.model
            forms.append(DeviceForm(each, model, parity.accuracy, parity.photos, 0.0, result.size_bytes, misses))
        latencies = _latencies_ms(backends)
    forms = [replace(form, latency_ms=latency) for form, latency in zip(forms, latencies, strict=True)]
    return tuple(sorted(forms, key=_rank(forms)))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Of few photos and of thresholds: they would stand before the name of the form that they are about."""
    log = logging.getLogger(export.__module__)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _has_int8(run: Path) -> bool:
    """Whether a finished run can be exported in int8; reads its weights."""
    network, manifest = load_network(run)
    if manifest.precision != "int8":
        try:
            quantised(network, manifest.preprocessing)
        except ModelError:
            return False
    return True


def _rank(forms: Sequence[DeviceForm]) -> Callable[[DeviceForm], tuple[bool, bool, float]]:
    """What can be exported first, then higher accuracy; where the photos show no difference, the faster first."""
    best = max(forms, key=lambda form: form.accuracy)
    # One standard error, by an interval that does not vanish at 100 %.
    noise = best.accuracy - wilson_interval(best.accuracy, best.photos, confidence=0.68).low
    return lambda form: (bool(form.misses), best.accuracy - form.accuracy > noise, form.latency_ms)


def _latencies_ms(backends: Sequence[Backend]) -> list[float]:
    """Medians of single inferences, taken in turns: what disturbs the machine disturbs all forms."""
    taken: list[list[float]] = [[] for _ in backends]
    for _ in range(_TURNS):
        for backend, times in zip(backends, taken, strict=True):
            size = backend.manifest.preprocessing.image_size
            pixels = np.full((1, size, size, 3), 128, np.uint8)
            for query in range(_WARM_UP + _QUERIES):
                start = time.perf_counter()
                checked_logits(backend, pixels)
                if query >= _WARM_UP:
                    times.append(1000 * (time.perf_counter() - start))
    return [statistics.median(times) for times in taken]
