"""Compares a student and its teacher as int8 exports, to choose which of them should run on a device."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agridistill.errors import ModelError
from agridistill.evaluation.metrics import wilson_interval
from agridistill.export.artefact import export, photos_of
from agridistill.export.parity import GATES
from agridistill.manifest import MANIFEST_NAME, read_manifest
from agridistill.models import create_model
from agridistill.models.int8 import quantised
from agridistill.progress import ProgressCallback, quiet_loggers, silent
from agridistill.runtime.backends import open_artefact
from agridistill.runtime.engines import Backend, checked_logits

_WARM_UP, _TURNS, _QUERIES = 3, 5, 8


@dataclass(frozen=True)
class DeviceForm:
    """Accuracy, speed and size of one finished run after its export in int8, measured on this machine."""

    run: Path
    model: str  # name of its network
    accuracy: float  # of the int8 model on the run's validation photos, 0 to 1
    photos: int  # number of validation photos
    latency_ms: float  # median time to classify one photo on one thread
    size_bytes: int  # of the model file
    misses: str = ""  # why `export` would refuse to write this file, in words; "" if it would not

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON document with every attribute."""
        return {**asdict(self), "run": str(self.run)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> DeviceForm:
        """Makes a `DeviceForm` from a document that `to_json` returned; raises a TypeError for other fields."""
        return cls(**{**document, "run": Path(str(document["run"]))})


def device_forms(
    run: Path, teacher: Path, *, data: Path | None = None, progress: ProgressCallback = silent
) -> tuple[DeviceForm, ...]:
    """Exports a run and its teacher in int8 to a temporary folder, and measures both.

    Returns the measurements, the better one first: the one that `export` accepts, else the more accurate, or the faster
    if the accuracies differ by less than chance. Empty if one network cannot be rounded to int8.
    """
    if not (has_int8(run) and has_int8(teacher)):
        return ()
    results, backends = [], []
    layout = photos_of(run)[1] if data is not None else None
    # The warnings of `export` do not say which of the two models they are about.
    with tempfile.TemporaryDirectory() as folder, quiet_loggers(export.__module__):
        for number, each in enumerate((run, teacher)):
            out = Path(folder) / f"form-{number}.onnx"
            results.append(export(each, out, precision="int8", data=data, layout=layout, force=True, progress=progress))
            backends.append(open_artefact(out, engine="onnxruntime", threads=1))
        latencies = _latencies_ms(backends)
    forms = [
        DeviceForm(
            each,
            backend.manifest.model,
            result.parity.accuracy,
            result.parity.photos,
            latency_ms,
            result.size_bytes,
            misses="; ".join(GATES["int8"].failures(result.parity)),
        )
        for each, backend, result, latency_ms in zip((run, teacher), backends, results, latencies, strict=True)
    ]
    return tuple(sorted(forms, key=_rank(forms)))


def has_int8(run: Path) -> bool:
    """Returns whether the network of a finished run can be exported in int8."""
    manifest = read_manifest(run / MANIFEST_NAME)
    if manifest.precision == "int8":
        return True
    network = create_model(manifest.model, len(manifest.classes), image_size=manifest.preprocessing.image_size)
    try:
        quantised(network.eval(), manifest.preprocessing)
    except ModelError:
        return False
    return True


def _rank(forms: Sequence[DeviceForm]) -> Callable[[DeviceForm], tuple[bool, bool, float]]:
    """Returns a sort key: exportable forms first, then the more accurate, or the faster if accuracies hardly differ."""
    best = max(forms, key=lambda form: form.accuracy)
    # One standard error, from an interval that is not empty at 100 % accuracy.
    noise = best.accuracy - wilson_interval(best.accuracy, best.photos, confidence=0.68).low
    return lambda form: (bool(form.misses), best.accuracy - form.accuracy > noise, form.latency_ms)


def _latencies_ms(backends: Sequence[Backend]) -> list[float]:
    """Returns each backend's median time of one inference; turns slow all of them equally if the machine is busy."""
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
