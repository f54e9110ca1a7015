"""Models by path or name, and their engines: `Backend` is the seam to everything that needs class scores.

To add an engine: a module here with a `Backend`, a function that creates it, and a row of `ENGINES`.
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
"""Runs a run folder."""
ALL_ENGINES = "all"
_WORTH_A_SLOW_START = 1000
_X86 = frozenset({"x86_64", "amd64", "i686"})


class Backend(Protocol):
    """A model that is ready to run."""

    @property
    def manifest(self) -> ModelManifest:
        """The contract that the model ships with."""
        ...

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Logits `(N, K)` float32, in the order of `manifest.classes`, of photos `(N, S, S, 3)` uint8, RGB.

        The model applies mean and standard deviation itself.
        """
        ...


@runtime_checkable
class AttentiveBackend(Protocol):
    """A model that gives maps of where it looks, as a run folder's network does; exported files give logits alone."""

    def attention(self, pixels: Pixels) -> NDArray[np.float32]:
        """Attention maps `(N, H, W)` float32, at least 0, of photos `(N, S, S, 3)` uint8.

        Raises:
            ModelError: the network has no stage that keeps height and width.
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
    """What runs a kind of exported file."""

    suffix: str  # of the files
    module: str  # that is imported; pip installs it by the same name, with '-' for '_'
    create: Callable[[Path, ModelManifest, int], Backend]  # imports the engine: a device has only its own
    batches: bool = True  # False: files have fixed shapes, photos go through one after another


ENGINES: Mapping[str, Engine] = {
    "onnxruntime": Engine(".onnx", "onnxruntime", _create_onnxruntime),
    "openvino": Engine(".onnx", "openvino", _create_openvino),
    "litert": Engine(".tflite", "ai_edge_litert", _create_litert, batches=False),
}
"""The first engine of a suffix is its default; see `default_engine`."""
SUFFIXES = tuple(dict.fromkeys(engine.suffix for engine in ENGINES.values()))
"""Of exported models."""
SHIPPED: Mapping[str, str] = {"tomato": "tomato/tomato-int8.onnx"}
"""Models that come with AgriDistill, by name: the artefact below their folder."""
# In a wheel beside the package's modules, in a checkout at its root.
_FOLDERS = (Path(__file__).parents[2] / "shipped", Path(__file__).parents[4] / "models")


def checked_logits(backend: Backend, pixels: Pixels) -> NDArray[np.float32]:
    """The backend's logits, `(N, K)` float32, after their shape and values were checked.

    Raises:
        ModelError: another number of classes than the manifest's, or NaN or infinity.
    """
    logits = np.asarray(backend.logits(pixels), np.float32)
    shape = (len(pixels), len(backend.manifest.classes))
    if logits.shape != shape:
        raise ModelError(f"logits of shape {shape}", str(logits.shape), "check that the manifest is the model's own")
    if not np.isfinite(logits).all():
        raise ModelError("finite logits", "NaN or infinity from the model", "train or export it again")
    return logits


def manifest_path(artefact: Path) -> Path:
    """`NAME.json` beside `NAME.onnx`."""
    return artefact.with_suffix(".json")


def package_of(engine: str) -> str:
    """The distribution that holds an engine."""
    return _module_of(engine).replace("_", "-")


def engines_of_file(path: Path) -> tuple[str, ...]:
    """The engines that run a kind of file, the default first.

    Raises:
        ModelError: none does.
    """
    engines = tuple(name for name, engine in ENGINES.items() if engine.suffix == path.suffix.lower())
    if not engines:
        known = ", ".join(SUFFIXES)
        raise ModelError(f"a run folder or an exported model ({known})", f"'{path}'", "name one of these")
    return engines


def default_engine(artefact: Path, manifest: ModelManifest, *, photos: int | None = None) -> str:
    """The engine that runs a file fastest by our measurements, of those that are installed (docs/performance.md).

    int8 `.onnx` files go to OpenVINO on x86 processors; everything else to the first engine of its kind. OpenVINO takes
    0.4 s longer to start, which half a millisecond a photo has to earn: below 1,000 `photos` it is not taken.

    Raises:
        ModelError: a file that no engine runs.
    """
    engines = engines_of_file(artefact)
    int8_on_x86 = manifest.precision == "int8" and platform.machine().lower() in _X86
    many = photos is None or photos >= _WORTH_A_SLOW_START
    if many and int8_on_x86 and "openvino" in engines and _is_installed("openvino"):
        return "openvino"
    return engines[0]


def engines_for(model: Path, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """The engines to run a run folder or an exported file with.

    Those of `wanted` that can run this kind of model; "all" takes each that is installed, empty the default.

    Raises:
        ModelError: no such model or engine, or none that runs this kind of model.
        MissingExtraError: "all", and none is installed.
    """
    if not model.exists():
        raise missing_model(model)
    known = (*ENGINES, TORCH, ALL_ENGINES)
    for name in wanted:
        if name not in known:
            raise ModelError("an engine", f"'{name}'", nearest(name, known))
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
    engines = engines_of_file(path)
    if engine is not None and engine not in engines:
        raise ModelError(f"an engine for {path.suffix} files", f"'{engine}'", nearest(engine, engines))
    manifest = read_manifest(manifest_path(path))
    other = manifest.weights_file not in (path.name, "") and Path(manifest.weights_file).name == manifest.weights_file
    if other and path.is_file() and sha256_of(path) == manifest.weights_sha256:
        # Both files were renamed alike.
        manifest = replace(manifest, weights_file=path.name)
    file = manifest.verified_weights(path.parent)
    if file.name != path.name:
        raise ModelError(f"the manifest of '{path.name}'", f"one of '{file.name}'", "copy its own manifest beside it")
    backend = ENGINES[engine or default_engine(file, manifest, photos=photos)].create(file, manifest, threads)
    return_freed_memory()
    return backend


@contextmanager
def loading(engine: str, path: Path, remedy: str) -> Iterator[None]:
    """Around the import of an engine and its loading of a file.

    Raises:
        MissingExtraError: the engine is not installed, or does not load on this machine; with `remedy`.
        ModelError: the engine refuses the file.
    """
    try:
        yield
    except ImportError as error:
        got = f"no module '{error.name}'" if isinstance(error, ModuleNotFoundError) else str(error)[:200]
        raise MissingExtraError(f"{engine}, to run {path.suffix} files", got, remedy) from None
    except Exception as error:  # those of the engines share no public base
        got = f"'{path}' ({str(error)[:200]})"
        raise ModelError(f"a model that {engine} can run", got, "export it again") from None


def require_input(path: Path, found: Sequence[str], manifest: ModelManifest, *, fits: bool) -> None:
    """Raises a ModelError if the inputs that an engine `found` in a file do not fit the manifest's preprocessing."""
    if not fits:
        size, got = manifest.preprocessing.image_size, f"{', '.join(found)} in '{path}'"
        raise ModelError(f"one input of uint8 photos (N, {size}, {size}, 3)", got, "export it again")


def return_freed_memory() -> None:
    """Returns freed memory to the system; glibc keeps it otherwise. Does nothing on other C libraries.

    An engine builds its own form of a model beside the file's and frees the latter: 30 MB with a MobileNetV3-Large,
    a quarter of the process. Threads that decode photos leave holes between what they keep.
    """
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    # libc_ver reads the whole interpreter: once.
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        return ctypes.CDLL("libc.so.6")
    return None


def _module_of(engine: str) -> str:
    return ENGINES[engine].module if engine in ENGINES else engine


def _is_installed(engine: str) -> bool:
    return find_spec(_module_of(engine)) is not None


def model_path(model: Path | str) -> Path:
    """The path of a model, given as path or as the name of a shipped model.

    A model of that name in the current folder comes first; a name without a model is returned as it is, for the
    caller's error.
    """
    path, shipped = Path(model), _shipped_file(str(model))
    return path if shipped is None or path.is_file() or (path / MANIFEST_NAME).exists() else shipped


def shipped_models() -> list[dict[str, Any]]:
    """The figures of every shipped model, as `agridistill models --json` prints them.

    Raises:
        ModelError: one is missing from this installation, or its manifest is damaged.
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
    """The error for a model that does not exist; a bare name may have been meant as a shipped model's."""
    remedy = f"check the path{shipped_hint(model)}"
    return ModelError("a run folder, an exported model or a shipped one", f"'{model}', which does not exist", remedy)


def shipped_hint(model: Path) -> str:
    """An addition to a remedy: shipped models, if a bare name may have been meant as one's; empty for other paths."""
    name = str(model)
    if name in SHIPPED:
        return f"; the shipped model '{name}' is missing from this installation: install agridistill anew"
    if len(model.parts) != 1:
        return ""
    return f"; shipped models: {nearest(name, SHIPPED).removeprefix('known: ')}"


def _shipped_file(name: str) -> Path | None:
    files = [folder / SHIPPED[name] for folder in _FOLDERS] if name in SHIPPED else []
    return next((file for file in files if file.is_file()), None)
