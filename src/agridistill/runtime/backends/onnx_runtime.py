"""ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agridistill.manifest import ModelManifest
from agridistill.preprocess import Pixels
from agridistill.runtime.backends import cannot_run, missing_engine, require_input

# More at once is no faster on a CPU, and each takes memory for its activations: 3 MB at 128 px, 9 MB at 224 px.
PHOTOS_AT_ONCE = 4


class OnnxRuntimeBackend:
    """Runs an exported `.onnx` file, whose sha256 has been checked; 0 threads takes one for each core.

    Raises:
        MissingExtraError: the engine is not installed, or does not load on this machine.
        ModelError: the engine cannot run the file.
    """

    def __init__(self, path: Path, manifest: ModelManifest, *, threads: int = 0) -> None:
        self.manifest = manifest
        try:
            import onnxruntime
        except ImportError as error:  # also of a library that needs a newer system
            remedy = "pip install onnxruntime, on 64-bit Linux with glibc, macOS or Windows"
            raise missing_engine("ONNX Runtime, to run an .onnx file", error, remedy) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Errors are raised; the rest of the log is for the engine's developers.
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the engine's exceptions share no public base
            raise cannot_run("ONNX Runtime", path, error) from None
        inputs, size = self._session.get_inputs(), manifest.preprocessing.image_size
        fits = [(each.type, list(each.shape)[1:]) for each in inputs] == [("tensor(uint8)", [size, size, 3])]
        require_input(path, [f"{each.name} {each.type} {each.shape}" for each in inputs], manifest, fits=fits)
        self._input, self._at_once = str(inputs[0].name), 1 if inputs[0].shape[0] == 1 else PHOTOS_AT_ONCE

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Logits `(N, K)` float32 of photos `(N, S, S, 3)` uint8."""
        parts = [np.empty((0, len(self.manifest.classes)), np.float32)] if not len(pixels) else []
        for start in range(0, len(pixels), self._at_once):
            parts += self._session.run(None, {self._input: pixels[start : start + self._at_once]})
        return np.concatenate(parts).astype(np.float32, copy=False)
