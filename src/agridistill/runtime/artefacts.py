"""Exported models: a file, its manifest beside it, and the engine that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agridistill.errors import ModelError, nearest
from agridistill.manifest import ModelManifest, read_manifest
from agridistill.runtime.backends import Backend
from agridistill.runtime.memory import return_freed_memory

ENGINES: Mapping[str, tuple[str, ...]] = {".onnx": ("onnxruntime", "openvino"), ".tflite": ("litert",)}
"""Engines that run a kind of file, the default one first."""


def manifest_path(artefact: Path) -> Path:
    """`NAME.json` beside `NAME.onnx`."""
    return artefact.with_suffix(".json")


def open_artefact(path: Path, *, engine: str | None = None, threads: int = 0) -> Backend:
    """Loads an exported model.

    Args:
        path: `NAME.onnx` or `NAME.tflite`, with `NAME.json` beside it.
        engine: one of `ENGINES` for that kind of file; None takes the first.
        threads: of one prediction; 0 takes one for each core.

    Raises:
        ModelError: no such file, no manifest, a file that its manifest does not describe, or one that cannot be run.
        MissingExtraError: the engine is not installed.
    """
    engines = ENGINES.get(path.suffix.lower())
    if engines is None:
        known = ", ".join(ENGINES)
        raise ModelError(f"a run folder or an exported model ({known})", f"'{path}'", "name one of these")
    chosen = engine or engines[0]
    if chosen not in engines:
        raise ModelError(f"an engine for {path.suffix} files", f"'{chosen}'", nearest(chosen, engines))
    manifest = read_manifest(manifest_path(path))
    file = manifest.verified_weights(path.parent)
    if file.name != path.name:
        raise ModelError(f"the manifest of '{path.name}'", f"one of '{file.name}'", "export it again")
    backend = _backend(chosen, file, manifest, threads)
    return_freed_memory()
    return backend


def _backend(engine: str, file: Path, manifest: ModelManifest, threads: int) -> Backend:
    # Each import loads an engine; a device has only its own.
    if engine == "onnxruntime":
        from agridistill.runtime.onnx_runtime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(file, manifest, threads=threads)
    if engine == "openvino":
        from agridistill.runtime.openvino import OpenVinoBackend

        return OpenVinoBackend(file, manifest, threads=threads)
    from agridistill.runtime.litert import LiteRtBackend

    return LiteRtBackend(file, manifest, threads=threads)
