"""Opens models by path or name and runs them in an engine; `Backend` is the interface of every opened model.

To add an engine, write a module here with a class that has the methods of `Backend`, a function that creates it, and a
row in `ENGINES`.
"""

from __future__ import annotations

import ctypes
import functools
import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from agridistill.errors import MissingExtraError, ModelError, nearest
from agridistill.manifest import MANIFEST_NAME, ModelManifest, read_manifest, sha256_of
from agridistill.preprocess import Pixels

TORCH = "torch"
"""Name of the engine that runs a run folder."""
ALL_ENGINES = "all"
_WORTH_A_SLOW_START = 1000
_X86 = frozenset({"x86_64", "amd64", "i686"})


class Backend(Protocol):
    """An opened model: the interface of all engines, and of the network of a run folder."""

    @property
    def manifest(self) -> ModelManifest:
        """The model's manifest: its classes, preprocessing, temperature and threshold."""
        ...

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Computes logits `(N, K)` float32, in the order of `manifest.classes`, for RGB photos `(N, S, S, 3)` uint8.

        The model itself normalises the pixels by mean and standard deviation.
        """
        ...


@runtime_checkable
class AttentiveBackend(Protocol):
    """A backend that can also compute attention maps: the network of a run folder; exported files cannot."""

    def attention(self, pixels: Pixels) -> NDArray[np.float32]:
        """Computes attention maps `(N, H, W)` float32, at least 0, for photos `(N, S, S, 3)` uint8.

        Raises:
            ModelError: the network's features have no height and width.
        """
        ...


def _create_onnxruntime(path: Path, manifest: ModelManifest, threads: int) -> Backend:
    from agridistill.runtime.backends.onnx import OnnxRuntimeBackend

    return OnnxRuntimeBackend(path, manifest, threads=threads)


def _create_openvino(path: Path, manifest: ModelManifest, threads: int) -> Backend:
    from agridistill.runtime.backends.onnx import OpenVinoBackend

    return OpenVinoBackend(path, manifest, threads=threads)


def _create_litert(path: Path, manifest: ModelManifest, threads: int) -> Backend:
    from agridistill.runtime.backends.litert import LiteRtBackend

    return LiteRtBackend(path, manifest, threads=threads)


class Engine(NamedTuple):
    """An inference engine for one kind of exported file."""

    suffix: str  # suffix of the files that it runs
    module: str  # Python module to import; its package has the same name, with '-' instead of '_'
    create: Callable[[Path, ModelManifest, int], Backend]  # (file, manifest, threads); imports the engine only now
    batches: bool = True  # False: files have fixed shapes, and photos are computed one after another


ENGINES: Mapping[str, Engine] = {
    "onnxruntime": Engine(".onnx", "onnxruntime", _create_onnxruntime),
    "openvino": Engine(".onnx", "openvino", _create_openvino),
    "litert": Engine(".tflite", "ai_edge_litert", _create_litert, batches=False),
}
"""The engines by name. The first engine of a suffix is its default; see `default_engine`."""
SUFFIXES = tuple(dict.fromkeys(engine.suffix for engine in ENGINES.values()))
"""Suffixes of exported models."""
SHIPPED: Mapping[str, str] = {"tomato": "tomato/tomato-int8.onnx"}
"""Models that come with AgriDistill: for each name, the path of the model file in the folder of shipped models."""
# The folder of shipped models: in a wheel beside the package's modules, in a checkout at its root.
_FOLDERS = (Path(__file__).parents[2] / "shipped", Path(__file__).parents[4] / "models")


def checked_logits(backend: Backend, pixels: Pixels) -> NDArray[np.float32]:
    """Computes logits `(N, K)` float32 for photos `(N, S, S, 3)` uint8, and checks their shape and values.

    Raises:
        ModelError: the logits have another shape than the manifest's classes require, or contain NaN or infinity.
    """
    logits = np.asarray(backend.logits(pixels), np.float32)
    shape = (len(pixels), len(backend.manifest.classes))
    if logits.shape != shape:
        raise ModelError(f"logits of shape {shape}", str(logits.shape), "check that the manifest belongs to the model")
    if not np.isfinite(logits).all():
        raise ModelError("finite logits", "NaN or infinity from the model", "train or export the model again")
    return logits


def manifest_path(artefact: Path) -> Path:
    """Returns the path of a model file's manifest: `NAME.json` beside `NAME.onnx` or `NAME.tflite`."""
    return artefact.with_suffix(".json")


def package_of(engine: str) -> str:
    """Returns the name under which pip installs an engine."""
    return _module_of(engine).replace("_", "-")


def engines_of_file(path: Path) -> tuple[str, ...]:
    """Returns the names of the engines that run files with this suffix, the default first.

    Raises:
        ModelError: no engine runs such files.
    """
    engines = tuple(name for name, engine in ENGINES.items() if engine.suffix == path.suffix.lower())
    if not engines:
        known = ", ".join(SUFFIXES)
        raise ModelError(f"a run folder or an exported model ({known})", f"'{path}'", "pass one of these")
    return engines


def default_engine(artefact: Path, manifest: ModelManifest, *, photos: int | None = None) -> str:
    """Chooses the engine that runs a file fastest in our measurements (docs/performance.md).

    That is OpenVINO, if it is installed, for int8 `.onnx` files on x86 processors, and otherwise the first engine for
    the file's suffix. OpenVINO takes 0.4 s longer to start and saves half a millisecond a photo, so it is not chosen
    for fewer than 1,000 photos.

    Args:
        artefact: the model file.
        manifest: its manifest.
        photos: number of photos that will be classified; None if unknown, which counts as many.

    Raises:
        ModelError: no engine runs such a file.
    """
    engines = engines_of_file(artefact)
    int8_on_x86 = manifest.precision == "int8" and platform.machine().lower() in _X86
    many = photos is None or photos >= _WORTH_A_SLOW_START
    if many and int8_on_x86 and "openvino" in engines and _is_installed("openvino"):
        return "openvino"
    return engines[0]


def engines_for(model: Path, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the names of the engines that a run folder or an exported file should run in.

    Args:
        model: run folder or exported file.
        wanted: names of engines; those that cannot run this kind of model are left out. "all" selects every installed
            engine; an empty sequence selects the default.

    Raises:
        ModelError: the model or an engine does not exist, or no wanted engine runs this kind of model.
        MissingExtraError: `wanted` contains "all", and no engine for the model is installed.
    """
    if not model.exists():
        raise missing_model(model)
    known = (*ENGINES, TORCH, ALL_ENGINES)
    for name in wanted:
        if name not in known:
            raise ModelError("the name of a known engine", f"'{name}'", nearest(name, known))
    possible = (TORCH,) if model.is_dir() else engines_of_file(model)
    if not wanted:
        return possible if model.is_dir() else (default_engine(model, read_manifest(manifest_path(model))),)
    if ALL_ENGINES in wanted:
        installed = tuple(name for name in possible if _is_installed(name))
        if not installed:
            remedy = f"pip install {package_of(possible[0])}"
            raise MissingExtraError(f"an engine for '{model}'", "none installed", remedy)
        return installed
    chosen = tuple(name for name in possible if name in wanted)
    if not chosen:
        raise ModelError(f"an engine that runs '{model}'", ", ".join(wanted), "known: " + ", ".join(possible))
    return chosen


def open_artefact(path: Path, *, engine: str | None = None, threads: int = 0, photos: int | None = None) -> Backend:
    """Opens an exported model.

    Args:
        path: `NAME.onnx` or `NAME.tflite`; its manifest `NAME.json` lies beside it.
        engine: name of an engine in `ENGINES` that runs this kind of file; None takes `default_engine`.
        threads: number of threads for one prediction; 0 takes one for each core.
        photos: number of photos that will be classified, for the choice of the engine; None if unknown.

    Raises:
        ModelError: the file or its manifest is missing, the manifest belongs to another file, or the engine cannot run
            the file.
        MissingExtraError: the engine is not installed.
    """
    engines = engines_of_file(path)
    if engine is not None and engine not in engines:
        raise ModelError(f"an engine for {path.suffix} files", f"'{engine}'", nearest(engine, engines))
    manifest = read_manifest(manifest_path(path))
    other = manifest.weights_file not in (path.name, "") and Path(manifest.weights_file).name == manifest.weights_file
    if other and path.is_file() and sha256_of(path) == manifest.weights_sha256:
        # The user renamed the model and its manifest.
        manifest = replace(manifest, weights_file=path.name)
    file = manifest.verified_weights(path.parent)
    if file.name != path.name:
        raise ModelError(
            f"the manifest of '{path.name}'",
            f"the manifest of '{file.name}' in '{manifest_path(path).name}'",
            f"copy the manifest of '{path.name}' beside it",
        )
    backend = ENGINES[engine or default_engine(file, manifest, photos=photos)].create(file, manifest, threads)
    return_freed_memory()
    return backend


@contextmanager
def loading(engine: str, path: Path, remedy: str) -> Iterator[None]:
    """Turns every exception in its block, in which an engine is imported and loads a file, into an AgriDistillError.

    Args:
        engine: name of the engine for messages.
        path: the model file.
        remedy: the remedy of the MissingExtraError.

    Raises:
        MissingExtraError: the engine is not installed, or cannot be loaded on this machine.
        ModelError: the engine cannot run the file.
    """
    try:
        yield
    except ImportError as error:
        got = f"no module '{error.name}'" if isinstance(error, ModuleNotFoundError) else str(error)[:200]
        raise MissingExtraError(f"{engine}, to run {path.suffix} files", got, remedy) from None
    except Exception as error:  # the engines' exceptions have no common public base class
        got = f"'{path}' ({str(error)[:200]})"
        raise ModelError(f"a model that {engine} can run", got, "export the model again") from None


def require_input(path: Path, found: Sequence[str], manifest: ModelManifest, *, fits: bool) -> None:
    """Checks that a model file has one input, uint8 photos of the size in its manifest.

    Args:
        path: the file.
        found: a description of each input of the file, for the error.
        manifest: the manifest of the file.
        fits: the result of the comparison, which each engine makes by itself.

    Raises:
        ModelError: `fits` is False.
    """
    if not fits:
        size, got = manifest.preprocessing.image_size, f"{', '.join(found)} in '{path}'"
        raise ModelError(f"one input of uint8 photos (N, {size}, {size}, 3)", got, "export the model again")


def return_freed_memory() -> None:
    """Returns freed memory to the system, because glibc would keep it. Does nothing with other C libraries.

    An engine builds its own copy of a model and then frees the content of the file: 30 MB with a MobileNetV3-Large, a
    quarter of the process. Threads that decode photos fragment the memory as well.
    """
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    # libc_ver reads the whole file of the interpreter, so the result is cached.
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        return ctypes.CDLL("libc.so.6")
    return None


def _module_of(engine: str) -> str:
    return ENGINES[engine].module if engine in ENGINES else engine


def _is_installed(engine: str) -> bool:
    return find_spec(_module_of(engine)) is not None


def model_path(model: Path | str) -> Path:
    """Returns the path of a model that is given as a path or as the name of a shipped model.

    A model of that name in the current folder takes precedence. If neither exists, the argument is returned as a path,
    and the caller reports the error.
    """
    path, shipped = Path(model), _shipped_file(str(model))
    return path if shipped is None or path.is_file() or (path / MANIFEST_NAME).exists() else shipped


def shipped_models() -> list[dict[str, Any]]:
    """Returns one dict for every shipped model, as `agridistill models --json` prints them.

    Its keys are "name", "file", "size_bytes", "model", "precision", "image_size", "classes", "test_accuracy",
    "test_accuracy_ci95", "test_photos", "val_accuracy", "val_photos" and "threshold".

    Raises:
        ModelError: a shipped model is missing from this installation, or its manifest is damaged.
    """
    found = []
    for name in SHIPPED:
        file = _shipped_file(name)
        if file is None:
            raise missing_model(Path(name))
        manifest = read_manifest(file.with_suffix(".json"))
        evaluation = json.loads(file.with_name(f"evaluation-{manifest.precision}.json").read_text(encoding="utf-8"))
        figures = {
            "name": name,
            "file": str(file),
            "size_bytes": file.stat().st_size,
            "model": manifest.model,
            "precision": manifest.precision,
            "image_size": manifest.preprocessing.image_size,
            "classes": list(manifest.classes),
            "test_accuracy": evaluation["accuracy"],
            "test_accuracy_ci95": evaluation["accuracy_ci95"],
            "test_photos": evaluation["photos"],
            "val_accuracy": manifest.measured.get("accuracy"),
            "val_photos": manifest.measured.get("photos"),
            "threshold": manifest.threshold,
        }
        found.append(figures)
    return found


def missing_model(model: Path) -> ModelError:
    """Makes the error for a path where no model exists; for a name without folders it also lists the shipped models."""
    remedy = f"check the path{shipped_hint(model)}"
    expected = "a run folder, an exported model or the name of a shipped model"
    return ModelError(expected, f"'{model}', which does not exist", remedy)


def shipped_hint(model: Path) -> str:
    """Returns text to append to a remedy: the names of shipped models if `model` is a name without folders, else ""."""
    name = str(model)
    if name in SHIPPED:
        return f"; the shipped model '{name}' is missing from this installation: reinstall agridistill"
    if len(model.parts) != 1:
        return ""
    return f"; shipped models: {nearest(name, SHIPPED).removeprefix('known: ')}"


def _shipped_file(name: str) -> Path | None:
    files = [folder / SHIPPED[name] for folder in _FOLDERS] if name in SHIPPED else []
    return next((file for file in files if file.is_file()), None)
