"""Opens models by their path, or by the name of a shipped model, and chooses the engine that runs them."""

from __future__ import annotations

import ctypes
import functools
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agridistill.errors import ModelError, nearest
from agridistill.manifest import MANIFEST_NAME, ModelManifest, read_manifest
from agridistill.runtime.engines import ENGINES, SUFFIXES, Backend

TORCH = "torch"
"""Name of the engine that runs a run folder."""
ALL_ENGINES = "all"
_WORTH_A_SLOW_START = 1000
_X86 = frozenset({"x86_64", "amd64", "i686"})
SHIPPED: Mapping[str, str] = {"tomato": "tomato/tomato-int8.onnx"}
"""Models that come with AgriDistill: for each name, the path of the model file in the folder of shipped models."""
# For each shipped model, the file that a browser runs fastest (docs/performance.md).
_SHIPPED_FOR_PAGES: Mapping[str, str] = {"tomato": "tomato/tomato-tflite-int8.tflite"}
# The folder of shipped models: in a wheel beside the package's modules, in a checkout at its root.
_FOLDERS = (Path(__file__).parents[1] / "shipped", Path(__file__).parents[3] / "models")


def manifest_path(artefact: Path) -> Path:
    """Returns the path of a model file's manifest: `NAME.json` beside `NAME.onnx` or `NAME.tflite`."""
    return artefact.with_suffix(".json")


def package_of(engine: str) -> str:
    """Returns the name under which pip installs an engine, such as "ai-edge-litert" for "litert"."""
    return _module_of(engine).replace("_", "-")


def engines_of_file(path: Path) -> tuple[str, ...]:
    """Returns the names of the engines that run files with this suffix, the default first; none is a ModelError."""
    engines = tuple(name for name, engine in ENGINES.items() if engine.suffix == path.suffix.lower())
    if not engines:
        known = ", ".join(SUFFIXES)
        raise ModelError(f"a run folder or an exported model ({known})", f"'{path}'", "pass one of these")
    return engines


def default_engine(artefact: Path, manifest: ModelManifest, *, photos: int | None = None) -> str:
    """Chooses the engine that runs a file fastest in our measurements (docs/performance.md).

    That is OpenVINO, if it is installed, for int8 `.onnx` files on x86 processors, and otherwise the first engine for
    the file's suffix. OpenVINO takes 0.4 s longer to start and saves half a millisecond a photo, so it is not chosen
    for fewer than 1,000 `photos`; None means many.
    """
    engines = engines_of_file(artefact)
    int8_on_x86 = manifest.precision == "int8" and platform.machine().lower() in _X86
    many = photos is None or photos >= _WORTH_A_SLOW_START
    if many and int8_on_x86 and "openvino" in engines and _is_installed("openvino"):
        return "openvino"
    return engines[0]


def engines_for(model: Path, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the names of the engines that a model should run in, of those `wanted`: "all", or none for the default.

    Raises:
        ModelError: the model or an engine does not exist, or no wanted engine runs this kind of model.
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
        # If none is installed, opening the model reports it.
        return tuple(filter(_is_installed, possible)) or possible[:1]
    chosen = tuple(name for name in possible if name in wanted)
    if not chosen:
        raise ModelError(f"an engine that runs '{model}'", ", ".join(wanted), "known: " + ", ".join(possible))
    return chosen


def open_artefact(path: Path, *, engine: str | None = None, threads: int = 0, photos: int | None = None) -> Backend:
    """Opens an exported model, whose manifest lies beside it; `agridistill.load` documents the arguments.

    Raises:
        ModelError: the file or its manifest is missing, the manifest has another sha256, or the engine cannot run the
            file.
        MissingExtraError: the engine is not installed.
    """
    engines = engines_of_file(path)
    if engine is not None and engine not in engines:
        raise ModelError(f"an engine for {path.suffix} files", f"'{engine}'", nearest(engine, engines))
    # The sha256 decides, not the name: users may rename a model and its manifest.
    manifest = replace(read_manifest(manifest_path(path)), weights_file=path.name)
    file = manifest.verified_weights(path.parent)
    backend = ENGINES[engine or default_engine(file, manifest, photos=photos)].create(file, manifest, threads=threads)
    return_freed_memory()
    return backend


def return_freed_memory() -> None:
    """Returns freed memory to the system, because glibc would keep it. Does nothing with other C libraries.

    An engine builds its own copy of a model and then frees the content of the file: 30 MB with a MobileNetV3-Large, a
    quarter of the process. Threads that decode photos fragment the memory as well.
    """
    library = glibc()
    if library is not None:
        library.malloc_trim(0)


@functools.cache
def glibc() -> ctypes.CDLL | None:
    """Returns the GNU C library; None with any other."""
    # libc_ver reads the whole file of the interpreter, so the result is cached.
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        return ctypes.CDLL("libc.so.6")
    return None


def _module_of(engine: str) -> str:
    return ENGINES[engine].module if engine in ENGINES else engine


def _is_installed(engine: str) -> bool:
    return find_spec(_module_of(engine)) is not None


def model_path(model: Path | str, *, for_page: bool = False) -> Path:
    """Returns the path of a model that is given as a path or as the name of a shipped model.

    A model of that name in the current folder takes precedence. If neither exists, the argument is returned as a path,
    and the caller reports the error. `for_page` selects the form of a shipped model that the phone page takes.
    """
    path, shipped = Path(model), _shipped_file(str(model), _SHIPPED_FOR_PAGES if for_page else SHIPPED)
    return path if shipped is None or path.is_file() or (path / MANIFEST_NAME).exists() else shipped


def shipped_models() -> list[dict[str, Any]]:
    """Returns one dict for every shipped model, as `agridistill models --json` prints them.

    "page_file" is the form for the phone page.
    """
    found = []
    for name in SHIPPED:
        file = model_path(name)
        manifest = read_manifest(file.with_suffix(".json"))
        evaluation = json.loads(file.with_name(f"evaluation-{manifest.precision}.json").read_text(encoding="utf-8"))
        found.append(
            {
                "name": name,
                "file": str(file),
                "page_file": str(model_path(name, for_page=True)),
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
        )
    return found


def missing_model(model: Path) -> ModelError:
    """Makes the error for a path where no model exists; for a name without folders it also lists the shipped models."""
    remedy = f"check the path{shipped_hint(model)}"
    expected = "a run folder, an exported model or the name of a shipped model"
    return ModelError(expected, f"'{model}', which does not exist", remedy)


def shipped_hint(model: Path) -> str:
    """Returns text to append to a remedy: the names of shipped models if `model` is a name without folders, else ""."""
    return f"; shipped models: {', '.join(SHIPPED)}" if len(model.parts) == 1 else ""


def _shipped_file(name: str, shipped: Mapping[str, str]) -> Path | None:
    files = [folder / shipped[name] for folder in _FOLDERS] if name in shipped else []
    return next((file for file in files if file.is_file()), None)
