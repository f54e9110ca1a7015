"""Exported models: a file, its manifest beside it, and the engine that runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from agridistill.errors import MissingExtraError, ModelError, nearest
from agridistill.manifest import ModelManifest, read_manifest
from agridistill.runtime.allocator import return_freed_memory
from agridistill.runtime.backends import Backend

ENGINES: Mapping[str, tuple[str, ...]] = {".onnx": ("onnxruntime", "openvino"), ".tflite": ("litert",)}
"""Engines that run a kind of file, the default one first."""
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


def manifest_path(artefact: Path) -> Path:
    """`NAME.json` beside `NAME.onnx`."""
    return artefact.with_suffix(".json")


def engines_for(model: Path, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Names the engines to run a model with.

    Args:
        model: a run folder or an exported file.
        wanted: engines, of which those that can run this kind of model are taken; "all" takes each that is installed.
            None wanted takes the default one.

    Raises:
        ModelError: no such model or engine, or none that runs this kind of model.
        MissingExtraError: "all", and none is installed.
    """
    if not model.exists():
        raise ModelError("a run folder or an exported model", f"'{model}', which does not exist", "check the path")
    for name in wanted:
        if name not in (*PACKAGES, ALL_ENGINES):
            raise ModelError("an engine", f"'{name}'", nearest(name, (*PACKAGES, ALL_ENGINES)))
    possible = (TORCH,) if model.is_dir() else _engines_of_file(model)
    if not wanted:
        return possible[:1]
    if ALL_ENGINES in wanted:
        installed = tuple(name for name in possible if find_spec(PACKAGES[name][0]) is not None)
        if not installed:
            needed = PACKAGES[possible[0]][1]
            raise MissingExtraError(f"an engine for '{model}'", "none installed", f"pip install {needed}")
        return installed
    chosen = tuple(name for name in possible if name in wanted)
    if not chosen:
        raise ModelError(f"an engine that runs '{model}'", ", ".join(wanted), "known: " + ", ".join(possible))
    return chosen


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
    engines = _engines_of_file(path)
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


def _engines_of_file(path: Path) -> tuple[str, ...]:
    engines = ENGINES.get(path.suffix.lower())
    if engines is None:
        known = ", ".join(ENGINES)
        raise ModelError(f"a run folder or an exported model ({known})", f"'{path}'", "name one of these")
    return engines
