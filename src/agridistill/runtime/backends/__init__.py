"""Exported models: a file, its manifest beside it, and the engine that runs it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from agridistill.errors import MissingExtraError, ModelError, nearest
from agridistill.manifest import ModelManifest, read_manifest, sha256_of
from agridistill.preprocess import Pixels
from agridistill.runtime.allocator import return_freed_memory
from agridistill.runtime.shipped import missing_model

ENGINES: Mapping[str, tuple[str, ...]] = {".onnx": ("onnxruntime", "openvino"), ".tflite": ("litert",)}
"""Engines that run a kind of file; see `default_engine`."""
TORCH = "torch"
"""What runs a run folder."""
PACKAGES: Mapping[str, tuple[str, str]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "openvino": ("openvino", "openvino"),
    "litert": ("ai_edge_litert", "ai-edge-litert"),
    TORCH: (TORCH, TORCH),
}
"""Of each engine the module and the distribution."""
ONE_PHOTO_ENGINES = frozenset({"litert"})
"""Engines whose files have fixed shapes: photos go through one after another, a batch gains nothing."""
ALL_ENGINES = "all"
_WORTH_A_SLOW_START = 1000
_X86 = frozenset({"x86_64", "amd64", "i686"})


def manifest_path(artefact: Path) -> Path:
    """`NAME.json` beside `NAME.onnx`."""
    return artefact.with_suffix(".json")


def default_engine(artefact: Path, manifest: ModelManifest, *, photos: int | None = None) -> str:
    """The engine that runs a file fastest where we have measured, of those that are installed (docs/performance.md).

    int8 `.onnx` files go to OpenVINO on x86 processors; everything else to the first engine of its kind. OpenVINO takes
    0.4 s longer to start, which half a millisecond a photo has to earn.

    Args:
        artefact: the file.
        manifest: of the file.
        photos: that will be classified; None where nobody knows, as in a service.

    Raises:
        ModelError: a file that no engine runs.
    """
    engines = _engines_of_file(artefact)
    if photos is not None and photos < _WORTH_A_SLOW_START:
        return engines[0]
    int8_on_x86 = manifest.precision == "int8" and platform.machine().lower() in _X86
    if int8_on_x86 and "openvino" in engines and _is_installed("openvino"):
        return "openvino"
    return engines[0]


def engines_for(model: Path, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Names the engines to run a model with.

    Args:
        model: a run folder or an exported file.
        wanted: engines, of which those that can run this kind of model are taken; "all" takes each that is installed.
            None wanted takes the default one of the kind of model.

    Raises:
        ModelError: no such model or engine, or none that runs this kind of model.
        MissingExtraError: "all", and none is installed.
    """
    if not model.exists():
        raise missing_model(model)
    for name in wanted:
        if name not in (*PACKAGES, ALL_ENGINES):
            raise ModelError("an engine", f"'{name}'", nearest(name, (*PACKAGES, ALL_ENGINES)))
    possible = (TORCH,) if model.is_dir() else _engines_of_file(model)
    if not wanted:
        return possible[:1] if model.is_dir() else (default_engine(model, read_manifest(manifest_path(model))),)
    if ALL_ENGINES in wanted:
        installed = tuple(name for name in possible if _is_installed(name))
        if not installed:
            needed = PACKAGES[possible[0]][1]
            raise MissingExtraError(f"an engine for '{model}'", "none installed", f"pip install {needed}")
        return installed
    chosen = tuple(name for name in possible if name in wanted)
    if not chosen:
        raise ModelError(f"an engine that runs '{model}'", ", ".join(wanted), "known: " + ", ".join(possible))
    return chosen


def open_artefact(path: Path, *, engine: str | None = None, threads: int = 0, photos: int | None = None) -> Backend:
    """Loads an exported model.

    Args:
        path: `NAME.onnx` or `NAME.tflite`, with `NAME.json` beside it.
        engine: one of `ENGINES` for that kind of file; None takes `default_engine`.
        threads: of one prediction; 0 takes one for each core.
        photos: that will be classified, for the choice of the engine.

    Raises:
        ModelError: no such file, no manifest, a file that its manifest does not describe, or one that cannot be run.
        MissingExtraError: the engine is not installed.
    """
    engines = _engines_of_file(path)
    if engine is not None and engine not in engines:
        raise ModelError(f"an engine for {path.suffix} files", f"'{engine}'", nearest(engine, engines))
    manifest = read_manifest(manifest_path(path))
    other = manifest.weights_file not in (path.name, "") and Path(manifest.weights_file).name == manifest.weights_file
    if other and path.is_file() and sha256_of(path) == manifest.weights_sha256:
        # Renamed, both files alike.
        manifest = replace(manifest, weights_file=path.name)
    file = manifest.verified_weights(path.parent)
    if file.name != path.name:
        raise ModelError(f"the manifest of '{path.name}'", f"one of '{file.name}'", "copy its own manifest beside it")
    backend = _backend(engine or default_engine(file, manifest, photos=photos), file, manifest, threads)
    return_freed_memory()
    return backend


def _backend(engine: str, file: Path, manifest: ModelManifest, threads: int) -> Backend:
    # Each import loads an engine; a device has only its own.
    if engine == "onnxruntime":
        from agridistill.runtime.backends.onnx_runtime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(file, manifest, threads=threads)
    if engine == "openvino":
        from agridistill.runtime.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(file, manifest, threads=threads)
    from agridistill.runtime.backends.litert import LiteRtBackend

    return LiteRtBackend(file, manifest, threads=threads)


def _is_installed(engine: str) -> bool:
    return find_spec(PACKAGES[engine][0]) is not None


def _engines_of_file(path: Path) -> tuple[str, ...]:
    engines = ENGINES.get(path.suffix.lower())
    if engines is None:
        known = ", ".join(ENGINES)
        raise ModelError(f"a run folder or an exported model ({known})", f"'{path}'", "name one of these")
    return engines


class Backend(Protocol):
    """A model that is ready to run."""

    @property
    def manifest(self) -> ModelManifest:
        """The contract that the model ships with."""
        ...

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Class scores; mean and standard deviation are applied inside.

        Args:
            pixels: `(N, S, S, 3)` uint8, RGB, as `preprocess.to_pixels` makes them.

        Returns:
            `(N, K)` float32 in the order of `manifest.classes`.
        """
        ...


@runtime_checkable
class AttentiveBackend(Protocol):
    """A model that gives maps of where it looks, as a run folder's network does; exported files give logits alone."""

    def attention(self, pixels: Pixels) -> NDArray[np.float32]:
        """Attention maps.

        Args:
            pixels: as for `Backend.logits`.

        Returns:
            `(N, H, W)` float32, at least 0.

        Raises:
            ModelError: the network has no stage that keeps height and width.
        """
        ...


def checked_logits(backend: Backend, pixels: Pixels) -> NDArray[np.float32]:
    """The backend's logits, after their shape and values were checked.

    Args:
        pixels: `(N, S, S, 3)` uint8.

    Returns:
        `(N, K)` float32, finite.

    Raises:
        ModelError: another number of classes than the manifest's, or NaN or infinity.
    """
    logits = np.asarray(backend.logits(pixels), np.float32)
    shape = (len(pixels), len(backend.manifest.classes))
    if logits.shape != shape:
        raise ModelError(f"logits of shape {shape}", str(logits.shape), "check that manifest and model belong together")
    if not np.isfinite(logits).all():
        raise ModelError("finite logits", "NaN or infinity from the model", "train or export it again")
    return logits
