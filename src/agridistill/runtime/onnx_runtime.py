"""ONNX Runtime behind the Backend interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agridistill.errors import MissingExtraError, ModelError
from agridistill.manifest import ModelManifest
from agridistill.preprocess import Pixels

# More at once is no faster on a CPU, and each takes memory for its activations: 3 MB at 128 px, 9 MB at 224 px.
PHOTOS_AT_ONCE = 4


class OnnxRuntimeBackend:
    """Runs an exported `.onnx` file.

    Args:
        path: of the file, whose sha256 has been checked.
        manifest: of the file.
        threads: of one prediction; 0 takes one for each core.

    Raises:
        MissingExtraError: the engine is not installed, or does not load on this machine.
        ModelError: the engine cannot run the file.
    """

    def __init__(self, path: Path, manifest: ModelManifest, *, threads: int = 0) -> None:
        self.manifest = manifest
        onnxruntime = _engine()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Errors are raised; what remains to be logged speaks to the engine's own developers.
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the engine's exceptions share no public base
            reason = " ".join(str(error).split())[:200]
            raise ModelError("a model that ONNX Runtime can run", f"'{path}' ({reason})", "export it again") from None
        self._input, self._at_once = _require_pixels(self._session, path, manifest.preprocessing.image_size)

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Logits `(N, K)` float32 of photos `(N, S, S, 3)` uint8."""
        parts = [np.empty((0, len(self.manifest.classes)), np.float32)] if not len(pixels) else []
        for start in range(0, len(pixels), self._at_once):
            parts += self._session.run(None, {self._input: pixels[start : start + self._at_once]})
        return np.concatenate(parts).astype(np.float32, copy=False)


def _engine() -> Any:
    try:
        import onnxruntime
    except ImportError as error:  # also of a library that needs a newer system
        got = f"no module '{error.name}'" if isinstance(error, ModuleNotFoundError) else str(error)[:200]
        raise MissingExtraError(
            "ONNX Runtime, to run an .onnx file",
            got,
            "pip install onnxruntime, on 64-bit Linux with glibc, macOS or Windows",
        ) from None
    return onnxruntime


def _require_pixels(session: Any, path: Path, size: int) -> tuple[str, int]:
    """The input's name, and how many photos it is given at once."""
    inputs = session.get_inputs()
    shape = list(inputs[0].shape)[1:] if inputs else []
    if len(inputs) != 1 or inputs[0].type != "tensor(uint8)" or shape != [size, size, 3]:
        told = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        raise ModelError(f"one input of uint8 photos (N, {size}, {size}, 3)", f"{told} in '{path}'", "export it again")
    return str(inputs[0].name), 1 if inputs[0].shape[0] == 1 else PHOTOS_AT_ONCE
