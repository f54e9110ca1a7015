"""The engines that run exported files, and `Backend`, the interface of every opened model.

To add an engine, write a class with the methods of `Backend` and a row of `ENGINES`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from agridistill.errors import MissingExtraError, ModelError
from agridistill.host import usable_cores
from agridistill.manifest import ModelManifest
from agridistill.preprocess import Pixels
from agridistill.progress import stderr_without_lines

# Larger batches are no faster on a CPU, and each photo needs memory for activations: 3 MB at 128 px, 9 MB at 224 px.
_PHOTOS_AT_ONCE = 4
ATTENTION = "attention"
"""Name of the output with attention maps in exported files."""


class Backend(Protocol):
    """An opened model: the interface of all engines, and of the network of a run folder.

    Run folders and `.onnx` files also have a method `attention(pixels)`: attention maps `(N, H, W)` float32, each with
    largest value 1. It raises a ModelError for a model without them, such as a file exported without `--attention`.

    The engines of files also have a method `copies(number)`: it returns backends of the same file that `number` threads
    can use at the same time, one each. For many photos, this is faster than many threads for each photo.
    It raises a ModelError if the file has changed since it was loaded.
    """

    @property
    def manifest(self) -> ModelManifest:
        """The model's manifest: its classes, preprocessing, temperature and threshold."""
        ...

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Computes logits `(N, K)` float32, in the order of `manifest.classes`, for RGB photos `(N, S, S, 3)` uint8.

        There must be at least one photo. The model itself normalises the pixels by mean and standard deviation.
        """
        ...


def checked_logits(backend: Backend, pixels: Pixels) -> NDArray[np.float32]:
    """Computes logits `(N, K)` float32 for photos `(N, S, S, 3)` uint8; raises a ModelError for others or NaN."""
    logits = np.asarray(backend.logits(pixels), np.float32)
    shape = (len(pixels), len(backend.manifest.classes))
    if logits.shape != shape:
        raise ModelError(f"logits of shape {shape}", str(logits.shape), "check that the manifest belongs to the model")
    if not np.isfinite(logits).all():
        raise ModelError("finite logits", "NaN or infinity from the model", "train or export the model again")
    return logits


class OnnxRuntimeBackend:
    """Runs an `.onnx` file, whose sha256 has been checked, with ONNX Runtime; 0 threads means one for each core.

    Raises:
        MissingExtraError: the engine is not installed, or does not load on this machine.
        ModelError: the engine cannot run the file, or its input does not fit the manifest.
    """

    def __init__(self, path: Path, manifest: ModelManifest, *, threads: int = 0) -> None:
        self.manifest = manifest
        remedy = "pip install onnxruntime, on 64-bit Linux with glibc, macOS or Windows"
        with _loading("ONNX Runtime", path, remedy):
            import onnxruntime

            options = onnxruntime.SessionOptions()
            # By itself the engine takes one thread for each core of the machine, also if the process may use fewer. On
            # one core of two they hinder one another, and the first answer takes 0.05 s more.
            usable = usable_cores()
            options.intra_op_num_threads = threads or (0 if usable == os.cpu_count() else usable)
            options.inter_op_num_threads = 1
            # Errors are raised as exceptions; users do not need the rest of the engine's log.
            options.log_severity_level = 4
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.threads, self._copy = threads, self if threads == 1 else None
        inputs, size = self._session.get_inputs(), manifest.preprocessing.image_size
        fits = [(each.type, list(each.shape)[1:]) for each in inputs] == [("tensor(uint8)", [size, size, 3])]
        _require_input(path, [f"{each.name} {each.type} {each.shape}" for each in inputs], manifest, fits=fits)
        self._input, self.photos_at_once = str(inputs[0].name), 1 if inputs[0].shape[0] == 1 else _PHOTOS_AT_ONCE
        self._path, self._outputs = path, [str(each.name) for each in self._session.get_outputs()]

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Computes logits `(N, K)` float32 for photos `(N, S, S, 3)` uint8."""
        return self._computed(self._outputs[0], pixels)

    def copies(self, number: int) -> list[OnnxRuntimeBackend]:
        """Returns `number` backends that share one session, one for each thread of the caller."""
        if self._copy is None:
            self._copy = OnnxRuntimeBackend(self.manifest.verified_weights(self._path.parent), self.manifest, threads=1)
        return [self._copy] * number

    def attention(self, pixels: Pixels) -> NDArray[np.float32]:
        """Computes attention maps `(N, H, W)` float32, each with largest value 1, for photos `(N, S, S, 3)` uint8."""
        _require_attention(self._path, self._outputs)
        return self._computed(ATTENTION, pixels)

    def _computed(self, output: str, pixels: Pixels) -> NDArray[np.float32]:
        starts = range(0, len(pixels), self.photos_at_once)
        return np.concatenate(
            [self._session.run([output], {self._input: pixels[at : at + self.photos_at_once]})[0] for at in starts]
        )


@cache
def _openvino_core() -> Any:
    """Returns the only OpenVINO object of this process, which is never released.

    Its CPU plugin gives the thread that loads it another stack for signal handlers. If its last model is released in
    another thread, it unmaps that stack, and the next signal (SIGTERM, the end of a child process) is a SIGSEGV.
    """
    import openvino

    return openvino.Core()


class _OpenVinoStart:
    """The first inference of this process runs alone.

    In it, OpenVINO's Python module initialises what all later ones use: it waits there for the interpreter's lock, and
    another thread that waits for the same initialisation keeps that lock, so that both wait for ever.
    """

    lock = threading.Lock()
    is_over = False


class OpenVinoBackend:
    """Runs an `.onnx` file with OpenVINO; arguments and errors are those of `OnnxRuntimeBackend`.

    With `streams` above 0, it computes this number of photos at the same time, each with one thread.
    """

    def __init__(self, path: Path, manifest: ModelManifest, *, threads: int = 0, streams: int = 0) -> None:
        self.manifest = manifest
        # Without the precision hint, OpenVINO computes fp32 operators in bf16 on some processors.
        options: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        if streams:
            options |= {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams}
        with _loading("OpenVINO", path, "pip install openvino"):
            compiled = _openvino_core().compile_model(str(path), "CPU", options)
        size = manifest.preprocessing.image_size
        inputs = [f"{each.element_type.get_type_name()} {each.partial_shape}" for each in compiled.inputs]
        fits = inputs in ([f"u8 [?,{size},{size},3]"], [f"u8 [1,{size},{size},3]"])
        _require_input(path, inputs, manifest, fits=fits)
        self.photos_at_once = 1 if compiled.inputs[0].partial_shape[0].is_static else None
        self._path, self._outputs = path, [each.get_any_name() for each in compiled.outputs]
        self._compiled, self._request, self._lock = compiled, compiled.create_infer_request(), threading.Lock()
        self.threads, self._copies = threads, list[OpenVinoBackend]()

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Computes logits `(N, K)` float32 for photos `(N, S, S, 3)` uint8."""
        return self._computed(0, pixels)

    def copies(self, number: int) -> list[OpenVinoBackend]:
        """Returns `number` backends, one for each thread of the caller; the network is compiled only once."""
        if len(self._copies) != number:
            first = OpenVinoBackend(self.manifest.verified_weights(self._path.parent), self.manifest, streams=number)
            self._copies = [first, *(copy(first) for _ in range(number - 1))]
            for each in self._copies[1:]:
                each._request, each._lock = first._compiled.create_infer_request(), threading.Lock()
        return self._copies

    def attention(self, pixels: Pixels) -> NDArray[np.float32]:
        """Computes attention maps as `OnnxRuntimeBackend.attention` does."""
        _require_attention(self._path, self._outputs)
        return self._computed(self._outputs.index(ATTENTION), pixels)

    def _computed(self, output: int, pixels: Pixels) -> NDArray[np.float32]:
        if self.photos_at_once == 1 and len(pixels) != 1:
            return np.concatenate([self._computed(output, photo[None]) for photo in pixels])
        with self._lock:  # two iterations over photos may be open at the same time, and share the copies
            if _OpenVinoStart.is_over:
                return np.array(self._request.infer([pixels])[output], np.float32)
            with _OpenVinoStart.lock:
                found = np.array(self._request.infer([pixels])[output], np.float32)
            _OpenVinoStart.is_over = True
            return found


class LiteRtBackend:
    """Runs a `.tflite` file with LiteRT, one photo at a time, because its shapes are fixed.

    `reference` uses the reference kernels, which are slow, but give results bit-identical to TensorFlow Lite Micro. The
    other arguments and the errors are those of `OnnxRuntimeBackend`.
    """

    def __init__(self, path: Path, manifest: ModelManifest, *, threads: int = 0, reference: bool = False) -> None:
        self.manifest = manifest
        self.threads, self._path, self._reference = threads, path, reference
        self._copies, self._lock = list[LiteRtBackend](), threading.Lock()
        with _loading("LiteRT", path, "pip install ai-edge-litert"):
            from ai_edge_litert.interpreter import Interpreter, OpResolverType

            kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
            cores = threads or usable_cores()
            # No setting of the engine silences its INFO lines, such as XNNPACK's; users do not need them.
            with stderr_without_lines(b"INFO: "):
                self._interpreter = Interpreter(str(path), num_threads=cores, experimental_op_resolver_type=kernels)
                self._interpreter.allocate_tensors()
        inputs, output = self._interpreter.get_input_details(), self._interpreter.get_output_details()[0]
        size = manifest.preprocessing.image_size
        fits = [(each["dtype"], each["shape"].tolist()) for each in inputs] == [(np.uint8, [1, size, size, 3])]
        found = [f"{each['dtype'].__name__} {each['shape'].tolist()}" for each in inputs]
        _require_input(path, found, manifest, fits=fits)
        self._input, self._output = inputs[0]["index"], output["index"]
        # Our files return float logits; files of other tools and for microcontrollers may return int8 levels.
        self._scale, self._zero_point = output["quantization"]

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Computes logits `(N, K)` float32 for photos `(N, S, S, 3)` uint8."""
        rows = []
        for photo in pixels:
            with self._lock:  # as for OpenVINO
                self._interpreter.set_tensor(self._input, photo[None])
                self._interpreter.invoke()
                row = np.array(self._interpreter.get_tensor(self._output)[0], np.float32)
            rows.append((row - self._zero_point) * self._scale if self._scale else row)
        return np.stack(rows)

    def copies(self, number: int) -> list[LiteRtBackend]:
        """Returns `number` backends, one for each thread of the caller."""
        for _ in range(number - len(self._copies)):
            path = self.manifest.verified_weights(self._path.parent)
            self._copies.append(LiteRtBackend(path, self.manifest, threads=1, reference=self._reference))
        return self._copies[:number]


class Engine(NamedTuple):
    """An inference engine for one kind of exported file."""

    suffix: str  # suffix of the files that it runs
    module: str  # Python module to import; its package has the same name, with '-' instead of '_'
    create: Callable[..., Backend]  # called with (file, manifest, threads=N); imports the engine
    batches: bool = True  # False: files have fixed shapes, and photos are computed one after another


ENGINES: Mapping[str, Engine] = {
    "onnxruntime": Engine(".onnx", "onnxruntime", OnnxRuntimeBackend),
    "openvino": Engine(".onnx", "openvino", OpenVinoBackend),
    "litert": Engine(".tflite", "ai_edge_litert", LiteRtBackend, batches=False),
}
"""The engines by name. The first engine of a suffix is its default."""
SUFFIXES = tuple(dict.fromkeys(engine.suffix for engine in ENGINES.values()))
"""Suffixes of exported models."""


@contextmanager
def _loading(engine: str, path: Path, remedy: str) -> Iterator[None]:
    """Turns every error of an engine that is imported and loads a file into a MissingExtraError or a ModelError."""
    try:
        yield
    except ImportError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C in the import of a module in C++
            raise error.__cause__ from None
        got = f"no module '{error.name}'" if isinstance(error, ModuleNotFoundError) else str(error)[:200]
        raise MissingExtraError(f"{engine}, to run {path.suffix} files", got, remedy) from None
    except Exception as error:  # the engines' exceptions have no common public base class
        got = f"'{path}' ({str(error)[:200]})"
        raise ModelError(f"a model that {engine} can run", got, "export the model again") from None


def _require_attention(path: Path, outputs: Sequence[str]) -> None:
    """Raises a ModelError if the model file at `path` has no output with attention maps."""
    if ATTENTION not in outputs:
        raise ModelError("a file with attention maps", f"none in '{path}'", "export it with --attention")


def _require_input(path: Path, found: Sequence[str], manifest: ModelManifest, *, fits: bool) -> None:
    """Raises a ModelError unless the file `fits`: one input of uint8 photos of the size in its manifest."""
    if not fits:
        size, got = manifest.preprocessing.image_size, f"{', '.join(found)} in '{path}'"
        raise ModelError(f"one input of uint8 photos (N, {size}, {size}, 3)", got, "export the model again")
